"""Regions: tissue outlines, lattices of points, squares of shapes, and the polygons of cells."""

from stpred.regions.lattices import Lattice, lay_grid, tissue_points
from stpred.regions.shapes import check_shapes, put_shapes
from stpred.regions.squares import cut, squares_in
from stpred.regions.tissue import TissueMask, on_tissue, outline_tissue, tissue_colour

__all__ = [
    "Lattice",
    "TissueMask",
    "check_shapes",
    "cut",
    "lay_grid",
    "on_tissue",
    "outline_tissue",
    "put_shapes",
    "squares_in",
    "tissue_colour",
    "tissue_points",
]

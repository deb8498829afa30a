"""Which cells lie in which locations of a slide."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import affine_to, shapes_in
from stpred._core.geometry import geometries_um, placed
from stpred.data._regions import CellsInside, Region

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MAX_CELL_UM2 = 600.0
"""Shapes that differ in size are cells if their median area is below this: a circle of 28 um."""


def with_cells(region: Region, *, cells_key: str | None = None, prefer: str | None = None) -> Region:
    """Return a region with the cells in each location; locations without any are skipped, and listed.

    Parameters
    ----------
    region
        Spots, bins, a grid, annotations, or cells.
    cells_key
        Region of the cells; the region itself says that its locations are the cells. None: the region itself if it
        looks like cells, else `prefer` if it is there, else ``nuclei``, else ``cells``.
    prefer
        Region of cells that a model was trained through.
    """
    found = cells_region(region, cells_key=cells_key, prefer=prefer)
    if found == region.shapes_key:
        n = len(region.coords_um)
        own = replace(region, counts=None, totals=None, var=None)
        return replace(region, cells=CellsInside(own, links.Links(np.arange(n + 1), np.arange(n))))
    cells = region.beside(found)
    inside = inside_of(region, cells.coords_um)
    kept = inside.counts() > 0
    if not kept.any():
        raise InputError(
            f"None of the {len(kept)} locations of {region.shapes_key!r} in slide {region.slide!r} holds a cell of "
            f"{found!r} ({len(cells.coords_um)} cells)."
        )
    without = tuple(region.instances[~kept].tolist())
    if without:
        logger.warning(
            "%d of %d %r in slide %r hold no cell of %r and are skipped: %s.",
            len(without), len(kept), region.shapes_key, region.slide, found, listing(without),
        )  # fmt: skip
    some = replace(region, cells=CellsInside(cells, inside)).take(np.flatnonzero(kept))
    return replace(some, without_cells=without)


def cells_region(region: Region, *, cells_key: str | None, prefer: str | None) -> str:
    """Return the name of the region of cells inside a region."""
    there = shapes_in(region.sdata, region.coordinate_system)
    if cells_key is not None:
        return key_in(cells_key, there, what="shapes element", name="cells_key")
    if looks_like_cells(region.sdata, region.shapes_key, coordinate_system=region.coordinate_system):
        return region.shapes_key
    usual = [keys.in_frame(k, region.coordinate_system) for k in (keys.NUCLEI, keys.CELLS)]
    for name in (prefer, *usual):
        if name is not None and name in there:
            return name
    raise InputError(
        f"Slide {region.slide!r} has no cells to see {region.shapes_key!r} through; find them with "
        f"stpred.pp.nuclei(sdata), bring your own with stpred.pp.add_cells, or name their shapes with `cells_key` "
        f"(there are {listing(there)})."
    )


def looks_like_cells(sdata: SpatialData, shapes_key: str, *, coordinate_system: str = keys.UM) -> bool:
    """Whether shapes are cells by their geometry: small, and of different sizes, other than spots, bins and grids."""
    frame = sdata.shapes[shapes_key]
    area = np.pi * frame["radius"].to_numpy() ** 2 if "radius" in frame else frame.geometry.area.to_numpy()
    affine = affine_to(frame, coordinate_system)
    if affine is None:
        return False
    area = area * abs(np.linalg.det(affine[:2, :2]))
    return bool(np.median(area) < MAX_CELL_UM2 and area.std() > 0.02 * area.mean())


def inside_of(region: Region, points_um: NDArray[np.float64]) -> links.Links:
    """Link each location to the points that it holds, nearest first; a point in two goes to the nearest."""
    from shapely import STRtree
    from shapely import points as as_points

    where = {"coordinate_system": region.coordinate_system}
    frame = region.sdata.shapes[region.shapes_key]
    rows = frame.index.get_indexer(region.instances)
    if "radius" in frame:
        affine = placed(region.sdata, region.shapes_key, **where)
        radius = frame["radius"].to_numpy()[rows] * float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
        return links.within(region.coords_um, radius, points_um, nearest_only=True)
    shapes, _ = geometries_um(region.sdata, region.shapes_key, rows=rows, **where)
    point, location = STRtree(shapes).query(as_points(points_um), predicate="intersects")
    distance = np.linalg.norm(points_um[point] - region.coords_um[location], axis=1)
    order = np.lexsort((location, distance, point))
    nearest = order[np.unique(point[order], return_index=True)[1]]
    point, location, distance = point[nearest], location[nearest], distance[nearest]
    order = np.lexsort((point, distance, location))
    counts = np.bincount(location, minlength=len(rows))
    return links.Links(np.concatenate([[0], np.cumsum(counts)]), point[order])

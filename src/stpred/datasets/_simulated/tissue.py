"""The synthetic tissue: an H&E image together with everything that is true of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive
from stpred.datasets._simulated.expression import biology, draw_counts, express
from stpred.datasets._simulated.layout import Layout, lay_out
from stpred.datasets._simulated.render import render

if TYPE_CHECKING:
    import pandas as pd

SMALLEST_UM = 300.0
CELL_GROWTH_UM = 4.0
"""How far a cell reaches beyond its nucleus where no neighbour stops it."""


@dataclass(frozen=True)
class Tissue:
    """A synthetic H&E slide with cell-level truth, as made by :func:`make_tissue`.

    Parameters
    ----------
    image
        (rows, columns, 3) uint8 RGB; pixel (i, j) covers x from ``j * mpp`` to ``(j + 1) * mpp``, likewise y.
    mpp
        Micrometres per pixel.
    size_um
        Width and height.
    cells
        Frame indexed by cell id: ``x_um``, ``y_um``, ``type``, ``region``, and of the nucleus ``area_um2``,
        ``eccentricity``, ``angle`` (radians, long axis against x) and ``chromatin`` (coarseness of its texture, 0..1).
    nuclei, outlines
        (n_cells,) shapely polygons of nuclei and of whole cells, in micrometres.
    genes
        Frame indexed by symbol: ``gene_id``, ``marks``, ``driver``.
    expected
        (n_cells, n_genes) float32 noiseless expectation of the counts.
    counts
        (n_cells, n_genes) int32 counts.
    library
        The slide's library factor, already in `expected`.
    seed, donor
        What it was made from.
    """

    image: NDArray[np.uint8]
    mpp: float
    size_um: tuple[float, float]
    cells: pd.DataFrame
    nuclei: NDArray[Any]
    outlines: NDArray[Any]
    genes: pd.DataFrame
    expected: NDArray[np.float32]
    counts: NDArray[np.int32]
    library: float
    seed: int
    donor: int

    @property
    def xy_um(self) -> NDArray[np.float64]:
        """(n_cells, 2) centres of the nuclei in micrometres."""
        return self.cells[["x_um", "y_um"]].to_numpy()

    def rng(self, purpose: int) -> np.random.Generator:
        """Return a generator of random numbers that depends on seed, donor and purpose only."""
        return np.random.default_rng([self.seed, self.donor, purpose])


def make_tissue(
    *,
    size_um: tuple[float, float] = (1000.0, 1000.0),
    mpp: float = 0.5,
    seed: int = 0,
    donor: int = 0,
    n_genes: int = 200,
    depth: float = 250.0,
    region_scale_um: float = 60.0,
) -> Tissue:
    """Make a synthetic H&E slide whose expression is known for every cell.

    Four kinds of tissue (tumour nests, stroma, lymphoid aggregates, glands) hold five cell types that differ in nuclear
    shape, texture and arrangement. Stains are levelled over a tile's width and then vary on their own, so mean colour
    tells next to nothing. Expression = type profile + own nuclear size and chromatin + neighbours within 50 um +
    variation within the type; counts are negative binomial. Every slide shares this biology; donors differ in stain,
    scanner, library size and layout.

    Parameters
    ----------
    size_um
        Width and height in micrometres, glass around the tissue included; at least 300.
    mpp
        Micrometres per pixel.
    seed, donor
        Whole numbers; the same ones give the same slide.
    n_genes
        Number of genes; fewer genes are the first of more.
    depth
        Mean number of counts per cell before the slide's library factor.
    region_scale_um
        Smoothing of the fields that lay out the regions; regions are about four times as wide.

    Returns
    -------
    Tissue
        Image, cells, polygons, genes, expectation and counts.

    Raises
    ------
    stpred._core.checks.InputError
        If a size is too small or a number is not positive.

    Examples
    --------
    >>> import stpred as st
    >>> tissue = st.datasets.make_tissue(size_um=(400, 400), n_genes=20)
    >>> tissue.image.shape
    (800, 800, 3)
    """
    width, height = (positive(s, name="size_um", unit="micrometres") for s in size_um)
    if min(width, height) < SMALLEST_UM:
        raise InputError(f"`size_um` must be at least {SMALLEST_UM:g} by {SMALLEST_UM:g} um, got {size_um!r}.")
    mpp, depth = positive(mpp, name="mpp", unit="um per pixel"), positive(depth, name="depth")
    if int(n_genes) != n_genes or n_genes < 1:
        raise InputError(f"`n_genes` must be a positive whole number, got {n_genes!r}.")
    place, ink, scanner, states, noise = (np.random.default_rng([seed, donor, k]) for k in range(5))
    layout = lay_out((width, height), rng=place, region_scale_um=positive(region_scale_um, name="region_scale_um"))
    facts = biology(int(n_genes))
    library = float(np.exp(states.normal(0, 0.35)))
    expected = express(layout.cells, facts, depth=depth * library, rng=states)
    nuclei, outlines = _polygons(layout)
    return Tissue(
        image=render(layout, mpp=mpp, rng=ink, scanner=scanner),
        mpp=mpp,
        size_um=(width, height),
        cells=layout.cells,
        nuclei=nuclei,
        outlines=outlines,
        genes=facts.genes,
        expected=expected,
        counts=draw_counts(expected, rng=noise),
        library=library,
        seed=seed,
        donor=donor,
    )


def _polygons(layout: Layout) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the nuclei, and the cells: what is within reach of a nucleus and nearer to it than to any other."""
    import shapely

    xy = layout.cells[["x_um", "y_um"]].to_numpy()
    nuclei = shapely.polygons(layout.nuclei.outline_um() + xy[:, None, :])
    own = _voronoi(xy)
    cells = shapely.intersection(shapely.buffer(nuclei, CELL_GROWTH_UM, quad_segs=2), own)
    cut = np.flatnonzero(~shapely.contains(own, nuclei))
    cells[cut] = shapely.union(cells[cut], nuclei[cut])
    for i in np.flatnonzero(shapely.get_type_id(cells) != shapely.GeometryType.POLYGON):
        parts = shapely.get_parts(cells[i])
        cells[i] = parts[np.argmax(shapely.area(parts))]
    return nuclei, cells


def _voronoi(xy: NDArray[np.float64]) -> NDArray[Any]:
    """Return the Voronoi cell of every point; far helper points close the cells at the border."""
    import shapely
    from scipy.spatial import Voronoi

    low, high = xy.min(axis=0), xy.max(axis=0)
    far = (high - low).max() * 3 + 100
    middle = (low + high) / 2
    helpers = middle + far * np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [1, 1], [-1, -1], [1, -1], [-1, 1]])
    diagram = Voronoi(np.vstack([xy, helpers]))
    regions = [diagram.regions[r] for r in diagram.point_region[: len(xy)]]
    lengths = np.array([len(r) for r in regions])
    corners = diagram.vertices[np.concatenate(regions)]
    rings = shapely.linearrings(corners, indices=np.repeat(np.arange(len(regions)), lengths))
    return shapely.polygons(rings)

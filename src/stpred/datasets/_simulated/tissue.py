"""The synthetic tissue: an H&E image together with everything that is true of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive, whole
from stpred.datasets._simulated.expression import biology, draw_counts, express
from stpred.datasets._simulated.layout import Layout, lay_out
from stpred.datasets._simulated.render import render

if TYPE_CHECKING:
    import pandas as pd

MIN_UM = 300.0
CELL_GROWTH_UM = 4.0
"""How far a cell reaches beyond its nucleus where no neighbour stops it."""


@dataclass(frozen=True)
class TissueSettings:
    """What :func:`make_tissue` makes a slide from.

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

    Raises
    ------
    InputError
        If a size is too small or a number is not positive.

    Examples
    --------
    >>> import stpred as st
    >>> st.datasets.TissueSettings(donor=5).mpp
    0.5
    """

    size_um: tuple[float, float] = (1000.0, 1000.0)
    mpp: float = 0.5
    seed: int = 0
    donor: int = 0
    n_genes: int = 200
    depth: float = 250.0
    region_scale_um: float = 60.0

    def __post_init__(self) -> None:
        size_um = tuple(positive(s, name="size_um", unit="micrometres") for s in self.size_um)
        if min(size_um) < MIN_UM:
            raise InputError(f"`size_um` must be at least {MIN_UM:g} by {MIN_UM:g} um, got {self.size_um!r}.")
        checked = {
            "size_um": size_um,
            "mpp": positive(self.mpp, name="mpp", unit="um per pixel"),
            "n_genes": whole(self.n_genes, name="n_genes"),
            "depth": positive(self.depth, name="depth"),
            "region_scale_um": positive(self.region_scale_um, name="region_scale_um"),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)


class TissueKeywords(TypedDict, total=False):
    """Fields of :class:`TissueSettings` as keywords of the functions that make a slide.

    Examples
    --------
    >>> import stpred as st
    >>> keywords = st.datasets.TissueKeywords(size_um=(300, 300), donor=2)
    >>> st.datasets.TissueSettings(**keywords).donor
    2
    """

    size_um: tuple[float, float]
    mpp: float
    seed: int
    donor: int
    n_genes: int
    depth: float
    region_scale_um: float


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

    Examples
    --------
    >>> import stpred as st
    >>> tissue = st.datasets.make_tissue(st.datasets.TissueSettings(size_um=(300, 300), n_genes=20))
    >>> tissue.image.shape, tissue.counts.shape == (len(tissue.cells), 20)
    ((600, 600, 3), True)
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


def make_tissue(settings: TissueSettings | None = None, **changes: Unpack[TissueKeywords]) -> Tissue:
    """Make a synthetic H&E slide whose expression is known for every cell.

    Four kinds of tissue (tumour nests, stroma, lymphoid aggregates, glands) hold five cell types that differ in nuclear
    shape, texture and arrangement. Stains are levelled over a tile's width and then vary on their own, so mean colour
    tells next to nothing. Expression = type profile + own nuclear size and chromatin + neighbours within 50 um +
    variation within the type; counts are negative binomial. Every slide shares this biology; donors differ in stain,
    scanner, library size and layout.

    Parameters
    ----------
    settings
        What to make it from; None: the defaults of :class:`TissueSettings`.
    **changes
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    Tissue
        Image, cells, polygons, genes, expectation and counts.

    Raises
    ------
    InputError
        If a size is too small or a number is not positive.

    Examples
    --------
    >>> import stpred as st
    >>> tissue = st.datasets.make_tissue(size_um=(400, 400), n_genes=20)
    >>> tissue.image.shape
    (800, 800, 3)
    """
    settings = replace(settings or TissueSettings(), **changes)
    streams = (np.random.default_rng([settings.seed, settings.donor, k]) for k in range(5))
    place, ink, scanner, states, noise = streams
    layout = lay_out(settings.size_um, rng=place, region_scale_um=settings.region_scale_um)
    shared = biology(settings.n_genes)
    library = float(np.exp(states.normal(0, 0.35)))
    expected = express(layout.cells, shared, depth=settings.depth * library, rng=states)
    nuclei, outlines = _polygons(layout)
    return Tissue(
        image=render(layout, mpp=settings.mpp, rng=ink, scanner=scanner),
        mpp=settings.mpp,
        size_um=settings.size_um,
        cells=layout.cells,
        nuclei=nuclei,
        outlines=outlines,
        genes=shared.genes,
        expected=expected,
        counts=draw_counts(expected, rng=noise),
        library=library,
        seed=settings.seed,
        donor=settings.donor,
    )


def get_tissue(tissue: Tissue | TissueSettings | None, default: TissueSettings, changes: TissueKeywords) -> Tissue:
    """Return `tissue` itself, or make it from its settings (or `default`) with `changes`."""
    if isinstance(tissue, Tissue):
        if changes:
            raise InputError(f"`tissue` is made already; leave out its settings {sorted(changes)}.")
        return tissue
    return make_tissue(tissue or default, **changes)


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

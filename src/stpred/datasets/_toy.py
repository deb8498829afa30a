"""Synthetic slides in memory, ready to train on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, whole
from stpred._core.tables import build_table
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, get_tissue
from stpred.datasets._simulated.truth import EXPECTED
from stpred.datasets._spots import Spots, visium_spots

if TYPE_CHECKING:
    from spatialdata import SpatialData

VENDOR = "toy"
"""Coordinate system of full-resolution pixels, as a vendor's reader would leave it."""
SHUFFLE = 20


def toy(
    *,
    shuffled: bool = False,
    bin_um: int | None = None,
    tissue: Tissue | TissueSettings | None = None,
    **settings: Unpack[TissueKeywords],
) -> SpatialData:
    """Make a synthetic slide with spots and cells whose expression is known.

    Parameters
    ----------
    shuffled
        Give each spot the expression of another, and each cell (and bin) that of another: nothing is left to predict.
    bin_um
        Edge of square bins in micrometres, a divisor of 16, that are added as a Visium HD measurement of the same
        tissue: ``bins_008um`` (polygons) and ``bins_008um_counts``.
    tissue
        A slide to use, or the settings to make one from; None: the defaults of :class:`TissueSettings`.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    spatialdata.SpatialData
        Image ``he`` (multiscale), shapes ``spots`` (circles of 55 um at a pitch of 100 um, those that hold a cell) and
        ``cells`` (polygons), tables ``spots_counts`` and ``cells_counts`` (int32 counts in sparse ``X``, the noiseless
        expectation as float32 in ``layers["expected"]``; of cells also ``type``, ``tissue_region`` and nuclear
        morphology in ``obs``), with `bin_um` also bins; all placed in ``"um"`` and in ``"toy"`` (pixels).

    Raises
    ------
    InputError
        If a size is too small or a number is not positive.

    Examples
    --------
    >>> import stpred as st
    >>> sdata = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> sorted(sdata.tables)
    ['cells_counts', 'spots_counts']
    """
    from spatialdata import SpatialData

    tissue = get_tissue(tissue, TissueSettings(), settings)
    rng = tissue.rng(SHUFFLE) if shuffled else None
    regions = {keys.SPOTS: _spots(tissue, visium_spots(tissue), rng), keys.CELLS: _cells(tissue, rng)}
    if bin_um is not None:
        if not isinstance(bin_um, int) or bin_um < 1 or 16 % bin_um:
            raise InputError(f"`bin_um` must be a whole number of micrometres that divides 16, got {bin_um!r}.")
        regions[keys.bins(bin_um)] = _bins(tissue, bin_um, rng)
    return SpatialData(
        images={keys.IMAGE: _image(tissue)},
        shapes={key: shapes for key, (shapes, _) in regions.items()},
        tables={keys.counts(key): table for key, (_, table) in regions.items()},
    )


def toy_cohort(
    n_slides: int = 3,
    *,
    shuffled: bool = False,
    bin_um: int | None = None,
    tissue: TissueSettings | None = None,
    **settings: Unpack[TissueKeywords],
) -> dict[str, SpatialData]:
    """Make several synthetic slides, one donor each: the same biology, another stain, scanner, library size and layout.

    Parameters
    ----------
    n_slides
        Number of slides.
    shuffled, bin_um
        As in :func:`toy`.
    tissue
        Settings of the first slide; the others have the donors that follow. None: the defaults of
        :class:`TissueSettings`.
    **settings
        Fields of :class:`TissueSettings` to replace.

    Returns
    -------
    dict
        ``{"donor0": sdata, "donor1": sdata, ...}``.

    Raises
    ------
    InputError
        If `n_slides` is not a positive whole number, or as in :func:`toy`.

    Examples
    --------
    >>> import stpred as st
    >>> list(st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20))
    ['donor0', 'donor1']
    """
    n_slides, first = whole(n_slides, name="n_slides"), replace(tissue or TissueSettings(), **settings)
    donors = range(first.donor, first.donor + n_slides)
    return {f"donor{d}": toy(tissue=replace(first, donor=d), shuffled=shuffled, bin_um=bin_um) for d in donors}


def _image(tissue: Tissue) -> Any:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity, Scale

    smaller = max(1, int(np.log2(max(tissue.image.shape) / 512)))
    return Image2DModel.parse(
        tissue.image,
        dims=("y", "x", "c"),
        c_coords=["r", "g", "b"],
        scale_factors=[2] * smaller,
        chunks=(3, 512, 512),
        transformations={keys.UM: Scale([tissue.mpp, tissue.mpp], axes=("x", "y")), VENDOR: Identity()},
    )


def _placed(tissue: Tissue) -> dict[str, Any]:
    from spatialdata.transformations import Identity, Scale

    return {keys.UM: Identity(), VENDOR: Scale([1 / tissue.mpp, 1 / tissue.mpp], axes=("x", "y"))}


def _spots(tissue: Tissue, spots: Spots, rng: np.random.Generator | None) -> tuple[Any, Any]:
    from spatialdata.models import ShapesModel

    kept = np.flatnonzero(spots.positions["n_cells"].to_numpy() > 0)
    frame = spots.positions.iloc[kept]
    xy = frame[["x_um", "y_um"]].to_numpy()
    circles = ShapesModel.parse(
        xy, geometry=0, radius=spots.diameter_um / 2, index=frame.index, transformations=_placed(tissue)
    )
    rows = kept if rng is None else rng.permutation(kept)
    obs = {k: frame[k].to_numpy() for k in ("array_row", "array_col", "n_cells")}
    return circles, _table(tissue, keys.SPOTS, spots.counts[rows], spots.expected[rows], frame.index, xy, obs)


def _cells(tissue: Tissue, rng: np.random.Generator | None) -> tuple[Any, Any]:
    import geopandas as gpd
    from spatialdata.models import ShapesModel

    frame = gpd.GeoDataFrame(geometry=tissue.outlines, index=tissue.cells.index)
    rows = np.arange(len(frame)) if rng is None else rng.permutation(len(frame))
    obs = {k: tissue.cells[k].to_numpy() for k in ("area_um2", "eccentricity", "chromatin")}
    table = _table(
        tissue, keys.CELLS, tissue.counts[rows], tissue.expected[rows], tissue.cells.index, tissue.xy_um, obs
    )
    table.obs["type"], table.obs["tissue_region"] = (pd.Categorical(tissue.cells[k]) for k in ("type", "region"))
    return ShapesModel.parse(frame, transformations=_placed(tissue)), table


def _bins(tissue: Tissue, size_um: int, rng: np.random.Generator | None) -> tuple[Any, Any]:
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    from stpred.datasets._bins import cell_labels, make_bins, place_molecules

    labels = cell_labels(tissue)
    bins = make_bins(tissue, labels, place_molecules(tissue, labels), size_um=size_um)
    kept = np.flatnonzero(bins.positions["in_tissue"].to_numpy())
    frame = bins.positions.iloc[kept]
    xy = frame[["x_um", "y_um"]].to_numpy()
    squares = shapely.box(*(xy - size_um / 2).T, *(xy + size_um / 2).T)
    rows = kept if rng is None else rng.permutation(kept)
    expected = np.asarray(bins.shares[rows] @ tissue.expected, dtype=np.float32)
    obs = {k: frame[k].to_numpy() for k in ("array_row", "array_col")}
    table = _table(tissue, keys.bins(size_um), bins.counts[rows], expected, frame.index, xy, obs)
    polygons = gpd.GeoDataFrame(geometry=squares, index=frame.index)
    return ShapesModel.parse(polygons, transformations=_placed(tissue)), table


def _table(
    tissue: Tissue,
    shapes_key: str,
    counts: Any,
    expected: NDArray[np.float32],
    instances: pd.Index,
    xy_um: NDArray[np.float64],
    obs: dict[str, NDArray],
) -> Any:
    from scipy.sparse import csr_matrix

    return build_table(
        csr_matrix(counts),
        shapes_key=shapes_key,
        instances=instances,
        var=tissue.genes.copy(),
        spatial_um=xy_um,
        obs=obs,
        layers={EXPECTED: expected},
    )

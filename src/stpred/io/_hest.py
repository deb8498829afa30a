"""HEST-style data: an AnnData with pixel positions, and an image."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, element_name, listing, positive, warn
from stpred._core.files import readable, reason
from stpred._core.settings import settings
from stpred.calibration import (
    HEX_STEPS,
    VISIUM_PITCH_UM,
    Evidence,
    check_inside,
    grid_steps,
    is_hexagonal,
    lattice_pitch_px,
    nearest_pitch,
    scaling,
    settle_mpp,
)
from stpred.io._assemble import circles, counts_table, slide
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_image
from stpred.io._images.same_image import check_on_tissue, require_copy
from stpred.io._images.swap import refuse_swapped
from stpred.io._tables.columns import MAX_ARRAY, truths
from stpred.io._tables.expression import choose_counts, symbol_column
from stpred.io._tables.matrix import check_h5ad

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_OBS_POSITIONS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("x_pixel", "y_pixel"),
    ("pixel_x", "pixel_y"),
)
_MPP_FIELDS = (
    "pixel_size_um_estimated",
    "pixel_size_um_embedded",
    "pixel_size_um",
    "pixel_size",
    "mpp",
    "microns_per_pixel",
)
ROUNDING = 0.01
"""Relative difference of two pixel sizes that are the same number, rounded."""
_MIN_EMBEDDED_PX = 32
_SPOT_UM, _CELL_UM = 55.0, 10.0


def hest(
    adata: AnnData | str | Path,
    image: str | Path,
    *,
    scene: int | str | None = None,
    mpp: float | None = None,
    pitch_um: float | None = None,
    diameter_um: float | None = None,
    shapes_key: str = keys.SPOTS,
    layer: str | None = None,
    swap_xy: bool | None = None,
) -> SpatialData:
    """Read HEST-style data: raw counts with positions in pixels of an image.

    Parameters
    ----------
    adata
        AnnData (or its h5ad file) of raw counts, with positions in ``obsm["spatial"]`` (x, y) or in ``obs`` as
        ``pxl_col_in_fullres``/``pxl_row_in_fullres``, ``x_pixel``/``y_pixel`` or ``pixel_x``/``pixel_y``. Observations
        with ``obs["in_tissue"]`` = 0 are left out. Where genes are named by Ensembl ids, a column of symbols in ``var``
        (such as ``feature_name`` or ``gene_symbols``) names them.
    image
        The image that the positions refer to, at full resolution. It must show what an image in ``uns["spatial"]``
        shows, lying as it does, or tissue where the positions are.
    scene
        Number or name of the picture, of an image file that holds several; see :func:`stpred.io.wsi`.
    mpp
        Micrometres per pixel. None takes a pixel size stated in ``uns`` (such as ``pixel_size_um_estimated``), the spot
        pitch, or the image's own header, in this order.
    pitch_um
        Distance between neighbouring spots, for arrays other than Visium; None takes 100 um where ``array_row`` and
        ``array_col`` are those of Visium.
    diameter_um
        Diameter of the circles; None: 55 um for spots, 10 um for other regions.
    shapes_key
        Name of the region: ``"spots"``, or ``"cells"`` for single cells.
    layer
        Layer with the raw counts, or ``"raw"`` for ``adata.raw``. None takes ``X``, or where that holds no raw counts
        the only layer (or ``.raw``) that does, with a warning.
    swap_xy
        Exchange x and y of the positions. None checks whether they look exchanged (outside the image as they are,
        or off the tissue; this looks at up to 128 places of the image) and refuses them if so; False keeps them.

    Returns
    -------
    Object with the image ``he``, the circles ``spots`` (index = names of the observations) and the table
    ``spots_counts``, placed in ``"um"`` and ``"global"`` (pixels).

    Raises
    ------
    InputError
        If there are no positions or no resolution, positions look swapped or lie outside, or there are no raw counts
        or several to choose from (they are listed).

    Examples
    --------
    >>> import stpred as st
    >>> folder = st.datasets.toy_hest("hest", size_um=(300, 300), n_genes=20)
    >>> sdata = st.io.hest(folder / "toy.h5ad", folder / "toy.tif")
    >>> sdata.tables["spots_counts"].n_vars
    20
    """
    element_name(shapes_key, name="shapes_key")
    counts = _load(adata)
    if counts.n_obs == 0:
        raise InputError(f"The AnnData has no observation (shape {counts.shape}).")
    uns = counts.uns
    counts = _under_tissue(choose_counts(counts, layer=layer, what=shapes_key))
    if (symbols := symbol_column(counts.var)) is not None:
        logger.info("Genes are named by var[%r].", symbols)
    xy = _positions(counts)
    if swap_xy:
        xy = xy[:, ::-1].copy()
    pixels = open_pixels(image, scene=scene)
    copy = _embedded(uns)
    if copy is not None:
        require_copy(pixels, copy[1], name=copy[0], advice="pass the image that the positions refer to, as it was")
    if swap_xy is None:
        refuse_swapped(xy, pixels, what=shapes_key)
    evidence = [*_stated(uns), *_pitch(counts, xy, pitch_um), *pixels.evidence]
    resolution = settle_mpp(evidence, user_mpp=mpp, what=f"the image {pixels.path.name!r}")
    diameter = diameter_um if diameter_um is not None else _SPOT_UM if shapes_key == keys.SPOTS else _CELL_UM
    radius = positive(diameter, name="diameter_um", unit="um") / 2 / resolution
    check_inside(
        xy,
        width=pixels.width,
        height=pixels.height,
        mpp=resolution,
        what=shapes_key,
        hint="is the image the full-resolution one that the positions refer to?",
        radius_px=radius,
    )
    if copy is None and swap_xy is not False:
        check_on_tissue(xy, pixels, mpp=resolution, what=shapes_key, swap_hint=True)
    affines = {"global": np.eye(3), keys.UM: scaling(resolution)}
    index = counts.obs_names.astype(str)
    if index.has_duplicates:
        raise InputError(
            f"The names of the observations are not unique: {listing(index[index.duplicated()].unique())}."
        )
    table = counts_table(counts, shapes_key=shapes_key, instances=index, spatial_um=xy * resolution, symbols=symbols)
    return slide(
        images={keys.IMAGE: to_image(pixels, affines)},
        shapes={shapes_key: circles(xy, radius=radius, index=index, affines=affines)},
        tables={keys.counts(shapes_key): table},
    )


def _embedded(uns: Mapping[str, Any]) -> tuple[str, np.ndarray] | None:
    """Return name and (h, w, 3) uint8 pixels of the small image that an AnnData carries with its positions, if any."""
    spatial = uns.get("spatial")
    for library, entry in spatial.items() if isinstance(spatial, Mapping) else ():
        images = entry.get("images") if isinstance(entry, Mapping) else None
        for kind, image in images.items() if isinstance(images, Mapping) else ():
            pixels = np.asarray(image)
            if pixels.ndim != 3 or pixels.shape[2] not in (3, 4) or min(pixels.shape[:2]) < _MIN_EMBEDDED_PX:
                continue
            if pixels.dtype.kind not in "uif":
                continue
            if pixels.dtype.kind == "f":  # scanpy keeps images as 0 to 1
                pixels = np.nan_to_num(pixels) * (255.0 if not (pixels > 1.0).any() else 1.0)
            name = f"uns['spatial'][{str(library)!r}]['images'][{str(kind)!r}]"
            return name, np.clip(np.rint(pixels[:, :, :3]), 0, 255).astype(np.uint8)
    return None


def _load(source: AnnData | str | Path) -> AnnData:
    import anndata

    if isinstance(source, anndata.AnnData):
        return source.to_memory() if source.isbacked else source
    if not isinstance(source, (str, Path)):
        raise InputError(f"`adata` must be an AnnData or the path of its h5ad file, got {type(source).__name__}.")
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"There is no AnnData file {str(path)!r}.")
    check_h5ad(path)
    with readable(path, what="AnnData file"):
        return anndata.read_h5ad(path)


def _under_tissue(counts: AnnData) -> AnnData:
    """Return the observations under tissue; those on glass (``in_tissue`` = 0) are no data of it."""
    if "in_tissue" not in counts.obs:
        return counts
    under = truths(counts.obs["in_tissue"], what="observations")
    if not under.any():
        raise InputError("No observation of the AnnData is under tissue (obs['in_tissue'] = 1).")
    if under.all():
        return counts
    logger.info("%d of %d observations lie beside the tissue (in_tissue = 0); left out.", (~under).sum(), len(under))
    return counts[under].copy()


def _positions(counts: AnnData) -> np.ndarray:
    if keys.SPATIAL in counts.obsm:
        xy = _plane(counts.obsm[keys.SPATIAL])
    else:
        named = next((pair for pair in _OBS_POSITIONS if set(pair) <= set(counts.obs)), None)
        if named is None:
            raise InputError(
                f"The AnnData has no positions: neither obsm['spatial'] nor one of {listing(_OBS_POSITIONS)} in obs; "
                f"obsm holds {listing(counts.obsm)}, obs {listing(counts.obs)}."
            )
        xy = _floats(counts.obs[list(named)], what=f"obs[{list(named)}]")
    odd = ~np.isfinite(xy).all(axis=1)
    if odd.any():
        raise InputError(f"{int(odd.sum())} positions are NaN or infinite: those of {listing(counts.obs_names[odd])}.")
    return xy


def _plane(values: Any) -> np.ndarray:
    """Return x and y of ``obsm["spatial"]``, of a frame by their names where it has them."""
    if hasattr(values, "columns"):
        pairs = (("x", "y"), *_OBS_POSITIONS)
        named = next((pair for pair in pairs if set(pair) <= set(values.columns)), None)
        values = values if named is None else values[list(named)]
    xy = _floats(values.toarray() if hasattr(values, "toarray") else values, what="obsm['spatial']")
    if xy.ndim != 2 or xy.shape[1] < 2:
        raise InputError(f"obsm['spatial'] must hold x and y, got shape {xy.shape}.")
    return np.ascontiguousarray(xy[:, :2])


def _floats(values: Any, *, what: str) -> np.ndarray:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"The positions in {what} are not numbers ({reason(error)}).") from error


def _stated(uns: Mapping[str, Any]) -> list[Evidence]:
    """Return the pixel sizes that ``uns`` states, at any depth, the field of the best quality first.

    Where several differ by more than rounding, but less than what :func:`settle_mpp` warns of, a warning is given.
    """
    found = [(field, path, _number(value)) for path, field, value in _walk(uns) if field in _MPP_FIELDS]
    known = [Evidence(v, f"uns field {path!r}") for field in _MPP_FIELDS for f, path, v in found if f == field and v]
    sizes = [e.mpp for e in known if np.isfinite(e.mpp) and e.mpp > 0]
    if sizes and ROUNDING < max(sizes) / min(sizes) - 1 <= settings.mpp_tolerance:
        stated = ", ".join(f"{e.mpp:.5g} ({e.source})" for e in known)
        warn(f"The AnnData states several sizes of a pixel in um: {stated}; the first is the most trusted.")
    return known


def _number(value: Any) -> float | None:
    try:
        return float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return None


def _walk(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str, Any]]:
    """Go through a tree and give the path, the name and the value of each leaf."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _walk(value, f"{above}{name}/")
        else:
            yield f"{above}{name}", str(name), value


def _pitch(counts: AnnData, xy: np.ndarray, pitch_um: float | None) -> list[Evidence]:
    array = _array(counts)
    if array is not None:
        placed = np.isfinite(array).all(axis=1)
        array, xy = array[placed], xy[placed]
        if pitch_um is not None:
            pitch_px = lattice_pitch_px(array, xy, steps=HEX_STEPS if is_hexagonal(array, xy) else grid_steps(array))
        else:
            pitch_px = lattice_pitch_px(array, xy, steps=HEX_STEPS) if is_hexagonal(array, xy) else None
    else:
        pitch_px = nearest_pitch(xy) if pitch_um is not None else None
    if pitch_px is None:
        return []
    pitch = VISIUM_PITCH_UM if pitch_um is None else positive(pitch_um, name="pitch_um", unit="um")
    return [Evidence(pitch / pitch_px, f"the spot pitch of {pitch:g} um")]


def _array(counts: AnnData) -> np.ndarray | None:
    """Return the (n, 2) array coordinates, or None where there are none, or they are no numbers."""
    import pandas as pd

    columns = ["array_row", "array_col"]
    if not set(columns) <= set(counts.obs):
        return None
    try:
        frame = counts.obs[columns].astype(object).apply(pd.to_numeric, errors="coerce")
        array = frame.to_numpy(dtype=np.float64, copy=True)
    except (TypeError, ValueError) as error:
        logger.info("obs['array_row'] and obs['array_col'] are not used: %s.", error)
        return None
    array[~(np.abs(array) <= MAX_ARRAY)] = np.nan
    return array if np.isfinite(array).all(axis=1).any() else None

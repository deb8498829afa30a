"""Xenium: the output bundle of the instrument, with an H&E image of the same section where there is one."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, positive, warn
from stpred._core.elements import apply_affine, mpp_of
from stpred._core.expression.counts import unique_symbols
from stpred._core.files import read_json, readable, reason
from stpred._core.settings import settings
from stpred.calibration import (
    MAX_MPP,
    MIN_MPP,
    XENIUM_PIXEL_UM,
    Evidence,
    check_inside,
    place,
    scaling,
    settle_mpp,
)
from stpred.io._assemble import counts_table, first_existing, folder, slide
from stpred.io._images.open import TIFF_SUFFIXES, open_pixels
from stpred.io._images.pixels import Pixels, to_image
from stpred.io._images.same_image import check_on_tissue
from stpred.io._tables.damage import check_readable
from stpred.io._tables.xenium_cells import read_cells
from stpred.io._tables.xenium_zarr import check_labels, describe, label_images

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_CELL_RADIUS_UM = 8.0
"""Of a cell that the border of the H&E image cuts: its centre may lie so far off it."""

_SPECS = "experiment.xenium"
_ZARR = "cells.zarr.zip"
_COMPLETE = (_SPECS, _ZARR, "cells.parquet", "cell_feature_matrix.h5", "cell_boundaries.parquet")
MAX_ALIGNMENT_PX = 1e7
"""Entries of an alignment beyond this are no place on a slide: it is 2 m of morphology pixels."""
MAX_ALIGNMENT_BYTES = 100_000
_HE_PATTERNS = ("*he_image*", "*_he_*", "*h_and_e*", "*h&e*")
_HE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg")


def xenium(
    path: str | Path,
    *,
    he_image: str | Path | Literal[False] | None = None,
    he_alignment: str | Path | np.ndarray | None = None,
    scene: int | str | None = None,
    mpp: float | None = None,
    pixel_size_um: float | None = None,
    labels: bool = False,
    transcripts: bool = False,
    morphology: bool = False,
) -> SpatialData:
    """Read a Xenium bundle and the H&E image of the same section, placed in the transcripts' own micrometres.

    Parameters
    ----------
    path
        The bundle, of any version. Counts, polygons and ``cells`` are matched by the ``cell_id`` that each file states.
        Incomplete ones (without ``experiment.xenium`` or ``cells.zarr.zip``; csv instead of parquet) are read as far as
        they go.
    he_image
        The H&E image; None takes the only image of the bundle named like ``*he_image*``. Without any, or with False,
        the object has no ``he``.
    he_alignment
        Affine from H&E pixels to morphology pixels: an ``*imagealignment.csv`` as Xenium Explorer writes it, or a
        (3, 3) matrix. Rotation, flip and scale are kept. None takes the file of the bundle that belongs to the image.
    scene
        Number or name of the picture, of an image file that holds several; see :func:`stpred.io.wsi`.
    mpp
        Micrometres per H&E pixel, for an image without alignment whose corner is the origin of the transcripts. With an
        alignment it must agree with it.
    pixel_size_um
        Micrometres per morphology pixel; None takes ``experiment.xenium``, or 0.2125 where that is missing.
    labels, transcripts, morphology
        Also load the label images, the transcripts and the fluorescence images (complete bundles only).

    Returns
    -------
    Object with polygons ``cells`` (index = cell id) and ``nuclei``, the table ``cells_counts`` (annotates ``cells``;
    the vendor's label number stays in ``obs["cell_labels"]`` with ``labels=True``; ``obsm["spatial"]`` in micrometres)
    and the image ``he``, placed in ``"um"`` and in the vendor's ``"global"`` (morphology pixels).

    Raises
    ------
    InputError
        If the H&E image has no alignment, does not cover the cells, or contradicts its own resolution, or if polygons
        do not lie at their cells' stated centroids.
    MissingFileError
        If the bundle has no cells or no counts.

    Notes
    -----
    Cells without a polygon, with one that has no area, or with one that lies beyond its radius (and 2 um) from the
    stated centroid are left out, as are nuclei outside their cell; a warning counts them. Of a cell in several parts
    the largest is kept, and outlines that cross themselves are repaired.

    Examples
    --------
    >>> import stpred as st
    >>> bundle = st.datasets.toy_xenium("bundle", size_um=(300, 300), n_genes=20)
    >>> image, alignment = bundle / "toy_he_image.ome.tif", bundle / "toy_he_imagealignment.csv"
    >>> sdata = st.io.xenium(bundle, he_image=image, he_alignment=alignment)
    >>> list(sdata.tables), "he" in sdata.images
    (['cells_counts'], True)
    """
    bundle = folder(path, what="Xenium")
    pixel_size = _pixel_size(bundle, pixel_size_um)
    extra = {"labels": labels, "transcripts": transcripts, "morphology": morphology}
    missing = [name for name in _COMPLETE if not (bundle / name).exists()]
    if missing:
        if requested := [name for name, wanted in extra.items() if wanted]:
            raise InputError(
                f"{listing(requested)} can be loaded from complete bundles only; this one lacks {missing}."
            )
        logger.info("Incomplete bundle (no %s): cells and counts are read from what is there.", ", ".join(missing))
    counts, shapes = read_cells(bundle)
    archive = bundle / _ZARR
    if archive.exists():
        describe(archive, counts, labels=labels)
    elements = _elements(bundle, **extra)
    for element in (*shapes.values(), *elements.get("points", {}).values()):
        _place_um(element, pixel_size)
    for kind in ("labels", "images"):
        for element in elements.get(kind, {}).values():
            place(element, scaling(pixel_size))
    table, centres = _table(counts, shapes[keys.CELLS])
    if "cell_labels" in table.obs:
        check_labels(archive, centres / pixel_size, table.obs["cell_labels"].to_numpy())
    images = _he(bundle, he_image, he_alignment, scene=scene, pixel_size=pixel_size, user_mpp=mpp, centres_um=centres)
    return slide(
        images={**images, **elements.pop("images", {})},
        shapes=shapes,
        tables={keys.counts(keys.CELLS): table},
        **elements,
    )


def _pixel_size(bundle: Path, pixel_size_um: float | None) -> float:
    if pixel_size_um is not None:
        return _physical(pixel_size_um, name="pixel_size_um")
    specs = bundle / _SPECS
    if not specs.exists():
        logger.info("No %s: morphology pixels are taken as %g um, the instrument's own.", _SPECS, XENIUM_PIXEL_UM)
        return XENIUM_PIXEL_UM
    stated = read_json(specs, what="Xenium specification")
    if "pixel_size" not in stated:
        raise InputError(f"{str(specs)!r} does not state a pixel_size; pass pixel_size_um=.")
    return _physical(stated["pixel_size"], name="pixel_size of experiment.xenium")


def _physical(value: Any, *, name: str) -> float:
    """Return micrometres per pixel that an image of tissue can have."""
    size = positive(value, name=name, unit="um")
    if not MIN_MPP <= size <= MAX_MPP:
        raise InputError(f"`{name}` must be {MIN_MPP:g} to {MAX_MPP:g} um, got {size:.4g}.")
    return size


def _elements(bundle: Path, *, labels: bool, transcripts: bool, morphology: bool) -> dict[str, Any]:
    """Return the label images, and the transcripts and fluorescence images as spatialdata-io reads them."""
    elements: dict[str, Any] = {}
    if transcripts or morphology:
        from spatialdata_io import xenium as vendor_reader

        if transcripts:
            check_readable(bundle / "transcripts.parquet")
        with readable(bundle, what="bundle"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Could not parse the version")
            sdata = vendor_reader(
                bundle,
                cells_table=False,
                cells_boundaries=False,
                nucleus_boundaries=False,
                cells_labels=False,
                nucleus_labels=False,
                transcripts=transcripts,
                morphology_mip=morphology and (bundle / "morphology_mip.ome.tif").exists(),
                morphology_focus=morphology,
                aligned_images=False,
            )
        elements = {kind: dict(getattr(sdata, kind)) for kind in ("points", "images")}
    if labels:
        elements["labels"] = label_images(bundle / _ZARR)
    return {kind: found for kind, found in elements.items() if found}


def _place_um(element: Any, pixel_size: float) -> None:
    """Place vector elements, whose own coordinates are micrometres, in ``um`` and in morphology pixels."""
    place(element, np.eye(3))
    place(element, scaling(1 / pixel_size), coordinate_system="global")


def _table(counts: AnnData, cells: GeoDataFrame) -> tuple[AnnData, np.ndarray]:
    """Return the table that annotates the cell polygons, and its (n, 2) centroids in micrometres."""
    import pandas as pd

    counts.var_names = unique_symbols(list(counts.var_names), what="cells")
    ids = pd.Index(counts.obs_names.astype(str))
    known = ids.isin(cells.index)
    if not known.any():
        raise InputError(
            f"No cell of the counts ({listing(ids, most=3)}) has a boundary ({listing(cells.index, most=3)})."
        )
    if not known.all():
        warn(f"{int((~known).sum())} of {len(known)} cells have counts but no polygon; they are left out.")
        counts, ids = counts[known].copy(), ids[known]
    points = cells.geometry.loc[ids].centroid
    centres = np.column_stack([points.x.to_numpy(), points.y.to_numpy()])
    return counts_table(counts, shapes_key=keys.CELLS, instances=ids, spatial_um=centres), centres


def _he(
    bundle: Path,
    image: str | Path | Literal[False] | None,
    alignment: str | Path | np.ndarray | None,
    *,
    scene: int | str | None,
    pixel_size: float,
    user_mpp: float | None,
    centres_um: np.ndarray,
) -> Mapping[str, Any]:
    """Return the H&E image in micrometres, or nothing where there is none."""
    if image is False:
        if alignment is not None:
            raise InputError(
                "`he_alignment` places the H&E image, which `he_image`=False leaves out; give one of them."
            )
        return {}
    path = Path(image) if image is not None else _find_he(bundle)
    if path is None:
        if alignment is not None:
            raise InputError(f"`he_alignment` is given, but there is no H&E image in {str(bundle)!r}; pass he_image=.")
        logger.info("No H&E image in the bundle (names like %s); pass he_image= to add one.", listing(_HE_PATTERNS))
        return {}
    pixels = open_pixels(path, scene=scene)
    to_um = scaling(pixel_size) @ _to_morphology(bundle, pixels, alignment, pixel_size=pixel_size, user_mpp=user_mpp)
    mpp = mpp_of(to_um, what=f"the H&E image {path.name!r}")
    if user_mpp is not None and abs(user_mpp / mpp - 1) > settings.mpp_tolerance:
        raise InputError(
            f"`mpp`={user_mpp:g} contradicts the alignment of {path.name!r}, which makes it {mpp:.4g} um per pixel."
        )
    _physical(mpp, name=f"um per pixel of {path.name} by its alignment")
    centres_px = apply_affine(np.linalg.inv(to_um), centres_um)
    check_inside(
        centres_px,
        width=pixels.width,
        height=pixels.height,
        mpp=mpp,
        what="cells",
        radius_px=_CELL_RADIUS_UM / mpp,
        hint="does the alignment belong to this image at full resolution?",
    )
    check_on_tissue(centres_px, pixels, mpp=mpp, what="cells")
    settle_mpp(
        [Evidence(mpp, "the alignment"), *pixels.evidence], user_mpp=user_mpp and mpp, what=f"the image {path.name!r}"
    )
    affines = {"global": np.diag([1 / pixel_size, 1 / pixel_size, 1.0]) @ to_um, keys.UM: to_um}
    return {keys.IMAGE: to_image(pixels, affines)}


def _find_he(bundle: Path) -> Path | None:
    found = sorted(
        p
        for p in bundle.iterdir()
        if p.name.lower().endswith(_HE_SUFFIXES) and any(Path(p.name.lower()).match(n) for n in _HE_PATTERNS)
    )
    if len(found) > 1:
        raise InputError(f"Several images could be the H&E: {listing(p.name for p in found)}; name one as he_image=.")
    return found[0] if found else None


def _to_morphology(
    bundle: Path,
    pixels: Pixels,
    alignment: str | Path | np.ndarray | None,
    *,
    pixel_size: float,
    user_mpp: float | None,
) -> np.ndarray:
    """Return the (3, 3) affine from H&E pixels to morphology pixels."""
    source = alignment if alignment is not None else _find_alignment(bundle, pixels.path)
    if source is None:
        if user_mpp is not None:
            return scaling(_physical(user_mpp, name="mpp") / pixel_size)
        raise InputError(
            f"The H&E image {pixels.path.name!r} has no alignment file beside it; pass he_alignment= (csv or 3 x 3 "
            "matrix from H&E pixels to morphology pixels), or mpp= if its corner is the origin of the transcripts; "
            "without either, read the cells with he_image=False and the image by stpred.io.wsi, put it beside them and "
            "place it by stpred.pp.register."
        )
    if isinstance(source, (str, Path)):
        matrix, name = _read_matrix(Path(source)), f"The alignment {Path(source).name!r}"
    else:
        matrix, name = _as_matrix(source), "`he_alignment`"
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
        raise InputError(
            f"{name} must be a 3 x 3 affine matrix with the last row 0, 0, 1, got shape {matrix.shape} with the last "
            f"row {matrix[-1].ravel()[:4].tolist() if matrix.size else []}."
        )
    if np.abs(matrix).max() > MAX_ALIGNMENT_PX:
        raise InputError(
            f"{name} holds {np.abs(matrix).max():.3g}, but no image lies so many pixels away; it must lead from H&E "
            "pixels to morphology pixels."
        )
    return matrix


def _as_matrix(source: Any) -> np.ndarray:
    try:
        return np.asarray(source, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"`he_alignment` must be a path or a 3 x 3 matrix of numbers, got {type(source).__name__}."
        ) from error


def _find_alignment(bundle: Path, image: Path) -> Path | None:
    stem = image.name.split(".")[0]
    for base in dict.fromkeys((image.parent, bundle)):
        if (own := base / f"{stem}alignment.csv").exists() or (own := base / f"{stem}_alignment.csv").exists():
            return own
    return first_existing(bundle, ("*he*imagealignment.csv", "*he*alignment*.csv", "*imagealignment.csv"))


def _read_matrix(path: Path) -> np.ndarray:
    if not path.is_file():
        raise MissingFileError(f"There is no alignment file {str(path)!r}.")
    with readable(path, what="alignment"):
        if path.stat().st_size > MAX_ALIGNMENT_BYTES:
            raise InputError(f"The alignment {path.name!r} has {path.stat().st_size} bytes; a 3 x 3 matrix is needed.")
        text = path.read_text(encoding="utf-8-sig", errors="replace")
    if not text.strip():
        raise InputError(f"The alignment {path.name!r} is empty.")
    try:
        return np.loadtxt(text.splitlines(), delimiter=",", ndmin=2)
    except ValueError as error:
        raise InputError(f"The alignment {path.name!r} is not a matrix of numbers: {reason(error)}.") from error

"""Xenium: the output bundle of the instrument, with an H&E image of the same section where there is one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.calibration import XENIUM_PIXEL_UM, Evidence, check_inside, place, scaling, settle_mpp
from stpred._core.checks import InputError, MissingFileError, listing, positive
from stpred._core.counts import unique_symbols
from stpred._core.elements import apply_affine, mpp_of
from stpred._core.files import readable
from stpred._core.settings import settings
from stpred.io._assemble import counts_table, first_existing, folder, slide
from stpred.io._damage import check_readable
from stpred.io._matrix import check_10x_h5
from stpred.io._open import TIFF_SUFFIXES, open_pixels
from stpred.io._pixels import Pixels, to_image

if TYPE_CHECKING:
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_SPECS = "experiment.xenium"
_COMPLETE = (_SPECS, "cells.zarr.zip", "cells.parquet", "cell_feature_matrix.h5", "cell_boundaries.parquet")
_UNUSED = ("transcripts.parquet",)
_HE_PATTERNS = ("*he_image*", "*_he_*", "*h_and_e*", "*h&e*")
_HE_SUFFIXES = (*TIFF_SUFFIXES, ".png", ".jpg", ".jpeg")


def xenium(
    path: str | Path,
    *,
    he_image: str | Path | None = None,
    he_alignment: str | Path | np.ndarray | None = None,
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
        The bundle. Incomplete ones (without ``experiment.xenium`` or ``cells.zarr.zip``; csv instead of parquet) are
        read as far as they go.
    he_image
        The H&E image; None takes the only image of the bundle named like ``*he_image*``. Without any, the object has no
        ``he``.
    he_alignment
        Affine from H&E pixels to morphology pixels: an ``*imagealignment.csv`` as Xenium Explorer writes it, or a
        (3, 3) matrix. Rotation, flip and scale are kept. None takes the file of the bundle that belongs to the image.
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
        If the H&E image has no alignment, does not cover the cells, or contradicts its own resolution.
    MissingFileError
        If the bundle has no cells or no counts.

    Examples
    --------
    >>> import stpred as st
    >>> sdata = st.io.xenium("bundle", he_image="he.ome.tif", he_alignment="he_imagealignment.csv")  # doctest: +SKIP
    """
    bundle = folder(path, what="Xenium")
    pixel_size = _pixel_size(bundle, pixel_size_um)
    extra = {"labels": labels, "transcripts": transcripts, "morphology": morphology}
    missing = [name for name in _COMPLETE if not (bundle / name).exists()]
    if not missing:
        counts, shapes, elements = _complete(bundle, **extra)
    else:
        from stpred.io._xenium_partial import read_partial

        if asked := [name for name, wanted in extra.items() if wanted]:
            raise InputError(f"{listing(asked)} can be loaded from complete bundles only; this one lacks {missing}.")
        logger.info("Incomplete bundle (no %s): cells and counts are read from what is there.", ", ".join(missing))
        counts, shapes = read_partial(bundle)
        elements = {}
    for element in (*shapes.values(), *elements.get("points", {}).values()):
        _place_um(element, pixel_size)
    for kind in ("labels", "images"):
        for element in elements.get(kind, {}).values():
            place(element, scaling(pixel_size))
    table, centres = _table(counts, shapes[keys.CELLS])
    images = _he(bundle, he_image, he_alignment, pixel_size=pixel_size, given=mpp, centres_um=centres)
    return slide(
        images={**images, **elements.pop("images", {})},
        shapes=shapes,
        tables={keys.counts(keys.CELLS): table},
        **elements,
    )


def _pixel_size(bundle: Path, given: float | None) -> float:
    if given is not None:
        return positive(given, name="pixel_size_um", unit="um")
    specs = bundle / _SPECS
    if not specs.exists():
        logger.info("No %s: morphology pixels are taken as %g um, the instrument's own.", _SPECS, XENIUM_PIXEL_UM)
        return XENIUM_PIXEL_UM
    try:
        return positive(json.loads(specs.read_text())["pixel_size"], name="pixel_size of experiment.xenium", unit="um")
    except (KeyError, json.JSONDecodeError) as error:
        raise InputError(f"{str(specs)!r} does not state a pixel_size ({error}); pass pixel_size_um=.") from error


def _complete(
    bundle: Path, *, labels: bool, transcripts: bool, morphology: bool
) -> tuple[AnnData, dict[str, GeoDataFrame], dict[str, Any]]:
    import warnings

    from spatialdata_io import xenium as vendor_reader

    check_readable(*(p for p in sorted(bundle.iterdir()) if p.name not in _UNUSED or transcripts))
    check_10x_h5(bundle / "cell_feature_matrix.h5")
    with readable(bundle, what="bundle"), warnings.catch_warnings():
        # the table is made to annotate the cells below, and repeated symbols are handled there
        warnings.filterwarnings("ignore", message="The table is annotating|Variable names are not unique")
        sdata = vendor_reader(
            bundle,
            cells_labels=labels,
            nucleus_labels=labels,
            nucleus_boundaries=(bundle / "nucleus_boundaries.parquet").exists(),
            transcripts=transcripts,
            morphology_mip=morphology and (bundle / "morphology_mip.ome.tif").exists(),
            morphology_focus=morphology,
            aligned_images=False,
        )
    shapes = {keys.CELLS: sdata.shapes["cell_boundaries"]}
    if "nucleus_boundaries" in sdata.shapes:
        shapes[keys.NUCLEI] = sdata.shapes["nucleus_boundaries"]
    kinds = {kind: dict(getattr(sdata, kind)) for kind in ("labels", "points", "images")}
    counts = sdata.tables["table"]
    counts.obs_names = counts.obs["cell_id"].astype(str).to_numpy()
    return counts, shapes, {kind: found for kind, found in kinds.items() if found}


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
        logger.info("%d of %d cells have counts but no boundary; they are left out.", int((~known).sum()), len(known))
        counts, ids = counts[known].copy(), ids[known]
    points = cells.geometry.loc[ids].centroid
    centres = np.column_stack([points.x.to_numpy(), points.y.to_numpy()])
    return counts_table(counts, shapes_key=keys.CELLS, instances=ids, spatial_um=centres), centres


def _he(
    bundle: Path,
    image: str | Path | None,
    alignment: str | Path | np.ndarray | None,
    *,
    pixel_size: float,
    given: float | None,
    centres_um: np.ndarray,
) -> Mapping[str, Any]:
    """Return the H&E image in micrometres, or nothing where there is none."""
    path = Path(image) if image is not None else _find_he(bundle)
    if path is None:
        if alignment is not None:
            raise InputError(f"`he_alignment` is given, but there is no H&E image in {str(bundle)!r}; pass he_image=.")
        logger.info("No H&E image in the bundle (names like %s); pass he_image= to add one.", listing(_HE_PATTERNS))
        return {}
    pixels = open_pixels(path)
    to_um = scaling(pixel_size) @ _to_morphology(bundle, pixels, alignment, pixel_size=pixel_size, given=given)
    mpp = mpp_of(to_um, what=f"the H&E image {path.name!r}")
    if given is not None and abs(given / mpp - 1) > settings.mpp_tolerance:
        raise InputError(
            f"`mpp`={given:g} contradicts the alignment of {path.name!r}, which makes it {mpp:.4g} um per pixel."
        )
    settle_mpp([Evidence(mpp, "the alignment"), *pixels.evidence], given=given and mpp, what=f"the image {path.name!r}")
    check_inside(
        apply_affine(np.linalg.inv(to_um), centres_um),
        width=pixels.width,
        height=pixels.height,
        mpp=mpp,
        what="cells",
        hint="does the alignment belong to this image at full resolution?",
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
    bundle: Path, pixels: Pixels, alignment: str | Path | np.ndarray | None, *, pixel_size: float, given: float | None
) -> np.ndarray:
    """Return the (3, 3) affine from H&E pixels to morphology pixels."""
    source = alignment if alignment is not None else _find_alignment(bundle, pixels.path)
    if source is None:
        if given is not None:
            return scaling(positive(given, name="mpp", unit="um per pixel") / pixel_size)
        raise InputError(
            f"The H&E image {pixels.path.name!r} has no alignment file beside it; pass he_alignment= (csv or 3 x 3 "
            "matrix from H&E pixels to morphology pixels), or mpp= if its corner is the origin of the transcripts."
        )
    matrix = np.asarray(source, dtype=np.float64) if isinstance(source, np.ndarray) else _read_matrix(Path(source))
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
        raise InputError(
            f"`he_alignment` must be a 3 x 3 affine matrix with the last row 0, 0, 1, got shape {matrix.shape} with "
            f"the last row {matrix[-1].tolist() if matrix.size else []}."
        )
    return matrix


def _find_alignment(bundle: Path, image: Path) -> Path | None:
    stem = image.name.split(".")[0]
    for base in dict.fromkeys((image.parent, bundle)):
        if (own := base / f"{stem}alignment.csv").exists() or (own := base / f"{stem}_alignment.csv").exists():
            return own
    return first_existing(bundle, ("*he*imagealignment.csv", "*he*alignment*.csv", "*imagealignment.csv"))


def _read_matrix(path: Path) -> np.ndarray:
    if not path.is_file():
        raise MissingFileError(f"There is no alignment file {str(path)!r}.")
    if not path.read_text(errors="replace").strip():
        raise InputError(f"The alignment {path.name!r} is empty.")
    try:
        return np.loadtxt(path, delimiter=",", ndmin=2)
    except ValueError as error:
        said = str(error).rstrip(".")
        raise InputError(f"The alignment {path.name!r} is not a matrix of numbers: {said}.") from error

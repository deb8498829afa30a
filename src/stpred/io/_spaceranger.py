"""What the Visium and Visium HD readers share: scale factors, positions and the images of a Space Ranger run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.calibration import Evidence, check_fullres_size, check_inside, scaling, settle_mpp
from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.files import readable
from stpred.io._open import FLAT_SUFFIXES, TIFF_SUFFIXES, open_pixels
from stpred.io._pixels import Pixels, to_image

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stpred")

POSITION_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
_FULLRES_SUFFIXES = (*(s for s in TIFF_SUFFIXES if s != ".scn"), *FLAT_SUFFIXES)


def read_scalefactors(path: Path) -> dict[str, float]:
    """Return the scale factors of a run."""
    if not path.is_file():
        raise MissingFileError(f"There are no scale factors {str(path)!r}.")
    try:
        return {k: float(v) for k, v in json.loads(path.read_text()).items() if isinstance(v, (int, float))}
    except ValueError as error:
        raise InputError(f"The scale factors {str(path)!r} are not valid JSON: {error}.") from error


def read_positions(path: Path) -> pd.DataFrame:
    """Return the spot positions of any Space Ranger version, indexed by barcode, with its column names.

    Version 1 wrote ``tissue_positions_list.csv`` without a header, version 2 on ``tissue_positions.csv`` with one, and
    Visium HD a parquet file.
    """
    import pandas as pd

    headed = True
    with readable(path, what="positions file"):
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            with path.open() as file:
                headed = "in_tissue" in file.readline()
            frame = pd.read_csv(path, header=0 if headed else None)
    if not headed and frame.shape[1] == len(POSITION_COLUMNS):
        frame.columns = pd.Index(POSITION_COLUMNS)
    if missing := [c for c in POSITION_COLUMNS if c not in frame]:
        raise InputError(f"The positions {path.name!r} lack {missing}; found {listing(frame.columns)}.")
    numbers = frame[POSITION_COLUMNS[1:]].apply(pd.to_numeric, errors="coerce")
    if (odd := numbers.isna().any(axis=1).to_numpy()).any():
        raise InputError(
            f"The positions {path.name!r} have no number in a column of {int(odd.sum())} barcodes: "
            f"{listing(frame['barcode'][odd])}."
        )
    frame = frame.set_index("barcode")[POSITION_COLUMNS[1:]]
    if frame.index.has_duplicates:
        repeated = frame.index[frame.index.duplicated()].unique()
        raise InputError(f"The positions {path.name!r} hold barcodes twice: {listing(repeated)}.")
    return frame


def place_images(
    *,
    fullres: Pixels | None,
    copies: Mapping[str, Path | None],
    scalefactors: Mapping[str, float],
    dataset_id: str,
    mpp: float,
) -> dict[str, Any]:
    """Return the image elements: ``he`` alone in micrometres, smaller copies in the vendor's coordinate systems only.

    Parameters
    ----------
    fullres
        The full-resolution image; without it the finest copy becomes ``he``, calibrated with its own coarse resolution.
    copies
        ``"hires"`` and ``"lowres"`` -> file or None.
    scalefactors
        With ``tissue_hires_scalef`` and ``tissue_lowres_scalef``.
    dataset_id
        Name of the vendor's full-resolution coordinate system.
    mpp
        Micrometres per full-resolution pixel.
    """
    images: dict[str, Any] = {}
    if fullres is not None:
        images[keys.IMAGE] = to_image(fullres, {dataset_id: np.eye(3), keys.UM: scaling(mpp)})
    for kind in ("hires", "lowres"):
        path, scalef = copies.get(kind), scalefactors.get(f"tissue_{kind}_scalef")
        if path is None or scalef is None:
            continue
        pixels = _copy(path, needed=keys.IMAGE not in images)
        if pixels is None:
            continue
        affines = {f"{dataset_id}_downscaled_{kind}": np.eye(3), dataset_id: scaling(1 / scalef)}
        if keys.IMAGE not in images:
            affines[keys.UM] = scaling(mpp / scalef)
            images[keys.IMAGE] = to_image(pixels, affines)
            logger.info(
                "No full-resolution image: the %s image (%.3g um per pixel) is the H&E image; give fullres_image= to "
                "predict at the resolution of the slide.",
                kind,
                mpp / scalef,
            )
        else:
            images[f"{keys.IMAGE}_{kind}"] = to_image(pixels, affines)
    return images


def _copy(path: Path, *, needed: bool) -> Pixels | None:
    try:
        return open_pixels(path)
    except InputError as error:
        if needed:
            raise
        logger.info("%s is left out: %s", path.name, error)
        return None


def find_fullres(
    given: str | Path | None,
    *,
    folders: Iterable[Path],
    copies: Mapping[str, Path | None],
    scalefactors: Mapping[str, float],
) -> Pixels | None:
    """Return the full-resolution image: the given one, or the only one beside the run whose size fits."""
    sized = _sized_copy(copies, scalefactors)  # `folders` end with the one above the run
    if given is not None:
        pixels = open_pixels(given)
        if sized is not None:
            size, scalef = sized
            check_fullres_size(
                (pixels.width, pixels.height),
                hires_size=size,
                hires_scalef=scalef,
                what=f"The image {pixels.path.name!r}",
            )
        return pixels
    if sized is None:  # nothing tells which image belongs to the run, so none is taken from the folder above it
        folders = list(folders)[:-1]
    refused: list[str] = []
    found = [p for p in (_try_open(c, refused) for c in _candidates(folders)) if p is not None and _fits(p, sized)]
    if not found and refused:
        logger.warning("No full-resolution image was found; not taken: %s", " ".join(refused))
    if len(found) > 1:
        raise InputError(
            f"Several images could be the full-resolution one: {listing(p.path for p in found)}; "
            "name one as fullres_image=."
        )
    if found:
        logger.info("%s is taken as the full-resolution image.", found[0].path)
    return found[0] if found else None


def _sized_copy(
    copies: Mapping[str, Path | None], scalefactors: Mapping[str, float]
) -> tuple[tuple[int, int], float] | None:
    """Return width and height of a smaller copy and its scale, which tell how large the full image is."""
    from PIL import Image

    for kind in ("hires", "lowres"):
        path, scalef = copies.get(kind), scalefactors.get(f"tissue_{kind}_scalef")
        if path is not None and scalef is not None:
            try:
                with Image.open(path) as image:
                    return image.size, scalef
            except OSError as error:
                logger.info("%s tells no size: %s", path.name, error)
    return None


def _candidates(folders: Iterable[Path]) -> list[Path]:
    unique: dict[Path, None] = {}
    for base in folders:
        if base.is_dir():
            unique.update({p.resolve(): None for p in sorted(base.iterdir()) if p.suffix.lower() in _FULLRES_SUFFIXES})
    return list(unique)


def _try_open(path: Path, refused: list[str]) -> Pixels | None:
    """Open a file that may be the slide; of others (fluorescence, plots, damaged files) note why they are not."""
    try:
        return open_pixels(path)
    except InputError as error:
        refused.append(str(error))
        return None


def _fits(pixels: Pixels, sized: tuple[tuple[int, int], float] | None) -> bool:
    if sized is None:
        return True
    (width, height), scalef = sized
    slack = 0.02 + 1.5 / min(width, height)
    return abs(pixels.width * scalef / width - 1) <= slack and abs(pixels.height * scalef / height - 1) <= slack


def calibrate_run(
    evidence: list[Evidence],
    *,
    fullres: Pixels | None,
    xy_px: np.ndarray,
    given: float | None,
    dataset_id: str,
    what: str,
) -> float:
    """Return the um per full-resolution pixel of a run, after checking that its positions lie on the image."""
    if fullres is not None:
        evidence = [*evidence, *fullres.evidence]
    mpp = settle_mpp(evidence, given=given, what=f"slide {dataset_id!r}")
    if fullres is not None:
        check_inside(
            xy_px,
            width=fullres.width,
            height=fullres.height,
            mpp=mpp,
            what=what,
            hint=f"is {fullres.path.name!r} a downscaled copy, or of another slide?",
        )
    return mpp


def need(path: Path | None, *, what: str, base: Path, looked_for: Iterable[str]) -> Path:
    """Return a file that must be there, or say where it was looked for."""
    if path is None:
        raise MissingFileError(f"No {what} in {str(base)!r}; looked for {listing(looked_for)}.")
    return path

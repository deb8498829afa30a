"""What the Visium and Visium HD readers share: scale factors, positions and the images of a Space Ranger run."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, warn
from stpred._core.files import readable
from stpred.calibration import (
    Evidence,
    check_fullres_size,
    check_inside,
    check_mpp,
    scaling,
    settle_mpp,
)
from stpred.io._images.open import FLAT_SUFFIXES, TIFF_SUFFIXES, open_pixels
from stpred.io._images.pixels import Pixels, to_image
from stpred.io._images.same_image import check_on_tissue, compare_with_copy, require_copy

if TYPE_CHECKING:
    pass

logger = logging.getLogger("stpred")

_MAX_COPY_PX = 10**8
"""Pixels beyond which a hires or lowres image is none."""
_FULLRES_SUFFIXES = (*(s for s in TIFF_SUFFIXES if s != ".scn"), *FLAT_SUFFIXES)


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
    whole = None if fullres is None else np.array([fullres.width, fullres.height], dtype=np.float64)
    if fullres is not None:
        images[keys.IMAGE] = to_image(fullres, {dataset_id: np.eye(3), keys.UM: scaling(mpp)})
    for kind in ("hires", "lowres"):
        path, scalef = copies.get(kind), scalefactors.get(f"tissue_{kind}_scalef")
        if path is None:
            continue
        if scalef is None:
            logger.info("%s is left out: the scale factors lack tissue_%s_scalef.", path.name, kind)
            continue
        pixels = _copy(path, needed=keys.IMAGE not in images)
        if pixels is None:
            continue
        implied = np.array([pixels.width, pixels.height]) / scalef
        if whole is None:
            whole = implied
        elif (abs(implied / whole - 1) > 0.02 + 1.5 / min(pixels.width, pixels.height)).any():
            sizes = [f"{w:.0f} x {h:.0f} px" for w, h in ((pixels.width, pixels.height), implied, whole)]
            warn(
                f"{path.name} is left out: its {sizes[0]} and tissue_{kind}_scalef of {scalef:g} promise a full image "
                f"of {sizes[1]}, not {sizes[2]}."
            )
            continue
        affines = {f"{dataset_id}_downscaled_{kind}": np.eye(3), dataset_id: scaling(1 / scalef)}
        if keys.IMAGE not in images:
            affines[keys.UM] = scaling(check_mpp(mpp / scalef, what=f"the {kind} image"))
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


class Fullres(NamedTuple):
    """The full-resolution image of a run, where there is one."""

    pixels: Pixels | None
    compared: bool = False
    """Whether its content was compared with a small copy of the slide."""


class _SmallCopy(NamedTuple):
    """Space Ranger's own reduced image of the slide."""

    path: Path
    scalef: float
    size: tuple[int, int]
    pixels: np.ndarray
    """(h, w, 3) uint8."""


def find_fullres(
    given: str | Path | None,
    *,
    scene: int | str | None,
    folders: Iterable[Path],
    copies: Mapping[str, Path | None],
    scalefactors: Mapping[str, float],
) -> Fullres:
    """Return the full-resolution image: the given one, or the only one beside the run that shows what its copy shows.

    An image that shows the copy turned or mirrored is refused, whether given or found: every spot would lie on the
    wrong tissue. One that shows something else is refused if given, and otherwise not taken.
    """
    copy = _small_copy(copies, scalefactors)
    if given is not None:
        return Fullres(_checked(open_pixels(given, scene=scene), copy), compared=copy is not None)
    if scene is not None:
        raise InputError("`scene` is of the image that is given as fullres_image=; name that, too.")
    folders = list(folders)
    if copy is None:  # nothing tells which image belongs to the run, so none is taken from the folder above it
        folders = folders[:-1]
    refused: list[str] = []
    opened = [p for p in (_try_open(c, refused) for c in _candidates(folders)) if p is not None and _fits(p, copy)]
    found = opened if copy is None else _of_this_slide(opened, copy, refused)
    if not found and refused:
        warn(f"No full-resolution image was found; not taken: {listing(refused, most=3)}.")
    if len(found) > 1:
        raise InputError(
            f"Several images could be the full-resolution one: {listing(p.path for p in found)}; "
            "name one as fullres_image=."
        )
    if not found:
        return Fullres(None)
    if copy is None:
        warn(
            f"{str(found[0].path)!r} is taken as the full-resolution image since it is the only image in its folder; "
            "there is no hires or lowres image to compare it with. Name it as fullres_image= if it is the right one."
        )
    else:
        logger.info("%s is taken as the full-resolution image.", found[0].path)
    return Fullres(found[0], compared=copy is not None)


def _checked(pixels: Pixels, copy: _SmallCopy | None) -> Pixels:
    if copy is not None:
        check_fullres_size(
            (pixels.width, pixels.height),
            hires_size=copy.size,
            hires_scalef=copy.scalef,
            what=f"The image {pixels.path.name!r}",
        )
        require_copy(
            pixels, copy.pixels, name=copy.path.name, advice="pass the image that Space Ranger was run on, as it was"
        )
    return pixels


def _of_this_slide(opened: list[Pixels], copy: _SmallCopy, refused: list[str]) -> list[Pixels]:
    """Return the images that show what the copy shows; one that shows it turned is an error if nothing else does."""
    found: list[Pixels] = []
    turned: list[str] = []
    for pixels in opened:
        verdict, message = compare_with_copy(pixels, copy.pixels, name=copy.path.name)
        if verdict in ("same", "blank"):
            found.append(pixels)
        else:
            (turned if verdict == "turned" else refused).append(message)
    if turned and not found:
        raise InputError(
            f"{turned[0]}, so every spot would lie on the wrong tissue; turn it back, or name the image that Space "
            "Ranger was run on as fullres_image=."
        )
    return found


def _small_copy(copies: Mapping[str, Path | None], scalefactors: Mapping[str, float]) -> _SmallCopy | None:
    """Return a smaller copy, which tells how large the full image is and what it shows."""
    from PIL import Image

    for kind in ("hires", "lowres"):
        path, scalef = copies.get(kind), scalefactors.get(f"tissue_{kind}_scalef")
        if path is None or scalef is None:
            continue
        try:
            with readable(path, what=f"{kind} image"), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of large images, which are left out below
                with Image.open(path) as image:
                    if math.prod(image.size) > _MAX_COPY_PX:
                        raise InputError(f"{path.name!r} has {image.size} px, too many for a reduced copy.")
                    return _SmallCopy(path, scalef, image.size, np.asarray(image.convert("RGB")))
        except InputError as error:
            logger.info("%s is not compared with the full-resolution image: %s", path.name, error)
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


def _fits(pixels: Pixels, copy: _SmallCopy | None) -> bool:
    """Whether an image is as large as the scale factors promise, or would be if it was turned by 90 degrees."""
    if copy is None:
        return True
    slack = 0.02 + 1.5 / min(copy.size)
    sides = np.array([pixels.width, pixels.height]) * copy.scalef
    return any((abs(sides / np.array(size) - 1) <= slack).all() for size in (copy.size, copy.size[::-1]))


def calibrate_run(
    evidence: list[Evidence],
    *,
    fullres: Fullres,
    xy_px: np.ndarray,
    user_mpp: float | None,
    dataset_id: str,
    what: str,
    radius_px: float = 0.0,
) -> float:
    """Return the um per full-resolution pixel of a run, after checking that its positions lie on the image.

    An image that was compared with no copy must have tissue where the positions are.
    """
    pixels = fullres.pixels
    if pixels is not None:
        evidence = [*evidence, *pixels.evidence]
    mpp = settle_mpp(evidence, user_mpp=user_mpp, what=f"slide {dataset_id!r}")
    if pixels is not None:
        check_inside(
            xy_px,
            width=pixels.width,
            height=pixels.height,
            mpp=mpp,
            what=what,
            radius_px=radius_px,
            hint=f"is {pixels.path.name!r} a downscaled copy, or of another slide?",
        )
        if not fullres.compared:
            check_on_tissue(xy_px, pixels, mpp=mpp, what=what)
    return mpp


def require_file(path: Path | None, *, what: str, base: Path, looked_for: Iterable[str]) -> Path:
    """Return a file that must be there, or say where it was looked for."""
    if path is None:
        raise MissingFileError(f"No {what} in {str(base)!r}; looked for {listing(looked_for)}.")
    return path

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred import rasters
from stpred._core import keys, tables
from stpred._core.checks import InputError, key_in, listing, positive, warn
from stpred._core.elements import affine_to, apply_affine, mpp_of, need_sdata, normalised_from, rgb_problem
from stpred._image.registration import Options, Pair, Quality, Side, find, from_landmarks, inverse, judge
from stpred.calibration import MAX_MPP, MIN_MPP, check_mpp, place, scaling
from stpred.registration import Placed, Registration, note_key, read_fixed, read_he, read_unplaced_he

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

SCALES = (0.8, 1.25)
SCALES_WITHOUT_MPP = (0.7, 1.4)
MIN_LANDMARKS = 3
MAX_FROM_LANDMARKS = 0.05
"""Of the tissue's extent, by which landmarks may be off from where the pictures agree best."""


def register(
    sdata: SpatialData,
    moving: str,
    fixed: str,
    *,
    mpp: float | None = None,
    landmarks: tuple[ArrayLike, ArrayLike] | None = None,
    channel: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    check: bool = True,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> Registration:
    """Place an H&E image on measured data without an alignment file.

    Nuclei and stains of the image are compared with nuclei, cells, molecules or counts of the other side: coarsely at
    all turns, with and without a mirror, at scales of 0.8 to 1.25 and all shifts, then from level to level with smaller
    pixels down to a few micrometres; at the end the image may be stretched by up to 1.8 %. The same search at wrong
    turns says what agreement chance gives, and a pair that does not agree better is refused.

    Parameters
    ----------
    sdata
        Object that holds both.
    moving
        The H&E image.
    fixed
        What it is registered to, an element in `coordinate_system`: shapes or points of cells, nuclei or transcripts;
        shapes of spots or bins with counts (a thousand spots suffice, a few hundred say too little); an image of a
        fluorescent stain of nuclei; or another H&E image.
    mpp
        Micrometres per pixel of the image; None takes its place in `coordinate_system`, if it has one, or else guesses
        it from the area of the tissue, which must then be the same on both sides up to a third.
    landmarks
        Pairs to begin from instead of trying all placements: (n, 2) x, y in pixels of the image, and (n, 2) x, y in
        `coordinate_system` of the same places, three or more.
    channel
        Of a fluorescence image: the stain of nuclei. None takes the only one, or the one called like one (DAPI).
    table_key, layer
        Counts of spots or bins; None finds them.
    check
        With False, a pair that does not agree better than wrong placements do is placed all the same, with a warning.
    coordinate_system
        The micrometre frame of `fixed`.
    inplace
        With False the object is left alone.

    Returns
    -------
    Registration
        The affine, from pixels to micrometres, and how far it can be believed; see :func:`stpred.pl.registration` for
        the picture. Writes the transformation of the image to `coordinate_system`, in place of one that it has, and
        the provenance into ``sdata.attrs["stpred"]["{moving}:registration"]``, a JSON string. Where another H&E
        image lies in `coordinate_system`, which holds one, the image gets a frame of its own with the same axes,
        ``"{coordinate_system}-{moving}"``, in which the other elements are placed as well.

    Raises
    ------
    InputError
        If an element is missing or has no place, shows no tissue, is too small, or lies on a lattice without counts; if
        the landmarks are no pairs; if the two do not agree better than wrong placements of them do.

    Notes
    -----
    Nuclei are found as connected haematoxylin on pixels of 1 um; pixels that are compared have the difference of two
    Gaussians of 1.5 and 6 pixels, of one local variance. The score is the root mean square of the
    correlations between planes of both sides, in the tissue of the fixed one.

    Examples
    --------
    >>> import stpred as st
    >>> from spatialdata.transformations import Identity, set_transformation
    >>> slide = st.datasets.toy(size_um=(600, 600), mpp=1.0, n_genes=20)
    >>> set_transformation(slide.images["he"], {"global": Identity()}, set_all=True)
    >>> found = st.pp.register(slide, "he", "cells", mpp=1.0)
    >>> found.convincing, round(found.mpp, 2)
    (True, 1.0)
    """
    need_sdata(sdata)
    image = _moving(sdata, moving, fixed)
    how = {"channel": channel, "table_key": table_key, "layer": layer}
    other = read_fixed(sdata, fixed, **how, coordinate_system=coordinate_system)
    stated = _stated_mpp(image, moving, mpp, coordinate_system)
    pairs = _landmarks(landmarks)
    side, used, scales = _moving_side(image, moving, stated, other, pairs)
    pair = Pair(side, other.side, Options(*scales))
    placement = _placement(pair, other, used, pairs)
    quality = judge(pair, placement)
    affine = other.to_frame @ placement @ scaling(used)
    frame = _frame(sdata, moving, coordinate_system)
    result = _result(moving, fixed, affine, frame, stated, quality, pairs)
    _refuse(result, check=check)
    if inplace:
        _write(sdata, result, how, coordinate_system)
    return result


def _moving(sdata: SpatialData, moving: str, fixed: str) -> Any:
    image = sdata.images[key_in(moving, sdata.images, what="image", name="moving")]
    if (problem := rgb_problem(image)) is not None:
        raise InputError(f"Image {moving!r} cannot be used as H&E: {problem}; 8-bit RGB with 3 channels is needed.")
    if moving == fixed:
        raise InputError(f"`moving` and `fixed` are both {moving!r}; name the image and what it is registered to.")
    return image


def _stated_mpp(image: Any, moving: str, mpp: float | None, coordinate_system: str) -> float | None:
    """Return the resolution that is given, or that the image has by its present place."""
    if mpp is not None:
        value = positive(mpp, name="mpp", unit="um per pixel")
        if not MIN_MPP <= value <= MAX_MPP:
            raise InputError(f"`mpp` must be {MIN_MPP:g} to {MAX_MPP:g} um per pixel, got {mpp!r}.")
        return value
    affine = affine_to(image, coordinate_system)
    return None if affine is None else mpp_of(affine, what=f"image {moving!r}")


def _landmarks(given: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Return (n, 2) pixels of the image and (n, 2) micrometres of the same places."""
    if given is None:
        return None
    try:
        one, other = (np.asarray(side, dtype=np.float64) for side in given)
    except (TypeError, ValueError) as error:
        raise InputError(
            "`landmarks` must be two lists of x, y: pixels of the image, and micrometres of the same places."
        ) from error
    if one.shape != other.shape or one.ndim != 2 or one.shape[1] != 2:
        raise InputError(f"`landmarks` must be two arrays of shape (n, 2), got {one.shape} and {other.shape}.")
    if len(one) < MIN_LANDMARKS or not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise InputError(f"`landmarks` must be {MIN_LANDMARKS} pairs or more of finite numbers, got {len(one)}.")
    for points in (one, other):
        size = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
        if size[1] < 0.02 * size[0] or size[0] == 0:
            raise InputError("`landmarks` lie on one line, so they do not tell a mirror image; add one off it.")
    return one, other


def _moving_side(
    image: Any,
    moving: str,
    stated: float | None,
    other: Placed,
    pairs: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> tuple[Side, float, tuple[float, float]]:
    """Return the image's side, the resolution at which it was read, and the scales that are tried."""
    what = f"Image {moving!r}"
    if pairs is not None:
        linear = from_landmarks(*pairs)[:2, :2]
        mpp = check_mpp(float(np.sqrt(abs(np.linalg.det(linear)))), what=f"{what} by `landmarks`")
        return read_he(image, mpp, what=what), mpp, SCALES
    if stated is not None:
        return read_he(image, stated, what=what), stated, SCALES
    side, mpp = read_unplaced_he(image, other.side.area_um2, what=what)
    logger.info("%s: %.4g um per pixel would give its tissue the area of the other side.", what, mpp)
    return side, mpp, SCALES_WITHOUT_MPP


def _placement(
    pair: Pair, other: Placed, mpp: float, pairs: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> NDArray[np.float64]:
    """Return the (3, 3) placement from the moving to the fixed side's own micrometres."""
    if pairs is None:
        return find(pair)
    own, there = pairs[0] * mpp, apply_affine(inverse(other.to_frame), pairs[1])
    start = from_landmarks(own, there)
    found = find(pair, start=start)
    away = np.linalg.norm(apply_affine(found, own) - apply_affine(start, own), axis=1)
    if np.median(away) > MAX_FROM_LANDMARKS * other.side.extent_um:
        logger.info("The search led %.0f um away from the landmarks; these are used as they are.", np.median(away))
        return start
    level = pair.level(-1)
    return found if level.score(inverse(found))[0] >= level.score(inverse(start))[0] else start


def _frame(sdata: SpatialData, moving: str, coordinate_system: str) -> str:
    """Return the frame for the image: one of its own where another H&E image lies in `coordinate_system`."""
    sources, key = {moving}, moving
    while (key := normalised_from(sdata, key) or "") and key not in sources:
        sources.add(key)
    taken = [
        k
        for k, image in sdata.images.items()
        if k not in sources
        and normalised_from(sdata, k) not in sources
        and rgb_problem(image) is None
        and affine_to(image, coordinate_system) is not None
    ]
    if not taken:
        return coordinate_system
    frame = f"{coordinate_system}-{keys.slug(moving)}"
    logger.info(
        "%s lies in %r, which holds one H&E image: %r gets %r.", listing(taken), coordinate_system, moving, frame
    )
    return frame


def _result(
    moving: str,
    fixed: str,
    affine: NDArray[np.float64],
    frame: str,
    stated: float | None,
    quality: Quality,
    pairs: tuple[NDArray[np.float64], NDArray[np.float64]] | None,
) -> Registration:
    mpp = check_mpp(mpp_of(affine, what=f"image {moving!r}"), what=f"image {moving!r}")
    error = float("nan")
    if pairs is not None:
        error = float(np.median(np.linalg.norm(apply_affine(affine, pairs[0]) - pairs[1], axis=1)))
    return Registration(
        moving, fixed, affine, frame, mpp, float("nan") if stated is None else mpp / stated, quality.score,
        tuple(float(v) for v in quality.null), quality.z, quality.convincing, quality.overlap, quality.residual_um,
        n_landmarks=0 if pairs is None else len(pairs[0]), landmark_error_um=error,
    )  # fmt: skip


def _refuse(result: Registration, *, check: bool) -> None:
    if result.convincing:
        return
    said = (
        f"Image {result.moving!r} and {result.fixed!r} agree no better than wrong placements of them do (score "
        f"{result.score:.2f}, of wrong ones up to {max(result.null, default=float('nan')):.2f}, z {result.z:.1f})"
    )
    if check:
        raise InputError(
            f"{said}: they are hardly of one section, or too little of it is common; check the pair and `mpp`, give "
            "`landmarks`, or pass check=False to place it all the same."
        )
    warn(f"{said}; it is placed all the same, as `check=False` says.")


def _write(sdata: SpatialData, result: Registration, how: dict[str, Any], coordinate_system: str) -> None:
    """Place the image, and in a frame of its own all else that lies in the other side's frame."""
    frame = result.coordinate_system
    place(sdata.images[result.moving], result.affine, coordinate_system=frame)
    if frame != coordinate_system:
        for kind in ("shapes", "points", "labels"):
            for element in getattr(sdata, kind).values():
                if (affine := affine_to(element, coordinate_system)) is not None:
                    place(element, affine, coordinate_system=frame)
    provenance = result.to_dict() | how | {"frame_of_fixed": coordinate_system, "versions": tables.package_versions()}
    rasters.note(sdata, note_key(result.moving), json.dumps(provenance, sort_keys=True, default=tables.plain))

"""Resolution in micrometres per pixel from what a slide tells of itself, and the placing of elements in micrometres."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, positive, warn
from stpred._core.geometry import EDGE_PX, MAX_OUTSIDE, distance_outside
from stpred._core.settings import settings

logger = logging.getLogger("stpred")

VISIUM_PITCH_UM = 100.0
SPACERANGER_SPOT_UM = 65.0
"""Space Ranger's ``spot_diameter_fullres`` spans a theoretical 65 um spot, not the printed 55 um one."""
XENIUM_PIXEL_UM = 0.2125

HEX_STEPS = ((0, 2), (1, 1), (1, -1))
"""Steps in (array_row, array_col) between neighbouring Visium spots."""
SQUARE_STEPS = ((1, 0), (0, 1))
STAGGERED_STEPS = ((1, 1), (1, -1))

MIN_MPP, MAX_MPP = 0.01, 100.0
"""um per pixel that an image of tissue can have."""
GROSS = 1.5
LATTICE_TOLERANCE = 0.05
MAX_COORDINATE = 1e9
"""Array coordinates and pixels beyond this are no positions, and squares of larger ones overflow."""


class Evidence(NamedTuple):
    """One source of resolution: um per pixel, and where it is said.

    A `placeholder` is a value that programs write where they know none, such as exactly 1 um: it is used, with a
    warning, where nothing else tells. A `secondary` source is a lesser field of a file whose main one says something
    else: the contradiction is a warning, not an error.
    """

    mpp: float
    source: str
    placeholder: bool = False
    secondary: bool = False


def settle_mpp(evidence: Sequence[Evidence], *, user_mpp: float | None = None, what: str = "the image") -> float:
    """Return the resolution to use: `user_mpp`, else the first (most trusted) evidence; contradictions are reported.

    Parameters
    ----------
    evidence
        Sources, the most trusted first. Placeholders count only where there is nothing else, with a warning.
    user_mpp
        Resolution that the user passed; it takes precedence.
    what
        What the resolution is of, for messages.

    Raises
    ------
    InputError
        If there is no evidence, if two sources are more than 1.5-fold apart and there is no `user_mpp`, or if the
        resolution is not between 0.01 and 100 um per pixel.
    """
    known = [e for e in evidence if np.isfinite(e.mpp) and e.mpp > 0]
    sources = [e for e in known if not e.placeholder]
    placeholders = [e for e in known if e.placeholder]
    if user_mpp is not None:
        used = Evidence(positive(user_mpp, name="mpp", unit="um per pixel"), "mpp=")
        if not MIN_MPP <= used.mpp <= MAX_MPP:
            raise InputError(f"`mpp` must be {MIN_MPP:g} to {MAX_MPP:g} um per pixel, got {user_mpp!r}.")
    elif sources:
        used, sources = sources[0], sources[1:]
    elif placeholders:
        used, placeholders = placeholders[0], placeholders[1:]
        warn(
            f"The resolution of {what} is stated by {used.source} alone, as {used.mpp:.6g} um per pixel, which "
            "programs write where they know none; it is used, so pass mpp= if it is not true."
        )
    else:
        raise InputError(f"The resolution of {what} is stated nowhere; pass mpp= (micrometres per pixel).")
    for other in placeholders:
        logger.info("%s: %s says %.4g um per pixel, which counts as unknown", what, other.source, other.mpp)
    for other in sources:
        ratio = max(used.mpp / other.mpp, other.mpp / used.mpp)
        if ratio <= 1 + settings.mpp_tolerance:
            continue
        sizes = f"{used.source} says {used.mpp:.4g} um per pixel and {other.source} {other.mpp:.4g}"
        if ratio > GROSS and user_mpp is None and not other.secondary:
            raise InputError(f"The resolution of {what} is contradictory: {sizes}; check the image or pass mpp=.")
        warn(f"Two resolutions of {what} differ by {ratio - 1:.0%}: {sizes}; {used.mpp:.4g} is used.")
    if not MIN_MPP <= used.mpp <= MAX_MPP:
        raise InputError(
            f"The resolution of {what} is {used.mpp:.4g} um per pixel according to {used.source}, which no image of "
            f"tissue has ({MIN_MPP:g} to {MAX_MPP:g}); check it or pass mpp=."
        )
    logger.info("%s: %.4g um per pixel from %s", what, used.mpp, used.source)
    return used.mpp


def check_mpp(mpp: float, *, what: str) -> float:
    """Return a resolution that an image of tissue can have, 0.01 to 100 um per pixel."""
    if not MIN_MPP <= mpp <= MAX_MPP:
        raise InputError(
            f"The resolution of {what} would be {mpp:.4g} um per pixel, which no image of tissue has "
            f"({MIN_MPP:g} to {MAX_MPP:g}); check its scale factors and positions, or pass mpp=."
        )
    return mpp


def lattice_pitch_px(
    array: np.ndarray, xy: np.ndarray, *, steps: Sequence[tuple[int, int]], max_stray: float | None = None
) -> float | None:
    """Return the distance in pixels between neighbours of a printed lattice, robust to holes and jitter.

    The affine map from array coordinates to pixels is fitted by least squares over all spots, and the neighbour steps
    are measured through it.

    Parameters
    ----------
    array
        (n, 2) array coordinates, such as array_row and array_col.
    xy
        (n, 2) positions in pixels.
    steps
        Steps in array coordinates that lead to a neighbour; all of them must be equally long within 5 %.
    max_stray
        How far a single spot may lie from its place on the lattice, in pitches; None: anywhere.

    Returns
    -------
    The pitch, or None where the spots cannot tell it (fewer than four, or in one line).

    Raises
    ------
    InputError
        If the positions are no lattice of these array coordinates.
    """
    array, xy = np.asarray(array, dtype=np.float64), np.asarray(xy, dtype=np.float64)
    for values, name in ((array, "array coordinates"), (xy, "positions")):
        if values.size and not np.abs(values).max() < MAX_COORDINATE:  # also where it is NaN
            raise InputError(f"The {name} of the spots are not finite, or beyond {MAX_COORDINATE:.0e}.")
    centred = array - array.mean(axis=0) if len(array) else array
    if len(array) < 4 or np.linalg.matrix_rank(centred) < 2:
        return None
    matrix, *_ = np.linalg.lstsq(centred, xy - xy.mean(axis=0), rcond=None)
    lengths = np.linalg.norm(np.asarray(steps, dtype=np.float64) @ matrix, axis=1)
    pitch = float(np.exp(np.log(np.maximum(lengths, 1e-12)).mean()))
    off = np.linalg.norm(xy - xy.mean(axis=0) - centred @ matrix, axis=1)
    residual = float(np.sqrt(np.mean(off**2)))
    if lengths.max() > (1 + LATTICE_TOLERANCE) * lengths.min() or residual > 0.25 * pitch:
        raise InputError(
            f"The spot positions do not follow their array coordinates: neighbours lie {lengths.min():.4g} to "
            f"{lengths.max():.4g} px apart, with a scatter of {residual:.4g} px; are rows and columns, or x and y, "
            "swapped?"
        )
    if max_stray is not None and (stray := off > max_stray * pitch).any():
        at = int(np.argmax(off))
        raise InputError(
            f"{int(stray.sum())} spots lie more than {max_stray:g} pitches from where their array coordinates place "
            f"them, such as that of the array coordinates {array[at, 0]:g} and {array[at, 1]:g} by {off[at]:.4g} px; "
            "check their positions."
        )
    return pitch


def grid_steps(array: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the neighbour steps of a legacy ST array: diagonal where only every second position is printed."""
    array = np.asarray(array, dtype=np.float64)
    if not (np.abs(array) < MAX_COORDINATE).all():
        raise InputError(f"The array coordinates of the spots are not finite, or beyond {MAX_COORDINATE:.0e}.")
    parity = np.round(array).astype(int).sum(axis=1) % 2
    staggered = len(parity) >= 4 and (parity == parity[0]).all()
    return STAGGERED_STEPS if staggered else SQUARE_STEPS


def is_hexagonal(array: np.ndarray, xy: np.ndarray) -> bool:
    """Tell whether (n, 2) array rows and columns are those of Visium: neighbours in six directions, equally far."""
    array = np.asarray(array, dtype=np.float64)
    if len(array) < 4 or not np.isfinite(array).all() or (np.round(array).sum(axis=1) % 2 != 0).any():
        return False
    try:
        return lattice_pitch_px(array, xy, steps=HEX_STEPS) is not None
    except InputError:
        return False


def nearest_pitch(xy: np.ndarray) -> float | None:
    """Return the distance of nearest neighbours, without array coordinates; isolated spots beside holes do not count.

    None for fewer than two distinct positions.
    """
    from scipy.spatial import cKDTree

    xy = np.unique(np.asarray(xy, dtype=np.float64), axis=0)
    if len(xy) < 2:
        return None
    distance = cKDTree(xy).query(xy, k=2)[0][:, 1]
    near = np.quantile(distance, 0.1)
    return float(np.median(distance[distance <= 1.3 * near]))


def looks_hexagonal(xy: np.ndarray) -> bool:
    """Tell from (n, 2) positions alone whether most have six equally far neighbours (or five or six, at borders)."""
    from scipy.spatial import cKDTree

    pitch = nearest_pitch(xy)
    if pitch is None or len(xy) < 20:
        return False
    tree = cKDTree(np.asarray(xy, dtype=np.float64))
    near = tree.query_ball_point(tree.data, 1.2 * pitch, return_length=True) - 1
    return bool(np.median(near) >= 5 and near.max() == 6)


def place(element: Any, affine: np.ndarray, *, coordinate_system: str = keys.UM) -> None:
    """Set the transformation of an element's own x, y to micrometres, beside those it has."""
    from spatialdata.transformations import set_transformation

    set_transformation(element, to_transformation(affine), to_coordinate_system=coordinate_system)


def to_transformation(affine: np.ndarray) -> Any:
    """Return a (3, 3) x, y matrix as the simplest spatialdata transformation."""
    from spatialdata.transformations import Affine, Identity, Scale

    affine = np.asarray(affine, dtype=np.float64)
    if np.array_equal(affine, np.eye(3)):
        return Identity()
    if np.array_equal(affine, np.diag(np.diag(affine))) and affine[0, 0] > 0 and affine[1, 1] > 0:
        return Scale(np.diag(affine)[:2].copy(), axes=("x", "y"))
    return Affine(affine, input_axes=("x", "y"), output_axes=("x", "y"))


def scaling(factor: float) -> np.ndarray:
    """Return the (3, 3) matrix that scales x and y."""
    return np.diag([factor, factor, 1.0])


def share_outside(xy_px: np.ndarray, *, width: int, height: int) -> float:
    """Return the share of (n, 2) pixel positions that lie outside an image."""
    x, y = np.asarray(xy_px, dtype=np.float64).T
    inside = (x >= 0) & (x <= width) & (y >= 0) & (y <= height)
    return float(1 - inside.mean()) if len(inside) else 0.0


def check_inside(
    xy_px: np.ndarray,
    *,
    width: int,
    height: int,
    mpp: float,
    what: str = "spots",
    hint: str = "",
    radius_px: float | np.ndarray = 0.0,
) -> None:
    """Refuse positions of which more than 10 % lie outside the image; the message prints both boxes.

    What is cut by the image's border is not misplaced: where `radius_px` is given, only what lies wholly off it counts.

    Parameters
    ----------
    xy_px
        (n, 2) x, y in pixels of the image.
    width, height
        Size of the image in pixels.
    mpp
        um per pixel of the image, for the message.
    what
        What lies there.
    hint
        What to do; appended to the message.
    radius_px
        How far each of them reaches from its position, one number or (n,).
    """
    off = distance_outside(xy_px, width=width, height=height)
    # A position that is not finite lies nowhere.
    share = float(1 - ((off == 0) | ((radius_px > 0) & (off <= radius_px + EDGE_PX))).mean()) if len(off) else 0.0
    if share <= MAX_OUTSIDE:
        return
    low, high = np.min(xy_px, axis=0), np.max(xy_px, axis=0)
    raise InputError(
        f"{share:.0%} of the {what} lie outside the image: they span x {low[0]:.0f} to {high[0]:.0f}, "
        f"y {low[1]:.0f} to {high[1]:.0f} px ({_um(low[0], high[0], mpp)} by {_um(low[1], high[1], mpp)} um), "
        f"the image x 0 to {width}, y 0 to {height} px ({_um(0, width, mpp)} by {_um(0, height, mpp)} um)"
        f"{'; ' + hint if hint else '.'}"
    )


def _um(low: float, high: float, mpp: float) -> str:
    return f"{low * mpp:.0f} to {high * mpp:.0f}"


def check_fullres_size(size: tuple[int, int], *, hires_size: tuple[int, int], hires_scalef: float, what: str) -> None:
    """Refuse an image given as full resolution that is a scaled copy of it, such as Space Ranger's hires image.

    Parameters
    ----------
    size
        Width and height of the image in question.
    hires_size, hires_scalef
        Width and height of the hires image, and its pixels per full-resolution pixel.
    what
        The image's name, for messages.
    """
    expected = np.asarray(hires_size, dtype=np.float64) / hires_scalef
    slack = 0.02 + 1.5 / np.asarray(hires_size, dtype=np.float64)
    ratio = np.asarray(size, dtype=np.float64) / expected
    if (abs(ratio - 1) <= slack).all():
        return
    mismatch = f"it has {size[0]} x {size[1]} px where the scale factors promise {expected[0]:.0f} x {expected[1]:.0f}"
    if abs(ratio[0] / ratio[1] - 1) <= slack.sum() and not 0.9 < ratio.mean() < 1.1:
        trap = " (this is the hires image)" if abs(ratio.mean() / hires_scalef - 1) < 0.02 else ""
        raise InputError(
            f"{what} is not the full-resolution image: {mismatch}, so it is a copy scaled by {ratio.mean():.4g}{trap}; "
            "pass the image that Space Ranger was run on as fullres_image=."
        )
    warn(f"{what} may not be the image that Space Ranger was run on: {mismatch}.")

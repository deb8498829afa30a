"""Finding positions whose x and y are swapped, by where they lie on the image and on its tissue."""

from __future__ import annotations

import numpy as np

from stpred._core.checks import InputError
from stpred._core.geometry import MAX_OUTSIDE
from stpred.calibration import share_outside
from stpred.io._images.pixels import Level, Pixels

MAX_SAMPLED = 128
_REACH_PX = 2
_CONSTANT, _MIN_FILL_DARKNESS = 2, 60.0
_T_LIMIT = 6.0
_RATIO_LIMIT = 1.2


def refuse_swapped(xy_px: np.ndarray, pixels: Pixels, *, what: str = "spots") -> None:
    """Raise if positions fit the image clearly better with x and y swapped.

    Two signs are looked for: positions that lie outside as they are and inside when swapped, and, where both fit,
    tissue (and nuclei) that is much darker under the swapped positions than under the unswapped ones.
    """
    width, height = pixels.width, pixels.height
    outside = share_outside(xy_px, width=width, height=height)
    turned = share_outside(xy_px[:, ::-1], width=width, height=height)
    if outside > MAX_OUTSIDE and turned < MAX_OUTSIDE / 2:
        raise InputError(
            f"{outside:.0%} of the {what} lie outside the image of {width} x {height} px, and {turned:.0%} if x and y "
            "are exchanged, so they look swapped; pass swap_xy=True (or swap_xy=False to keep them)."
        )
    if max(outside, turned) > MAX_OUTSIDE:
        return
    unswapped, swapped = _darkness(pixels.levels[0], xy_px)
    t, ratio = swap_evidence(unswapped, swapped)
    if t > _T_LIMIT and ratio > _RATIO_LIMIT:
        raise InputError(
            f"The {what} lie on tissue only if x and y are exchanged (mean darkness {swapped.mean():.0f} against "
            f"{unswapped.mean():.0f} of 255), so they look swapped; pass swap_xy=True (or swap_xy=False to keep them)."
        )


def swap_evidence(unswapped: np.ndarray, swapped: np.ndarray) -> tuple[float, float]:
    """Return the paired t statistic and the ratio of mean darkness of the swapped against the unswapped positions.

    Parameters
    ----------
    unswapped, swapped
        (n,) darkness (0 = white) of the image there.
    """
    difference = np.asarray(swapped, dtype=np.float64) - np.asarray(unswapped, dtype=np.float64)
    if len(difference) < 10:
        return 0.0, 1.0
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return float(difference.mean() / max(error, 1e-9)), float(np.mean(swapped) / max(np.mean(unswapped), 1e-9))


def _darkness(level: Level, xy_px: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the darkness of the image at a sample of the positions, unswapped and swapped, where both lie inside."""
    _, height, width = level.shape
    side = min(height, width)
    inside = xy_px[(xy_px >= 0).all(axis=1) & (xy_px < side).all(axis=1)]
    chosen = (
        inside[np.linspace(0, len(inside) - 1, min(len(inside), MAX_SAMPLED)).astype(int)] if len(inside) else inside
    )
    return (
        np.array([_at(level, x, y) for x, y in chosen]),
        np.array([_at(level, y, x) for x, y in chosen]),
    )


def _at(level: Level, x: float, y: float) -> float:
    column, row = int(x), int(y)
    window = level[
        slice(0, 3),
        slice(max(0, row - _REACH_PX), row + _REACH_PX + 1),
        slice(max(0, column - _REACH_PX), column + _REACH_PX + 1),
    ]
    darkness = 255.0 - float(window.mean())
    # A dark window of one value is fill (of rotation, registration or stitching), which is no tissue.
    constant = window.size > 0 and (np.ptp(window.reshape(len(window), -1), axis=1) <= _CONSTANT).all()
    return 0.0 if constant and darkness > _MIN_FILL_DARKNESS else darkness

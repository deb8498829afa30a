"""Whether an image shows what it should: the same as a small copy of the slide, and tissue where the spots are."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, warn
from stpred._image.tissue import tissue_mask

if TYPE_CHECKING:
    from stpred.io._images.pixels import Level, Pixels

logger = logging.getLogger("stpred")

ORIENTATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "turned by 180 degrees": lambda a: a[::-1, ::-1],
    "mirrored left to right": lambda a: a[:, ::-1],
    "mirrored top to bottom": lambda a: a[::-1],
    "turned by 90 degrees clockwise": lambda a: np.rot90(a, -1),
    "turned by 90 degrees counterclockwise": lambda a: np.rot90(a, 1),
    "with x and y exchanged": lambda a: a.swapaxes(0, 1),
    "mirrored at the other diagonal": lambda a: np.rot90(a, 2).swapaxes(0, 1),
}
"""What may have been done to an image; each maps the right image to what was found."""

GRID = 64
"""Places along the longer side of an image at which it is compared."""
MAX_WHOLE_PX = 4096
"""A pyramid level of at most this longer side is read whole; of others only windows are."""
_WINDOW_PX = 48
_SMOOTH_CELLS = 3.0
_SAME, _DIFFERENT = 0.65, 0.3
"""Correlation of detail: copies of one image reach 0.95, copies that are shifted by 1 % 0.3 to 0.6, and neighbouring
sections of one block 0.3 at most.
"""
_BETTER = 0.15
_MIN_CONTRAST = 1.0
_ON_TISSUE, _OFF_TISSUE, _GAP, _HALF = 0.9, 0.8, 0.1, 0.5
"""Shares of spots under tissue that lie on the tissue of the image: 0.94 and more on their own, 0.78 at most on one
that was turned or mirrored (sections C2 to C5 of HER2ST).
"""
_MIN_POSITIONS = 20


class Overview(NamedTuple):
    """Mean colours of an image on a regular grid of windows."""

    means: NDArray[np.float32]
    """(rows, columns, 3)."""
    share: float
    """Side of a window by the side of its grid cell, 1 where the whole image was read."""


class Match(NamedTuple):
    """How well an image fits a copy: correlation of detail as it is, and the best of the other orientations."""

    as_it_is: float
    other: float
    orientation: str


def overview(pixels: Pixels, *, grid: int = GRID) -> Overview:
    """Return the colours of an image on a grid, decoding as little as possible.

    A pyramid level of at most 4096 px is read whole; without one, windows of 48 px of the coarsest level are read.
    """
    level = pixels.levels[-1]
    _, height, width = level.shape
    shape = grid_shape(height, width, grid=grid)
    if max(height, width) <= MAX_WHOLE_PX:
        whole = np.asarray(level[0:3, 0:height, 0:width]).transpose(1, 2, 0)
        return Overview(window_means(whole, shape=shape, share=1.0), 1.0)
    cell = max(height / shape[0], width / shape[1])
    share = min(1.0, _WINDOW_PX / cell)
    return Overview(_sampled(level, shape, share), share)


def grid_shape(height: int, width: int, *, grid: int = GRID) -> tuple[int, int]:
    """Return rows and columns of square-like cells, at most `grid` along the longer side and none below 4 px."""
    longer = max(height, width)
    n = max(1, min(grid, longer // 4))
    return max(1, round(height * n / longer)), max(1, round(width * n / longer))


def _sampled(level: Level, shape: tuple[int, int], share: float) -> NDArray[np.float32]:
    _, height, width = level.shape
    rows, columns = _bounds(height, shape[0], share), _bounds(width, shape[1], share)
    means = np.empty((*shape, 3), dtype=np.float32)
    banded = level.chunk_px[1] >= width  # strips are decoded at full width whatever is asked for
    for i, (y0, y1) in enumerate(rows):
        band = np.asarray(level[0:3, y0:y1, 0:width]) if banded else None
        for j, (x0, x1) in enumerate(columns):
            window = band[:, :, x0:x1] if band is not None else np.asarray(level[0:3, y0:y1, x0:x1])
            means[i, j] = window.reshape(3, -1).mean(axis=1)
    return means


def _bounds(n: int, cells: int, share: float) -> list[tuple[int, int]]:
    """Return first and last pixel of the window at the centre of each of `cells` cells of an axis of `n` pixels."""
    cell = n / cells
    size = max(1, round(cell * share))
    starts = [min(max(0, round((k + 0.5) * cell - size / 2)), n - size) for k in range(cells)]
    return [(s, s + size) for s in starts]


def window_means(image: np.ndarray, *, shape: tuple[int, int], share: float) -> NDArray[np.float32]:
    """Return the mean colour of a (h, w, 3) image in the windows of a grid, as (rows, columns, 3)."""
    rows, columns = (np.array(_bounds(n, k, share)) for n, k in zip(image.shape[:2], shape, strict=True))
    total = np.zeros((image.shape[0] + 1, image.shape[1] + 1, 3))
    total[1:, 1:] = image.astype(np.float64).cumsum(axis=0).cumsum(axis=1)
    (y0, y1), (x0, x1) = rows.T, columns.T
    sums = total[y1][:, x1] - total[y0][:, x1] - total[y1][:, x0] + total[y0][:, x0]
    area = (y1 - y0)[:, None, None] * (x1 - x0)[None, :, None]
    return np.asarray(sums / area, dtype=np.float32)


def match_copy(found: Overview, copy: np.ndarray) -> Match | None:
    """Correlate an image with a copy of the slide in all eight orientations.

    Parameters
    ----------
    found
        Overview of the image in question.
    copy
        (h, w, 3) uint8 pixels of the copy, of any size.

    Returns
    -------
    The correlations, or None where one of both shows nothing to compare.

    Notes
    -----
    Compared is detail: what a Gaussian of three grid cells leaves out, since the outlines of any two sections are much
    alike.
    """
    if _contrast(found.means) < _MIN_CONTRAST and _contrast(copy) < _MIN_CONTRAST:
        return None
    detail = _detail(found.means)
    scores = {}
    for name, turn in ORIENTATIONS.items():
        turned = window_means(turn(copy), shape=found.means.shape[:2], share=found.share)
        scores[name] = _correlation(detail, _detail(turned))
    first = next(iter(scores))
    other = max((name for name in scores if name != first), key=lambda name: scores[name])
    return Match(scores[first], scores[other], other)


def _contrast(image: np.ndarray) -> float:
    return float(image.reshape(-1, 3).astype(np.float32).std(axis=0).max())


def _detail(means: np.ndarray) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return means - gaussian_filter(means, (_SMOOTH_CELLS, _SMOOTH_CELLS, 0))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a - a.mean(axis=(0, 1)), b - b.mean(axis=(0, 1))
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def judge(match: Match) -> Literal["same", "turned", "different", "unsure"]:
    """Say what the correlations mean."""
    if match.other > max(match.as_it_is + _BETTER, _DIFFERENT):
        return "turned"
    if match.as_it_is >= _SAME:
        return "same"
    return "different" if match.as_it_is < _DIFFERENT else "unsure"


def compare_with_copy(pixels: Pixels, copy: np.ndarray, *, name: str) -> tuple[str, str]:
    """Return the verdict (``"same"``, ``"turned"``, ``"different"``, ``"unsure"``, ``"blank"``) and it in words.

    Parameters
    ----------
    pixels
        The image in question.
    copy
        (h, w, 3) uint8 pixels of the slide's small copy.
    name
        The copy's name.
    """
    what = f"The image {pixels.path.name!r}"
    match = match_copy(overview(pixels), copy)
    if match is None:
        return "blank", f"{what} and {name!r} show nothing that could be compared"
    return judge(match), describe(match, what=what, copy=name)


def require_copy(pixels: Pixels, copy: np.ndarray, *, name: str, advice: str) -> None:
    """Refuse an image that was given for a slide whose small copy shows something else; doubts are warned of."""
    verdict, message = compare_with_copy(pixels, copy, name=name)
    if verdict in ("turned", "different"):
        raise InputError(f"{message}; {advice}.")
    if verdict == "unsure":
        warn(f"{message}; {advice}.")


def describe(match: Match, *, what: str, copy: str) -> str:
    """Say in words how an image differs from the copy of the slide."""
    verdict = judge(match)
    if verdict == "turned":
        return (
            f"{what} shows what {copy!r} shows only {match.orientation} (correlation of detail "
            f"{match.other:.2f}, as it is {match.as_it_is:.2f})"
        )
    if verdict == "same":
        return f"{what} looks like {copy!r} (correlation of detail {match.as_it_is:.2f})"
    return f"{what} does not look like {copy!r} (correlation of detail {match.as_it_is:.2f}, of copies 0.95)"


def check_on_tissue(
    xy_px: np.ndarray, pixels: Pixels, *, mpp: float, what: str = "spots", swap_hint: bool = False
) -> None:
    """Refuse an image on which positions lie beside the tissue, but on it if the image were turned or mirrored.

    For images that nothing but the positions can be compared with. Where fewer than half of the positions lie on
    tissue and no orientation fits better, a warning says so.

    Parameters
    ----------
    xy_px
        (n, 2) positions under tissue, in pixels of the finest level.
    pixels
        The image.
    mpp
        Micrometres per pixel.
    what
        What lies there.
    swap_hint
        Whether the caller has a parameter ``swap_xy``.

    Raises
    ------
    InputError
        If fewer than 80 % of the positions lie on tissue, and over 90 % in another orientation.
    """
    if len(xy_px) < _MIN_POSITIONS:
        return
    coarse = overview(pixels, grid=2 * GRID)
    cell_um = mpp * max(pixels.height / coarse.means.shape[0], pixels.width / coarse.means.shape[1])
    mask = tissue_mask(np.rint(coarse.means).astype(np.uint8), mpp=cell_um)
    if mask.all() or not mask.any():
        return  # tissue everywhere, or none that is found
    shares = tissue_shares(xy_px, mask, width=pixels.width, height=pixels.height)
    share = shares.pop("as it is")
    best = max(shares, key=lambda name: shares[name])
    message = f"{share:.0%} of the {what} lie on the tissue of {pixels.path.name!r}"
    if shares[best] >= _ON_TISSUE and share < shares[best] - _GAP:
        message = f"Only {message}, and {shares[best]:.0%} if it is taken as an image {best}"
        if share < _OFF_TISSUE:
            hint = " (swap_xy=True; False keeps them)" if swap_hint else ""
            raise InputError(
                f"{message}, so image and {what} do not belong together as they lie: turn it back, exchange x and "
                f"y{hint}, or pass the right one."
            )
        warn(f"{message}; check that image and {what} belong together.")
    elif share < _HALF:
        warn(f"Only {message}; check that it is the image of these {what}.")


def tissue_shares(xy_px: np.ndarray, mask: np.ndarray, *, width: int, height: int) -> dict[str, float]:
    """Return the share of positions on tissue, had the image been turned or mirrored back, by what was done to it.

    Parameters
    ----------
    xy_px
        (n, 2) positions.
    mask
        (h, w) bool tissue of the image as it is, of any resolution.
    width, height
        Size of the image in the pixels of `xy_px`.
    """
    x, y = np.asarray(xy_px, dtype=np.float64).T
    # where a position of the right image lies in one to which this was done
    places = {
        "as it is": (x, y),
        "turned by 180 degrees": (width - x, height - y),
        "mirrored left to right": (width - x, y),
        "mirrored top to bottom": (x, height - y),
        "turned by 90 degrees clockwise": (width - y, x),
        "turned by 90 degrees counterclockwise": (y, height - x),
        "with x and y exchanged": (y, x),
        "mirrored at the other diagonal": (width - y, height - x),
    }
    rows, columns = mask.shape
    shares = {}
    for name, (a, b) in places.items():
        j, i = np.floor(a * columns / width).astype(int), np.floor(b * rows / height).astype(int)
        inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
        shares[name] = float(mask[i[inside], j[inside]].sum() / max(len(x), 1))
    return shares

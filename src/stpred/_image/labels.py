"""Label images: whole pieces, sums over labels, outlines. Arrays only, and nothing that has to be compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.int32]

# Row and column of a step east, south, west, north along the edges of pixels, the region on the right hand.
_DY, _DX = np.array([0, 1, 0, -1]), np.array([1, 0, -1, 0])
# The two pixels ahead of a corner that is reached in that direction: right hand and left hand.
_RIGHT_Y, _RIGHT_X = np.array([0, 0, -1, -1]), np.array([0, -1, -1, 0])
_LEFT_Y, _LEFT_X = np.array([-1, 0, 0, -1]), np.array([0, 0, -1, -1])


def sized(labels: NDArray[np.integer], area_px: tuple[float, float]) -> Labels:
    """Keep the largest piece of every label if its area is within bounds, and number them 1..n."""
    from skimage.measure import label

    pieces = label(labels, background=0, connectivity=1)
    size = np.bincount(pieces.reshape(-1), minlength=1)
    origin = np.zeros(size.size, np.int64)
    origin[pieces.reshape(-1)] = labels.reshape(-1)
    order = np.lexsort((-size, origin))  # of equal ones the first
    best = order[np.unique(origin[order], return_index=True)[1]][1:]  # but that of the ground
    best = best[(size[best] >= area_px[0]) & (size[best] <= area_px[1])]
    number = np.zeros(size.size, np.int32)
    number[best] = np.arange(1, best.size + 1)
    return number[pieces]


def whole_pieces(labels: NDArray[np.integer]) -> Labels:
    """Label the largest piece (of pixels that share edges) of every label 1..n, in order; empty labels are skipped."""
    return sized(np.ascontiguousarray(labels, dtype=np.int32), (1, np.inf))


def kept(labels: Labels, keep: NDArray[np.bool_]) -> Labels:
    """Keep the labels that `keep` (n + 1,) says, and number them 1..n in order."""
    keep = keep.copy()
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


def means(labels: Labels, *planes: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return pixels, mean row, mean column and the mean of every plane, (n, 3 + planes), of the labels 1..n."""
    n = int(labels.max(initial=0))
    where = np.flatnonzero(labels)
    which = labels.reshape(-1)[where]
    area = np.bincount(which, minlength=n + 1)[1:]
    row, column = np.divmod(where, labels.shape[1])
    sums = [np.bincount(which, v, n + 1)[1:] for v in (row, column, *(p.reshape(-1)[where] for p in planes))]
    return np.column_stack([area, *(s / np.maximum(area, 1) for s in sums)])


def outlines(labels: Labels, *, inset_px: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Trace every label 1..n, smoothed over about a pixel and, if asked, moved inwards by some part of one.

    Returns
    -------
    (m, 2) x, y in pixels (pixel borders are whole numbers), and (n + 1,) where each outline begins; the last entry is
    m. A label without pixels has an empty outline. Of a label in several pieces the first is traced, and holes are not.
    """
    n = int(labels.max(initial=0))
    which, midpoint = _rings(np.ascontiguousarray(labels), n)
    size = np.bincount(which, minlength=n + 1)[1:]
    begin = np.r_[0, np.cumsum(size)]
    at = np.arange(len(which))
    first, last = begin[which - 1], begin[which] - 1
    before, after = np.where(at == first, last, at - 1), np.where(at == last, first, at + 1)
    for _ in range(3):
        midpoint = 0.25 * midpoint[before] + 0.5 * midpoint + 0.25 * midpoint[after]
    every_other = (size[which - 1] < 12) | ((at - first) % 2 == 0)
    along, down = (midpoint[after] - midpoint[before]).T
    step = inset_px / np.maximum(np.hypot(along, down), 1e-6)
    xy = midpoint + np.column_stack([-step * down, step * along])
    return xy[every_other], np.r_[0, np.cumsum(np.bincount(which[every_other], minlength=n + 1)[1:])]


def _rings(labels: Labels, n: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the edges of pixels around the first piece of every label, in order: label, and x, y of the middle."""
    height, width = labels.shape
    framed = np.pad(labels, 1)
    beside = (framed[:-2, 1:-1], framed[1:-1, 2:], framed[2:, 1:-1], framed[1:-1, :-2])
    edges = []
    for way, other in enumerate(beside):
        row, column = np.nonzero((labels > 0) & (other != labels))
        start = (row + (way >= 2), column + (way in (1, 2)))  # the corner where the edge begins
        edges.append(np.column_stack([*start, np.full(len(row), way), labels[row, column]]))
    y, x, d, which = np.concatenate(edges).astype(np.int64).T

    def code(y: Any, x: Any, d: Any) -> Any:
        return (y * (width + 1) + x) * 4 + d

    number = np.full((height + 1) * (width + 1) * 4, -1, np.int32)
    number[code(y, x, d)] = np.arange(len(y))
    end_y, end_x = y + _DY[d], x + _DX[d]
    right = framed[end_y + 1 + _RIGHT_Y[d], end_x + 1 + _RIGHT_X[d]] == which
    left = framed[end_y + 1 + _LEFT_Y[d], end_x + 1 + _LEFT_X[d]] == which
    turned = np.where(~right, d + 1, np.where(left, d + 3, d)) % 4
    # Every ring begins with the edge above the first pixel of its label.
    filled = np.flatnonzero(labels)
    top, lead = np.divmod(filled[np.unique(labels.reshape(-1)[filled], return_index=True)[1]], width)
    to_come = _to_come(number[code(end_y, end_x, turned)].astype(np.int64), number[code(top, lead, 0)])
    ring = np.flatnonzero(to_come >= 0)
    ring = ring[np.lexsort((-to_come[ring], which[ring]))]
    return which[ring], np.column_stack([x + 0.5 * _DX[d], y + 0.5 * _DY[d]])[ring]


def _to_come(following: NDArray[np.int64], start: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return how many edges come after each before its ring is back at its start; -1 for rings without a start.

    Pointer jumping: every round doubles how far each edge sees.
    """
    end = len(following)
    begins = np.zeros(end, bool)
    begins[start] = True
    last = begins[following]
    jump = np.append(np.where(last, end, following), end)
    steps = np.append(np.where(last, 0, 1), 0)
    for _ in range(end.bit_length()):
        if (jump == end).all():
            break
        steps = steps + np.where(jump == end, 0, steps[jump])
        jump = jump[jump]
    return np.where(jump == end, steps, -1)[:-1]

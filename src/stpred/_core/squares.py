"""Which squares of a lattice, anchored at the frame's origin, lie in which shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Inside = Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.bool_]]
"""Says of (m,) shapes and as many (m, 2) points which points lie in their shapes."""

_AT_ONCE = 2_000_000
"""Squares that are looked at in one go."""

_NUDGE = 1e-6
"""By how much of a square a centre is moved: on a border of two shapes it lies in one, whatever rounding does to it."""


def centres_inside(
    low: NDArray[np.float64], high: NDArray[np.float64], size: float, inside: Inside
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the squares whose centres lie in each shape; a centre on a border counts right of or below it.

    Parameters
    ----------
    low, high
        (n, 2) corners of the shapes' boxes.
    size
        Edge of the squares; square (i, j) begins at (i, j) times it.
    inside
        Says which points lie in their shapes.

    Returns
    -------
    (m,) int64 shape of each square, ascending, and (m, 2) int64 column and row.
    """
    half = 0.5 + _NUDGE
    first, last = np.ceil(low / size - half).astype(np.int64), np.floor(high / size - half).astype(np.int64)
    wide, tall = (last - first + 1).clip(0).T
    begin = np.concatenate([[0], np.cumsum(wide * tall)])
    found, squares = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    for start in range(0, int(begin[-1]), _AT_ONCE):
        number = np.arange(start, min(start + _AT_ONCE, int(begin[-1])))
        shape = np.searchsorted(begin, number, side="right") - 1
        row, column = np.divmod(number - begin[shape], wide[shape])
        square = np.column_stack([column, row]) + first[shape]
        kept = inside(shape, np.asarray((square + half) * size, dtype=np.float64))
        found.append(shape[kept])
        squares.append(square[kept])
    return np.concatenate(found), np.concatenate(squares)


def most_squares(low: NDArray[np.float64], high: NDArray[np.float64], size: float) -> float:
    """Return how many squares the boxes of shapes hold, about."""
    return float(np.prod((high - low) / size + 1, axis=1).sum())

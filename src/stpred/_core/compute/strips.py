"""Work on large images in strips of rows, so that what is computed on the way never has the size of the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

ROWS = 256


def strips(height: int, *, reach: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """Yield for each strip its rows, the same with `reach` more on either side, and where the first lie in these.

    There are no rows beyond the image, so that a filter treats the image's own border as it would in one piece.
    """
    for start in range(0, height, ROWS):
        stop = min(start + ROWS, height)
        low, high = max(start - reach, 0), min(stop + reach, height)
        yield slice(start, stop), slice(low, high), slice(start - low, stop - low)


def in_strips(work: Callable[..., NDArray[Any]], *images: NDArray[Any], dtype: DTypeLike, reach: int = 0) -> Any:
    """Return the (h, w) image of ``work(*images)``, whose pixels depend on those at most `reach` rows away."""
    out = np.empty(images[0].shape[:2], dtype)
    for rows, outer, own in strips(len(out), reach=reach):
        out[rows] = work(*(image[outer] for image in images))[own]
    return out


def label_sums(labels: NDArray[np.integer[Any]], n: int) -> NDArray[np.int64]:
    """Return how many pixels have each of the labels 0 to `n`."""
    sums = np.zeros(n + 1, np.int64)
    for rows, _, _ in strips(len(labels)):
        sums += np.bincount(labels[rows].ravel(), minlength=n + 1)
    return sums


def looked_up(table: NDArray[Any], labels: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """Return ``table[labels]``; NumPy would make 8 bytes of each label first."""
    found: NDArray[Any] = in_strips(lambda part: table[part], labels, dtype=table.dtype)
    return found

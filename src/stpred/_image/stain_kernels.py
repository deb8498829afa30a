"""Loops over pixels of stain separation; import this where it is needed, since it imports numba."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel


@kernel
def look_up(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the table's entries for (n, 3) pixels, (3, n)."""
    n = pixels.shape[0]
    out = np.empty((3, n), np.float32)
    for i in range(n):
        out[0, i] = table[pixels[i, 0]]
        out[1, i] = table[pixels[i, 1]]
        out[2, i] = table[pixels[i, 2]]
    return out


@kernel
def combine(planes: NDArray[np.float32], inverse: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return (3, n) planes multiplied by a (3, 3) matrix, stain by stain."""
    n = planes.shape[1]
    red, green, blue = planes[0], planes[1], planes[2]
    out = np.empty((3, n), np.float32)
    for s in range(3):
        r, g, b, target = inverse[0, s], inverse[1, s], inverse[2, s], out[s]
        for i in range(n):
            target[i] = red[i] * r + green[i] * g + blue[i] * b
    return out

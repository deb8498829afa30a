"""Loops over the pixels of tiles; import this where it is needed, since it imports numba."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel

_BITS = 22
"""Fraction of the fixed-point weights, as in Pillow: 32 bits less 8 of a pixel and 2 that sums may need."""


def resized(
    region: NDArray[np.uint8], *, columns: tuple[float, float], rows: tuple[float, float], size_px: int
) -> NDArray[np.uint8]:
    """Return a part of a region as a tile by cubic resampling, bit for bit that of Pillow and over twice as fast.

    Pillow gives each pixel a fourth channel and works on one pixel at a time. At about the tile's own resolution
    neighbours in the tile are neighbours in the image, so that whole runs of values are added up together.

    Parameters
    ----------
    region
        (h, w, 3) pixels, about square.
    columns, rows
        Begin and end of the part in pixels, at most 2 % longer or shorter than the tile's edge.
    size_px
        Edge of the tile.
    """
    if region.strides[1:] != (3, 1):
        region = np.ascontiguousarray(region)
    height, width = region.shape[:2]
    lines = np.lib.stride_tricks.as_strided(region, (height, 3 * width), (region.strides[0], 1), writeable=False)
    out = np.empty((size_px, size_px, 3), dtype=np.uint8)
    _resize(lines, *_span(columns), *_span(rows), out.reshape(size_px, 3 * size_px))
    return out


def _span(ends: tuple[float, float]) -> tuple[float, float]:
    """Return begin and length in the single precision in which Pillow computes them."""
    begin, end = np.float32(ends[0]), np.float32(ends[1])
    return float(begin), float(end - begin)


@kernel
def _resize(lines: Any, left: float, across: float, top: float, down: float, out: Any) -> None:
    size, height, width = out.shape[0], lines.shape[0], lines.shape[1] // 3
    column, column_weights = _weights(left, across, width, size, 3)
    row, row_weights = _weights(top, down, height, size, 1)
    n_rows, first = row_weights.shape[0], row[0]
    last = min(row[size - 1] + n_rows, height)
    # Weights are zero beyond the last pixel, where there has to be something to multiply by them.
    line = np.zeros(3 * (width + column_weights.shape[0]), np.uint8)
    between = np.zeros((last - first + n_rows, 3 * size), np.uint8)
    sums = np.empty(3 * size, np.int32)
    for r in range(first, last):
        line[: 3 * width] = lines[r]
        sums[:] = 1 << (_BITS - 1)
        i = 0
        while i < size:  # a run of pixels whose neighbours in the tile are neighbours in the image
            end = i + 1
            while end < size and column[end] == column[end - 1] + 1:
                end += 1
            run = sums[3 * i : 3 * end]
            for k in range(column_weights.shape[0]):
                begin = 3 * (column[i] + k)
                _add(run, line[begin : begin + 3 * (end - i)], column_weights[k, 3 * i : 3 * end])
            i = end
        _rounded(sums, between[r - first])
    for i in range(size):
        sums[:] = 1 << (_BITS - 1)
        for k in range(n_rows):
            _add_one(sums, between[row[i] - first + k], row_weights[k, i])
        _rounded(sums, out[i])


@kernel
def _add(sums: Any, values: Any, weights: Any) -> None:
    for j in range(sums.shape[0]):
        sums[j] += np.int32(values[j]) * weights[j]


@kernel
def _add_one(sums: Any, values: Any, weight: Any) -> None:
    for j in range(sums.shape[0]):
        sums[j] += np.int32(values[j]) * weight


@kernel
def _rounded(sums: Any, out: Any) -> None:
    for j in range(sums.shape[0]):
        out[j] = np.uint8(min(max(sums[j] >> np.int32(_BITS), np.int32(0)), np.int32(255)))


@kernel
def _weights(begin: float, length: float, n_in: int, n_out: int, channels: int) -> Any:
    """Return the first pixel of each pixel of the tile, and (pixels, n_out * channels) weights from there on."""
    scale = length / n_out
    stretch = max(scale, 1.0)
    most = int(math.ceil(2.0 * stretch)) * 2 + 1
    first = np.empty(n_out, np.int32)
    weights = np.zeros((most, channels * n_out), np.int32)
    found = np.empty(most)
    widest = 0
    for i in range(n_out):
        centre = begin + (i + 0.5) * scale
        low = max(int(centre - 2.0 * stretch + 0.5), 0)
        n = min(int(centre + 2.0 * stretch + 0.5), n_in) - low
        first[i] = low
        widest = max(widest, n)
        total = 0.0
        for k in range(n):
            x = abs((k + low - centre + 0.5) * (1.0 / stretch))
            found[k] = 0.0
            if x < 1:
                found[k] = (1.5 * x - 2.5) * x * x + 1
            elif x < 2:
                found[k] = (((x - 5) * x + 8) * x - 4) * -0.5
            total += found[k]
        for k in range(n):
            value = found[k] / total * (1 << _BITS)
            whole = int(value - 0.5) if value < 0 else int(value + 0.5)
            for c in range(channels):
                weights[k, channels * i + c] = whole
    return first, weights[:widest]

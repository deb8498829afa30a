"""Colour of tiles of pixels at several scales, which tells tiles of another stain or scanner apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred.models.batch import Batch

N_STATISTICS = 24
"""Mean and deviation of three channels, at four scales."""

_TILES = 256
"""Tiles that are in memory at a time."""


def pixel_statistics(batch: Batch, mean: NDArray[Any], std: NDArray[Any]) -> NDArray[np.float32]:
    """Return (n, 24) normalised means and deviations of the channels of the tile, its half, quarter and eighth.

    `mean` and `std` are those of the channels, 0..1.
    """
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(batch.targets), _TILES):
        tiles = np.asarray(batch.features[batch.targets[start : start + _TILES]])
        size = math.isqrt(tiles.shape[1] // 3)
        tiles = tiles.reshape(-1, size, size, 3)
        columns = []
        for part in (1, 2, 4, 8):
            half = max(1, size // (2 * part))
            middle = tiles[:, size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half]
            columns += [(middle.mean(axis=(1, 2)) / 255 - mean) / std, middle.std(axis=(1, 2)) / 255 / std]
        parts.append(np.concatenate(columns, axis=1).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty((0, N_STATISTICS), dtype=np.float32)

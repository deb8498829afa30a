"""Pixels of single chunks of a lazy image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.forks import guard


class ChunkDecoder:
    """Decodes chunks of a (c, y, x) array in dask's threads, without the copies that ``compute`` makes of them.

    Parameters
    ----------
    pixels
        dask array, or a NumPy array, which is one chunk.
    """

    def __init__(self, pixels: Any) -> None:
        self.pixels = pixels
        self.graph = dict(pixels.__dask_graph__()) if hasattr(pixels, "dask") else {}

    def __call__(self, chunks: Sequence[tuple[int, int]]) -> list[NDArray[np.uint8]]:
        """Return the (h, w, c) pixels of chunks that are given by row and column."""
        if not chunks or not self.graph:
            return [np.moveaxis(np.asarray(self.pixels), 0, -1) for _ in chunks]
        from dask.optimization import cull
        from dask.threaded import get

        guard()
        name, deep = self.pixels.name, self.pixels.numblocks[0]
        wanted = [(name, k, r, c) for r, c in chunks for k in range(deep)]
        parts = [np.asarray(part) for part in get(cull(self.graph, wanted)[0], wanted)]
        return [_interleaved(parts[i : i + deep]) for i in range(0, len(parts), deep)]


def _interleaved(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return (h, w, 3) pixels of one or several (c, h, w) blocks; no copy where they lie in memory so already."""
    if len(parts) == 1 and np.moveaxis(parts[0], 0, -1).flags.c_contiguous:
        return np.moveaxis(parts[0], 0, -1)
    planes = [plane for part in parts for plane in part]
    out = np.empty((*planes[0].shape, len(planes)), dtype=np.uint8)
    for channel, plane in enumerate(planes):
        out[:, :, channel] = plane
    return out

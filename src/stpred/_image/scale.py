"""Pixels scaled per channel: what networks take as input."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel


def scale_into(
    out: NDArray[np.float32], tiles: NDArray[np.uint8], scale: NDArray[np.float32], shift: NDArray[np.float32]
) -> None:
    """Write ``tiles * scale + shift`` into `out` in one pass.

    Parameters
    ----------
    out
        (n, h, w, 3), contiguous.
    tiles
        (n, h, w, 3) pixels.
    scale, shift
        (3,) of the channels.
    """
    tiles = np.ascontiguousarray(tiles)
    width = 3 * tiles.shape[2]
    # Whole lines of channels that take turns, so that the loop is over neighbours in memory.
    along = [np.tile(np.asarray(v, np.float32), tiles.shape[2]) for v in (scale, shift)]
    _scale(out.reshape(-1, width), tiles.reshape(-1, width), *along)


@kernel
def _scale(out: Any, lines: Any, scale: Any, shift: Any) -> None:
    for r in range(lines.shape[0]):
        for k in range(lines.shape[1]):
            out[r, k] = lines[r, k] * scale[k] + shift[k]

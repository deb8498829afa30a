"""Colour of a tile: mean red, green and blue, and their standard deviations. What colour baselines see."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard


class IntensityEncoder:
    """Channel means of a tile, 0 to 255; any tile size.

    Examples
    --------
    >>> import numpy as np
    >>> import stpred as st
    >>> tiles = np.full((2, 8, 8, 3), (200, 100, 150), dtype=np.uint8)
    >>> st.encoders.IntensityEncoder().encode(tiles)
    array([[200., 100., 150.],
           [200., 100., 150.]], dtype=float32)
    """

    def __init__(self, *, tile: TileSpec | None = None) -> None:
        tile = TileSpec() if tile is None else tile
        self.card = EncoderCard("intensity", tile, 3, feature_names=("mean_red", "mean_green", "mean_blue"))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Average every channel."""
        return (_sums(tiles) / (tiles.shape[1] * tiles.shape[2])).astype(np.float32)

    def to(self, device: str | None) -> IntensityEncoder:
        """There is nothing to move."""
        return self


class ColourEncoder:
    """Mean and standard deviation of every channel of a tile, both 0 to 255; any tile size.

    Examples
    --------
    >>> import numpy as np, stpred as st
    >>> colour = st.encoders.get("colour", tile=st.TileSpec(0.5, 2))
    >>> tile = np.zeros((1, 2, 2, 3), np.uint8)
    >>> tile[0, 0, :, 0] = 100
    >>> colour.encode(tile).tolist()
    [[50.0, 0.0, 0.0, 50.0, 0.0, 0.0]]
    """

    def __init__(self, *, tile: TileSpec | None = None) -> None:
        tile = TileSpec() if tile is None else tile
        names = tuple(f"{what}_{channel}" for what in ("mean", "sd") for channel in ("red", "green", "blue"))
        self.card = EncoderCard("colour", tile, len(names), feature_names=names)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return (n, 6) means and population standard deviations of the channels."""
        n_pixels = tiles.shape[1] * tiles.shape[2]
        # Whole numbers, so that the order of pixels plays no part and an even tile has a deviation of exactly 0.
        mean = _sums(tiles) / n_pixels
        variance = _sums(np.multiply(tiles, tiles, dtype=np.uint16)) / n_pixels - mean**2
        return np.concatenate([mean, np.sqrt(variance.clip(0))], axis=1).astype(np.float32)

    def to(self, device: str | None) -> ColourEncoder:
        """There is nothing to move."""
        return self


def _sums(pixels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the (n, 3) sums of (n, rows, columns, 3) values; rows first, since numpy adds those fastest."""
    return pixels.sum(axis=1, dtype=np.uint32).sum(axis=1, dtype=np.int64)

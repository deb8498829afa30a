"""The tile itself: for models that learn from pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard


class Pixels:
    """Pixels of a tile as they are, row by row, red, green and blue of each: uint8, any tile size."""

    dtype = np.dtype(np.uint8)

    def __init__(self, *, tile: TileSpec | None = None) -> None:
        tile = TileSpec() if tile is None else tile
        self.card = EncoderCard("pixels", tile, 3 * tile.size_px**2)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Flatten (n, size_px, size_px, 3) tiles to (n, 3 * size_px ** 2)."""
        return tiles.reshape(len(tiles), -1)

    def to(self, device: str | None) -> Pixels:
        """There is nothing to move."""
        return self

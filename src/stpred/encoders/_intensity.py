"""Mean red, green and blue of a tile: what a colour baseline sees."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard


class IntensityEncoder:
    """Channel means of a tile, 0 to 255; any tile size."""

    def __init__(self, *, tile: TileSpec | None = None) -> None:
        tile = TileSpec() if tile is None else tile
        self.card = EncoderCard("intensity", tile, 3, feature_names=("mean_red", "mean_green", "mean_blue"))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Average every channel."""
        return tiles.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)

    def to(self, device: str | None) -> IntensityEncoder:
        """There is nothing to move."""
        return self

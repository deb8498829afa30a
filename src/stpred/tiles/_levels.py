"""One resolution of a placed image, and small windows of it that show its colours."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.elements import mpp_of
from stpred._core.fill import stain_like

_WINDOW_PX = 48
# Grey values: of a line that is constant, of a colour that is not that of glass, of one too dark for any glass.
_CONSTANT, _UNLIKE_GLASS, _DARK = 6, 25, 100


@dataclass(frozen=True)
class Level:
    """One resolution of an image: (3, height, width) uint8 pixels and their (3, 3) affine to micrometres."""

    pixels: Any
    to_um: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @cached_property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return mpp_of(self.to_um)

    @cached_property
    def from_um(self) -> NDArray[np.float64]:
        """The (3, 3) affine from micrometres to pixels."""
        return np.asarray(np.linalg.inv(self.to_um), dtype=np.float64)

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column borders of the chunks in which the pixels are stored."""
        chunks = getattr(self.pixels, "chunks", None)
        if chunks is None or not isinstance(chunks[1], tuple):
            return np.array([0, self.shape[0]]), np.array([0, self.shape[1]])
        return np.r_[0, np.cumsum(chunks[1])], np.r_[0, np.cumsum(chunks[2])]


@dataclass(frozen=True)
class Windows:
    """Small windows along the border and in the middle of an image.

    Attributes
    ----------
    parts
        Vertical and horizontal position (0, 0.5 or 1) and (3, h, w) pixels of each window.
    """

    parts: tuple[tuple[float, float, NDArray[np.uint8]], ...]

    @classmethod
    def of(cls, level: Level) -> Windows:
        """Read the nine windows of a level."""
        height, width = level.shape
        parts = []
        for fy, fx in [(fy, fx) for fy in (0.0, 0.5, 1.0) for fx in (0.0, 0.5, 1.0)]:
            y, x = int(fy * max(height - _WINDOW_PX, 0)), int(fx * max(width - _WINDOW_PX, 0))
            parts.append((fy, fx, np.asarray(level.pixels[:, y : y + _WINDOW_PX, x : x + _WINDOW_PX])))
        return cls(tuple(parts))

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """The (n, 3) pixels of all windows."""
        return np.concatenate([part.reshape(3, -1) for _, _, part in self.parts], axis=1).T

    @cached_property
    def brightest(self) -> tuple[int, int, int]:
        """The median of the brightest tenth of pixels."""
        brightness = self.pixels.sum(axis=1, dtype=np.int64)
        r, g, b = np.median(self.pixels[brightness >= np.quantile(brightness, 0.9)], axis=0)
        return int(r), int(g), int(b)

    def constant_border(self) -> bool:
        """Return whether any border line of a window is of one colour that is not that of glass."""
        for fy, fx, window in self.parts:
            lines = [window[:, -1 if fy else 0]] if fy != 0.5 else []
            lines += [window[:, :, -1 if fx else 0]] if fx != 0.5 else []
            for line in lines:
                half = line.shape[1] // 2
                if any(self._is_fill(part) for part in (line[:, :half], line[:, half:])):
                    return True
        return False

    def _is_fill(self, line: NDArray[np.uint8]) -> bool:
        if not line.size or (np.ptp(line, axis=1) > _CONSTANT).any():
            return False
        colour = np.median(line, axis=1)
        if np.abs(colour - np.array(self.brightest)).max() > _UNLIKE_GLASS:
            return not stain_like(colour.astype(np.uint8))
        return bool(colour.max() < _DARK)

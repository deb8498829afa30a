"""A slide at one resolution, read in pieces that are kept in a file, so that memory stays flat."""

from __future__ import annotations

import tempfile
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import TileSpec
from stpred._image.tissue import not_slide
from stpred.models.parts.pixel_grid import Window
from stpred.regions import TissueMask
from stpred.tiles import Pyramid

RANGE = 0.9
"""What a channel's darkest and brightest pixel of the slide are scaled to, with either sign."""

EDGE = 256
"""Pixels along each edge of what is kept of the slide as one piece."""

_THUMBNAIL_PX = 1000


class Canvas:
    """A slide at one resolution; pieces that were read are kept in an unnamed file, so memory stays flat.

    Parameters
    ----------
    pyramid
        The image.
    mpp
        Resolution; pixel (row, column) begins at ``(column, row) * mpp`` micrometres.
    """

    def __init__(self, pyramid: Pyramid, mpp: float) -> None:
        self.pyramid, self.mpp = pyramid, mpp
        self._file = tempfile.TemporaryFile()
        self._at: dict[tuple[int, int], int] = {}

    @property
    def bounds(self) -> Window:
        """The pixels that touch the image."""
        low, high = np.array(self.pyramid.bounds_um).reshape(2, 2) / self.mpp
        (x0, y0), (x1, y1) = np.floor(low + 1e-6).astype(int).tolist(), np.ceil(high - 1e-6).astype(int).tolist()
        return Window(y0, x0, max(y1 - y0, 1), max(x1 - x0, 1))

    @cached_property
    def limits(self) -> NDArray[np.float32]:
        """(2, 3) darkest and brightest value of each channel on a small copy of the slide, fill and pen excluded."""
        x0, y0, x1, y1 = self.pyramid.bounds_um
        mpp = max(self.mpp, max(x1 - x0, y1 - y0) / _THUMBNAIL_PX)
        pixels, _ = self.pyramid.thumbnail(mpp)
        shown = pixels[~away] if (away := not_slide(pixels, mpp=mpp)).any() else pixels.reshape(-1, 3)
        low, high = shown.min(axis=0).astype(np.float32), shown.max(axis=0).astype(np.float32)
        return np.stack([low, np.where(high - low < 1, low + 255, high)]).astype(np.float32)

    @cached_property
    def tissue(self) -> TissueMask:
        """Where the slide has tissue."""
        return TissueMask.of(self.pyramid)

    def fetch(self, windows: list[Window]) -> None:
        """Read the pieces under some windows, each piece of the image once."""
        wanted = sorted({piece for w in windows for piece in _pieces(w)} - self._at.keys())
        if not wanted:
            return
        centres = (np.array(wanted)[:, ::-1] + 0.5) * EDGE * self.mpp
        for rows, tiles in self.pyramid.read(centres, TileSpec(self.mpp, EDGE), batch_size=4):
            for k, tile in zip(rows.tolist(), tiles, strict=True):
                self._at[wanted[k]] = self._file.seek(0, 2)
                self._file.write(np.ascontiguousarray(tile).tobytes())

    def pixels(self, window: Window) -> NDArray[np.uint8]:
        """Return the (h, w, 3) pixels of a window."""
        self.fetch([window])
        out = np.empty((window.height, window.width, 3), dtype=np.uint8)
        for row, column in _pieces(window):
            self._file.seek(self._at[row, column])
            piece = np.frombuffer(self._file.read(EDGE * EDGE * 3), dtype=np.uint8).reshape(EDGE, EDGE, 3)
            top, left = row * EDGE - window.row, column * EDGE - window.column
            y0, x0 = max(top, 0), max(left, 0)
            y1, x1 = min(top + EDGE, window.height), min(left + EDGE, window.width)
            out[y0:y1, x0:x1] = piece[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def scaled(self, pixels: NDArray[Any]) -> NDArray[np.float32]:
        """Return (..., 3) pixels, 0 to 255, on the slide's own range."""
        low, high = self.limits
        return ((pixels.astype(np.float32) - low) * (2 * RANGE / (high - low)) - np.float32(RANGE)).astype(np.float32)


def _pieces(window: Window) -> list[tuple[int, int]]:
    rows = range(window.row // EDGE, (window.row + window.height - 1) // EDGE + 1)
    columns = range(window.column // EDGE, (window.column + window.width - 1) // EDGE + 1)
    return [(r, c) for r in rows for c in columns]

"""Tiles of one size and resolution around centres: which chunks each lies on, and how it is cut from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from stpred._core.elements import apply_affine
from stpred._core.fill import PlacedFill
from stpred._core.specs import TileSpec
from stpred.tiles._levels import Level
from stpred.tiles._resample import CUBIC_REACH_PX, resample


class View:
    """Tiles of one spec around centres, and the level that they are read from.

    Parameters
    ----------
    level
        The resolution that is read.
    centers_um, tile
        (n, 2) centres of the tiles in micrometres, their size and resolution.
    background
        Returns the colour of what lies beyond the image.
    """

    def __init__(
        self,
        level: Level,
        centers_um: NDArray[np.float64],
        tile: TileSpec,
        *,
        background: Callable[[], tuple[int, int, int]],
    ) -> None:
        self.level, self.tile, self.background = level, tile, background
        # Output pixels -> level pixels, linear part; a tile's centre is the only thing that changes between tiles.
        self.linear = level.from_um[:2, :2] * tile.mpp
        self.centers_px = apply_affine(level.from_um, centers_um)
        stretch = float(np.linalg.norm(self.linear, ord=2))
        margin = int(np.ceil(CUBIC_REACH_PX * max(stretch, 1.0))) + 2
        half = np.abs(self.linear) @ np.full(2, tile.size_px / 2) + margin
        self.lower = np.floor(self.centers_px - half).astype(np.int64)
        self.upper = np.ceil(self.centers_px + half).astype(np.int64)
        self.blocks = self._plan()
        self.fill: PlacedFill | None = None
        self.looked_for_fill = False
        self.has_fill = np.zeros(len(self.centers_px), bool)

    def _plan(self) -> NDArray[np.int64]:
        """Return (n, 4): first row, last row, first column, last column of the chunks under each tile."""
        height, width = self.level.shape
        rows, columns = self.level.edges
        first_row = np.searchsorted(rows, np.clip(self.lower[:, 1], 0, height), side="right") - 1
        last_row = np.searchsorted(rows, np.clip(self.upper[:, 1], 0, height), side="left") - 1
        first_column = np.searchsorted(columns, np.clip(self.lower[:, 0], 0, width), side="right") - 1
        last_column = np.searchsorted(columns, np.clip(self.upper[:, 0], 0, width), side="left") - 1
        return np.column_stack([first_row, last_row, first_column, last_column])

    def users(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each chunk how many of these tiles lie on it."""
        corners = np.zeros((len(self.level.edges[0]), len(self.level.edges[1])), dtype=np.int64)
        r0, r1, c0, c1 = self.blocks[rows].T
        for r, c, sign in ((r0, c0, 1), (r0, c1 + 1, -1), (r1 + 1, c0, -1), (r1 + 1, c1 + 1, 1)):
            np.add.at(corners, (r, c), sign)
        return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]

    def show_as_glass(self, fill: PlacedFill | None) -> None:
        """Show fill as glass in the tiles that are near any."""
        self.looked_for_fill = True
        if fill is None:
            return
        centers_um = apply_affine(self.level.to_um, self.centers_px)
        reach = np.abs(self.level.to_um[:2, :2]) @ ((self.upper - self.lower).max(axis=0) / 2.0 + 1)
        self.fill, self.has_fill = fill, fill.near(centers_um - reach, centers_um + reach)

    def cut(
        self, out: NDArray[np.uint8], rows: NDArray[np.int64], chunks: Mapping[tuple[int, int], NDArray[np.uint8]]
    ) -> None:
        """Read tiles into `out`; one room for all of them, since fresh memory costs more than the copy."""
        room = np.empty(3 * int((self.upper - self.lower)[rows].prod(axis=1).max(initial=0)), dtype=np.uint8)
        for k, row in enumerate(rows):
            center = self.centers_px[row] - self.lower[row]
            region = self._region(row, room, chunks)
            if self.fill is not None and self.has_fill[row]:
                to_um = self.level.to_um @ np.array(
                    [[1, 0, self.lower[row, 0]], [0, 1, self.lower[row, 1]], [0, 0, 1.0]]
                )
                region = self.fill.replaced(region, to_um)
            out[k] = resample(region, center, self.linear, size_px=self.tile.size_px)

    def _region(
        self, row: int, room: NDArray[np.uint8], chunks: Mapping[tuple[int, int], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Return the pixels around one tile, filled with background beyond the image; put together in `room`."""
        (x0, y0), (x1, y1) = self.lower[row].tolist(), self.upper[row].tolist()
        r0, r1, c0, c1 = self.blocks[row].tolist()
        rows, columns = self.level.edges
        beyond = x0 < 0 or y0 < 0 or x1 > columns[-1] or y1 > rows[-1]
        if r0 == r1 and c0 == c1 and not beyond:  # nothing to put together
            top, left = rows[r0], columns[c0]
            return chunks[r0, c0][y0 - top : y1 - top, x0 - left : x1 - left]
        region = room[: (y1 - y0) * (x1 - x0) * 3].reshape(y1 - y0, x1 - x0, 3)
        if beyond:
            region.reshape(y1 - y0, -1)[:] = np.tile(np.array(self.background(), np.uint8), x1 - x0)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                top, bottom = max(rows[r], y0), min(rows[r + 1], y1)
                left, right = max(columns[c], x0), min(columns[c + 1], x1)
                part = chunks[r, c][top - rows[r] : bottom - rows[r], left - columns[c] : right - columns[c]]
                region[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return region

"""One streaming pass over an image that decodes each of its chunks once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from stpred._core.elements import apply_affine
from stpred._core.fill import PlacedFill, glass_like, stain_like
from stpred._core.specs import TileSpec
from stpred.tiles._chunks import ChunkDecoder
from stpred.tiles._levels import Level
from stpred.tiles._resample import CUBIC_REACH_PX, resample

# A chunk may hold fill where 9 pixels, 4 apart, are of one colour.
_FILL_STEP_PX, _RUN = 4, 8


class TileStream:
    """One pass over the image: which chunks each tile needs, and the chunks that are decoded now.

    Parameters
    ----------
    level
        The resolution that is read.
    centers_um, tile
        (n, 2) centres of the tiles in micrometres, their size and resolution.
    background
        Returns the colour of what lies beyond the image.
    fill
        Searches the image for fill, which is shown as glass; called once a chunk holds pixels that may be some. None:
        tiles show what is stored.
    """

    def __init__(
        self,
        level: Level,
        centers_um: NDArray[np.float64],
        tile: TileSpec,
        *,
        background: Callable[[], tuple[int, int, int]],
        fill: Callable[[], PlacedFill | None] | None,
    ) -> None:
        self.level, self.tile, self.background, self.find_fill = level, tile, background, fill
        # Output pixels -> level pixels, linear part; a tile's centre is the only thing that changes between tiles.
        self.linear = self.level.from_um[:2, :2] * tile.mpp
        self.centers_px = apply_affine(self.level.from_um, centers_um)
        stretch = float(np.linalg.norm(self.linear, ord=2))
        self.margin = int(np.ceil(CUBIC_REACH_PX * max(stretch, 1.0))) + 2
        half = np.abs(self.linear) @ np.full(2, tile.size_px / 2) + self.margin
        self.lower = np.floor(self.centers_px - half).astype(np.int64)
        self.upper = np.ceil(self.centers_px + half).astype(np.int64)
        self.edges = self.level.edges
        self.blocks = self._plan()
        self.decode = ChunkDecoder(self.level.pixels)
        self.cache: dict[tuple[int, int], NDArray[np.uint8]] = {}
        self.fill: PlacedFill | None = None
        self.has_fill = np.zeros(len(self.centers_px), bool)

    def _plan(self) -> NDArray[np.int64]:
        """Return (n, 4): first row, last row, first column, last column of the chunks under each tile."""
        height, width = self.level.shape
        rows, columns = self.edges
        first_row = np.searchsorted(rows, np.clip(self.lower[:, 1], 0, height), side="right") - 1
        last_row = np.searchsorted(rows, np.clip(self.upper[:, 1], 0, height), side="left") - 1
        first_column = np.searchsorted(columns, np.clip(self.lower[:, 0], 0, width), side="right") - 1
        last_column = np.searchsorted(columns, np.clip(self.upper[:, 0], 0, width), side="left") - 1
        return np.column_stack([first_row, last_row, first_column, last_column])

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield row numbers and tiles, the next ones being read while the caller works on these."""
        with ThreadPoolExecutor(1) as pool:
            items = self._batches(batch_size)
            upcoming = pool.submit(next, items, None)
            while (item := upcoming.result()) is not None:
                upcoming = pool.submit(next, items, None)
                yield item

    def _batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        # Row of chunks by row of chunks, left to right: two or three rows of chunks are in memory at a time.
        order = np.lexsort((self.centers_px[:, 1], self.centers_px[:, 0], self.blocks[:, 0]))
        to_come = self._users(order)
        workers = min(os.cpu_count() or 1, 8)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                users = self._users(rows)
                self._fetch(users)
                tiles = np.empty((len(rows), self.tile.size_px, self.tile.size_px, 3), dtype=np.uint8)
                list(pool.map(lambda k: self._fill(tiles[k::workers], rows[k::workers]), range(workers)))  # noqa: B023
                to_come -= users
                for block in [b for b in self.cache if to_come[b] == 0]:
                    del self.cache[block]
                yield rows, tiles

    def _users(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each chunk how many of these tiles lie on it."""
        corners = np.zeros((len(self.edges[0]), len(self.edges[1])), dtype=np.int64)
        r0, r1, c0, c1 = self.blocks[rows].T
        for r, c, sign in ((r0, c0, 1), (r0, c1 + 1, -1), (r1 + 1, c0, -1), (r1 + 1, c1 + 1, 1)):
            np.add.at(corners, (r, c), sign)
        return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]

    def _fetch(self, users: NDArray[np.int64]) -> None:
        missing = [(r, c) for r, c in np.argwhere(users).tolist() if (r, c) not in self.cache]
        self.cache.update(zip(missing, self.decode(missing), strict=True))
        if self.find_fill is not None and any(_may_be_fill(self.cache[block]) for block in missing):
            self.fill, self.find_fill = self.find_fill(), None
            if self.fill is not None:
                centers_um = apply_affine(self.level.to_um, self.centers_px)
                reach = np.abs(self.level.to_um[:2, :2]) @ ((self.upper - self.lower).max(axis=0) / 2.0 + 1)
                self.has_fill = self.fill.near(centers_um - reach, centers_um + reach)

    def _region(self, row: int, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels around one tile, filled with background beyond the image; put together in `room`."""
        (x0, y0), (x1, y1) = self.lower[row].tolist(), self.upper[row].tolist()
        r0, r1, c0, c1 = self.blocks[row].tolist()
        rows, columns = self.edges
        beyond = x0 < 0 or y0 < 0 or x1 > columns[-1] or y1 > rows[-1]
        if r0 == r1 and c0 == c1 and not beyond:  # nothing to put together
            top, left = rows[r0], columns[c0]
            return self.cache[r0, c0][y0 - top : y1 - top, x0 - left : x1 - left]
        region = room[: (y1 - y0) * (x1 - x0) * 3].reshape(y1 - y0, x1 - x0, 3)
        if beyond:
            region.reshape(y1 - y0, -1)[:] = np.tile(np.array(self.background(), np.uint8), x1 - x0)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                top, bottom = max(rows[r], y0), min(rows[r + 1], y1)
                left, right = max(columns[c], x0), min(columns[c + 1], x1)
                part = self.cache[r, c][top - rows[r] : bottom - rows[r], left - columns[c] : right - columns[c]]
                region[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return region

    def _fill(self, out: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Read tiles into `out`; one room for all of them, since fresh memory costs more than the copy."""
        room = np.empty(3 * int((self.upper - self.lower)[rows].prod(axis=1).max(initial=0)), dtype=np.uint8)
        for k, row in enumerate(rows):
            center = self.centers_px[row] - self.lower[row]
            region = self._region(row, room)
            if self.fill is not None and self.has_fill[row]:
                to_um = self.level.to_um @ np.array(
                    [[1, 0, self.lower[row, 0]], [0, 1, self.lower[row, 1]], [0, 0, 1.0]]
                )
                region = self.fill.replaced(region, to_um)
            out[k] = resample(region, center, self.linear, size_px=self.tile.size_px)


def _may_be_fill(pixels: NDArray[np.uint8]) -> bool:
    """Return whether any run of (h, w, 3) pixels is of one colour, neither that of glass nor a stain's."""
    few = pixels[::_FILL_STEP_PX, ::_FILL_STEP_PX].astype(np.int16)
    for line in (few, few.swapaxes(0, 1)):
        n = min(_RUN, len(line) - 1)
        if n < 1:
            continue
        first = line[:-n]
        run = (np.abs(line[n:] - first) <= 2).all(axis=-1)
        for step in range(1, n):
            run &= (np.abs(line[step : len(first) + step] - first) <= 2).all(axis=-1)
        colours = first[run].astype(np.uint8)
        if (~glass_like(colours) & ~stain_like(colours)).any():
            return True
    return False

"""One streaming pass over an image that decodes each of its chunks once, for tiles of one or several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.ahead import ahead
from stpred._core.compute.threads import in_threads, n_threads
from stpred._core.fill import PlacedFill, glass_like, stain_like
from stpred.tiles._chunks import Block, Chunks
from stpred.tiles._levels import Level
from stpred.tiles._view import View

# A chunk may hold fill where 9 pixels, 4 apart, are of one colour.
_FILL_STEP_PX, _RUN = 4, 8
_MAX_THREADS = 8


class TileStream:
    """One pass over the image: which chunks each tile needs, and the chunks that are decoded now.

    Parameters
    ----------
    views
        Tiles of one or several sizes and resolutions, as many of each.
    fill
        Searches the image for fill, which is shown as glass; called once a chunk holds pixels that may be some. None:
        tiles show what is stored.
    wanted
        Which rows have to be read; None: all.
    """

    def __init__(
        self,
        views: Sequence[View],
        *,
        fill: Callable[[], PlacedFill | None] | None,
        wanted: NDArray[np.bool_] | None = None,
    ) -> None:
        self.views, self.find_fill, self.wanted = views, fill, wanted
        self.levels: list[Level] = []
        self.level_of: list[int] = []
        for view in views:
            if not any(view.level is level for level in self.levels):
                self.levels.append(view.level)
            self.level_of.append(next(k for k, level in enumerate(self.levels) if view.level is level))
        self.may_be_fill: dict[Block, bool] = {}

    def batches(
        self, batch_size: int, *, beside: bool = False
    ) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.uint8]]]]:
        """Yield row numbers and the tiles of each view, the next ones being read while the caller works on these.

        Batches without any wanted row are left out; which rows are in a batch does not depend on what is wanted.
        """
        return ahead(self._batches(batch_size), beside=beside)

    def _order(self) -> NDArray[np.int64]:
        """Return the rows by row of chunks, left to right: two or three rows of chunks are in memory at a time.

        Of several levels those with the tallest chunks decide, and of their tiles the largest.
        """

        def height_um(view: View) -> tuple[float, float]:
            return float(np.diff(view.level.edges[0]).max()) * view.level.mpp, view.tile.size_um

        view = max(self.views, key=height_um)
        return np.lexsort((view.centers_px[:, 1], view.centers_px[:, 0], view.blocks[:, 0]))

    def _batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.uint8]]]]:
        order = self._order()
        batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        if self.wanted is not None:
            batches = [rows for rows in batches if self.wanted[rows].any()]
        order = np.concatenate([order[:0], *batches])
        chunks = Chunks(self.levels, self._by_level([view.users(order) for view in self.views]))
        workers = n_threads(_MAX_THREADS)
        for rows in batches:
            each = [view.users(rows) for view in self.views]
            users = self._by_level(each)
            chunks.fetch(users)
            self._look_for_fill(chunks, each)
            tiles = [np.empty((len(rows), v.tile.size_px, v.tile.size_px, 3), dtype=np.uint8) for v in self.views]
            parts = [
                (view, out[w::workers], rows[w::workers], chunks.kept[level])
                for view, out, level in zip(self.views, tiles, self.level_of, strict=True)
                for w in range(workers)
            ]
            in_threads(lambda part: part[0].cut(*part[1:]), parts, threads=workers)
            chunks.release(users)
            yield rows, tiles

    def _by_level(self, users: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Return for each chunk of each level how many tiles of all views lie on it, from those of each view."""
        return [
            np.sum([u for u, of in zip(users, self.level_of, strict=True) if of == k], axis=0)
            for k in range(len(self.levels))
        ]

    def _look_for_fill(self, chunks: Chunks, users: Sequence[NDArray[np.int64]]) -> None:
        """Search the image once a chunk under a view's tiles may hold fill; other views do not change its tiles."""
        if self.find_fill is None:
            return
        for view, k, near in zip(self.views, self.level_of, users, strict=True):
            if view.looked_for_fill:
                continue
            for r, c in np.argwhere(near).tolist():
                if (k, r, c) not in self.may_be_fill:
                    self.may_be_fill[k, r, c] = _may_be_fill(chunks.pixels((k, r, c)))
                if self.may_be_fill[k, r, c]:
                    view.show_as_glass(self.find_fill())
                    break


def _may_be_fill(pixels: NDArray[np.uint8]) -> bool:
    """Return whether any run of (h, w, 3) pixels is of one colour, neither that of glass nor a stain's."""
    few = pixels[::_FILL_STEP_PX, ::_FILL_STEP_PX]
    for line in (few, few.swapaxes(0, 1)):
        n = min(_RUN, len(line) - 1)
        if n < 1:
            continue
        colours = line[: len(line) - n][_runs_of_a_colour(line, n)]
        if (~glass_like(colours) & ~stain_like(colours)).any():
            return True
    return False


def _runs_of_a_colour(pixels: NDArray[np.uint8], n: int) -> NDArray[np.bool_]:
    """Return for each pixel, but for the last `n` rows, whether the `n` below it are of its colour."""
    rows = len(pixels) - n
    found = np.ones((rows, pixels.shape[1]), bool)
    wide = pixels.astype(np.int16)
    for k in range(1, n + 1):
        if not found.any():
            break
        found &= (np.abs(wide[k : k + rows] - wide[:rows]) <= 2).all(axis=2)
    return found

"""Decoded chunks of the levels of a lazy image, each decoded once in a pass and dropped after its last use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.threads import n_threads
from stpred._core.forks import guard
from stpred.tiles._levels import Level

Block = tuple[int, int, int]
"""Position of a level among those that are read, row and column of a chunk."""


class Chunks:
    """Chunks of one or several levels that tiles are cut from.

    A level that is averaged lazily from another one (an image file without a pyramid) shares the decoded chunks of
    that one, so that no pixel is decoded twice however many levels are read.

    Parameters
    ----------
    levels
        What is read.
    users
        For each level the (rows, columns) numbers of tiles that lie on its chunks in the whole pass.
    """

    def __init__(self, levels: Sequence[Level], users: Sequence[NDArray[np.int64]]) -> None:
        self.levels, self.to_come = levels, [u.copy() for u in users]
        self.kept: list[dict[tuple[int, int], NDArray[np.uint8]]] = [{} for _ in levels]
        self._pixels = [level.pixels for level in levels]
        self._graph: dict[Any, Any] = {}
        for pixels in self._pixels:
            if hasattr(pixels, "dask"):
                self._graph |= dict(pixels.__dask_graph__())
        self._names = {p.name: k for k, p in enumerate(self._pixels) if hasattr(p, "dask")}
        # Chunks of other levels that a chunk is averaged from, and for each of these how many are still to be made.
        self._sources: dict[Block, list[Block]] = self._find_sources()
        self._pending: dict[Block, int] = {}
        for sources in self._sources.values():
            for block in sources:
                self._pending[block] = self._pending.get(block, 0) + 1

    def fetch(self, users: Sequence[NDArray[np.int64]]) -> list[Block]:
        """Decode what these tiles need and is not there; return the chunks that they need."""
        wanted = [(k, r, c) for k, near in enumerate(users) for r, c in np.argwhere(near).tolist()]
        if missing := [block for block in wanted if not self._has(block)]:
            for (k, r, c), pixels in self._decode(missing).items():
                self.kept[k][r, c] = pixels
                for source in self._sources.pop((k, r, c), ()):
                    self._pending[source] -= 1
        return wanted

    def pixels(self, block: Block) -> NDArray[np.uint8]:
        """Return the (h, w, c) pixels of a chunk that was fetched."""
        return self.kept[block[0]][block[1:]]

    def release(self, users: Sequence[NDArray[np.int64]]) -> None:
        """Drop chunks that nobody needs any more, after these tiles were cut."""
        for to_come, used in zip(self.to_come, users, strict=True):
            to_come -= used
        for k, kept in enumerate(self.kept):
            for at in [at for at in kept if not self._needed((k, *at))]:
                del kept[at]

    def _has(self, block: Block) -> bool:
        return block[1:] in self.kept[block[0]]

    def _needed(self, block: Block) -> bool:
        return bool(self.to_come[block[0]][block[1:]] > 0) or self._pending.get(block, 0) > 0

    def _keys(self, block: Block) -> list[Any]:
        k, r, c = block
        pixels = self._pixels[k]
        return [(pixels.name, channel, r, c) for channel in range(pixels.numblocks[0])]

    def _find_sources(self) -> dict[Block, list[Block]]:
        found: dict[Block, list[Block]] = {}
        for k, pixels in enumerate(self._pixels):
            others = {n for n, j in self._names.items() if j != k}
            if not self._lazy(k) or not others & set(pixels.dask.layers):
                continue
            for r, c in np.argwhere(self.to_come[k]).tolist():
                beneath = self._beneath([(k, r, c)], self._graph)
                found[k, r, c] = [b for b in beneath if b[0] != k and self.to_come[b[0]][b[1:]] > 0]
        return found

    def _beneath(self, blocks: Sequence[Block], graph: Mapping[Any, Any]) -> list[Block]:
        """Return the chunks of all levels that are made on the way to some of them, these included."""
        from dask.optimization import cull

        keys = cull(graph, [key for block in blocks for key in self._keys(block)])[0]
        made = [key for key in keys if isinstance(key, tuple) and key[0] in self._names]
        return list(dict.fromkeys((self._names[name], r, c) for name, _, r, c in made))

    def _decode(self, blocks: Sequence[Block]) -> dict[Block, NDArray[np.uint8]]:
        """Return the (h, w, c) pixels of chunks, and of those beneath them that will be needed.

        In dask's threads, without the copies that ``compute`` makes.
        """
        found = {b: np.moveaxis(np.asarray(self._pixels[b[0]]), 0, -1) for b in blocks if not self._lazy(b[0])}
        lazy = [b for b in blocks if self._lazy(b[0])]
        if not lazy:
            return found
        from dask.optimization import cull

        guard()
        get, how = _scheduler()
        graph = self._graph
        if self._sources:
            there = {s for b in lazy for s in self._sources.get(b, ()) if self._has(s)}
            graph = graph | {key: part for block in there for key, part in self._parts(block)}
            beneath = self._beneath(lazy, graph)
            lazy += [b for b in beneath if b not in lazy and b not in there and self._needed(b)]
        wanted = [key for block in lazy for key in self._keys(block)]
        parts = iter([np.asarray(part) for part in get(cull(graph, wanted)[0], wanted, **how)])
        return found | {block: _interleaved([next(parts) for _ in self._keys(block)]) for block in lazy}

    def _lazy(self, k: int) -> bool:
        return hasattr(self._pixels[k], "dask")

    def _parts(self, block: Block) -> list[tuple[Any, NDArray[np.uint8]]]:
        """Return the (c, h, w) blocks of dask that a chunk was put together from, by their keys."""
        ends = np.cumsum(self._pixels[block[0]].chunks[0])[:-1]
        return list(zip(self._keys(block), np.split(np.moveaxis(self.pixels(block), -1, 0), ends), strict=True))


def _scheduler() -> tuple[Any, dict[str, int]]:
    """Return what computes keys of a dask graph in this process, and its options."""
    if (threads := n_threads()) == 1:
        from dask.local import get_sync

        return get_sync, {}
    from dask.threaded import get

    return get, {"num_workers": threads}


def _interleaved(parts: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return (h, w, 3) pixels of one or several (c, h, w) blocks; no copy where they lie in memory so already."""
    if len(parts) == 1 and np.moveaxis(parts[0], 0, -1).flags.c_contiguous:
        return np.moveaxis(parts[0], 0, -1)
    planes = [plane for part in parts for plane in part]
    out = np.empty((*planes[0].shape, len(planes)), dtype=np.uint8)
    for channel, plane in enumerate(planes):
        out[:, :, channel] = plane
    return out

"""Many places in strips from top to bottom: several processes embed a slide together, and each goes on where it was."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.disk.on_disk import Reordered, joined
from stpred._core.settings import settings
from stpred.data._feature_cache import Busy
from stpred.data._regions import Region
from stpred.data._shares import Share, encoded

logger = logging.getLogger("stpred")

PLACES = 10_000
"""Places of a strip at most; fewer are embedded at once."""

_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 2.0

_plan: ContextVar[list[Strip] | None] = ContextVar("plan", default=None)


@dataclass(frozen=True)
class Strip:
    """Tiles of a slide that one process embeds.

    Attributes
    ----------
    rows
        Which rows of all that are embedded.
    shares
        What encoders contribute at these.
    """

    region: Region
    rows: NDArray[np.int64]
    shares: tuple[Share, ...]

    def embed(self) -> bool:
        """Embed what is missing into ``stpred.settings.cache_dir``; False where another process is at it."""
        try:
            self.found()
        except Busy:
            return False
        return True

    def found(self, *, on_disk: bool = True) -> list[Any]:
        """Return the features of each share, embedded now where they are not there yet.

        Raises
        ------
        Busy
            If another process embeds some of them.
        InputError
            If there is no cache.
        """
        if settings.cache_dir is None:
            raise InputError("Strips of a slide are embedded into a cache; set stpred.settings.cache_dir.")
        entries = [share.entry(self.region) for share in self.shares]
        with ExitStack() as stack:
            todo = []
            for entry in entries:
                stack.enter_context(entry)  # type: ignore[arg-type]
                todo.append(np.isin(np.arange(len(self.rows)), entry.todo()))  # type: ignore[union-attr]
            for k, rows, values in encoded(self.region, self.shares, todo):
                entries[k].write(rows, values)  # type: ignore[union-attr]
            whole = [e.finish() if t.any() else e.read() for e, t in zip(entries, todo, strict=True)]  # type: ignore[union-attr]
            return [e.on_disk() for e in entries] if on_disk else whole  # type: ignore[union-attr]


def strips_of(region: Region, shares: Sequence[Share]) -> list[Strip]:
    """Divide the places of some shares into strips of about as many, by the places of the tiles that they are part of.

    All shares have as many places, the same number for each tile. None of few places, or without a cache.
    """
    n, centres_um = len(shares[0].coords_um), shares[0].centres_um
    if settings.cache_dir is None or n <= PLACES:
        return []
    each = n // len(centres_um)
    order = np.lexsort((centres_um[:, 0], centres_um[:, 1]))
    found = []
    for part in np.array_split(order, -(-n // PLACES)):
        rows = (np.sort(part)[:, None] * each + np.arange(each)).ravel()
        coords = {id(share.coords_um): share.coords_um[rows] for share in shares}  # those of one stay one
        found.append(Strip(region, rows, tuple(share.at(coords[id(share.coords_um)]) for share in shares)))
    return found


def embed_strips(strips: Sequence[Strip], *, on_disk: bool) -> Any:
    """Return the features of all strips, those of each share side by side; busy ones are done last, or waited for."""
    waiting, wait_s = deque(enumerate(strips)), _FIRST_WAIT_S
    found: dict[int, list[Any]] = {}
    while waiting:
        before = len(waiting)
        for _ in range(before):
            k, strip = waiting.popleft()
            try:
                found[k] = strip.found(on_disk=on_disk)
            except Busy:
                waiting.append((k, strip))
        if len(waiting) == before:
            if wait_s == _FIRST_WAIT_S:
                logger.info("Waiting for other processes that embed %d of %d strips of the slide.", before, len(strips))
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    parts = [[found[k][i] for k in range(len(strips))] for i in range(len(strips[0].shares))]
    rows = [strip.rows for strip in strips]
    return joined([Reordered(p, rows) if on_disk else _in_memory(p, rows) for p in parts], axis=-1)


def _in_memory(parts: Sequence[NDArray[Any]], rows: Sequence[NDArray[np.int64]]) -> NDArray[Any]:
    out = np.empty((sum(map(len, rows)), *parts[0].shape[1:]), np.result_type(*parts))
    for at, part in zip(rows, parts, strict=True):
        out[at] = part
    return out


def planned(region: Region, shares: Sequence[Share]) -> Any:
    """Return features of no width in place of the shares' where strips are only listed, or else None."""
    if (plan := _plan.get()) is None:
        return None
    plan.extend(strips_of(region, shares))
    return np.empty((len(shares[0].coords_um), *shares[0].shape[:-1], 0), shares[0].dtype)


@contextmanager
def listed() -> Iterator[list[Strip]]:
    """Only list the strips that would be embedded in a block."""
    found: list[Strip] = []
    token = _plan.set(found)
    try:
        yield found
    finally:
        _plan.reset(token)

"""One client at a time in the folder of a run, or one for each of its shards."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from stpred._core.checks import InputError
from stpred._core.disk import locks
from stpred._core.files import writable

ALL = "all"

_WAIT_S = 0.5
"""For one who only looks whether a lock is held."""

_SHARD = re.compile(r"\s*(\d+)\s*/\s*(\d+)\s*")


def parse_shard(text: str | None) -> tuple[int, int] | None:
    """Return i and n of ``"i/n"``, the i-th of n parts, counted from 1.

    Examples
    --------
    >>> parse_shard("2/8")
    (2, 8)
    """
    if text is None:
        return None
    found = _SHARD.fullmatch(str(text))
    i, n = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= i <= n:
        raise InputError(f"`shard` must be i/n with i from 1 to n, such as '1/8', got {text!r}.")
    return i, n


@contextmanager
def alone(own: Path, shard: tuple[int, int] | None) -> Iterator[None]:
    """Keep every other client out of a run's folder; one of another shard of as many may be there.

    Parameters
    ----------
    own
        What is the run's own, ``DIR/.stpred``.
    shard
        Which part is run; None: all of it.
    """
    folder = own / "locks"
    with writable(folder, what="folder"):
        folder.mkdir(parents=True, exist_ok=True)
    name = ALL if shard is None else f"{shard[0]}-of-{shard[1]}"
    with ExitStack() as stack:
        # The own lock comes first: of two that start at once both may be refused, but never none.
        stack.enter_context(_held(folder / f"{name}.run", own.parent))
        for path in sorted(folder.glob("*.run")):
            if path.stem != name and not _goes_with(path.stem, shard):
                with _held(path, own.parent):
                    pass
        yield


def client_of(own: Path) -> str | None:
    """Return who is running in a folder, such as "process 12 on host"; None where nobody is."""
    for path in sorted((own / "locks").glob("*.run")):
        try:
            locks.acquire(path).release()
        except locks.Busy:
            return locks.holder(path)
        except OSError:
            continue
    return None


def _goes_with(other: str, shard: tuple[int, int] | None) -> bool:
    """Whether the holder of another lock works on other slides."""
    return shard is not None and other.endswith(f"-of-{shard[1]}")


@contextmanager
def _held(path: Path, folder: Path) -> Iterator[None]:
    until = time.monotonic() + _WAIT_S
    while True:
        try:
            with writable(path, what="lock"):
                lock = locks.acquire(path)
            break
        except locks.Busy:
            if time.monotonic() > until:
                raise InputError(
                    f"{str(folder)!r} is being written by {locks.holder(path)}; wait until it is done, or name "
                    "another folder."
                ) from None
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()

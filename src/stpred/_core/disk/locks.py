"""Locks between processes, of any host where the file system has ``flock`` (NFS from version 4); by filelock.

The system drops a lock when its process ends, so what a killed process left behind never blocks.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from stpred._core.checks import InputError
from stpred._core.files import writable


class Busy(Exception):
    """Another process holds the lock."""


class Lock:
    """A lock that is held; its file is there only as long."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self._path, self._lock, self._pid = path, lock, os.getpid()

    def release(self) -> None:
        """Give the lock free; does nothing a second time, and in forked children."""
        if self._lock.is_locked and os.getpid() == self._pid:
            with suppress(OSError):  # Windows removes no open file
                self._path.unlink(missing_ok=True)
            self._lock.release()


def acquire(path: Path) -> Lock:
    """Return the lock of a file, or raise :class:`Busy`."""
    while True:
        lock = FileLock(path, timeout=0, thread_local=False)
        path.touch()
        with suppress(FileNotFoundError):
            before = path.stat()
            try:
                lock.acquire()
            except Timeout:
                raise Busy(f"{path} is held by {holder(path)}.") from None
            # Its last holder may have removed the file after it was opened here.
            if path.exists() and os.path.samestat(before, path.stat()):
                break
        lock.release()
    with suppress(OSError):
        path.write_text(f"process {os.getpid()} on {platform.node()}", encoding="utf-8")
    return Lock(path, lock)


def holder(path: Path) -> str:
    """Name the process that holds a lock, for messages."""
    try:
        return path.read_text(encoding="utf-8", errors="replace") or "another process"
    except OSError:
        return "another process"


@contextmanager
def held(path: Path, *, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock for a block; refuse with its holder after waiting this long.

    Parameters
    ----------
    path
        The file; its folder is there.
    what
        What is being written, such as "map 'a' of 'out.zarr'", for the message.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            with writable(path, what="lock"):
                lock = acquire(path)
            break
        except Busy:
            if time.monotonic() >= until:
                raise InputError(
                    f"The {what} is being written by {holder(path)}; wait until it is done, or name another."
                ) from None
            time.sleep(0.05)
    try:
        yield
    finally:
        lock.release()

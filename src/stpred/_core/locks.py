"""Files that say which process is at work on something; those of processes that have ended count as gone."""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stpred._core.checks import InputError
from stpred._core.files import writable

SILENT_S = 3600.0
"""A lock that shows no life for this long is stale where its process cannot be asked for (another host, Windows)."""

_PROCESS = uuid.uuid4().hex
"""The number of a process comes again after a restart; this does not."""


class Busy(Exception):
    """Another process holds the lock."""


def me() -> str:
    """Return what a lock of this process holds: its number, what tells it from later ones of that number, the host."""
    return f"{os.getpid()} {_PROCESS} {platform.node()}"


def holder(lock: Path) -> str:
    """Return what a lock holds; nothing where there is none."""
    try:
        return lock.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def told(text: str) -> str:
    """Name the process that holds a lock, for messages."""
    pid, _, host = [*text.split(" ", 2), "", "", ""][:3]
    return f"process {pid} on {host.strip()}" if pid.isdecimal() else "another process"


def acquire(lock: Path) -> None:
    """Make the lock, or raise :class:`Busy`; one that a process left behind is taken over."""
    # Of two that remove one stale lock, one may remove the other's new one; `alive` tells that one of it.
    with suppress(FileNotFoundError):
        if stale(lock):
            lock.unlink()
    try:
        with open(lock, "x", encoding="utf-8") as file:  # O_CREAT | O_EXCL
            file.write(me())
    except FileExistsError:
        raise Busy(f"{lock} is held by another process ({holder(lock)}).") from None
    except OSError:
        lock.unlink(missing_ok=True)  # such as of a full disk
        raise


def alive(lock: Path) -> None:
    """Give a sign of life, or raise :class:`Busy` where another process has taken the lock over."""
    if holder(lock) != me():
        raise Busy(f"{lock} was taken over by another process.")
    os.utime(lock)


def release(lock: Path) -> None:
    """Remove the lock if it is this process's own."""
    if holder(lock) == me():
        lock.unlink(missing_ok=True)


def stale(lock: Path) -> bool:
    """Say whether the process that made a lock has ended."""
    pid, process, host = [*lock.read_text(encoding="utf-8", errors="replace").split(" ", 2), "", "", ""][:3]
    if not pid.isdecimal() or host != platform.node() or os.name == "nt":
        return time.time() - lock.stat().st_mtime > SILENT_S
    if int(pid) == os.getpid():
        return process != _PROCESS
    try:
        os.kill(int(pid), 0)
    except (OSError, OverflowError) as error:  # or it is alive, of another user
        return isinstance(error, (ProcessLookupError, OverflowError))
    return False


@contextmanager
def held(lock: Path, *, what: str, wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock for a block; refuse with who has it after waiting this long.

    Parameters
    ----------
    lock
        The file; its folder is there.
    what
        What is being worked on, such as "map 'a' of 'out.zarr'", for the message.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            with writable(lock, what="lock"):
                acquire(lock)
            break
        except Busy:
            if time.monotonic() >= until:
                raise InputError(
                    f"The {what} is being written by {told(holder(lock))}; wait until it is done, or name another."
                ) from None
            time.sleep(0.05)
    try:
        yield
    finally:
        with suppress(OSError):
            release(lock)

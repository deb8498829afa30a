"""Folders and files that are written beside their place and appear whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stpred._core.checks import InputError, check_parent
from stpred._core.disk import locks
from stpred._core.files import writable

_LOCK, _TARGET = "process.lock", "target.txt"
"""Files of a staging folder: held while it is used, and the name that it is to take."""


@contextmanager
def staged_folder(path: Path, *, what: str) -> Iterator[Path]:
    """Give a folder to fill that takes the place of `path` whole when the block ends, or not at all.

    It lies beside `path` under a name of this call's own. An existing `path` is put back if the exchange fails, and
    nothing is left behind.
    """
    with writable(path, what=what), _beside(path) as staging:
        new, old = staging / "new", staging / "old"
        new.mkdir()
        there = os.path.lexists(path)
        yield new
        if path.exists():
            if not there and any(path.iterdir()):
                raise InputError(f"The {what} {str(path)!r} was written by another process meanwhile; name another.")
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise


@contextmanager
def staged_file(path: Path, *, what: str) -> Iterator[Path]:
    """Give a path to write a file to that takes the place of `path` when the block ends, or not at all."""
    with writable(path, what=what), _beside(path) as staging:
        part = staging / path.name
        yield part
        part.replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Give a folder of this call's own beside `path`; it goes at the end, and folders made for it if nothing came."""
    check_parent(path)
    above = [p for p in path.parents if not p.exists()]
    staging = lock = None
    prefix = f".{path.name[:40]}-"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f"{glob.escape(prefix)}*/{_LOCK}"):
            with suppress(OSError, locks.Busy):
                _recover(left, path)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=path.parent))
        (staging / _TARGET).write_text(path.name, encoding="utf-8")
        lock = locks.acquire(staging / "new.lock")
        (staging / "new.lock").rename(staging / _LOCK)  # now that it is held, others may look at it
        yield staging
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        if lock is not None:
            lock.release()
        for folder in above:  # the innermost first; those that hold something stay
            with suppress(OSError):
                folder.rmdir()


def _recover(left: Path, path: Path) -> None:
    """Remove the staging folder of a process that was killed; what it had moved out of the way goes back to `path`."""
    lock = locks.acquire(left)
    try:
        old = left.with_name("old")
        if old.exists() and not path.exists() and left.with_name(_TARGET).read_text(encoding="utf-8") == path.name:
            old.rename(path)
        shutil.rmtree(left.parent, ignore_errors=True)
    finally:
        lock.release()

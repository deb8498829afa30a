"""Arrays kept in a folder between sessions, one per set of inputs and coordinates; independent of encoders.

An entry's name is a hash of everything its values depend on, so that a stale one is never found. It is filled row by
row and can be taken up again where it was interrupted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
import weakref
import zlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import ArrayLike, DTypeLike, NDArray

from stpred._core.checks import InputError, MissingFileError, one_of
from stpred._core.disk.locks import Busy as Busy
from stpred._core.disk.locks import acquire as _acquire
from stpred._core.disk.on_disk import FileRows
from stpred._core.files import parse_json, readable, reason

logger = logging.getLogger("stpred")

_FORMAT = 2
_FLOAT16_MAX = 65504.0
_FLUSH_S = 30.0
_CHUNK = 1 << 24
_FILE = re.compile(r"([0-9a-f]{64})\.(npy|json|json\.tmp|part\.npy|part\.wide|part\.done|lock)")


_USED: ContextVar[set[str] | None] = ContextVar("used", default=None)


@contextmanager
def used_entries() -> Iterator[set[str]]:
    """Collect the names of the entries that are read or made in a block."""
    names: set[str] = set()
    token = _USED.set(names)
    try:
        yield names
    finally:
        _USED.reset(token)


class FeatureCache:
    """Arrays in a folder.

    Parameters
    ----------
    folder
        Where they are kept; created with the first entry.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder).expanduser()

    def entry(
        self, inputs: Mapping[str, Any], coords_um: NDArray[np.float64], *, shape: tuple[int, ...], dtype: DTypeLike
    ) -> Entry:
        """Return the entry of these inputs and places, whether it is there or not.

        Parameters
        ----------
        inputs
            Everything else that the values depend on, as plain JSON values.
        coords_um
            (n, 2) finite places of the rows, rounded to 0.001 um.
        shape
            Shape of one row.
        dtype
            float16, or uint8 for pixels.
        """
        name = one_of(np.dtype(dtype).name, ("float16", "uint8"), name="dtype")
        record = {"format": _FORMAT, "facts": inputs, "n": len(coords_um), "shape": list(shape), "dtype": name}
        text = json.dumps(record, sort_keys=True, allow_nan=False)
        digest = hashlib.sha256(text.encode())
        digest.update(np.rint(coords_um * 1e3).astype("<i8").tobytes())
        return Entry(self.folder, digest.hexdigest(), json.loads(text))

    def size_bytes(self) -> int:
        """Return the size of the entries, unfinished ones included."""
        return sum(stat.st_size for stat in self._files().values())

    def clear(self, keep_bytes: int = 0) -> None:
        """Remove entries, oldest first, until no more than `keep_bytes` remain.

        Entries that a process is filling stay, and so does every file that is not the cache's own.
        """
        files = self._files()
        total = sum(stat.st_size for stat in files.values())
        newest_first = dict.fromkeys(path.name[:64] for path in sorted(files, key=lambda path: -files[path].st_mtime))
        for key in reversed(newest_first):
            if total <= keep_bytes:
                break
            lock = self.folder / f"{key}.lock"
            own = [path for path in files if path.name.startswith(key) and path != lock]
            with _writing(self.folder), suppress(Busy):
                held = _acquire(lock)
                for path in own:
                    path.unlink(missing_ok=True)
                held.release()
                total -= sum(stat.st_size for path, stat in files.items() if path.name.startswith(key))

    def _files(self) -> dict[Path, os.stat_result]:
        files = {}
        for path in self.folder.glob("*"):
            with suppress(FileNotFoundError):  # finished or cleared meanwhile
                if _FILE.fullmatch(path.name):
                    files[path] = path.stat()
        return files


class Entry(AbstractContextManager["Entry"]):
    """One array, whole or being filled; as a context manager it keeps what was written and lets go of its lock."""

    def __init__(self, folder: Path, key: str, record: dict[str, Any]) -> None:
        self.folder, self._record, self.shape = folder, record, (record["n"], *record["shape"])
        ends = ("npy", "json", "part.npy", "part.done", "lock")
        self._npy, self._json, self._part, self._marks, self._lock = (folder / f"{key}.{end}" for end in ends)
        self._whole: NDArray[Any] | None = None
        self._values: Any = None  # maps of the part files, while the lock is held
        self._done: Any = None
        self._have = np.zeros(self.shape[0], dtype=bool)
        self._let_go: Any = None
        self._flushed_s, self._warned = 0.0, False

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def complete(self) -> bool:
        """Whether all rows are there and undamaged."""
        return self._stored() is not None

    def read(self) -> NDArray[Any]:
        """Return the whole array as a read-only memory map."""
        if (used := _USED.get()) is not None:
            used.add(self._npy.stem)
        if (stored := self._stored()) is None:
            raise InputError(f"The cache entry {self._npy} is not complete; write the rows of todo() and finish().")
        return stored

    def on_disk(self) -> FileRows:
        """Return the whole array as one that stays on disk."""
        return FileRows(self._npy, self.read())  # type: ignore[arg-type]

    def todo(self) -> NDArray[np.int64]:
        """Return the rows still missing, and take the lock if there are any; raises :class:`Busy`."""
        return np.flatnonzero(~self._have) if self._open() else np.empty(0, dtype=np.int64)

    def write(self, rows: ArrayLike, values: ArrayLike) -> None:
        """Set rows; the first value beyond float16 turns the entry into float32 (earlier rows stay rounded)."""
        rows, values = np.asarray(rows), np.asarray(values)
        shape, dtype = (len(rows), *self.shape[1:]), self._record["dtype"]
        if values.shape != shape or (dtype == "uint8" and values.dtype != np.uint8):
            raise InputError(f"`values` must be {dtype} of shape {shape}, got {values.dtype} of shape {values.shape}.")
        if not self._open():
            return  # another process was faster
        if self._values.dtype == np.float16 and not (np.abs(values) <= _FLOAT16_MAX).all():
            self._widen()
        self._values[rows] = values
        self._have[rows] = True
        if time.monotonic() - self._flushed_s > _FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Make the rows written so far survive; :meth:`write` does it by itself now and then."""
        if self._values is None:
            return
        with _writing(self.folder):
            self._values.flush()
            self._done[: len(self._have)] = self._have  # after the values: a mark never speaks of a row that is lost
            self._done.flush()
        self._flushed_s = time.monotonic()

    def finish(self) -> NDArray[Any]:
        """Make the entry complete and return it as :meth:`read` does."""
        if self._open():
            if missing := int((~self._have).sum()):
                raise InputError(f"{missing} of {len(self._have)} rows of the cache entry {self._part} are missing.")
            self.flush()
            draft = self._json.with_suffix(".json.tmp")
            with _writing(self.folder):
                said = {**self._record, "dtype": self._values.dtype.name, "crc32": _crc32(self._values)}
                draft.write_text(json.dumps(said), encoding="utf-8")
                self._values = self._done = None
                os.replace(draft, self._json)
                os.replace(self._part, self._npy)
                self._marks.unlink(missing_ok=True)
            self.read()  # while nobody can clear it
            self.close()
        return self.read()

    def close(self) -> None:
        """Keep what was written for another time, and let another process go on."""
        try:
            self.flush()
        finally:
            self._values = self._done = None
            if self._let_go is not None:
                self._let_go()

    def _stored(self) -> NDArray[Any] | None:
        if self._whole is not None:  # stays readable even if its files are cleared meanwhile
            return self._whole
        try:
            with readable(self._npy, what="cache entry"):
                array = self._map(self._npy)
                said = parse_json(self._json.read_bytes(), path=self._json, what="description of a cache entry")
                found = {**self._record, "dtype": array.dtype.name, "crc32": None}
                if not isinstance(said, dict) or {**said, "crc32": None} != found:
                    raise ValueError("its description does not match")
                if said["crc32"] != _crc32(array):
                    raise ValueError("its values are not those that were written")
            self._whole = array
        except InputError as error:
            self._warn(error)
        return self._whole

    def _warn(self, error: InputError) -> None:
        if not self._warned and not isinstance(error, MissingFileError):
            cause = error.__cause__ or error
            if isinstance(cause, NotADirectoryError):
                return
            logger.warning("The cache entry %s is damaged and is computed again: %s.", self._npy, reason(cause))
            self._warned = True

    def _map(self, path: Path, mode: str = "r") -> Any:
        # Always read-only first: opened for writing, a truncated file would be lengthened without a word.
        array = open_memmap(path, mode="r")
        dtypes = ("uint8",) if self._record["dtype"] == "uint8" else ("float16", "float32")
        if array.shape != self.shape or array.dtype.name not in dtypes or not array.flags.c_contiguous:
            raise ValueError(f"it holds {array.dtype} of shape {array.shape}")
        return array if mode == "r" else open_memmap(path, mode=mode)

    def _open(self) -> bool:
        """Take the lock and map the part files; False where the entry is complete."""
        if self._values is None and not self.complete:
            with _writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = _acquire(self._lock)
                self._let_go = weakref.finalize(self, lock.release)  # also when it is dropped or Python ends
                try:
                    if not (self.complete or self._resume()):  # another process may have completed it meanwhile
                        self._begin()
                finally:
                    if self._values is None:
                        self.close()
            self._flushed_s = time.monotonic()
        return self._values is not None

    def _begin(self) -> None:
        for path in (self._marks, self._npy, self._json):  # marks always belong to the part file beside them
            path.unlink(missing_ok=True)
        self._create(self._part, self._record["dtype"])
        self._marks.write_bytes(bytes(max(len(self._have), 1)))
        self._resume()

    def _resume(self) -> bool:
        try:
            with readable(self._part, what="cache entry"):
                values, done = self._map(self._part, "r+"), np.memmap(self._marks, dtype=np.uint8, mode="r+")
                if len(done) != max(len(self._have), 1):
                    raise ValueError(f"it has marks for {len(done)} rows")
        except InputError as error:
            self._warn(error)
            return False
        self._values, self._done, self._have = values, done, done[: len(self._have)] == 1
        return True

    def _create(self, path: Path, dtype: str) -> Any:
        """Return a map of a new file whose blocks are all reserved."""
        try:
            array = open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=self.shape)
            with open(path, "r+b") as file:
                # Writing to a hole through a map kills the process (SIGBUS) when the disk is full; this raises.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
                else:
                    file.seek(array.offset)
                    for rest in range(array.nbytes, 0, -(1 << 24)):
                        file.write(bytes(min(rest, 1 << 24)))
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return array

    def _widen(self) -> None:
        wide = self._part.with_suffix(".wide")
        with _writing(self.folder):
            values = self._create(wide, "float32")
            values[:] = self._values
            values.flush()
            self._values = values = None
            os.replace(wide, self._part)
            self._values = self._map(self._part, "r+")


def _crc32(array: NDArray[Any]) -> int:
    """Return a checksum of an array's bytes."""
    flat, found = array.reshape(-1).view(np.uint8), 0
    for start in range(0, len(flat), _CHUNK):
        found = zlib.crc32(np.ascontiguousarray(flat[start : start + _CHUNK]).data, found)
    return found


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = error.strerror or error
        raise InputError(f"The cache folder {folder} cannot be written ({why}); free space or change it.") from error

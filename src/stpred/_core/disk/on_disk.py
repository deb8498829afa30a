"""Arrays that stay on disk and give some of their rows as arrays in memory."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stpred._core.checks import InputError
from stpred._core.files import reason

OPEN_BYTES = 2**26
"""Size of all files that are kept mapped; further ones are mapped again for each access."""

OPEN_FILES = 64
"""Number of files that are kept mapped: a process may open a thousand or so, and a cohort has as many slides."""


class OnDisk(ABC):
    """An array on disk; indexed along its first axis or converted, it is an array in memory.

    Neither resident memory nor the number of open files grows with the number of such arrays.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def _rows(self, rows: Any) -> NDArray[Any]:
        """Return a copy of rows: a slice, numbers of 0 or more, or a mask."""

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size on disk."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        rows, *others = index if isinstance(index, tuple) else (index,)
        if isinstance(rows, (int, np.integer)) and rows >= 0:
            return self._rows(np.array([rows]))[(0, *others)]  # type: ignore[no-any-return]
        if rows is Ellipsis:
            return self._rows(slice(None))[index]  # type: ignore[no-any-return]
        if not isinstance(rows, slice):
            rows = np.asarray(rows)
            if rows.dtype == bool:
                rows = np.flatnonzero(rows)
            if rows.ndim != 1 or (rows.size and rows.min() < 0):
                return self._rows(slice(None))[index]  # type: ignore[no-any-return]
            rows = rows.astype(np.int64)
        found = self._rows(rows)
        return found[(slice(None), *others)] if others else found

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:  # noqa: FBT001  # NumPy's
        if copy is False:
            raise ValueError("An array on disk can only be copied.")
        found = self._rows(slice(None))
        return found if dtype is None else found.astype(dtype, copy=False)

    def astype(self, dtype: DTypeLike) -> NDArray[Any]:
        """Return all of it in memory."""
        return np.asarray(self, dtype=dtype)


class FileRows(OnDisk):
    """The array in a ``.npy`` file.

    Parameters
    ----------
    path
        The file, which must stay as it is.
    array
        A memory map of it.
    """

    def __init__(self, path: Path, array: np.memmap[Any, Any]) -> None:
        self.path, self.shape, self.dtype = path, array.shape, array.dtype
        self._offset = array.offset

    def _rows(self, rows: Any) -> NDArray[Any]:
        mapped = _maps.open(self)
        return mapped[rows].copy() if isinstance(rows, slice) else mapped[rows]

    def map(self) -> NDArray[Any]:
        """Return a new memory map."""
        try:
            return np.asarray(np.memmap(self.path, self.dtype, "r", self._offset, self.shape))
        except (OSError, ValueError) as error:
            raise InputError(
                f"The features in {str(self.path)!r} cannot be read any more ({reason(error)}); keep the cache folder "
                "as it is until what uses it is done."
            ) from error


class Joined(OnDisk):
    """Arrays, of which some are on disk, one behind another (axis 0) or side by side (axis -1)."""

    def __init__(self, parts: Sequence[Any], *, axis: int) -> None:
        self.parts, self.axis = list(parts), axis
        self.dtype = np.result_type(*(p.dtype for p in parts))
        sizes = [p.shape[axis] for p in parts]
        shape = list(parts[0].shape)
        shape[axis] = sum(sizes)
        self.shape = tuple(shape)
        self._ends = np.cumsum(sizes)

    def _rows(self, rows: Any) -> NDArray[Any]:
        if self.axis != 0:
            return np.concatenate([p[rows] for p in self.parts], axis=self.axis, dtype=self.dtype)
        if isinstance(rows, slice):
            rows = np.arange(len(self))[rows]
        if rows.size and rows.max() >= len(self):
            raise IndexError(f"row {rows.max()} of {len(self)}")
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        which = np.searchsorted(self._ends, rows, side="right")
        for k in np.unique(which):
            at = np.flatnonzero(which == k)
            out[at] = self.parts[k][rows[at] - (self._ends[k - 1] if k else 0)]
        return out


class Reordered(Joined):
    """Arrays one behind another whose rows are in another order.

    Parameters
    ----------
    parts
        The arrays.
    rows
        Which rows of the whole those of each are.
    """

    def __init__(self, parts: Sequence[Any], rows: Sequence[NDArray[np.int64]]) -> None:
        super().__init__(parts, axis=0)
        self._at = np.empty(len(self), np.int64)
        self._at[np.concatenate(rows)] = np.arange(len(self))

    def _rows(self, rows: Any) -> NDArray[Any]:
        return super()._rows(self._at[rows])


class _Maps:
    """Memory maps that are kept open, the least recently used ones closed first."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[Path, Any], NDArray[Any]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def open(self, file: FileRows) -> NDArray[Any]:
        key = (file.path, file.shape)
        with self._lock:
            if (found := self._open.get(key)) is not None:
                self._open.move_to_end(key)
                return found
        found = file.map()
        if found.nbytes > OPEN_BYTES // 2:
            return found
        with self._lock:
            if key not in self._open:
                self._open[key] = found
                self._bytes += found.nbytes
            while self._bytes > OPEN_BYTES or len(self._open) > OPEN_FILES:
                self._bytes -= self._open.popitem(last=False)[1].nbytes
        return found


_maps = _Maps()


def joined(parts: Sequence[Any], *, axis: int) -> Any:
    """Return arrays one behind another (axis 0) or side by side (-1); on disk if any of them is."""
    if len(parts) == 1:
        return parts[0]
    return Joined(parts, axis=axis) if any(isinstance(p, OnDisk) for p in parts) else np.concatenate(parts, axis=axis)

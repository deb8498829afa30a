"""Arrays larger than memory should hold: in an unnamed file, mapped, and let go of whenever a part of them is done."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from stpred._core.checks import InputError

MAX_BYTES = 2**25
"""Size of an array from which on it is kept in a file, where that is asked for."""

RELEASE_BYTES = 2**26
"""Bytes written to such a file after which its pages are given back."""


def empty(shape: tuple[int, ...], dtype: DTypeLike, *, spill: bool = False) -> NDArray[Any]:
    """Return a new array; with `spill`, one of more than `MAX_BYTES` is in a file that goes when the array does."""
    n_bytes = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if not spill or n_bytes <= MAX_BYTES:
        return np.empty(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(prefix="stpred-") as file:
            if hasattr(os, "posix_fallocate"):  # writing to a hole through a map ends the process when the disk is full
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return np.memmap(file, dtype=dtype, mode="r+", shape=shape)
    except OSError as error:
        raise InputError(
            f"The temporary folder {tempfile.gettempdir()} has no room for {n_bytes / 1e9:.2g} GB of features "
            f"({error.strerror or error}); free space, or let TMPDIR name another folder."
        ) from error


def release(array: Any) -> None:
    """Give the resident pages of mapped arrays back; the values stay in their files. Nothing is done for any other."""
    for part in getattr(array, "parts", ()):  # of several arrays side by side
        release(part)
    pages = getattr(array, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.madvise(mmap.MADV_DONTNEED)

"""Tiles with a margin that an encoder is pretrained on: which, read into memory or a file, and their colours."""

from __future__ import annotations

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.progress import track
from stpred._core.settings import settings
from stpred._core.specs import TileSpec
from stpred.data import Region

logger = logging.getLogger("stpred")

MEMORY_FRACTION = 0.5
"""Of the memory that is free, which tiles may take; beyond it they go to a file."""


def choose_rows(regions: list[Region], n_tiles: int, *, seed: int) -> list[NDArray[np.int64]]:
    """Return the rows of each region that are learned from."""
    sizes = [len(r.coords_um) for r in regions]
    total = sum(sizes)
    picked = np.arange(total)
    if n_tiles < total:
        picked = np.sort(np.random.default_rng([seed, 0]).choice(total, n_tiles, replace=False))
        logger.info("Learning from %d of %d tiles.", n_tiles, total)
    ends = np.cumsum(sizes)
    return [
        picked[(picked >= end - size) & (picked < end)] - (end - size) for size, end in zip(sizes, ends, strict=True)
    ]


class Rows:
    """Some rows of an array, read when they are indexed: a memory map stays on disk."""

    def __init__(self, values: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        self.values, self.rows = values, rows
        self.shape = (len(rows), *values.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> NDArray[np.uint8]:
        return self.values[self.rows[which]]


@contextmanager
def read_crops(regions: list[Region], chosen: list[NDArray[np.int64]], tile: TileSpec) -> Iterator[NDArray[np.uint8]]:
    """Read all tiles once, in streaming order; into memory, or into a file that goes at the end."""
    shape = (sum(map(len, chosen)), tile.size_px, tile.size_px, 3)
    size, free = math.prod(shape), _free_bytes()
    with (
        tempfile.TemporaryDirectory(prefix="tiles-", dir=_folder(), ignore_cleanup_errors=True)
        if (free is not None and size > MEMORY_FRACTION * free)
        else nullcontext() as folder
    ):
        if folder is None:
            out = np.empty(shape, dtype=np.uint8)
        else:
            if settings.cache_dir is None:
                raise InputError(
                    f"{shape[0]} tiles take {size / 2**30:.1f} GB, more than half of the free memory "
                    f"({free / 2**30:.1f} GB); lower `n_tiles`, or set stpred.settings.cache_dir to a folder to keep "  # type: ignore[operator]
                    "them in while training."
                )
            out = np.memmap(Path(folder) / "tiles.raw", dtype=np.uint8, mode="w+", shape=shape)
        start = 0
        for region, rows in zip(regions, chosen, strict=True):
            batches = region.pyramid.read(region.coords_um[rows], tile)
            for which, images in track(
                batches,
                total=len(rows),
                describe=f"{region.slide}: reading",
                weight=lambda item: len(item[0]),
                unit="tile",
            ):
                out[start + which] = images
            start += len(rows)
        yield out


def _folder() -> Path | None:
    """Return the folder of large files; create it if missing."""
    if settings.cache_dir is None:
        return None
    folder = Path(settings.cache_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _free_bytes() -> int | None:
    """Return the memory that is free, where the system says so."""
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def mean_colour(
    crops: NDArray[np.uint8], size_px: int
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Return mean and standard deviation of red, green and blue of the tiles themselves, 0..1."""
    first = (crops.shape[1] - size_px) // 2
    inner = slice(first, first + size_px)
    total, squares, n = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(crops), 4096):
        pixels = crops[start : start + 4096, inner, inner].reshape(-1, 3)
        counts = np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)])
        values = np.arange(256) / 255
        total, squares, n = total + counts @ values, squares + counts @ values**2, n + len(pixels)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 1e-6))  # glass alone has no colours to speak of
    r, g, b = (float(v) for v in mean.round(5))
    s, t, u = (float(v) for v in std.round(5))
    return (r, g, b), (s, t, u)

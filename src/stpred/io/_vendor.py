"""Slides of other vendors (MIRAX, DICOM, CZI, ...), read with wsidata."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.calibration import Evidence
from stpred._core.checks import InputError
from stpred.io._pixels import CHUNK_PX, Pixels, refuse_mode


def open_vendor(path: Path) -> Pixels:
    """Open a slide with the reader that wsidata finds for it."""
    reader = _reader(path)
    properties = reader.properties
    probe = reader.get_region(0, 0, 1, 1, level=0)
    if probe.shape[-1] != 3 or probe.dtype != np.uint8:
        refuse_mode(path, found=f"{probe.shape[-1]}-channel {probe.dtype}")
    levels = tuple(
        VendorLevel(path, index=k, shape=(3, int(height), int(width)), downsample=float(properties.level_downsample[k]))
        for k, (height, width) in enumerate(properties.level_shape)
    )
    evidence = (Evidence(float(properties.mpp), f"the header of {path.name}"),) if properties.mpp else ()
    return Pixels(path, levels, evidence)


def _reader(path: Path) -> Any:
    try:
        from wsidata import READERS
    except ImportError as error:
        raise InputError(
            f"{path.name!r} is a {path.suffix} slide, which needs wsidata: pip install 'stpred[wsi]' (or convert it to "
            "a pyramidal tif)."
        ) from error
    try:
        return READERS.try_open(str(path))
    except ValueError as error:
        raise InputError(f"The slide {path.name!r} cannot be opened: {error}") from error


class VendorLevel:
    """One level of a slide as an array of c, y, x, read through wsidata."""

    def __init__(self, path: Path, *, index: int, shape: tuple[int, int, int], downsample: float) -> None:
        self.path = path
        self.index = index
        self.shape = shape
        self.downsample = downsample
        self.chunk_px = (CHUNK_PX, CHUNK_PX)
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self._reader: Any = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        with self._lock:
            if self._reader is None:
                self._reader = _reader(self.path)
        y0, y1, step_y = index[1].indices(self.shape[1])
        x0, x1, step_x = index[2].indices(self.shape[2])
        # the reader wants the corner in pixels of the finest level
        corner = round(x0 * self.downsample), round(y0 * self.downsample)
        region = self._reader.get_region(*corner, x1 - x0, y1 - y0, level=self.index)
        return np.asarray(region)[::step_y, ::step_x].transpose(2, 0, 1)[index[0]]

"""Slides of other vendors (MIRAX, DICOM, CZI, ...), read with wsidata."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.checks import InputError, listing, warn
from stpred._core.files import readable
from stpred._core.forks import renew
from stpred.io._images.pixels import CHUNK_PX, Pixels, refuse_mode
from stpred.io._images.resolution import evidence_of
from stpred.io._images.sizes import MAX_PX


def open_vendor(path: Path, *, scene: int | str | None = None) -> Pixels:
    """Open a slide with the reader that wsidata finds for it."""
    number = _number(path, scene)
    with readable(path.name, what="slide"):
        reader = _reader(path, number)
        properties = reader.properties
        scenes = _scenes(reader)
        probe = reader.get_region(0, 0, 1, 1, level=0)
        shapes = [(int(height), int(width)) for height, width in properties.level_shape]
        downsamples = [float(d) for d in properties.level_downsample]
        mpp = float(properties.mpp) if properties.mpp else None
    if probe.ndim != 3 or probe.shape[-1] != 3 or probe.dtype != np.uint8:
        refuse_mode(path, found=f"{probe.shape[-1]}-channel {probe.dtype}")
    if len(scenes) > 1:
        _report_scenes(path, scenes, number, taken=int(getattr(properties, "scene", 0)))
    for height, width in shapes:
        if min(height, width) < 1 or height * width > MAX_PX:
            raise InputError(f"The slide {path.name!r} declares {width} x {height} px, which cannot be.")
    levels = tuple(
        VendorLevel(path, index=k, shape=(3, *shape), downsample=downsample, scene=number)
        for k, (shape, downsample) in enumerate(zip(shapes, downsamples, strict=True))
    )
    evidence = evidence_of(mpp, f"the header of {path.name}")
    return Pixels(path, levels, () if evidence is None else (evidence,))


def _number(path: Path, scene: int | str | None) -> int | None:
    """Return the number of a scene that was asked for by name or number."""
    if scene is None or (isinstance(scene, int) and not isinstance(scene, bool)):
        return scene
    with readable(path.name, what="slide"):
        names = _scenes(_reader(path, None))
    if isinstance(scene, str) and scene in names:
        return names.index(scene)
    if isinstance(scene, str) and scene.isdigit() and int(scene) < len(names):
        return int(scene)
    raise InputError(f"`scene` must be one of {listing(names)} of {path.name!r} or its number, got {scene!r}.")


def _scenes(reader: Any) -> list[str]:
    """Return the names of a slide's scenes, as far as wsidata tells (from 0.12 on)."""
    names = getattr(reader.properties, "scene_names", None)
    count = getattr(reader.properties, "n_scenes", None) or len(names or [None])
    return [str(n) for n in names] if names else [str(k) for k in range(int(count))]


def _report_scenes(path: Path, scenes: list[str], number: int | None, *, taken: int) -> None:
    others = [name for k, name in enumerate(scenes) if k != taken]
    if number is None and others:
        warn(
            f"The slide {path.name!r} holds {len(scenes)} scenes: {taken} {scenes[taken % len(scenes)]!r} is read, not "
            f"{listing(others)}; scene= chooses another."
        )


def _reader(path: Path, scene: int | None) -> Any:
    try:
        from wsidata import READERS
    except ImportError as error:
        raise InputError(
            f"{path.name!r} is a {path.suffix} slide, which needs wsidata: pip install 'stpred[wsi]' (or convert it to "
            "a pyramidal tif)."
        ) from error
    chosen: dict[str, Any] = {} if scene is None else {"scene": scene}  # unknown before wsidata 0.12
    with readable(path.name, what="slide"):
        return READERS.try_open(str(path), **chosen)


class VendorLevel:
    """One level of a slide as an array of c, y, x, read through wsidata."""

    def __init__(
        self, path: Path, *, index: int, shape: tuple[int, int, int], downsample: float, scene: int | None = None
    ) -> None:
        self.path = path
        self.index = index
        self.shape = shape
        self.downsample = downsample
        self.scene = scene
        self.chunk_px = (CHUNK_PX, CHUNK_PX)
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self._reader: Any = None
        self._lock = threading.Lock()
        renew(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        renew(self)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        with self._lock:
            if self._reader is None:
                self._reader = _reader(self.path, self.scene)
        y0, y1, step_y = index[1].indices(self.shape[1])
        x0, x1, step_x = index[2].indices(self.shape[2])
        # the reader wants the corner in pixels of the finest level
        corner = round(x0 * self.downsample), round(y0 * self.downsample)
        with readable(self.path.name, what="slide"):
            region = np.asarray(self._reader.get_region(*corner, x1 - x0, y1 - y0, level=self.index))
        return region[::step_y, ::step_x].transpose(2, 0, 1)[index[0]]

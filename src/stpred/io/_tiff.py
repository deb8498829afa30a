"""tif of any layout, read tile by tile (or strip by strip) with tifffile, without opening more than is looked at."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.checks import InputError
from stpred.io._pixels import CHUNK_PX, FlatImage, Level, Pixels, refuse_mode
from stpred.io._resolution import tiff_resolution

STRIP_BYTES = 64 * 2**20
"""Strips whose decoded size is larger cannot be read piecewise: the image is decoded once and kept."""
BAND_BYTES = 24 * 2**20
"""Strips are read together up to this decoded size: bands of a wide slide are as large as few chunks of a tiled one."""


def open_tiff(path: Path) -> Pixels:
    """Open a tif: find its finest image and the levels below, check that all of it is there, decode nothing."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tif:
            if not any(math.prod(s.shape) for s in tif.series):
                raise InputError(f"The image {path.name!r} holds no pixels.")
            series = max(enumerate(tif.series), key=lambda s: math.prod(s[1].shape))[0]
            places = [(series, k) for k in range(len(tif.series[series].levels))]
            if tif.is_svs:  # written without a thumbnail, the second level is taken for one
                places += [(s, 0) for s in range(len(tif.series)) if s != series and tif.series[s].keyframe.is_tiled]
            levels = {place: tif.series[place[0]].levels[place[1]] for place in places}
            finest = levels[series, 0]
            _check_rgb(path, finest)
            _check_complete(path, levels.values())
            kept = [p for p, level in levels.items() if level is finest or _is_level(finest, level)]
            kept.sort(key=lambda p: -_sizes(levels[p])["Y"])
            sources = tuple(_level(path, *place, levels[place]) for place in kept)
            return Pixels(path, sources, tiff_resolution(tif, finest.keyframe))
    except (tifffile.TiffFileError, IndexError, KeyError, OSError) as error:
        raise InputError(
            f"The image {path.name!r} cannot be read as a tif ({error}); it may be damaged or cut off."
        ) from error


def _sizes(level: Any) -> dict[str, int]:
    return {a: n for a, n in zip(level.axes, level.shape, strict=True) if n > 1 or a in "YX"}


def _check_rgb(path: Path, level: Any) -> None:
    sizes = _sizes(level)
    channels = [n for a, n in sizes.items() if a not in "YX"]
    if not channels:
        kind = "a palette image" if level.keyframe.photometric == 3 else "greyscale (one channel)"
        refuse_mode(path, found=f"16-bit {kind}" if level.dtype == np.uint16 else kind)
    if len(channels) > 1 or not set(sizes) <= set("YXSC"):
        refuse_mode(path, found=f"a stack of axes {''.join(sizes)} and shape {tuple(sizes.values())}")
    if channels[0] != 3:
        found = {2: "two-channel", 4: "RGBA or four-channel"}.get(channels[0], f"{channels[0]}-channel")
        refuse_mode(path, found=found)
    if level.dtype != np.uint8:
        refuse_mode(path, found=f"{8 * level.dtype.itemsize}-bit ({level.dtype})")


def _check_complete(path: Path, levels: Iterable[Any]) -> None:
    """Refuse a file that ends before the data that its directory promises."""
    size = path.stat().st_size
    for level in levels:
        for page in level.pages:
            if page is None:
                raise InputError(
                    f"The image {path.name!r} lacks a page of its pixel data; it may be damaged or cut off."
                )
            ends = [o + n for o, n in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if ends and max(ends) > size:
                raise InputError(
                    f"The image {path.name!r} is cut off: its directory promises {max(ends)} bytes, it has {size}; "
                    "copy or download it again."
                )


def _is_level(finest: Any, level: Any) -> bool:
    """Tell whether a level is a scaled copy of the finest one, as some files carry others under the same name."""
    ratios = [_sizes(finest)[a] / _sizes(level)[a] for a in "YX"]
    allowed = 2.0 / min(_sizes(level)[a] for a in "YX")
    return ratios[0] > 1 and abs(ratios[0] / ratios[1] - 1) < max(0.02, allowed) and level.dtype == np.uint8


def _level(path: Path, series: int, index: int, level: Any) -> Level:
    page = level.keyframe
    sizes = _sizes(level)
    shape = (3, sizes["Y"], sizes["X"])
    contiguous = page.is_memmappable and page.is_final
    strip_bytes = math.prod(page.chunks)
    if not contiguous and strip_bytes > STRIP_BYTES:
        return FlatImage(path, shape, _WholeTiff(series, index))
    return TiffLevel(
        path, series=series, index=index, shape=shape, chunk_px=_chunk_px(page, shape, contiguous=contiguous)
    )


def _chunk_px(page: Any, shape: tuple[int, int, int], *, contiguous: bool) -> tuple[int, int]:
    """Return the dask chunk (y, x): whole tiles or strips near 1024 px, so that none is decoded twice."""
    if contiguous:
        return CHUNK_PX, CHUNK_PX
    if page.is_tiled:
        tile_y, tile_x = page.tilelength, page.tilewidth
        return max(1, CHUNK_PX // tile_y) * tile_y, max(1, CHUNK_PX // tile_x) * tile_x
    rows = max(1, int(page.rowsperstrip))
    fitting = min(CHUNK_PX, BAND_BYTES // (3 * shape[2]))
    return min(shape[1], max(1, fitting // rows) * rows), shape[2]


class _WholeTiff:
    """Decodes a whole level, for layouts that cannot be read piecewise."""

    def __init__(self, series: int, index: int) -> None:
        self.series, self.index = series, index

    def __call__(self, path: Path) -> np.ndarray:
        import tifffile

        with tifffile.TiffFile(path) as tif:
            level = tif.series[self.series].levels[self.index]
            axes = [a for a, n in zip(level.axes, level.shape, strict=True) if n > 1 or a in "YX"]
            image = level.asarray().reshape([_sizes(level)[a] for a in axes])
        return np.moveaxis(image, [i for i, a in enumerate(axes) if a not in "YX"][0], -1)


class TiffLevel:
    """One level of a tif as an array of c, y, x; the file is opened on first use, and again in another process."""

    def __init__(
        self, path: Path, *, series: int, index: int, shape: tuple[int, int, int], chunk_px: tuple[int, int]
    ) -> None:
        self.path = path
        self.series = series
        self.index = index
        self.shape = shape
        self.chunk_px = chunk_px
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self._pages: list[Any] | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pages": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _opened(self) -> list[Any]:
        """Return the level's pages; one of three samples, or three of one."""
        import tifffile

        with self._lock:
            if self._pages is None:
                tif = tifffile.TiffFile(self.path)
                self._pages = list(tif.series[self.series].levels[self.index].pages)
            return self._pages

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        y0, y1, _ = index[1].indices(self.shape[1])
        x0, x1, _ = index[2].indices(self.shape[2])
        pages = self._opened()
        parts = [self._read(page, y0, y1, x0, x1) for page in pages]
        block = parts[0] if len(parts) == 1 else np.stack(parts, axis=-1)
        return block.transpose(2, 0, 1)[index[0], :: index[1].step or 1, :: index[2].step or 1]

    def _read(self, page: Any, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return (y, x, 3) of a colour page, or (y, x) of a page of one channel."""
        keyframe = page.keyframe
        samples = keyframe.samplesperpixel
        planar = samples > 1 and keyframe.planarconfig == 2
        if keyframe.is_memmappable and keyframe.is_final:
            shape = (
                ((samples,) if planar else ())
                + (self.shape[1], self.shape[2])
                + (() if planar or samples == 1 else (samples,))
            )
            mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=page.dataoffsets[0], shape=shape)
            crop = mapped[:, y0:y1, x0:x1].transpose(1, 2, 0) if planar else mapped[y0:y1, x0:x1]
            return np.array(crop)
        out = np.full((y1 - y0, x1 - x0, samples), 255, dtype=np.uint8)  # a scanner leaves out empty, white tiles
        for plane in range(samples if planar else 1):
            view = out[:, :, plane : plane + 1] if planar else out
            self._fill(page, view, plane=plane, planar=planar, window=(y0, y1, x0, x1))
        return out[:, :, 0] if samples == 1 else out

    def _fill(self, page: Any, out: np.ndarray, *, plane: int, planar: bool, window: tuple[int, int, int, int]) -> None:
        keyframe = page.keyframe
        y0, y1, x0, x1 = window
        tile_y, tile_x = keyframe.chunks[:2]
        across, down = math.ceil(self.shape[2] / tile_x), math.ceil(self.shape[1] / tile_y)
        numbers = [
            (plane * down + row) * across + column
            for row in range(y0 // tile_y, math.ceil(y1 / tile_y))
            for column in range(x0 // tile_x, math.ceil(x1 / tile_x))
        ]
        segments = page.parent.filehandle.read_segments(
            [page.dataoffsets[n] for n in numbers], [page.databytecounts[n] for n in numbers], lock=self._lock
        )  # numbers are not handed over: before 2025.12.20 tifffile misreads those of a single segment
        for data, position in segments:
            if data is None:
                continue
            number = numbers[position]
            tile = self._decode(keyframe, page, data, number)
            top, left = (number // across - plane * down) * tile_y, (number % across) * tile_x
            a, b = max(y0, top), min(y1, top + tile.shape[0])
            c, d = max(x0, left), min(x1, left + tile.shape[1])
            out[a - y0 : b - y0, c - x0 : d - x0] = tile[a - top : b - top, c - left : d - left]

    def _decode(self, keyframe: Any, page: Any, data: bytes, number: int) -> np.ndarray:
        try:
            tile, _, shape = keyframe.decode(data, number, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
        except (ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                f"Tile {number} of {self.path.name!r} cannot be decoded ({error}); the file is damaged."
            ) from error
        return tile[0, : shape[1], : shape[2]]

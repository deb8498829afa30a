"""tif of any layout, read tile by tile (or strip by strip) with tifffile, without opening more than is looked at."""

from __future__ import annotations

import logging
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.checks import InputError, warn
from stpred._core.files import readable, reason
from stpred._core.forks import renew
from stpred.io._images.channels import Colours, colours_of, refused_by_name
from stpred.io._images.pixels import CHUNK_PX, FlatImage, Level, Pixels, Turned, refuse_mode
from stpred.io._images.resolution import tiff_resolution
from stpred.io._images.scenes import Part, Place, Scene, choose, is_level, scenes_of
from stpred.io._images.sizes import check_directory, check_memory, check_piece

logger = logging.getLogger("stpred")

STRIP_BYTES = 64 * 2**20
"""Strips whose decoded size is larger cannot be read piecewise: the image is decoded once and kept."""
BAND_BYTES = 24 * 2**20
"""Strips are read together up to this decoded size: bands of a wide slide are as large as few chunks of a tiled one."""
ALPHA_PX = 64 * 2**20
"""The coarsest level is looked through for transparency if it has at most this many pixels."""


def open_tiff(path: Path, *, scene: int | str | None = None) -> Pixels:
    """Open a tif: find the slide and its levels, check that all of it is there, decode nothing."""
    with readable(path.name, what="image"):
        tif = _opened_first(path)
    with tif:
        with readable(path.name, what="image"):
            scenes = scenes_of(tif)
        if not scenes:
            raise InputError(f"The image {path.name!r} holds no pixels.")
        chosen = choose(scenes, scene=scene, path=path)
        finest = chosen.levels[0]
        with readable(path.name, what="image"):
            colours = _colours(tif, path, finest, chosen)
            kept = [p for p in chosen.levels if p is finest or _belongs(finest, p, colours)]
            kept.sort(key=lambda p: -p.sizes["Y"])
            for part in kept:
                check_directory(path, part.pages)
            turn = _orientation(finest)
            levels: list[Level] = [_level(path, part, colours) for part in kept]
            evidence = tiff_resolution(tif, finest.keyframe, image=chosen.image)
    if colours.kind in ("alpha", "premultiplied", "unnamed"):
        _check_alpha(path, levels[-1], colours)
    if turn != 1:
        logger.info("%s is turned as its Orientation tag says (%d).", path.name, turn)
        levels = [Turned(level, turn) for level in levels]
    return Pixels(path, tuple(levels), evidence)


def _file(path: Path) -> Any:
    """Open a tif; other files that an OME header names are left alone."""
    import tifffile

    return tifffile.TiffFile(path, _multifile=False)


def _opened_first(path: Path) -> Any:
    import tifffile

    try:
        return _file(path)
    except tifffile.TiffFileError as error:
        raise InputError(
            f"The image {path.name!r} cannot be read as a tif ({reason(error)}); it may be damaged or cut off."
        ) from error


def _colours(tif: Any, path: Path, finest: Part, scene: Scene) -> Colours:
    colours, found = colours_of(finest.keyframe, finest.sizes, finest.dtype)
    if colours is None:
        refuse_mode(path, found=found)
    elif (named := refused_by_name(tif, finest.keyframe, finest.sizes, scene.image)) is not None:
        refuse_mode(path, found=named, advice="give that one")
    return colours or Colours()


def _belongs(finest: Part, level: Part, colours: Colours) -> bool:
    """Tell whether a level is a scaled copy of the finest whose samples mean the same."""
    if not is_level(finest, level) or "C" in finest.sizes and len(level.pages) != len(finest.pages):
        return False
    own, _ = colours_of(level.keyframe, level.sizes, level.dtype)
    if own is None or own.kind != colours.kind:
        return False
    return own.palette is None or colours.palette is None or np.array_equal(own.palette, colours.palette)


def _orientation(finest: Part) -> int:
    """Return the Orientation tag, 1 to 8; smaller levels often lack it and are stored as the finest is."""
    tag = finest.keyframe.tags.valueof("Orientation", 1)
    return int(tag) if isinstance(tag, int) and 1 <= tag <= 8 else 1


def _check_alpha(path: Path, level: Level, colours: Colours) -> None:
    """Say where an image is transparent; a fourth channel that is not said to be opacity must be full everywhere."""
    known = colours.has_alpha
    transparent: bool | None = None
    if isinstance(level, TiffLevel) and level.shape[1] * level.shape[2] <= ALPHA_PX:
        transparent = any(
            (level.samples(y, min(y + level.chunk_px[0], level.shape[1]), 0, level.shape[2])[:, :, 3] < 255).any()
            for y in range(0, level.shape[1], level.chunk_px[0])
        )
    if transparent is False:
        return
    if not known:
        refuse_mode(path, found="of four channels, the last of which is not said to be opacity")
    warn(f"The image {path.name!r} {'is' if transparent else 'may be'} transparent in parts, which are laid on white.")


def _level(path: Path, part: Part, colours: Colours) -> Level:
    page = part.keyframe
    shape = (3, part.sizes["Y"], part.sizes["X"])
    contiguous = page.is_memmappable and page.is_final
    if not contiguous and math.prod(page.chunks) > STRIP_BYTES:
        check_memory(path, shape, size=path.stat().st_size, samples=page.samplesperpixel)
        return FlatImage(path, shape, _WholeTiff(part.place, tuple(part.sizes), colours), key=part.place)
    chunk_px = _chunk_px(page, shape, contiguous=contiguous)
    return TiffLevel(path, place=part.place, shape=shape, chunk_px=chunk_px, colours=colours)


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

    def __init__(self, place: Place, axes: tuple[str, ...], colours: Colours) -> None:
        self.place, self.axes, self.colours = place, axes, colours

    def __call__(self, path: Path) -> np.ndarray:
        with readable(path.name, what="image"), _file(path) as tif:
            pages = self.place.pages(tif)
            planes = [page.asarray(maxworkers=1) for page in pages]
            image = planes[0] if len(planes) == 1 else np.stack(planes)
        channel = [i for i, a in enumerate(self.axes) if a not in "YX"]
        image = np.moveaxis(image, channel[0], -1) if channel else image[:, :, None]
        return self.colours.to_rgb(image)


# tifffile's zarr store decodes the same tiles and strips in the same CPU time (0.8-1.1 of ours), but it decodes what it
# read before anything here can check it: a JPEG tile whose header declares 20 000 x 20 000 px takes 1.2 GB before it is
# refused. It cannot be pickled either, and large single strips (FlatImage) cost it 4.3 times the CPU time.
class TiffLevel:
    """One level of a tif as an array of c, y, x; the file is opened on first use, and again in another process."""

    def __init__(
        self, path: Path, *, place: Place, shape: tuple[int, int, int], chunk_px: tuple[int, int], colours: Colours
    ) -> None:
        self.path = path
        self.place = place
        self.shape = shape
        self.chunk_px = chunk_px
        self.colours = colours
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self._pages: list[Any] | None = None
        self._lock = threading.Lock()
        renew(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pages": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        renew(self)

    def _opened(self) -> list[Any]:
        """Return the level's pages; one of all samples, or one for each of three."""
        with self._lock:
            if self._pages is None:
                with readable(self.path.name, what="image"):
                    self._pages = self.place.pages(_file(self.path))
            return self._pages

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        y0, y1, _ = index[1].indices(self.shape[1])
        x0, x1, _ = index[2].indices(self.shape[2])
        block = self.colours.to_rgb(self.samples(y0, y1, x0, x1))
        return block.transpose(2, 0, 1)[index[0], :: index[1].step or 1, :: index[2].step or 1]

    def samples(self, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the stored samples of a window as (y, x, n)."""
        pages = self._opened()
        parts = [self._read(page, y0, y1, x0, x1) for page in pages]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    def _read(self, page: Any, y0: int, y1: int, x0: int, x1: int) -> np.ndarray:
        """Return the (y, x, n) samples of a page."""
        keyframe = page.keyframe
        samples = keyframe.samplesperpixel
        planar = samples > 1 and keyframe.planarconfig == 2
        if keyframe.is_memmappable and keyframe.is_final:
            size = (self.shape[1], self.shape[2])
            shape = (samples, *size) if planar else (*size, samples)
            with readable(self.path.name, what="image"):
                mapped = np.memmap(self.path, dtype=np.uint8, mode="r", offset=page.dataoffsets[0], shape=shape)
                crop = mapped[:, y0:y1, x0:x1].transpose(1, 2, 0) if planar else mapped[y0:y1, x0:x1]
                return np.array(crop)
        # a scanner leaves out empty, white tiles
        out = np.full((y1 - y0, x1 - x0, samples), 255, dtype=np.uint8)
        for plane in range(samples if planar else 1):
            view = out[:, :, plane : plane + 1] if planar else out
            self._fill(page, view, plane=plane, planar=planar, window=(y0, y1, x0, x1))
        return out

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
        with readable(self.path.name, what="image"):
            segments = list(
                page.parent.filehandle.read_segments(
                    [page.dataoffsets[n] for n in numbers], [page.databytecounts[n] for n in numbers], lock=self._lock
                )
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
            check_piece(data, keyframe)
            tile, _, shape = keyframe.decode(data, number, jpegtables=page.jpegtables, jpegheader=keyframe.jpegheader)
            return tile[0, : shape[1], : shape[2]]
        except Exception as error:  # of any codec
            raise InputError(
                f"Tile {number} of {self.path.name!r} cannot be decoded ({reason(error)}); the file is damaged."
            ) from error

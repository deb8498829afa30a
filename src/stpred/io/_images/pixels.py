"""Pixels of an H&E image file as a lazy pyramid: nothing is decoded before it is looked at."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from stpred._core.checks import InputError
from stpred._core.compute.threads import dask_options
from stpred._core.files import readable
from stpred._core.forks import renew
from stpred.calibration import Evidence, to_transformation

if TYPE_CHECKING:
    import dask.array as da
    from xarray import DataTree

CHUNK_PX = 1024
COARSEST_PX = 1024
"""Levels are added until the longer side of the coarsest is at most this."""
KEPT_PX = 6400
"""The first averaged level whose longer side is at most this is kept in memory, at most 120 MB, once it was looked at:
outline, thumbnails and pictures of a slide without levels of its own cost one pass over it together.
"""
_SLAB_PX = 64


class Level(Protocol):
    """One pyramid level: an array of c, y, x that reads when it is indexed."""

    shape: tuple[int, int, int]
    chunk_px: tuple[int, int]

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray: ...


@dataclass(frozen=True)
class Pixels:
    """An opened image file: its levels, the finest first, and what it says of its resolution."""

    path: Path
    levels: tuple[Level, ...]
    evidence: tuple[Evidence, ...] = ()

    @property
    def width(self) -> int:
        """Pixels in x of the finest level."""
        return self.levels[0].shape[2]

    @property
    def height(self) -> int:
        """Pixels in y of the finest level."""
        return self.levels[0].shape[1]


def to_image(pixels: Pixels, affines: Mapping[str, np.ndarray]) -> DataTree:
    """Return the multiscale SpatialData image of a file, lazily, placed by (3, 3) pixel-to-frame matrices.

    The file's own levels are used; where it has none (or its coarsest is large), further ones are averaged lazily.

    Parameters
    ----------
    pixels
        The opened file.
    affines
        Coordinate system -> matrix from pixels of the finest level, x and y.

    Returns
    -------
    ``DataTree`` with ``scale0``, ``scale1``, ..., each of dims c, y, x, uint8.
    """
    return multiscale([to_dask(level) for level in pixels.levels], affines)


def to_dask(level: Level) -> da.Array:
    """Return a level as a dask array of c, y, x whose chunks lie on the file's own tiles or strips."""
    import dask.array as da

    return da.from_array(
        _Indexed(level), chunks=(3, *level.chunk_px), name=False, asarray=False, fancy=False, lock=False,
        meta=np.empty((0, 0, 0), np.uint8),
    )  # fmt: skip


class _Indexed:
    """A level that also takes whole numbers as index, which dask hands on when a user asks for one channel or row."""

    def __init__(self, level: Level) -> None:
        self.level = level
        self.shape, self.dtype, self.ndim = level.shape, np.dtype(np.uint8), 3

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray:
        slices = tuple(i if isinstance(i, slice) else slice(int(i), int(i) + 1) for i in index)
        block = self.level[slices]  # type: ignore[index]
        return block[tuple(slice(None) if isinstance(i, slice) else 0 for i in index)]


def multiscale(levels: Sequence[da.Array], affines: Mapping[str, np.ndarray]) -> DataTree:
    """Assemble levels (the finest first, c, y, x) to a SpatialData image; missing coarse levels are averaged lazily."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import set_transformation
    from xarray import DataArray, Dataset, DataTree

    levels, kept = list(levels), False
    while max(levels[-1].shape[1:]) > COARSEST_PX and min(levels[-1].shape[1:]) > 1:
        coarse = halve(levels[-1])
        if not kept and max(coarse.shape) <= KEPT_PX:
            coarse, kept = to_dask(KeptLevel(coarse)), True
        levels.append(coarse)
    height, width = levels[0].shape[1:]
    nodes = {}
    for k, array in enumerate(levels):
        coords = {"c": ["r", "g", "b"]}
        for axis, full, n in (("y", height, array.shape[1]), ("x", width, array.shape[2])):
            coords[axis] = (np.arange(n) + 0.5) * (full / n)
        nodes[f"scale{k}"] = Dataset({"image": DataArray(array, dims=("c", "y", "x"), coords=coords)})
    tree = DataTree.from_dict(nodes)
    set_transformation(tree, {name: to_transformation(a) for name, a in affines.items()}, set_all=True)
    Image2DModel.validate(tree)
    return tree


def halve(array: da.Array) -> da.Array:
    """Average a (c, y, x) uint8 dask array over 2 x 2 pixels.

    The borders of both images coincide, as all that reads pyramids assumes: of an odd number of rows or columns each
    coarse pixel covers slightly more than two.
    """
    import dask.array as da

    # y, x, c inside, as files are decoded: no block is ever turned around in memory
    even = tuple(_even(sizes) for sizes in array.chunks[1:])
    array = array.transpose(1, 2, 0).rechunk((*even, array.chunks[0]))
    halved = tuple(tuple(n // 2 for n in sizes) for sizes in even)
    half = da.map_blocks(
        _shrink, array, dtype=np.uint8, chunks=(*halved, array.chunks[2]), meta=np.empty((0, 0, 0), np.uint8)
    )
    # whole chunks are merged, so that a coarse chunk reaches for no fine chunk that its neighbour needs too
    return half.rechunk((*map(_merged, halved), half.chunks[2])).transpose(2, 0, 1)


def _merged(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Merge neighbouring chunk sizes in pairs where they are small enough."""
    if 2 * max(sizes) > 1.5 * CHUNK_PX:
        return sizes
    return tuple(sum(sizes[i : i + 2]) for i in range(0, len(sizes), 2))


def _even(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return chunk sizes of the same total that are even, but for the last."""
    total = sum(sizes)
    edges = np.unique(np.append(np.cumsum(sizes)[:-1] // 2 * 2, total))
    edges = edges[edges > 0]
    chunks = np.diff(np.concatenate([[0], edges]))
    if len(chunks) > 1 and chunks[-1] < 2:  # a lone last pixel would average to nothing
        chunks = np.append(chunks[:-2], chunks[-2:].sum())
    return tuple(int(n) for n in chunks)


def _shrink(block: np.ndarray, block_info: Any = None) -> np.ndarray:
    """Shrink one chunk; `block_info` (from dask) says where in the image it lies."""
    whole, location = block_info[0]["shape"], block_info[0]["array-location"]
    if whole[0] % 2 == 0 and whole[1] % 2 == 0:
        half = np.empty((block.shape[0] // 2, block.shape[1] // 2, block.shape[2]), dtype=np.uint8)
        for top in range(0, len(half), _SLAB_PX):  # a few rows at a time need little memory besides
            half[top : top + _SLAB_PX] = _mean4(block[2 * top : 2 * (top + _SLAB_PX)])
        return half
    means = block.astype(np.float32)
    for axis in (0, 1):
        means = np.moveaxis(_pairs(np.moveaxis(means, axis, 0), start=location[axis][0], of=whole[axis]), 0, axis)
    return np.rint(means).astype(np.uint8)


def _mean4(block: np.ndarray) -> np.ndarray:
    """Average (y, x, c) pixels over 2 x 2; halves go to the even number, so that no level is brighter."""
    rows = block[::2].astype(np.uint16, order="C")
    rows += block[1::2]
    height, width, deep = rows.shape
    pairs = rows.reshape(height, width // 2, 2 * deep)
    total = np.empty((height, width // 2, deep), dtype=np.uint16)
    for channel in range(deep):  # long strides are faster than adding three by three
        np.add(pairs[:, :, channel], pairs[:, :, channel + deep], out=total[:, :, channel])
    total += 1 + (total >> 2 & 1)
    return (total >> 2).astype(np.uint8)


def _pairs(rows: np.ndarray, *, start: int, of: int) -> np.ndarray:
    """Average rows to half as many; `start` (even) is their first row in an image of `of` rows.

    Of an odd number of rows N, coarse row i covers [i, i + 1) * N / (N // 2): a part of row 2i, all of 2i + 1 and a
    part of 2i + 2. At a chunk's end, row 2i + 1 stands for the first row of the next, which is not fetched for it.
    """
    first, second = rows[: len(rows) // 2 * 2 : 2], rows[1::2]
    if of % 2 == 0:
        return (first + second) / 2
    n = of // 2
    third = rows[2::2]
    if len(third) < len(second):
        third = np.concatenate([third, second[-1:]])
    i = (start // 2 + np.arange(len(second), dtype=np.float32)).reshape(-1, *[1] * (rows.ndim - 1))
    return ((1 - i / n) * first + second + ((i + 1) / n) * third) / (of / n)


class KeptLevel:
    """A coarse level that is averaged from the finer one when it is first looked at, and then kept."""

    def __init__(self, source: da.Array) -> None:
        self.shape = source.shape
        self.dtype = source.dtype
        self.ndim = 3
        self.chunk_px = (CHUNK_PX, CHUNK_PX)
        self._source = source
        self._kept: np.ndarray | None = None
        self._lock = threading.Lock()
        renew(self)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())
        renew(self)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        import dask.array as da

        with self._lock:
            if self._kept is None:
                kept = np.empty((*self.shape[1:], self.shape[0]), dtype=self.dtype)
                # chunk by chunk into its place, so that no more than a few finer ones are there at a time
                da.store(self._source.transpose(1, 2, 0), kept, lock=False, **dask_options())
                self._kept = kept
        return self._kept.transpose(2, 0, 1)[index].copy(order="K")


class Turned:
    """A level as it is displayed: turned or mirrored by a TIFF or Exif orientation, 2 to 8."""

    def __init__(self, level: Level, orientation: int) -> None:
        self.level = level
        self.orientation = orientation
        self.swapped = orientation >= 5
        channels, height, width = level.shape
        self.shape = (channels, width, height) if self.swapped else level.shape
        self.chunk_px = level.chunk_px[::-1] if self.swapped else level.chunk_px
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        flip_y, flip_x = FLIPPED[self.orientation]
        rows = range(self.shape[1])[index[1]]
        columns = range(self.shape[2])[index[2]]
        first, second = (columns, rows) if self.swapped else (rows, columns)
        y, steps_y = _stored(first, self.level.shape[1], flip=flip_y)
        x, steps_x = _stored(second, self.level.shape[2], flip=flip_x)
        block = self.level[index[0], y, x][:, steps_y, steps_x]
        return block.transpose(0, 2, 1) if self.swapped else block


FLIPPED = {
    1: (False, False), 2: (False, True), 3: (True, True), 4: (True, False),
    5: (False, False), 6: (True, False), 7: (True, True), 8: (False, True),
}  # fmt: skip
"""Orientation -> whether stored rows and stored columns run against the displayed axis that they become."""


def _stored(wanted: range, size: int, *, flip: bool) -> tuple[slice, slice]:
    """Return where wanted rows lie in the file (one piece), and which of the piece's rows they are, in their order."""
    if len(wanted) == 0:
        return slice(0, 0), slice(None)
    low, high = min(wanted[0], wanted[-1]), max(wanted[0], wanted[-1])
    piece = slice(size - 1 - high, size - low) if flip else slice(low, high + 1)
    step = -wanted.step if flip else wanted.step
    return piece, slice(None, None, step)


class FlatImage:
    """A level that can only be decoded as a whole; one decoded image per process is kept, until another is read."""

    _lock = threading.Lock()
    _kept: tuple[tuple[str, int, Any], np.ndarray] | None = None

    def __init__(
        self, path: Path, shape: tuple[int, int, int], decode: Callable[[Path], np.ndarray], *, key: Any = None
    ) -> None:
        self.path = path
        self.key = key  # of several pictures in one file
        self.shape = shape
        self.dtype = np.dtype(np.uint8)
        self.ndim = 3
        self.chunk_px = (CHUNK_PX, CHUNK_PX)
        self._decode = decode
        renew(FlatImage)

    def __getitem__(self, index: tuple[slice, slice, slice]) -> np.ndarray:
        channel, *rest = index
        # a copy, so that a small crop does not keep the whole image alive
        return self._decoded()[tuple(rest)].transpose(2, 0, 1)[channel].copy(order="K")

    def _decoded(self) -> np.ndarray:
        with readable(self.path.name, what="image"):
            key = (str(self.path), self.path.stat().st_mtime_ns, self.key)
        with FlatImage._lock:
            if FlatImage._kept is None or FlatImage._kept[0] != key:
                FlatImage._kept = None  # frees the other image before this one is decoded
                image = self._decode(self.path)
                if image.shape != (*self.shape[1:], 3):
                    raise InputError(f"{self.path.name!r} changed since it was opened; read it again.")
                FlatImage._kept = (key, image)
            return FlatImage._kept[1]


def refuse_mode(path: Path, *, found: str, advice: str = "convert it first") -> NoReturn:
    """Raise the error that says what an image is and what is needed."""
    raise InputError(
        f"The image {path.name!r} is {found}; an H&E image with three 8-bit channels (RGB) is needed, so {advice}."
    )

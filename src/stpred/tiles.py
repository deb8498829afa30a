"""Reading tiles in micrometres from an image of any pyramid and any affine placement.

A tile is a centre plus a :class:`~stpred.TileSpec`; it is axis-aligned in the micrometre frame, whatever rotation,
flip or scale places the image there. Tiles are read in a streaming order in which each image chunk is decoded once and
dropped after the last tile that touches it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred._core.chunks import ChunkDecoder
from stpred._core.elements import affine_to, apply_affine, mpp_of
from stpred._core.fill import PlacedFill, glass_like, stain_like
from stpred._core.geometry import EDGE_PX, distance_outside
from stpred._core.settings import settings
from stpred._core.specs import TileSpec

# Pixels around a tile that cubic interpolation and anti-aliasing reach for, in units of the kernel's own support.
_CUBIC_REACH_PX = 2
# A rotation that moves a tile's corner by less than this is read as axis-aligned.
_STRAIGHT_PX = 0.02
_LEVEL_TOLERANCE = 0.01
# How much finer than the tile a stored level has to be to stand in for the finest one.
_FINER = 1.5
_THUMBNAIL_TILE_UM = 512.0
# Fill is found on a copy of this many pixels; windows along the border say first whether there may be any.
_FILL_PX, _WINDOW_PX = 1000, 48
# A chunk may hold fill where 9 pixels, 4 apart, are of one colour.
_FEW_PX, _RUN = 4, 8
_CONSTANT, _UNLIKE_GLASS, _DARK = 6, 25, 100


@dataclass(frozen=True)
class Level:
    """One resolution of an image: (3, height, width) uint8 pixels and their (3, 3) affine to micrometres."""

    pixels: Any
    to_um: NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.pixels.shape[1]), int(self.pixels.shape[2])

    @cached_property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return mpp_of(self.to_um)

    @cached_property
    def from_um(self) -> NDArray[np.float64]:
        """The (3, 3) affine from micrometres to pixels."""
        return np.asarray(np.linalg.inv(self.to_um), dtype=np.float64)

    @cached_property
    def edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Row and column borders of the chunks in which the pixels are stored."""
        chunks = getattr(self.pixels, "chunks", None)
        if chunks is None or not isinstance(chunks[1], tuple):
            return np.array([0, self.shape[0]]), np.array([0, self.shape[1]])
        return np.r_[0, np.cumsum(chunks[1])], np.r_[0, np.cumsum(chunks[2])]


class Pyramid:
    """An H&E image placed in micrometres, finest level first."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = tuple(sorted(levels, key=lambda level: level.mpp))

    @classmethod
    def from_image(cls, image: Any, *, coordinate_system: str = keys.UM) -> Pyramid:
        """Build it from a single- or multiscale image element that is placed in `coordinate_system`."""
        from xarray import DataTree

        affine = affine_to(image, coordinate_system)
        if affine is None:
            raise InputError(f"The image is not placed in the coordinate system {coordinate_system!r}.")
        arrays = (
            [next(iter(node.ds.values())) for node in image.children.values()]
            if isinstance(image, DataTree)
            else [image]
        )
        arrays = [a.transpose("c", "y", "x") for a in arrays]
        height, width = arrays[0].sizes["y"], arrays[0].sizes["x"]
        levels = []
        for a in arrays:
            # The borders of all levels coincide, so a level's pixel is as large as its share of the whole.
            scale = np.diag([width / a.sizes["x"], height / a.sizes["y"], 1.0])
            levels.append(Level(a.data, affine @ scale))
        return cls(levels)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel of the finest level."""
        return self.levels[0].mpp

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in pixels."""
        return self.levels[0].shape

    @property
    def bounds_um(self) -> tuple[float, float, float, float]:
        """Smallest box (x0, y0, x1, y1) in micrometres around the image."""
        height, width = self.shape
        corners = apply_affine(
            self.levels[0].to_um, np.array([[0, 0], [width, 0], [0, height], [width, height]], float)
        )
        return (*corners.min(axis=0).tolist(), *corners.max(axis=0).tolist())

    def contains(self, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say for each (n, 2) point whether it lies on the image."""
        height, width = self.shape
        x, y = apply_affine(self.levels[0].from_um, points_um).T
        return (x >= 0) & (y >= 0) & (x <= width) & (y <= height)

    def touches(self, shapes: NDArray[Any]) -> NDArray[np.bool_]:
        """Say for each of (n,) polygons in micrometres whether any of it lies on the image."""
        import shapely

        height, width = self.shape
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=np.float64)
        outline = shapely.polygons(apply_affine(self.levels[0].to_um, corners)).buffer(EDGE_PX * self.mpp)
        return np.asarray(shapely.intersects(outline, shapes), dtype=bool)

    def distance_um(self, points_um: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far each of (n, 2) points lies off the image; 0 on it."""
        height, width = self.shape
        xy_px = apply_affine(self.levels[0].from_um, points_um)
        return distance_outside(xy_px, width=width, height=height) * self.mpp

    def level_for(self, mpp: float) -> Level:
        """Return the coarsest level that is clearly finer than `mpp`, or else the finest.

        A level of about the same resolution would be faster, but its pixels went through the scanner's own averaging:
        the same tissue would look different with and without a pyramid.
        """
        fine = [level for level in self.levels if level.mpp * _FINER <= mpp * (1 + _LEVEL_TOLERANCE)]
        return fine[-1] if fine else self.levels[0]

    def check_resolution(self, tile: TileSpec, *, what: str = "The image") -> None:
        """Refuse an image that is too coarse for a tile spec by more than ``settings.max_upsampling``."""
        factor = self.mpp / tile.mpp
        if factor > settings.max_upsampling * (1 + _LEVEL_TOLERANCE):
            raise UnsafeResolutionError(
                f"{what} has {self.mpp:.4g} um per pixel, {factor:.3g}x coarser than the {tile.mpp:g} um per pixel "
                "that the encoder expects; use the full-resolution slide, or set stpred.settings.max_upsampling to "
                f"{math.ceil(factor)} to go on with blurred tiles."
            )

    @cached_property
    def _windows(self) -> list[tuple[float, float, NDArray[np.uint8]]]:
        """Small (3, h, w) windows along the border and in the middle of the finest level, and where: 0, 0.5 or 1."""
        level, window = self.levels[0], _WINDOW_PX
        height, width = level.shape
        spots = [(fy, fx) for fy in (0.0, 0.5, 1.0) for fx in (0.0, 0.5, 1.0)]
        parts = []
        for fy, fx in spots:
            y, x = int(fy * max(height - window, 0)), int(fx * max(width - window, 0))
            parts.append((fy, fx, np.asarray(level.pixels[:, y : y + window, x : x + window])))
        return parts

    @cached_property
    def _sample(self) -> NDArray[np.uint8]:
        """The (n, 3) pixels of the windows."""
        return np.concatenate([part.reshape(3, -1) for _, _, part in self._windows], axis=1).T

    @cached_property
    def _brightest(self) -> tuple[int, int, int]:
        """The median of the brightest tenth of sampled pixels."""
        brightness = self._sample.sum(axis=1, dtype=np.int64)
        r, g, b = np.median(self._sample[brightness >= np.quantile(brightness, 0.9)], axis=0)
        return int(r), int(g), int(b)

    @cached_property
    def background(self) -> tuple[int, int, int]:
        """Colour of empty glass: the median of the brightest tenth of sampled pixels; pads tiles beyond the border."""
        if self.fill is None:
            return self._brightest
        r, g, b = self.fill.glass.tolist()
        return r, g, b

    @cached_property
    def fill(self) -> PlacedFill | None:
        """Fill at the border (rotation, registration, stitching), which tiles show as glass; None where there is none.

        Fill that looks like glass is none. An image whose border is nowhere constant is not searched.
        """
        if not self._constant_border():
            return None
        x0, y0, x1, y1 = self.bounds_um
        mpp = max(self.mpp, max(x1 - x0, y1 - y0) / _FILL_PX)
        return PlacedFill.of(self.thumbnail(mpp)[0], mpp, np.array([x0, y0]))

    def _constant_border(self) -> bool:
        """Say whether any border line of a window is of one colour that is not that of glass."""
        glass = np.array(self._brightest)
        for fy, fx, window in self._windows:
            lines = [window[:, -1 if fy else 0]] if fy != 0.5 else []
            lines += [window[:, :, -1 if fx else 0]] if fx != 0.5 else []
            for line in lines:
                half = line.shape[1] // 2
                for part in (line[:, :half], line[:, half:]):
                    if part.size and (np.ptp(part, axis=1) <= _CONSTANT).all():
                        colour = np.median(part, axis=1)
                        if np.abs(colour - glass).max() > _UNLIKE_GLASS and not stain_like(colour.astype(np.uint8)):
                            return True
                        if np.abs(colour - glass).max() <= _UNLIKE_GLASS and colour.max() < _DARK:
                            return True
        return False

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of size, placement and sampled pixels, so that features of another image are never reused."""
        digest = hashlib.sha256(repr((self.shape, self.levels[0].to_um.round(9).tolist())).encode())
        digest.update(self._sample.tobytes())
        if self.fill is not None:  # tiles show glass there
            digest.update(np.packbits(self.fill.mask).tobytes() + self.fill.colours.tobytes())
        return digest.hexdigest()[:16]

    def thumbnail(self, mpp: float) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the whole image at `mpp`, axis-aligned in micrometres, and the x, y in micrometres of its corner.

        Fill is shown as it is.

        Returns
        -------
        (h, w, 3) uint8 and (2,) float64.
        """
        x0, y0, x1, y1 = self.bounds_um
        edge = max(16, int(_THUMBNAIL_TILE_UM / mpp))
        tile = TileSpec(mpp, edge)
        columns = max(1, int(np.ceil((x1 - x0) / tile.size_um)))
        rows = max(1, int(np.ceil((y1 - y0) / tile.size_um)))
        at = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        out = np.empty((rows, edge, columns, edge, 3), dtype=np.uint8)
        centers_um = np.array([x0, y0]) + (at + 0.5) * tile.size_um
        for which, tiles in _ahead(_TileStream(self, centers_um, tile, as_stored=True).batches(4)):
            for i, image in zip(which, tiles, strict=True):
                out[at[i, 1], :, at[i, 0]] = image
        height, width = max(1, round((y1 - y0) / mpp)), max(1, round((x1 - x0) / mpp))
        return out.reshape(rows * edge, columns * edge, 3)[:height, :width], np.array([x0, y0])

    def read(
        self, centers_um: NDArray[np.float64], tile: TileSpec, *, batch_size: int | None = None
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        """Yield ``(rows, tiles)`` in streaming order: row numbers into `centers_um` and (b, size, size, 3) uint8 tiles.

        Parameters
        ----------
        centers_um
            (n, 2) tile centres x, y in micrometres.
        tile
            Size and resolution of the tiles.
        batch_size
            Tiles per yield; None takes ``settings.batch_size``.

        Notes
        -----
        Cubic resampling with anti-aliasing. What lies beyond the image, or is :attr:`fill` of it, is shown in the
        colour of the :attr:`background`. The next batch is read while the caller works on this one.
        """
        centers_um = np.asarray(centers_um, dtype=np.float64).reshape(-1, 2)
        size = settings.batch_size if batch_size is None else int(batch_size)
        if size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {batch_size!r}.")
        return _ahead(_TileStream(self, centers_um, tile).batches(size))


def read_tiles(pyramid: Pyramid, centers_um: NDArray[np.float64], tile: TileSpec) -> NDArray[np.uint8]:
    """Return all tiles at once, in the order of `centers_um`; for few tiles, since nothing is streamed away.

    Parameters
    ----------
    pyramid
        Image placed in micrometres.
    centers_um
        (n, 2) tile centres in micrometres.
    tile
        Size and resolution.

    Returns
    -------
    (n, size_px, size_px, 3) uint8.
    """
    out = np.empty((len(centers_um), tile.size_px, tile.size_px, 3), dtype=np.uint8)
    for rows, tiles in pyramid.read(centers_um, tile):
        out[rows] = tiles
    return out


def thumbnail_element(pyramid: Pyramid, *, max_px: int = 1500, coordinate_system: str = keys.UM) -> Any:
    """Return a small image element of the whole slide, axis-aligned in micrometres.

    Parameters
    ----------
    pyramid
        Image placed in micrometres.
    max_px
        Longest edge in pixels.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, Sequence, Translation

    x0, y0, x1, y1 = pyramid.bounds_um
    mpp = max(pyramid.mpp, max(x1 - x0, y1 - y0) / max_px)
    pixels, corner_um = pyramid.thumbnail(mpp)
    place = Sequence([Scale([mpp, mpp], axes=("x", "y")), Translation(corner_um, axes=("x", "y"))])
    data = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    return Image2DModel.parse(
        data, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={coordinate_system: place}
    )


class _TileStream:
    """One pass over the image: which chunks each tile needs, and the chunks that are decoded now."""

    def __init__(
        self, pyramid: Pyramid, centers_um: NDArray[np.float64], tile: TileSpec, *, as_stored: bool = False
    ) -> None:
        self.pyramid, self.tile, self.as_stored = pyramid, tile, as_stored
        self.level = pyramid.level_for(tile.mpp)
        # Output pixels -> level pixels, linear part; a tile's centre is the only thing that changes between tiles.
        self.linear = self.level.from_um[:2, :2] * tile.mpp
        self.centers_px = apply_affine(self.level.from_um, centers_um)
        stretch = float(np.linalg.norm(self.linear, ord=2))
        self.margin = int(np.ceil(_CUBIC_REACH_PX * max(stretch, 1.0))) + 2
        half = np.abs(self.linear) @ np.full(2, tile.size_px / 2) + self.margin
        self.lower = np.floor(self.centers_px - half).astype(np.int64)
        self.upper = np.ceil(self.centers_px + half).astype(np.int64)
        self.edges = self.level.edges
        self.blocks = self._plan()
        self.decode = ChunkDecoder(self.level.pixels)
        self.cache: dict[tuple[int, int], NDArray[np.uint8]] = {}
        # The image is searched for fill once a chunk holds pixels that may be some.
        self.fill: PlacedFill | None = None
        self.has_fill = np.zeros(len(self.centers_px), bool)
        self.searched = as_stored

    def _plan(self) -> NDArray[np.int64]:
        """Return (n, 4): first row, last row, first column, last column of the chunks under each tile."""
        height, width = self.level.shape
        rows, columns = self.edges
        first_row = np.searchsorted(rows, np.clip(self.lower[:, 1], 0, height), side="right") - 1
        last_row = np.searchsorted(rows, np.clip(self.upper[:, 1], 0, height), side="left") - 1
        first_column = np.searchsorted(columns, np.clip(self.lower[:, 0], 0, width), side="right") - 1
        last_column = np.searchsorted(columns, np.clip(self.upper[:, 0], 0, width), side="left") - 1
        return np.column_stack([first_row, last_row, first_column, last_column])

    def batches(self, batch_size: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
        # Row of chunks by row of chunks, left to right: two or three rows of chunks are in memory at a time.
        order = np.lexsort((self.centers_px[:, 1], self.centers_px[:, 0], self.blocks[:, 0]))
        to_come = self._users(order)
        workers = min(os.cpu_count() or 1, 8)
        with ThreadPoolExecutor(workers) as pool:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                users = self._users(rows)
                self._fetch(users)
                tiles = np.empty((len(rows), self.tile.size_px, self.tile.size_px, 3), dtype=np.uint8)
                list(pool.map(lambda k: self._fill(tiles[k::workers], rows[k::workers]), range(workers)))  # noqa: B023
                to_come -= users
                for block in [b for b in self.cache if to_come[b] == 0]:
                    del self.cache[block]
                yield rows, tiles

    def _users(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return for each chunk how many of these tiles lie on it."""
        corners = np.zeros((len(self.edges[0]), len(self.edges[1])), dtype=np.int64)
        r0, r1, c0, c1 = self.blocks[rows].T
        for r, c, sign in ((r0, c0, 1), (r0, c1 + 1, -1), (r1 + 1, c0, -1), (r1 + 1, c1 + 1, 1)):
            np.add.at(corners, (r, c), sign)
        return corners.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]

    def _fetch(self, users: NDArray[np.int64]) -> None:
        missing = [(r, c) for r, c in np.argwhere(users).tolist() if (r, c) not in self.cache]
        self.cache.update(zip(missing, self.decode(missing), strict=True))
        if not self.searched and any(_may_be_fill(self.cache[block]) for block in missing):
            self.searched, self.fill = True, self.pyramid.fill
            if self.fill is not None:
                centers_um = apply_affine(self.level.to_um, self.centers_px)
                reach = np.abs(self.level.to_um[:2, :2]) @ ((self.upper - self.lower).max(axis=0) / 2.0 + 1)
                self.has_fill = self.fill.near(centers_um - reach, centers_um + reach)

    def _region(self, row: int, room: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the pixels around one tile, filled with background beyond the image; put together in `room`."""
        (x0, y0), (x1, y1) = self.lower[row].tolist(), self.upper[row].tolist()
        r0, r1, c0, c1 = self.blocks[row].tolist()
        rows, columns = self.edges
        beyond = x0 < 0 or y0 < 0 or x1 > columns[-1] or y1 > rows[-1]
        if r0 == r1 and c0 == c1 and not beyond:  # nothing to put together
            top, left = rows[r0], columns[c0]
            return self.cache[r0, c0][y0 - top : y1 - top, x0 - left : x1 - left]
        region = room[: (y1 - y0) * (x1 - x0) * 3].reshape(y1 - y0, x1 - x0, 3)
        if beyond:
            colour = self.pyramid._brightest if self.as_stored else self.pyramid.background
            region.reshape(y1 - y0, -1)[:] = np.tile(np.array(colour, np.uint8), x1 - x0)
        for r in range(r0, r1 + 1):
            for c in range(c0, c1 + 1):
                top, bottom = max(rows[r], y0), min(rows[r + 1], y1)
                left, right = max(columns[c], x0), min(columns[c + 1], x1)
                part = self.cache[r, c][top - rows[r] : bottom - rows[r], left - columns[c] : right - columns[c]]
                region[top - y0 : bottom - y0, left - x0 : right - x0] = part
        return region

    def _fill(self, out: NDArray[np.uint8], rows: NDArray[np.int64]) -> None:
        """Read tiles into `out`; one room for all of them, since fresh memory costs more than the copy."""
        room = np.empty(3 * int((self.upper - self.lower)[rows].prod(axis=1).max(initial=0)), dtype=np.uint8)
        for k, row in enumerate(rows):
            center = self.centers_px[row] - self.lower[row]
            region = self._region(row, room)
            if self.fill is not None and self.has_fill[row]:
                to_um = self.level.to_um @ np.array(
                    [[1, 0, self.lower[row, 0]], [0, 1, self.lower[row, 1]], [0, 0, 1.0]]
                )
                region = self.fill.replaced(region, to_um)
            out[k] = resample(region, center, self.linear, size_px=self.tile.size_px)


def _may_be_fill(pixels: NDArray[np.uint8]) -> bool:
    """Say whether any run of (h, w, 3) pixels is of one colour, neither that of glass nor a stain's."""
    few = pixels[::_FEW_PX, ::_FEW_PX].astype(np.int16)
    for line in (few, few.swapaxes(0, 1)):
        n = min(_RUN, len(line) - 1)
        if n < 1:
            continue
        first = line[:-n]
        run = (np.abs(line[n:] - first) <= 2).all(axis=-1)
        for step in range(1, n):
            run &= (np.abs(line[step : len(first) + step] - first) <= 2).all(axis=-1)
        colours = first[run].astype(np.uint8)
        if (~glass_like(colours) & ~stain_like(colours)).any():
            return True
    return False


def resample(
    region: NDArray[np.uint8], center_px: NDArray[np.float64], linear: NDArray[np.float64], *, size_px: int
) -> NDArray[np.uint8]:
    """Read one square tile from a region by cubic resampling with anti-aliasing.

    Parameters
    ----------
    region
        (h, w, 3) uint8 pixels that cover the tile and the kernel's reach.
    center_px
        x, y of the tile's centre in the region (pixel borders are whole numbers).
    linear
        (2, 2) map from an offset in tile pixels to an offset in region pixels.
    size_px
        Edge of the tile.
    """
    from PIL import Image

    image = Image.fromarray(region)
    straight = np.where(np.abs(linear) * size_px / 2 < _STRAIGHT_PX, 0.0, linear)
    swapped = straight[0, 0] == 0 and straight[1, 1] == 0
    if swapped or (straight[0, 1] == 0 and straight[1, 0] == 0):
        steps = np.array([straight[0, 1], straight[1, 0]] if swapped else [straight[0, 0], straight[1, 1]])
        half = np.abs(steps) * size_px / 2
        box = (*(center_px - half).tolist(), *(center_px + half).tolist())
        tile = np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=box))
        if steps[0] < 0:
            tile = tile[:, ::-1]
        if steps[1] < 0:
            tile = tile[::-1]
        return np.ascontiguousarray(tile.swapaxes(0, 1) if swapped else tile)
    # Rotated: interpolate on a grid at least as fine as the pixels, then shrink with the same anti-aliasing kernel.
    fine = max(1, int(np.ceil(np.linalg.norm(linear, ord=2) - _LEVEL_TOLERANCE)))
    rim = _CUBIC_REACH_PX + 1
    edge = (size_px + 2 * rim) * fine
    step = linear / fine
    corner = center_px - step @ np.full(2, edge / 2)
    matrix = (step[0, 0], step[0, 1], corner[0], step[1, 0], step[1, 1], corner[1])
    turned = image.transform((edge, edge), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    inner = (rim * fine, rim * fine, edge - rim * fine, edge - rim * fine)
    return np.asarray(turned.resize((size_px, size_px), Image.Resampling.BICUBIC, box=inner))


def _ahead(items: Iterator[Any]) -> Iterator[Any]:
    """Yield items while the next one is already being made in a thread."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(next, items, None)
        while (item := upcoming.result()) is not None:
            upcoming = pool.submit(next, items, None)
            yield item

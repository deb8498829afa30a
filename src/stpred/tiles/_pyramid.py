"""An H&E image placed in micrometres, at several resolutions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred._core.elements import affine_to, apply_affine
from stpred._core.fill import PlacedFill
from stpred._core.geometry import EDGE_PX, distance_outside
from stpred._core.settings import settings
from stpred._core.specs import TileSpec
from stpred.tiles._levels import Level, Windows
from stpred.tiles._resample import LEVEL_TOLERANCE
from stpred.tiles._stream import TileStream
from stpred.tiles._view import View

# How much finer than the tile a stored level has to be to stand in for the finest one.
_FINER = 1.5
_THUMBNAIL_TILE_UM = 512.0
# Fill is found on a copy of this many pixels; windows along the border show first whether there may be any.
_FILL_PX = 1000
_COPY_PX = 10_000_000


class Pyramid:
    """An H&E image placed in micrometres, finest level first."""

    def __init__(self, levels: Sequence[Level]) -> None:
        self.levels = tuple(sorted(levels, key=lambda level: level.mpp))

    @classmethod
    def from_image(
        cls, image: Any, *, coordinate_system: str = keys.UM, to_um: NDArray[np.float64] | None = None
    ) -> Pyramid:
        """Build it from a single- or multiscale image element that is placed in `coordinate_system`.

        `to_um`: (3, 3) from its pixels to micrometres, for an image without a place.
        """
        from xarray import DataTree

        affine = affine_to(image, coordinate_system) if to_um is None else to_um
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
        """Return for each (n, 2) point whether it lies on the image."""
        height, width = self.shape
        x, y = apply_affine(self.levels[0].from_um, points_um).T
        return (x >= 0) & (y >= 0) & (x <= width) & (y <= height)

    def touches(self, shapes: NDArray[Any]) -> NDArray[np.bool_]:
        """Return for each of (n,) polygons in micrometres whether any of it lies on the image."""
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
        fine = [level for level in self.levels if level.mpp * _FINER <= mpp * (1 + LEVEL_TOLERANCE)]
        return fine[-1] if fine else self.levels[0]

    def check_resolution(self, tile: TileSpec, *, what: str = "The image", who: str = "the encoder") -> None:
        """Refuse an image that is too coarse for a tile spec by more than ``settings.max_upsampling``."""
        factor = self.mpp / tile.mpp
        if factor > settings.max_upsampling * (1 + LEVEL_TOLERANCE):
            raise UnsafeResolutionError(
                f"{what} has {self.mpp:.4g} um per pixel, {factor:.3g}x coarser than the {tile.mpp:g} um per pixel "
                f"that {who} expects; use the full-resolution slide, or set stpred.settings.max_upsampling to "
                f"{math.ceil(factor)} to go on with blurred tiles."
            )

    def coarse_mpp(self, mpp: float) -> float:
        """Return `mpp`, or what is coarser as far as a copy of the whole image then has 10 million pixels at most.

        25 x 25 mm are that many at 8 um per pixel; the copies of larger images need no more memory.
        """
        x0, y0, x1, y1 = self.bounds_um
        return float(max(mpp, np.sqrt((x1 - x0) * (y1 - y0) / _COPY_PX)))

    @cached_property
    def _windows(self) -> Windows:
        return Windows.of(self.levels[0])

    @cached_property
    def background(self) -> tuple[int, int, int]:
        """Colour of empty glass: the median of the brightest tenth of sampled pixels; pads tiles beyond the border."""
        if self.fill is None:
            return self._windows.brightest
        r, g, b = self.fill.glass.tolist()
        return r, g, b

    @cached_property
    def fill(self) -> PlacedFill | None:
        """Fill at the border (rotation, registration, stitching), which tiles show as glass; None where there is none.

        Fill that looks like glass is none. An image whose border is nowhere constant is not searched.
        """
        if not self._windows.constant_border():
            return None
        x0, y0, x1, y1 = self.bounds_um
        mpp = max(self.mpp, max(x1 - x0, y1 - y0) / _FILL_PX)
        return PlacedFill.of(self.thumbnail(mpp)[0], mpp, np.array([x0, y0]))

    @cached_property
    def fingerprint(self) -> str:
        """Short hash of size, placement and sampled pixels, so that features of another image are never reused."""
        digest = hashlib.sha256(repr((self.shape, self.levels[0].to_um.round(9).tolist())).encode())
        digest.update(self._windows.pixels.tobytes())
        if self.fill is not None:  # tiles show glass there
            digest.update(np.packbits(self.fill.mask).tobytes() + self.fill.colours.tobytes())
        return digest.hexdigest()[:16]

    def thumbnail(
        self, mpp: float, *, box_um: tuple[float, float, float, float] | None = None
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return the image at `mpp`, axis-aligned in micrometres, and the x, y in micrometres of its corner.

        Fill is shown as it is. `box_um` (x0, y0, x1, y1) is the part that is wanted; None: the whole.

        Returns
        -------
        (h, w, 3) uint8 and (2,) float64.
        """
        x0, y0, x1, y1 = self.bounds_um if box_um is None else box_um
        edge = max(16, int(_THUMBNAIL_TILE_UM / mpp))
        tile = TileSpec(mpp, edge)
        columns = max(1, int(np.ceil((x1 - x0) / tile.size_um)))
        rows = max(1, int(np.ceil((y1 - y0) / tile.size_um)))
        at = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
        out = np.empty((rows, edge, columns, edge, 3), dtype=np.uint8)
        centers_um = np.array([x0, y0]) + (at + 0.5) * tile.size_um
        view = View(self.level_for(mpp), centers_um, tile, background=lambda: self._windows.brightest)
        for which, (tiles,) in TileStream([view], fill=None).batches(4):
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
        batches = self.read_several([(centers_um, tile)], batch_size=batch_size)
        return ((rows, tiles) for rows, (tiles,) in batches)

    def read_several(
        self,
        views: Sequence[tuple[NDArray[np.float64], TileSpec]],
        *,
        batch_size: int | None = None,
        wanted: NDArray[np.bool_] | None = None,
        beside: bool = False,
    ) -> Iterator[tuple[NDArray[np.int64], list[NDArray[np.uint8]]]]:
        """Yield ``(rows, [tiles, ...])``: tiles of several sizes and resolutions for each location, in one pass.

        Each chunk of each level is decoded once for all of them, and those of a level that is averaged lazily from
        another one share what is decoded of that.

        Parameters
        ----------
        views
            (n, 2) tile centres x, y in micrometres and the tiles' size and resolution, of each kind of tile; `n` is
            the same.
        batch_size
            Locations per yield; None takes ``settings.batch_size``.
        wanted
            (n,) locations that have to be read. Others come with them where they are in the same batch, which is the
            same whatever is wanted: networks round a little otherwise in other batches. None: all.
        beside
            The caller waits for a GPU, so the next batch is read meanwhile even in a process of one thread.
        """
        size = settings.batch_size if batch_size is None else int(batch_size)
        if size < 1:
            raise InputError(f"`batch_size` must be at least 1, got {batch_size!r}.")
        made = [
            View(
                self.level_for(tile.mpp),
                np.asarray(centers_um, dtype=np.float64).reshape(-1, 2),
                tile,
                background=lambda: self.background,
            )
            for centers_um, tile in views
        ]
        # Known to be without fill, an image is not searched for it chunk by chunk.
        known = "fill" in self.__dict__ and self.fill is None
        return TileStream(made, fill=None if known else lambda: self.fill, wanted=wanted).batches(size, beside=beside)


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


def thumbnail_element(
    pyramid: Pyramid,
    *,
    max_px: int = 1500,
    box_um: tuple[float, float, float, float] | None = None,
    coordinate_system: str = keys.UM,
) -> Any:
    """Return a small image element of the slide or a part of it, axis-aligned in micrometres.

    Parameters
    ----------
    pyramid
        Image placed in micrometres.
    max_px
        Longest edge in pixels.
    box_um
        (x0, y0, x1, y1) in micrometres of the part; None: the whole slide.
    """
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale, Sequence, Translation

    x0, y0, x1, y1 = pyramid.bounds_um if box_um is None else box_um
    mpp = max(pyramid.mpp, max(x1 - x0, y1 - y0) / max_px)
    pixels, corner_um = pyramid.thumbnail(mpp, box_um=box_um)
    place = Sequence([Scale([mpp, mpp], axes=("x", "y")), Translation(corner_um, axes=("x", "y"))])
    data = np.ascontiguousarray(np.moveaxis(pixels, -1, 0))
    return Image2DModel.parse(
        data, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations={coordinate_system: place}
    )

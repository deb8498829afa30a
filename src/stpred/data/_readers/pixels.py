"""Locations as sums over the pixels in their shapes, for models of a slide's whole pixel grid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter
from scipy.spatial import cKDTree

from stpred._core.specs import TileSpec
from stpred.data._features import check_resolution
from stpred.data._readers.canvas import EDGE, Canvas
from stpred.data._readers.footprints import of_rows, outlines
from stpred.data._readers.overlap import check_apart
from stpred.data._readers.planes import FeaturePlanes
from stpred.data._regions import Region
from stpred.encoders.base import Encoder
from stpred.encoders.beside import PixelsBeside
from stpred.models.batch import Batch
from stpred.models.parts.pixel_grid import DESCRIBED, Coverage, View, Window
from stpred.regions.squares import Inside, centres_inside

MARGIN = 0.12
"""How much wider than its locations the part of a slide is that is modelled."""

AMID = 1.5
"""Distance from the next target, in distances of targets, up to which a pixel counts as tissue whatever its colour."""

WINDOWS_PX = (8, 16, 32, 64)
"""Windows about a location whose colours tell it from those of training."""

MAX_TARGETS = 2**16
"""Targets that are read out at a time."""


@dataclass(frozen=True)
class SlidePixelGrid:
    """A canvas and the shapes of targets on it; see :class:`stpred.models.parts.pixel_grid.PixelGrid`.

    Attributes
    ----------
    canvas
        The slide's pixels.
    low, high, centres
        (n, 2) corners of the targets' boxes and their centres in micrometres.
    contains
        Returns for (m,) targets and as many (m, 2) points in micrometres which points lie in their targets.
    frame
        What is looked at.
    patch_px
        Edge of a training patch.
    planes
        Features of encoders beside the pixels; or None.
    """

    canvas: Canvas = field(repr=False)
    low: NDArray[np.float64] = field(repr=False)
    high: NDArray[np.float64] = field(repr=False)
    centres: NDArray[np.float64] = field(repr=False)
    contains: Inside = field(repr=False)
    frame: Window
    patch_px: int
    planes: FeaturePlanes | None = field(default=None, repr=False)

    @classmethod
    def of(
        cls, region: Region, tile: TileSpec, *, canvas: Canvas | None = None, planes: FeaturePlanes | None = None
    ) -> SlidePixelGrid:
        """Return it for the locations of a region; the tile gives the resolution and the size of patches."""
        canvas = Canvas(region.pyramid, tile.mpp) if canvas is None else canvas
        low, high, contains = outlines(region)
        return cls(canvas, low, high, region.coords_um, contains, _frame(low, high, canvas), tile.size_px, planes)

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        return self.canvas.mpp

    @property
    def bounds(self) -> Window:
        """The pixels that touch the image."""
        return self.canvas.bounds

    @property
    def identity(self) -> str:
        """Hash of the image's fingerprint, its resolution and the targets' boxes."""
        digest = hashlib.sha256(f"{self.canvas.pyramid.fingerprint} {self.mpp} {self.frame}".encode())
        digest.update(np.concatenate([self.low, self.high]).tobytes())
        for plane in () if self.planes is None else self.planes.planes:
            digest.update(repr(plane.encoder.card.to_dict()).encode())
        return digest.hexdigest()[:16]

    def take(self, rows: NDArray[np.int64]) -> SlidePixelGrid:
        """Return it with some of the targets; what is looked at stays."""
        rows = np.arange(len(self.centres))[rows]
        return replace(
            self,
            low=self.low[rows],
            high=self.high[rows],
            centres=self.centres[rows],
            contains=of_rows(rows, self.contains),
        )

    def sizes(self) -> NDArray[np.float64]:
        """Return the (n,) areas of the targets in pixels, by looking at up to 64 points of each."""
        step = np.linspace(0, 1, 8, endpoint=False) + 1 / 16
        at = np.stack(np.meshgrid(step, step), axis=-1).reshape(-1, 2)
        target = np.repeat(np.arange(len(self.low)), len(at))
        points = self.low[target] + np.tile(at, (len(self.low), 1)) * (self.high - self.low)[target]
        share = self.contains(target, points).reshape(-1, len(at)).mean(axis=1)
        return np.asarray(share * (self.high - self.low).prod(axis=1) / self.mpp**2)

    def boxes(self) -> NDArray[np.int64]:
        """Return (n, 4) first row and column, and last row and column, of the pixels that targets may touch."""
        low, high = np.floor(self.low / self.mpp), np.floor(self.high / self.mpp)
        return np.column_stack([low[:, ::-1], high[:, ::-1]]).astype(np.int64)

    def fetch(self, windows: list[Window]) -> None:
        """Read what these windows show."""
        self.canvas.fetch(windows)
        if self.planes is not None:
            self.planes.fetch(windows)

    def image(self, window: Window) -> NDArray[np.float32]:
        """Return the (3, h, w) scaled pixels of a window."""
        return np.ascontiguousarray(self.canvas.scaled(self.canvas.pixels(window)).transpose(2, 0, 1))

    @property
    def n_features(self) -> int:
        """Number of features beside the pixels."""
        return 0 if self.planes is None else self.planes.width

    def reduced(self, centre: NDArray[np.float32], axes: NDArray[np.float32]) -> SlidePixelGrid:
        """Return it with linear combinations of the features: (width,) `centre` off, times (width, k) `axes`."""
        return self if self.planes is None else replace(self, planes=self.planes.reduced(centre, axes))

    def features(self, window: Window) -> NDArray[np.float32]:
        """Return the (k, h, w) features of a window's pixels."""
        if self.planes is None:
            return np.empty((0, window.height, window.width), dtype=np.float32)
        return self.planes.window(window)

    def inside(self, window: Window) -> Coverage:
        """Return which pixels of a window lie in which targets, in full or in part.

        Large targets hold the pixels whose centres lie in them; of small ones the pixels are cut finer, and those that
        are smaller still have their area's share of the pixel that their centre lies in.
        """
        corner = np.array([window.column, window.row]) * self.mpp
        end = corner + np.array([window.width, window.height]) * self.mpp
        near = np.flatnonzero(((self.high > corner) & (self.low < end)).all(axis=1))
        cuts = self._cuts[near]
        parts = [self._whole(near[cuts == 0], window)]
        for cut in np.unique(cuts[cuts > 0]).tolist():
            rows = near[cuts == cut]
            low, high = np.maximum(self.low[rows], corner), np.minimum(self.high[rows], end)
            target, found = centres_inside(
                low,
                high,
                self.mpp / cut,
                of_rows(rows, self.contains),
            )
            at = np.floor_divide(found, cut) - [window.column, window.row]
            kept = _within(at, window.width, window.height)
            parts.append((rows[target[kept]], at[kept], np.full(int(kept.sum()), 1 / cut**2)))
        target, at, share = (np.concatenate(part) for part in zip(*parts, strict=True))
        size = window.height * window.width
        code, member = np.unique(target * size + at[:, 1] * window.width + at[:, 0], return_inverse=True)
        summed = np.bincount(member.ravel(), weights=share, minlength=len(code))
        return Coverage(code // size, code % size, summed.astype(np.float32))

    def _whole(
        self, rows: NDArray[np.int64], window: Window
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return targets, places and shares of those that are given to the one pixel that their centre lies in."""
        at = np.floor(self.centres[rows] / self.mpp + 1e-9).astype(np.int64)
        at -= np.array([window.column, window.row])
        kept = _within(at, window.width, window.height)
        return rows[kept], at[kept], self.take(rows[kept]).sizes()

    @cached_property
    def _cuts(self) -> NDArray[np.int64]:
        """(n,) number of parts along each edge that pixels are cut into for each target; 0: it is part of one pixel.

        The larger a target, the coarser; squares of the lattice itself are not cut. Nothing depends on the others.
        """
        size = (self.high - self.low) / self.mpp
        out = np.select([size.min(axis=1) >= least for least in (16, 8, 4)], [1, 2, 4], 8)
        out[(size < 0.25).all(axis=1)] = 0
        edges = np.concatenate([self.low, self.high], axis=1) / self.mpp
        rows = np.flatnonzero((np.abs(edges - np.round(edges)) < 1e-6).all(axis=1) & (out > 1))
        if len(rows):
            full = np.atleast_1d(np.isclose(self.take(rows).sizes(), size[rows].prod(axis=1)))
            single = np.asarray((np.abs(size[rows] - 1) < 1e-6).all(axis=1), dtype=bool)
            out[rows[full]] = np.where(single[full], 0, 1)
        return np.asarray(out, dtype=np.int64)

    def view(self, affine: NDArray[np.float64], shape: tuple[int, int]) -> View:
        """Return a patch: bilinear for the image, and pixels by their centres for everything else."""
        height, width = shape
        y, x = np.mgrid[:height, :width]
        um = np.stack([x.ravel() + 0.5, y.ravel() + 0.5], axis=1) @ affine[:, :2].T + affine[:, 2]
        low, high = um.min(axis=0) / self.mpp, um.max(axis=0) / self.mpp
        (x0, y0), (x1, y1) = (np.floor(low) - 2).astype(int).tolist(), (np.ceil(high) + 2).astype(int).tolist()
        window = Window(y0, x0, y1 - y0, x1 - x0)
        pixels = _bilinear(self.canvas.pixels(window), um / self.mpp - [x0, y0]).reshape(height, width, 3)
        near, pixel = self._labels(affine, um, shape)
        taken = np.zeros(height * width, dtype=bool)
        taken[pixel[pixel >= 0]] = True
        # A target with pixels outside, or at the border, is not all there.
        row, column = np.divmod(pixel, width)
        on_image = self.canvas.pyramid.contains(um)
        beyond = (pixel >= 0) & ~on_image[pixel.clip(0)]
        cut = (pixel < 0) | beyond | (row == 0) | (column == 0) | (row == height - 1) | (column == width - 1)
        partial = np.zeros(len(self.low), dtype=bool)
        partial[near[cut]] = True
        kept = ~partial[near]
        target, pixel = near[kept], pixel[kept]
        order = np.lexsort((pixel, target))
        return View(
            image=np.ascontiguousarray(self.canvas.scaled(pixels).transpose(2, 0, 1)),
            on_image=on_image.reshape(shape),
            tissue=(self.canvas.tissue(um) | self._amid(um)).reshape(shape),
            target=target[order],
            pixel=pixel[order],
            taken=taken.reshape(shape),
            features=None if self.planes is None else np.ascontiguousarray(self.planes.at(um).T).reshape(-1, *shape),
        )

    def _amid(self, um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which points lie among the targets: pale tissue there must not be taken for the empty slide."""
        if len(self.centres) < 2:
            return np.zeros(len(um), dtype=bool)
        tree, reach = self._places
        return np.isfinite(tree.query(um, distance_upper_bound=reach)[0])

    @cached_property
    def _places(self) -> tuple[Any, float]:
        """A tree of the targets' centres, and the distance up to which a point lies among them."""
        tree = cKDTree(self.centres)
        return tree, AMID * float(np.median(tree.query(self.centres, k=2)[0][:, 1]))

    def _labels(
        self, affine: NDArray[np.float64], um: NDArray[np.float64], shape: tuple[int, int]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return targets and the numbers of the patch's pixels in them, -1 outside of it, each pixel once."""
        height, width = shape
        near = np.flatnonzero(((self.high >= um.min(axis=0)) & (self.low <= um.max(axis=0))).all(axis=1))
        back = np.linalg.inv(affine[:, :2])
        low, high = self.low[near], self.high[near]
        corners = np.stack(
            [low, high, np.column_stack([low[:, 0], high[:, 1]]), np.column_stack([high[:, 0], low[:, 1]])]
        )
        at = (corners - affine[:, 2]) @ back.T

        def contains(target: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
            return self.contains(near[target], xy @ affine[:, :2].T + affine[:, 2])

        target, found = centres_inside(at.min(axis=0), at.max(axis=0), 1.0, contains)
        target = near[target]
        inside = _within(found, width, height)
        pixel = np.where(inside, found[:, 1] * width + found[:, 0], -1)
        # A pixel in several targets belongs to the one of the nearest centre.
        centre = um[pixel.clip(0)] - self.centres[target]
        order = np.lexsort((target, np.square(centre).sum(axis=1), pixel))
        first = np.ones(len(order), dtype=bool)
        first[1:] = (pixel[order][1:] != pixel[order][:-1]) | (pixel[order][1:] < 0)
        kept = order[first]
        return target[kept], pixel[kept]

    def describe(self) -> NDArray[np.float32]:
        """Return (n, 24) means and deviations of the scaled channels in four windows about each target's centre."""
        out = np.empty((len(self.centres), DESCRIBED), dtype=np.float32)
        at = np.floor(self.centres / self.mpp).astype(np.int64)[:, ::-1]
        margin = max(WINDOWS_PX) // 2
        piece, member = np.unique(at // EDGE, axis=0, return_inverse=True)
        windows = [Window(int(r) * EDGE, int(c) * EDGE, EDGE, EDGE).wider(margin) for r, c in piece]
        self.canvas.fetch(windows)
        for k, window in enumerate(windows):
            rows = np.flatnonzero(member.ravel() == k)
            pixels = self.canvas.scaled(self.canvas.pixels(window))
            y, x = (at[rows] - [window.row, window.column]).T
            columns = []
            for size in WINDOWS_PX:
                mean = uniform_filter(pixels, size=(size, size, 1), mode="nearest")[y, x]
                square = uniform_filter(np.square(pixels), size=(size, size, 1), mode="nearest")[y, x]
                columns += [mean, np.sqrt((square - np.square(mean)).clip(0))]
            out[rows] = np.concatenate(columns, axis=1)
        return out


@dataclass(frozen=True)
class PixelReader:
    """Reads regions of one slide, in parts, through one canvas.

    Attributes
    ----------
    region, tile
        Locations, and the resolution and size of training patches.
    canvas
        The slide's pixels.
    described
        Without it, locations have no description, and so no out-of-distribution distance.
    """

    region: Region
    tile: TileSpec
    canvas: Canvas
    described: bool = True
    planes: FeaturePlanes | None = None
    context: str | None = None

    @classmethod
    def of(cls, region: Region, encoder: Encoder, *, described: bool = True) -> PixelReader:
        """Read a slide at the resolution of the encoder's tile."""
        check_resolution(region, encoder)
        tile = encoder.card.tile
        beside = encoder.features if isinstance(encoder, PixelsBeside) else ()
        planes = FeaturePlanes.of(region.pyramid, beside, tile.mpp) if beside else None
        return cls(region, tile, Canvas(region.pyramid, tile.mpp), described, planes)

    def whole(self) -> Batch:
        """Return all locations as one batch; of measured ones, whether their counts can be separated is checked."""
        grid = self._grid(self.region)
        if self.region.counts is not None:
            check_apart(grid, self.region)
        return self._batch(self.region, grid)

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch by place, so many that what is read of them fits into memory."""
        region = self.region if part is None else part
        x, y = np.floor(region.coords_um / (2 * EDGE * self.tile.mpp)).T
        order = np.lexsort((x, y))
        for rows in np.array_split(order, -(-len(order) // MAX_TARGETS)):
            some = region.take(rows)
            yield rows, self._batch(some, self._grid(some))

    def _grid(self, region: Region) -> SlidePixelGrid:
        return SlidePixelGrid.of(region, self.tile, canvas=self.canvas, planes=self.planes)

    def _batch(self, region: Region, grid: SlidePixelGrid) -> Batch:
        rows = np.arange(len(region.coords_um))
        return Batch(
            region.slide,
            grid.describe() if self.described else np.zeros((len(rows), DESCRIBED), dtype=np.float32),
            rows,
            rows,
            region.coords_um,
            totals=region.totals,
            n_measured=region.n_measured,
            pixel_grid=grid,
        )


def _frame(low: NDArray[np.float64], high: NDArray[np.float64], canvas: Canvas) -> Window:
    """Return what is looked at: the box around all targets and a margin, as far as the image goes."""
    first, last = low.min(axis=0), high.max(axis=0)
    margin = MARGIN * (last - first)
    x0, y0 = np.floor((first - margin) / canvas.mpp).astype(int).tolist()
    x1, y1 = np.ceil((last + margin) / canvas.mpp).astype(int).tolist()
    image = canvas.bounds
    y0, x0 = max(y0, image.row), max(x0, image.column)
    y1, x1 = min(y1, image.row + image.height), min(x1, image.column + image.width)
    return Window(y0, x0, max(y1 - y0, 1), max(x1 - x0, 1))


def _within(at: NDArray[np.int64], width: int, height: int) -> NDArray[np.bool_]:
    return np.asarray(((at >= 0) & (at < [width, height])).all(axis=1), dtype=bool)


def _bilinear(pixels: NDArray[np.uint8], at: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (m, 3) values between pixels at (m, 2) x and y; pixel borders are whole numbers."""
    x, y = (at - 0.5).T
    column, row = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - column).astype(np.float32)[:, None], (y - row).astype(np.float32)[:, None]
    width = pixels.shape[1]
    flat, first = pixels.reshape(-1, 3), row * width + column
    above = flat[first] * (1 - fx) + flat[first + 1] * fx
    below = flat[first + width] * (1 - fx) + flat[first + width + 1] * fx
    return above * (1 - fy) + below * fy

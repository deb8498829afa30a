"""Finding fill: pixels of one value that stitching, rotation, registration or a scanner put where no tissue was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.strips import in_strips, label_sums, looked_up, strips

Line: TypeAlias = tuple[NDArray[np.intp], ...]
"""Rows and columns of the pixels of a line."""

# Grey values. JPEG and resampling make one value a narrow band; stained tissue and real glass spread wider.
_BAND, _CORE = 6, 2
_MAX_COLOURS = 8
_MIN_CORE_SHARE, _MIN_EXACT_SHARE = 0.85, 0.97
_MIN_AREA_PX, _MIN_AREA_SHARE = 12, 0.002
_MIN_BORDER_PX, _MIN_BORDER_SHARE = 6, 0.01
# Lines along the border that are looked at: the outermost of a resampled image holds what lies beyond it.
_BORDER_DEPTH = 3
# Fill within the image is a rectangle (a field that was not scanned).
_MIN_INNER_SHARE, _MIN_RECTANGULARITY = 0.005, 0.92
# Light that passes glass is bright and nearly without colour.
_MIN_GLASS, _MAX_GLASS_CHROMA = 165, 40
_MIN_OTHER_GLASS_SHARE = 0.02
# Of fill that is replaced where tiles are read, in grey values of any channel.
_MIN_GLASS_DIFFERENCE, _READ_BAND = 25, 14
_MIN_MIXED_SHARE = 0.3


@dataclass(frozen=True)
class Fill:
    """Where an image is fill, and of which colours.

    Attributes
    ----------
    labels
        (h, w) uint8: 0 where it is none, else 1 + the row of `colours`.
    colours
        (k, 3) uint8 RGB.
    """

    labels: NDArray[np.uint8]
    colours: NDArray[np.uint8]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(h, w) bool: where it is fill of any colour."""
        return self.labels > 0


def find_fill(pixels: NDArray[np.uint8]) -> Fill:
    """Find the fill of an image.

    Parameters
    ----------
    pixels
        (h, w, 3) uint8 RGB of a whole slide, at any resolution; up to about 2000 pixels wide for speed.

    Returns
    -------
    Fill
        Regions of one exact or nearly exact value that reach the image's border over some length, or that are large
        and rectangular.

    Notes
    -----
    Folds and dark tissue vary from pixel to pixel and are none. A nearly constant region of the colour of glass is fill
    only if it is constant to a grey value and the image shows at least as much of other glass; a constant region in a
    hue of haematoxylin and eosin is none.
    """
    none = Fill(np.zeros(pixels.shape[:2], np.uint8), np.empty((0, 3), np.uint8))
    if min(pixels.shape[:2]) < 8:
        return none
    flat = in_strips(_flat, pixels, dtype=bool, reach=1)
    frames = [np.nonzero(_frame(flat.shape, depth)) for depth in range(_BORDER_DEPTH)]
    level = _level_border(pixels)
    colours: list[NDArray[np.uint8]] = []
    for line in frames:
        colours += _modes(*_counted([pixels[line][level[line]]]), _min_border(flat.shape))
    few = (pixels[rows][flat[rows]] for rows, _, _ in strips(len(flat)))
    colours += _modes(*_counted(few), max(_MIN_AREA_PX, _MIN_INNER_SHARE * flat.size))
    labels = none.labels.copy()
    kept: list[NDArray[np.int_]] = []
    for colour in colours:
        if any(np.abs(colour.astype(int) - other).max() <= _BAND for other in kept) or stain_like(colour):
            continue
        found = _regions(pixels, colour, frames, flat)
        if found.any():
            kept.append(colour.astype(int))
            labels[found & (labels == 0)] = len(kept)
    for depth in range(
        _BORDER_DEPTH - 1, 0, -1
    ):  # what was resampled across the border is fill as what lies next to it
        for view in (labels, labels[::-1], labels.T, labels.T[::-1]):
            view[depth - 1] = np.where(view[depth - 1] == 0, view[depth], view[depth - 1])
    return Fill(labels, np.array(kept, np.uint8).reshape(-1, 3))


def glass_like(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which (..., 3) RGB values are bright and nearly colourless."""
    red, green, blue = np.moveaxis(colours, -1, 0)  # NumPy is slow at reducing axes as short as that of colours
    low, high = np.minimum(np.minimum(red, green), blue), np.maximum(np.maximum(red, green), blue)
    return np.asarray((low >= _MIN_GLASS) & (high.astype(np.int16) - low <= _MAX_GLASS_CHROMA))


def stain_like(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which (..., 3) RGB values are of a hue and strength that haematoxylin and eosin have."""
    density = -np.log10(np.maximum(np.asarray(colours, dtype=float), 1) / 255)
    total = density.sum(axis=-1)
    red, green, blue = np.moveaxis(density, -1, 0)
    hue = (green >= 0.95 * red) & (green >= 1.3 * blue) & (red <= 0.46 * total)
    return np.asarray(hue & (total > 0.12) & (density.max(axis=-1) <= 1.2), dtype=bool)


def _regions(
    pixels: NDArray[np.uint8], colour: NDArray[np.uint8], frames: list[Line], flat: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return the regions of one colour that are fill."""
    from scipy.ndimage import label

    size = flat.size
    off = in_strips(lambda part: _difference(part, colour), pixels, dtype=np.uint8)
    pieces, n = label(off <= _BAND)
    area = label_sums(pieces, n)
    large = area >= max(_MIN_AREA_PX, _MIN_AREA_SHARE * size)
    large[0] = False
    if not large.any():
        return np.zeros(flat.shape, bool)
    core, exact = _cores(pieces, off, area, large)
    length = np.max([np.bincount(pieces[line], minlength=n + 1) for line in frames], axis=0)
    large &= core >= _MIN_CORE_SHARE
    good = large & (length >= _min_border(flat.shape))
    for i in np.flatnonzero(large & ~good & (area >= _MIN_INNER_SHARE * size) & (core >= _MIN_EXACT_SHARE)):
        rows, columns = (np.flatnonzero((pieces == i).any(axis=axis)) for axis in (1, 0))
        good[i] = area[i] >= _MIN_RECTANGULARITY * (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    if glass_like(colour) and good.any():
        enough = max(_MIN_OTHER_GLASS_SHARE * size, float(area[good].sum()))
        good &= (exact >= _MIN_EXACT_SHARE) & (_other_glass(pixels, off, flat) >= enough)
    return looked_up(good, pieces)


def _difference(pixels: NDArray[np.uint8], colour: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the largest difference of any channel."""
    most = np.zeros(pixels.shape[:2], np.int16)
    for channel, value in enumerate(colour.tolist()):
        np.maximum(most, np.abs(pixels[..., channel] - np.int16(value)), out=most)
    return most


def _cores(
    pieces: NDArray[np.int32], off: NDArray[np.uint8], area: NDArray[np.int64], large: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return for each of the large pieces how much of its inside is nearly and exactly of the colour; 0 of others."""
    from scipy.ndimage import binary_erosion

    number = np.cumsum(large) * large  # from 1, of large pieces only
    m = int(large.sum())

    def parts() -> Iterator[tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.uint8]]]:
        # Resampling rings at an edge, so what lies along one says nothing of how constant a region is.
        for rows, outer, own in strips(len(pieces), reach=1):
            inner = binary_erosion(pieces[outer] > 0, border_value=1)[own]
            yield number[pieces[rows]].ravel(), inner.ravel(), off[rows].ravel()

    n_inner = np.zeros(m + 1)
    for at, inner, _ in parts():
        n_inner += np.bincount(at, inner, m + 1)
    thin = n_inner < np.r_[0, area[large]] / 4  # too thin to have an inside
    n_inner, near, exact = np.zeros((3, m + 1))
    for at, inner, distance in parts():
        inner |= thin[at]
        n_inner += np.bincount(at, inner, m + 1)
        near += np.bincount(at, inner & (distance <= _CORE), m + 1)
        exact += np.bincount(at, inner & (distance <= 1), m + 1)
    found = np.zeros((2, len(large)))
    found[:, large] = (np.stack([near, exact]) / np.maximum(n_inner, 1))[:, 1:]
    return found[0], found[1]


def _other_glass(pixels: NDArray[np.uint8], off: NDArray[np.uint8], flat: NDArray[np.bool_]) -> int:
    """Return how many pixels are glass of another colour."""
    from scipy.ndimage import binary_dilation

    total = 0
    for rows, outer, own in strips(len(flat), reach=2):
        near = binary_dilation(off[outer] <= _BAND, iterations=2)[own]
        total += int((flat[rows] & glass_like(pixels[rows]) & ~near).sum())
    return total


def _counted(parts: Iterable[NDArray[np.uint8]]) -> tuple[NDArray[np.int16], NDArray[np.int64]]:
    """Return the different ones among (n, 3) colours, and how often each of them occurs."""
    found = []
    for part in parts:
        red, green, blue = part.astype(np.uint32).T
        found.append(np.unique(red << 16 | green << 8 | blue, return_counts=True))
    each = np.concatenate([values for values, _ in found])
    packed, at = np.unique(each, return_inverse=True)
    counts = np.bincount(at, np.concatenate([n for _, n in found]), len(packed)).astype(np.int64)
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1).astype(np.int16), counts


def _modes(left: NDArray[np.int16], counts: NDArray[np.int64], least: float) -> list[NDArray[np.uint8]]:
    """Return the most frequent of (n, 3) different colours, at least `least` pixels each."""
    found: list[NDArray[np.uint8]] = []
    while counts.sum() >= least and len(found) < _MAX_COLOURS:
        bins = (left >> 3) @ np.array([1024, 32, 1], np.int16)
        top = bins == np.bincount(bins, counts).argmax()
        near = np.abs(left - _median(left[top], counts[top])).max(axis=1) <= _BAND
        if counts[near].sum() < least:
            break
        found.append(np.rint(_median(left[near], counts[near])).astype(np.uint8))
        left, counts = left[~near], counts[~near]
    return found


def _median(values: NDArray[np.int16], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the median of each column of (n, 3) values from 0 to 255 that occur so often."""
    total = int(counts.sum())
    sums = np.stack([np.bincount(column, counts, 256) for column in values.T]).cumsum(axis=1)
    middle = [[np.searchsorted(row, k, side="right") for k in ((total - 1) // 2, total // 2)] for row in sums]
    colour: NDArray[np.float64] = np.mean(middle, axis=1, dtype=np.float64)
    return colour


def _min_border(shape: tuple[int, ...]) -> float:
    return max(_MIN_BORDER_PX, _MIN_BORDER_SHARE * 2 * sum(shape))


def _frame(shape: tuple[int, ...], depth: int) -> NDArray[np.bool_]:
    """Return the pixels of a line around the image, `depth` pixels within it."""
    frame = np.zeros(shape, bool)
    inside = frame[depth : shape[0] - depth, depth : shape[1] - depth]
    inside[[0, -1]] = True
    inside[:, [0, -1]] = True
    return frame


def _level_border(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say of the lines along the border which pixels are within a few grey values of their successor.

    The successor in a row or in a column; what is further within is False.
    """
    level = np.zeros(pixels.shape[:2], bool)
    n = _BORDER_DEPTH
    for view, out in ((pixels, level), (pixels.swapaxes(0, 1), level.T)):
        out[:n] |= _level(view[: n + 1])[:n]
        out[-n:] |= _level(view[-n:])
    return level


def _level(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which pixels are within a few grey values of their successor in a row or in a column."""
    level = np.zeros(pixels.shape[:2], bool)
    for axis, out in ((0, level[:-1]), (1, level[:, :-1])):
        out |= (np.abs(np.diff(pixels.astype(np.int16), axis=axis)) <= 3).all(axis=-1)
    return level


def _flat(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say where 3 x 3 pixels lie within a few grey values."""
    from scipy.ndimage import maximum_filter, minimum_filter

    out = np.ones(pixels.shape[:2], bool)
    for channel in range(3):
        plane = pixels[..., channel]
        out &= maximum_filter(plane, 3).astype(np.int16) - minimum_filter(plane, 3) <= 4
    return out


@dataclass(frozen=True)
class PlacedFill:
    """Fill of an image that is placed in micrometres, and what is shown in its place.

    Attributes
    ----------
    mask
        (h, w) bool: fill, of a copy that is axis-aligned in micrometres.
    colours
        (k, 3) int16 RGB of it.
    mpp, origin_um
        Micrometres per pixel of the copy, and x, y of its corner.
    glass
        Colour of empty glass.
    """

    mask: NDArray[np.bool_]
    colours: NDArray[np.int16]
    mpp: float
    origin_um: NDArray[np.float64]
    glass: NDArray[np.uint8]

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], mpp: float, origin_um: NDArray[np.float64]) -> PlacedFill | None:
        """Find the fill on a copy of the image; None where there is none, or where it looks like glass."""
        from scipy.ndimage import binary_dilation

        found = find_fill(pixels)
        if not found.mask.any():
            return None
        rest = pixels[~binary_dilation(found.mask, np.ones((3, 3)))]
        if len(rest) == 0:
            return None
        brightness = rest.sum(axis=1, dtype=np.int64)
        glass = np.median(rest[brightness >= np.quantile(brightness, 0.9)], axis=0)
        coloured = np.abs(found.colours - glass).max(axis=1) > _MIN_GLASS_DIFFERENCE
        area = np.bincount(found.labels.ravel(), minlength=len(coloured) + 1)[1:]
        # Pixels that mix fill with what is beside it are a colour of their own along a straight edge.
        real = coloured & (area >= _MIN_MIXED_SHARE * area.max(initial=0))
        mask = np.r_[False, coloured][found.labels]
        if not real.any():
            return None
        return cls(mask, found.colours[real].astype(np.int16), mpp, origin_um, np.rint(glass).astype(np.uint8))

    @cached_property
    def zone(self) -> NDArray[np.bool_]:
        """(h, w) bool: fill and what is so near that some of it may be fill."""
        from scipy.ndimage import binary_dilation

        return np.asarray(binary_dilation(self.mask, np.ones((3, 3)), iterations=2), dtype=bool)

    def covers(self, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say which (n, 2) points lie on fill."""
        column, row = np.floor((points_um - self.origin_um) / self.mpp).astype(np.int64).T
        height, width = self.mask.shape
        on = (column >= 0) & (row >= 0) & (column < width) & (row < height)
        return np.asarray(on & self.mask[row.clip(0, height - 1), column.clip(0, width - 1)], dtype=bool)

    def near(self, low_um: NDArray[np.float64], high_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say which of n boxes, (n, 2) corners each, may hold fill."""
        height, width = self.zone.shape
        sums = np.zeros((height + 1, width + 1), np.int64)
        sums[1:, 1:] = self.zone.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        limit = np.array([width, height])
        x0, y0 = np.clip(np.floor((low_um - self.origin_um) / self.mpp).astype(np.int64), 0, limit).T
        x1, y1 = np.clip(np.ceil((high_um - self.origin_um) / self.mpp).astype(np.int64), 0, limit).T
        return np.asarray(sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0] > 0, dtype=bool)

    def replaced(self, region: NDArray[np.uint8], to_um: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Return (h, w, 3) pixels, placed by a (3, 3) affine, with glass where they are fill."""
        from scipy.ndimage import binary_dilation

        height, width = region.shape[:2]
        x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
        place = (to_um[:2, :2], to_um[:2, 2] - self.origin_um)
        if to_um[0, 1] == 0 and to_um[1, 0] == 0:
            columns = np.floor((place[0][0, 0] * x + place[1][0]) / self.mpp).astype(np.int64)
            rows = np.floor((place[0][1, 1] * y + place[1][1]) / self.mpp).astype(np.int64)
            row, column = np.meshgrid(rows, columns, indexing="ij")
        else:
            xy = np.stack(np.meshgrid(x, y), axis=-1) @ place[0].T + place[1]
            column, row = np.moveaxis(np.floor(xy / self.mpp).astype(np.int64), -1, 0)
        on = (column >= 0) & (row >= 0) & (column < self.zone.shape[1]) & (row < self.zone.shape[0])
        on &= self.zone[row.clip(0, self.zone.shape[0] - 1), column.clip(0, self.zone.shape[1] - 1)]
        like = np.zeros((height, width), bool)
        for colour in self.colours:
            like |= (np.abs(region - colour) <= _READ_BAND).all(axis=-1)
        like &= on
        if not like.any():
            return region
        # Along fill, JPEG and interpolation leave a line of pixels of neither colour.
        like = binary_dilation(like, np.ones((3, 3)), iterations=2) & on
        out = region.copy()
        out[like] = self.glass
        return out

"""Finding fill: pixels of one value that stitching, rotation, registration or a scanner put where no tissue was."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
    flat = _flat(pixels)
    frames = [_frame(flat.shape, depth) for depth in range(_BORDER_DEPTH)]
    level = _level(pixels)
    colours: list[NDArray[np.uint8]] = []
    for line in frames:
        colours += _modes(pixels[line & level], _min_border(flat.shape))
    colours += _modes(pixels[flat], max(_MIN_AREA_PX, _MIN_INNER_SHARE * flat.size))
    labels, kept = none.labels.copy(), []
    for colour in colours:
        if any(np.abs(colour.astype(int) - other).max() <= _BAND for other in kept) or stain_like(colour):
            continue
        found = _regions(pixels, colour, frames, flat)
        if found.any():
            kept.append(colour.astype(int))
            labels[found & (labels == 0)] = len(kept)
    for line in range(_BORDER_DEPTH - 1, 0, -1):  # what was resampled across the border is fill as what lies next to it
        for view in (labels, labels[::-1], labels.T, labels.T[::-1]):
            view[line - 1] = np.where(view[line - 1] == 0, view[line], view[line - 1])
    return Fill(labels, np.array(kept, np.uint8).reshape(-1, 3))


def glass_like(colours: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say which (..., 3) RGB values are bright and nearly colourless."""
    low, high = colours.min(axis=-1), colours.max(axis=-1)
    return np.asarray((low >= _MIN_GLASS) & (high.astype(np.int16) - low <= _MAX_GLASS_CHROMA))


def stain_like(colour: NDArray[np.uint8]) -> bool:
    """Say whether a (3,) RGB value is of a hue and strength that haematoxylin and eosin have."""
    density = -np.log10(np.maximum(colour.astype(float), 1) / 255)
    total = float(density.sum())
    if not 0.12 < total or density.max() > 1.2:
        return False
    red, green, blue = density / total
    return bool(green >= 0.95 * red and green >= 1.3 * blue and red <= 0.46)


def _regions(
    pixels: NDArray[np.uint8], colour: NDArray[np.uint8], frames: list[NDArray[np.bool_]], flat: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Return the regions of one colour that are fill."""
    from scipy.ndimage import binary_dilation, binary_erosion, find_objects, label

    size = flat.size
    off = np.abs(pixels.astype(np.int16) - colour.astype(np.int16)).max(axis=-1)
    pieces, n = label(off <= _BAND)
    if n == 0:
        return np.zeros(flat.shape, bool)
    at = pieces.ravel()
    area = np.bincount(at, minlength=n + 1)
    # Resampling rings at an edge, so what lies along one says nothing of how constant a region is.
    inner = binary_erosion(pieces > 0, border_value=1).ravel()
    inner |= (np.bincount(at, inner, n + 1) < area / 4)[at]  # too thin to have an inside
    n_inner = np.maximum(np.bincount(at, inner, n + 1), 1)
    core = np.bincount(at, inner & (off <= _CORE).ravel(), n + 1) / n_inner
    length = np.max([np.bincount(pieces[line], minlength=n + 1) for line in frames], axis=0)
    large = (area >= max(_MIN_AREA_PX, _MIN_AREA_SHARE * size)) & (core >= _MIN_CORE_SHARE)
    large[0] = False
    good = large & (length >= _min_border(flat.shape))
    boxes = find_objects(pieces)
    for i in np.flatnonzero(large & ~good & (area >= _MIN_INNER_SHARE * size) & (core >= _MIN_EXACT_SHARE)):
        rows, columns = boxes[i - 1]
        good[i] = area[i] >= _MIN_RECTANGULARITY * (rows.stop - rows.start) * (columns.stop - columns.start)
    if glass_like(colour) and good.any():
        exact = np.bincount(at, inner & (off <= 1).ravel(), n + 1) / n_inner
        rest = flat & glass_like(pixels) & ~binary_dilation(off <= _BAND, iterations=2)
        enough = max(_MIN_OTHER_GLASS_SHARE * size, float(area[good].sum()))
        good &= (exact >= _MIN_EXACT_SHARE) & (rest.sum() >= enough)
    return np.asarray(good[pieces], dtype=bool)


def _modes(colours: NDArray[np.uint8], least: float) -> list[NDArray[np.uint8]]:
    """Return the most frequent of (n, 3) colours, at least `least` pixels each."""
    found: list[NDArray[np.uint8]] = []
    left = colours.reshape(-1, 3).astype(np.int16)
    while len(left) >= least and len(found) < _MAX_COLOURS:
        bins = (left >> 3) @ np.array([1024, 32, 1], np.int16)
        counts = np.bincount(bins, minlength=1)
        top = int(counts.argmax())
        middle = np.median(left[bins == top], axis=0)
        near = np.abs(left - middle).max(axis=1) <= _BAND
        if near.sum() < least:
            break
        found.append(np.rint(np.median(left[near], axis=0)).astype(np.uint8))
        left = left[~near]
    return found


def _min_border(shape: tuple[int, ...]) -> float:
    return max(_MIN_BORDER_PX, _MIN_BORDER_SHARE * 2 * sum(shape))


def _frame(shape: tuple[int, ...], depth: int) -> NDArray[np.bool_]:
    """Return the pixels of a line around the image, `depth` pixels within it."""
    frame = np.zeros(shape, bool)
    inside = frame[depth : shape[0] - depth, depth : shape[1] - depth]
    inside[[0, -1]] = True
    inside[:, [0, -1]] = True
    return frame


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

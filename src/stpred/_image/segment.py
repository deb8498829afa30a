"""Outlines of nuclei on H&E fields of a fixed working resolution. Arrays only.

Three steps, each with lengths in micrometres:

1. The slide's own glass, its threshold between nuclei and ground, and the hue of its nuclei (`measure_staining`, once
   per slide). The plane that is segmented is the optical density of red, which eosin hardly absorbs in any laboratory.
2. Every connected region of every threshold, kept in a component tree, is a candidate. Its score is how sharp its edge
   is and how well it fills its ellipse; the best set of regions that do not overlap is found exactly (the idea of
   Arteta et al. 2012, MICCAI 15:348). No one threshold has to fit pale and dark nuclei alike.
3. Thresholds between nuclei and ground of the surroundings give regions too. Touching nuclei, which are one region at
   every threshold, are parted where they narrow. Of overlapping regions the larger summed score wins; others are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._image.labels import Labels, kept, sized
from stpred._image.nuclei import climb, otsu
from stpred._image.segment_kernels import (
    component_tree,
    depth,
    grow,
    label_sums,
    opened,
    saddles,
    select,
    summits,
    unite,
)
from stpred._image.texture import Plane, gaussian
from stpred._image.tissue import white_level

WORK_MPP = 0.5
"""Micrometres per pixel of the fields."""
REACH_UM = 56.0
"""How far a pixel's surroundings decide about it; chunks overlap by as much."""

INSET_UM = 0.2
"""Labels of `segment` reach to the foot of the blurred edge of a nucleus; its outline, at half height, is within."""

_SMOOTH_UM = 0.5
_MAX_DENSITY = 1.5
_MIN_THRESHOLD, _MIN_GAP = 0.06, 0.10  # of optical density: paler than this nothing is a nucleus
_FILL_UM2 = 30.0  # pale spots inside vesicular nuclei
_HOLE_UM2 = 40.0
_SEED_UM = 0.8
_NECK, _MIN_NECK_UM = 0.10, 0.25  # how much narrower than the lesser nucleus two of them are where they touch
# The same for what is no ellipse, which is parted where that makes better ones.
_WEAK_NECK, _MIN_WEAK_NECK_UM, _MIN_PART_UM2 = 0.02, 0.06, 12.0
_POOR_FILL, _FILL_GAIN = 0.95, 0.01
_MAX_DEPTH_UM = 24.0  # twice the radius of the largest nucleus: deeper in a mass, distance to its edge tells nothing
_MIN_FILL, _FULL = 0.75, 0.97  # of the ellipse of equal moments
# Chosen where all of pink, purple and synthetic fields at 0.25 to 0.69 um per pixel are on a plateau.
_HALF_SHARP, _MIN_QUALITY, _POWER = 0.5, 0.22, 0.6
_WINDOW_UM, _COARSE = 16.0, 4
# Of the gap between ground and nuclei around: low enough for pale nuclei, high enough for dark ones in a crowd.
_FRACTIONS = (0.3, 0.55, 0.8)
_MIN_CONTRAST, _TIED = 0.30, 0.5


@dataclass(frozen=True)
class Staining:
    """What is measured once per slide.

    Attributes
    ----------
    white
        Grey values of red, green and blue where there is no tissue.
    threshold
        Optical density of red between nuclei and ground.
    dark, light
        Mean density of nuclei and of ground.
    hue
        Density of red over that of green in nuclei; lower in what is only pink.
    """

    white: tuple[float, float, float]
    threshold: float
    dark: float
    light: float
    hue: float

    @property
    def gap(self) -> float:
        """Density between nuclei and ground."""
        return max(self.dark - self.light, _MIN_GAP)


def measure_staining(
    fields: Sequence[NDArray[np.uint8]], valid: Sequence[NDArray[np.bool_] | None] | None = None
) -> Staining:
    """Measure a slide's staining on (h, w, 3) uint8 fields of the working resolution that show tissue.

    `valid`: (h, w) which pixels of each field are tissue or glass, neither fill nor pen; None: all.
    """
    parts = [None] * len(fields) if valid is None else valid

    def chosen(plane: NDArray, part: NDArray[np.bool_] | None) -> NDArray:
        return plane.reshape(-1) if part is None else plane[part]

    white = white_level(fields, valid)
    planes = [_densities(field, np.array(white)) for field in fields]
    red = [chosen(gaussian(p[0], _SMOOTH_UM / WORK_MPP), part) for p, part in zip(planes, parts, strict=True)]
    green = np.concatenate([chosen(p[1], part) for p, part in zip(planes, parts, strict=True)])
    density = np.concatenate(red)
    threshold = max(float(otsu(density[None], 0.0, _MAX_DENSITY)), _MIN_THRESHOLD)
    dark = density > threshold
    means = [float(density[which].mean()) if which.any() else threshold for which in (dark, ~dark)]
    hue = float(np.median(density[dark] / np.maximum(green[dark], 0.02))) if dark.any() else 0.0
    return Staining(white, threshold, means[0], means[1], hue)


def segment(
    rgb: NDArray[np.uint8],
    staining: Staining,
    *,
    min_area_um2: float = 12.0,
    max_area_um2: float = 350.0,
) -> Labels:
    """Segment the nuclei of a field.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8 at `WORK_MPP`.
    staining
        The slide's staining.
    min_area_um2, max_area_um2
        Bounds on the area of a nucleus.

    Returns
    -------
    (h, w) int32: 0 for ground, 1..n for nuclei; each is one piece of pixels that share edges.
    """
    if min(rgb.shape[:2]) < 8:
        return np.zeros(rgb.shape[:2], np.int32)
    densities = _densities(rgb, np.array(staining.white))
    red = gaussian(densities[0], _SMOOTH_UM / WORK_MPP)
    area_px = (min_area_um2 / WORK_MPP**2, max_area_um2 / WORK_MPP**2)
    labels = _part(_best_regions(red, staining, area_px), area_px)
    low, gap = _local_levels(red, staining)
    pale = _with_contrast(_part(red > low + np.float32(_FRACTIONS[0]) * gap, area_px), red, gap)
    labels = _better_of(labels, pale, red, staining.gap, area_px)
    for share in _FRACTIONS[1:]:
        parts = _part(red > low + np.float32(share) * gap, area_px)
        labels = _better_of(labels, parts, red, staining.gap, area_px)
    labels = _grown(_added(labels, pale, red, area_px), 1)
    return _plausible(labels, densities, staining, area_px)


def _densities(rgb: NDArray[np.uint8], white: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return planes of red and green: optical density against the slide's glass, not below 0."""
    out = np.empty((2, *rgb.shape[:2]), np.float32)
    for channel in range(2):
        light = np.maximum(np.arange(256), 1) / white[channel]
        out[channel] = np.maximum(-np.log10(light), 0).astype(np.float32)[rgb[..., channel]]
    return out


def _best_regions(red: Plane, staining: Staining, area_px: tuple[float, float]) -> Labels:
    """Return the best set of regions that do not overlap, over all thresholds."""
    level = np.clip(red * np.float32(255 / _MAX_DENSITY), 0, 255).astype(np.uint8)
    order, parent, sums = component_tree(255 - level, red, 1)
    level = 255 - opened(255 - level, order, parent, sums, _FILL_UM2 / WORK_MPP**2)
    filled = level.astype(np.float32) * np.float32(_MAX_DENSITY / 255)
    order, parent, sums = component_tree(level, filled, 8)
    worth = np.full(level.size, -1, np.float32)
    which = np.flatnonzero((sums[:, 0] >= area_px[0]) & (sums[:, 0] <= area_px[1]))
    worth[which] = _worth(sums[which], staining.gap)
    return select(level, order, parent, worth)


def _worth(sums: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Score regions by how sharp their edge is and how well they fill their ellipse; above 0 it may be a nucleus."""
    area, steps, rise = sums[:, 0], sums[:, 6], sums[:, 7]
    fill = _fill(sums)
    # In units of a step from ground to nucleus over 1 um.
    sharpness = rise / np.maximum(steps, 1) / WORK_MPP / gap
    quality = np.clip((fill - _MIN_FILL) / (_FULL - _MIN_FILL), 0, 1) * sharpness / (sharpness + _HALF_SHARP)
    area_um2 = area * WORK_MPP**2
    # Near-proportional to area: two halves are not better than the whole, two nuclei are better than their dumbbell.
    return (quality - _MIN_QUALITY) * area_um2**_POWER * np.sqrt(np.minimum(area_um2 / 30.0, 1.0))


def _fill(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much of its ellipse of equal moments each region fills."""
    area, y, x, yy, xx, yx = sums[:, :6].T
    some = np.maximum(area, 1)
    cy, cx = y / some, x / some
    vyy, vxx, vyx = yy / some - cy**2 + 1 / 12, xx / some - cx**2 + 1 / 12, yx / some - cy * cx
    return np.asarray(area / (4 * np.pi * np.sqrt(np.maximum(vyy * vxx - vyx**2, 1e-6))))


def _better_of(labels: Labels, others: Labels, red: Plane, gap: float, area_px: tuple[float, float]) -> Labels:
    """Of every group of labels and others that overlap keep the side of the larger summed score.

    A dark core gives way to its whole nucleus, and what holds two nuclei to its parts, or the other way round.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n, m = int(labels.max(initial=0)), int(others.max(initial=0))
    if n == 0 or m == 0:
        return labels
    both = np.flatnonzero((labels.reshape(-1) > 0) & (others.reshape(-1) > 0))
    pair = labels.reshape(-1)[both].astype(np.int64) * (m + 1) + others.reshape(-1)[both]
    pair, common = np.unique(pair, return_counts=True)
    i, j = pair // (m + 1), pair % (m + 1)
    sums = [np.vstack([np.zeros(8), label_sums(side, red, k)]) for side, k in ((labels, n), (others, m))]
    tied = common > _TIED * np.minimum(sums[0][i, 0], sums[1][j, 0])
    edges = np.ones(int(tied.sum()), np.int8), (i[tied], n + 1 + j[tied])
    count, group = connected_components(coo_array(edges, shape=(n + m + 2, n + m + 2)), directed=False)
    ours, theirs = group[: n + 1], group[n + 1 :]
    worth = [np.where(k[:, 0] > 0, np.maximum(_worth(np.maximum(k, [1.0] + [0.0] * 7), gap), 0), 0) for k in sums]
    lost = np.bincount(theirs, worth[1], count) > np.bincount(ours, worth[0], count)
    lost &= np.bincount(ours, minlength=count) > 0
    ours_kept, taken = kept(labels, ~lost[ours]), kept(others, lost[theirs])
    return _joined(ours_kept, sized(np.where(ours_kept > 0, 0, taken), area_px))


def _joined(labels: Labels, others: Labels) -> Labels:
    return np.where(others > 0, others + labels.max(initial=0), labels).astype(np.int32)


def _local_levels(red: Plane, staining: Staining) -> tuple[Plane, Plane]:
    """Return the level of the ground and the gap between it and nuclei, both averaged over the surroundings.

    Three rounds of parting pixels and averaging the parts.
    """
    sigma_px = _WINDOW_UM / (WORK_MPP * _COARSE)
    threshold: Plane | float = staining.threshold
    prior = np.float32(0.05)  # the slide's own levels, where there is only one class around
    everything = _blur(_shrunk(red), sigma_px)
    for _ in range(3):
        dark = (red > threshold).astype(np.float32)
        share, amount = _blur(_shrunk(dark), sigma_px), _blur(_shrunk(dark * red), sigma_px)
        high = (amount + prior * np.float32(staining.dark)) / (share + prior)
        low = (everything - amount + prior * np.float32(staining.light)) / (1 - share + prior)
        gap = np.maximum(high - low, np.float32(_MIN_GAP))
        threshold = _widened(low + np.float32(_FRACTIONS[0]) * gap, red.shape)
    return _widened(low, red.shape), _widened(gap, red.shape)


def _blur(plane: Plane, sigma_px: float) -> Plane:
    return gaussian(plane, sigma_px, truncate=2.5)


def _shrunk(plane: Plane) -> Plane:
    h, w = (-(-n // _COARSE) * _COARSE for n in plane.shape)
    padded = np.pad(plane, ((0, h - plane.shape[0]), (0, w - plane.shape[1])), mode="edge")
    blocks = padded.reshape(h // _COARSE, _COARSE, w // _COARSE, _COARSE)
    return np.ascontiguousarray(blocks.mean(axis=(1, 3), dtype=np.float32))


def _widened(plane: Plane, shape: tuple[int, ...]) -> Plane:
    from PIL import Image

    h, w = plane.shape
    wide = Image.fromarray(plane).resize((w * _COARSE, h * _COARSE), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(wide)[: shape[0], : shape[1]])


def _part(found: NDArray[np.bool_] | Labels, area_px: tuple[float, float]) -> Labels:
    """Fill holes, smooth outlines, and part what narrows in between; neighbours with different labels stay apart."""
    from scipy.ndimage import binary_opening
    from skimage.measure import label

    labels = found.astype(np.int32)
    inner = labels > 0
    inner[:, 1:] &= ~((labels[:, 1:] != labels[:, :-1]) & (labels[:, :-1] > 0))
    inner[1:] &= ~((labels[1:] != labels[:-1]) & (labels[:-1] > 0))
    cut = (labels > 0) & ~inner
    ground = label(~inner, connectivity=1)
    small = np.bincount(ground.reshape(-1)) * WORK_MPP**2 < _HOLE_UM2
    small[0] = False
    inner |= small[ground] & ~cut
    inner = binary_opening(inner)  # by a cross of one pixel, 0.5 um; beyond the field there is nothing
    depth_px = depth(inner, round(_MAX_DEPTH_UM / WORK_MPP))
    height = gaussian(depth_px * np.float32(WORK_MPP), _SEED_UM / WORK_MPP)
    return sized(_merged(climb(height, inner), height), area_px)


def _merged(labels: Labels, height: Plane) -> Labels:
    """Unite basins where the saddle between them is about as high as the lower of their summits.

    What is no ellipse then is looked at again with less patience, and stays parted if the parts are better ellipses.
    """
    n = int(labels.max(initial=0))
    if n == 0:
        return labels
    low, high, saddle = saddles(labels, height)
    order = np.lexsort((high, low, -saddle))
    pairs = low[order], high[order], saddle[order], summits(labels, height, n)
    whole = unite(*pairs, _NECK, _MIN_NECK_UM)
    parts = unite(*pairs, _WEAK_NECK, _MIN_WEAK_NECK_UM)
    sums = np.vstack([np.zeros(8), label_sums(labels, height, n)])
    return np.where(_better(sums, whole, parts), parts, whole).astype(np.int32)[labels]


def _better(sums: NDArray[np.float64], whole: NDArray[np.int64], parts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Say of each basin whether its whole is a poor ellipse and the parts of that are clearly better ones."""
    n = whole.size
    united = [
        np.column_stack([np.bincount(root, sums[:, k], n) for k in range(6)]).astype(np.float64)
        for root in (whole, parts)
    ]
    fill = [_fill(u) for u in united]
    gain = np.bincount(whole, sums[:, 0] * (fill[1][parts] - fill[0][whole]), n) / np.maximum(united[0][:, 0], 1)
    least = np.full(n, np.inf)
    np.minimum.at(least, whole, united[1][parts, 0])
    good = (fill[0] < _POOR_FILL) & (gain > _FILL_GAIN) & (least * WORK_MPP**2 > _MIN_PART_UM2)
    return np.asarray(good[whole])


def _mean(labels: Labels, plane: Plane) -> NDArray[np.float64]:
    flat = labels.reshape(-1)
    count = np.bincount(flat)
    return np.bincount(flat, plane.reshape(-1), count.size) / np.maximum(count, 1)


def _with_contrast(labels: Labels, red: Plane, gap: Plane) -> Labels:
    """Drop what is hardly darker than the ring around it."""
    ring = np.where(labels > 0, 0, _grown(labels, 4))
    inside, outside = _mean(labels, red), _mean(ring, red)
    count = np.bincount(ring.reshape(-1), minlength=inside.size)
    outside = np.pad(outside, (0, inside.size - outside.size))
    return kept(labels, (inside - outside > _MIN_CONTRAST * _mean(labels, gap)) | (count < 4))


def _added(labels: Labels, others: Labels, red: Plane, area_px: tuple[float, float]) -> Labels:
    """Add those of the others of which enough is left beside the labels."""
    from scipy.ndimage import binary_dilation, binary_opening

    free = binary_opening((others > 0) & ~binary_dilation(labels > 0))
    whole = np.bincount(others.reshape(-1))
    rest = np.where(free, others, 0)
    left = np.bincount(rest.reshape(-1), minlength=whole.size)
    rest = sized(kept(rest, left > 0.4 * whole), area_px)
    fill = np.r_[0.0, _fill(label_sums(rest, red, int(rest.max(initial=0))))]
    return _joined(labels, kept(rest, fill > 0.85))


def _plausible(
    labels: Labels, densities: NDArray[np.float32], staining: Staining, area_px: tuple[float, float]
) -> Labels:
    """Drop what is pink rather than blue, as red cells and debris are."""
    labels = sized(labels, area_px)
    hue = _mean(labels, densities[0]) / np.maximum(_mean(labels, densities[1]), 0.02)
    return kept(labels, hue > 0.5 * staining.hue)


def _grown(labels: Labels, steps: int) -> Labels:
    """Grow labels by some pixels where nothing else is; of two that meet, the lower number wins."""
    for _ in range(steps):
        labels = grow(labels)
    return labels

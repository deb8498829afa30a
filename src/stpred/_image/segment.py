"""Outlines of nuclei on H&E fields of a fixed working resolution. Arrays only.

Three steps, each with lengths in micrometres:

1. The slide's own glass, its threshold between nuclei and ground, and the hue of its nuclei (`measure_staining`, once
   per slide). The plane that is segmented is the optical density of red, which eosin hardly absorbs in any laboratory.
2. Every connected region of every threshold, kept in a component tree, is a candidate. Its score is how sharp its edge
   is and how well it fills its ellipse; the best set of regions that do not overlap is found exactly (the idea of
   Arteta et al. 2012, MICCAI 15:348). No one threshold has to fit pale and dark nuclei alike.
3. Thresholds between nuclei and ground of the surroundings give regions too. Touching nuclei, which are one region at
   every threshold, are parted where they narrow, and of parts and regions that overlap those of the larger summed score
   are kept. What the tree left, pale nuclei above all, is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._image._jit import kernel
from stpred._image.nuclei import Labels, climb, otsu
from stpred._image.texture import Plane, gaussian

WORK_MPP = 0.5
"""Micrometres per pixel of the fields: an edge is two to three pixels wide, a small nucleus ten."""
REACH_UM = 56.0
"""How far a pixel's surroundings decide about it; chunks overlap by as much."""

INSET_UM = 0.2
"""Labels of `segment` reach to the foot of the blurred edge of a nucleus; its outline, at half height, is within."""

_SMOOTH_UM = 0.5
_DENSEST = 1.5
_LEAST_THRESHOLD, _LEAST_GAP = 0.06, 0.10  # of optical density: paler than this nothing is a nucleus
_FILL_UM2 = 30.0  # pale spots inside vesicular nuclei
_HOLE_UM2 = 40.0
_SEED_UM = 0.8
_NECK, _LEAST_NECK_UM = 0.10, 0.25  # how much narrower than the lesser nucleus two of them are where they touch
# The same for what is no ellipse, which is parted where that makes better ones.
_WEAK_NECK, _LEAST_WEAK_NECK_UM, _LEAST_PART_UM2 = 0.02, 0.06, 12.0
_POOR_FILL, _FILL_GAIN = 0.95, 0.01
_DEEPEST_UM = 24.0  # twice the radius of the largest nucleus: deeper in a mass, distance to its edge tells nothing
_LEAST_FILL, _FULL = 0.75, 0.97  # of the ellipse of equal moments
# Chosen where all of pink, purple and synthetic fields at 0.25 to 0.69 um per pixel are on a plateau.
_HALF_SHARP, _LEAST_QUALITY, _POWER = 0.5, 0.22, 0.6
_WINDOW_UM, _COARSE = 16.0, 4
# Of the gap between ground and nuclei around: low enough for pale nuclei, high enough for dark ones in a crowd.
_SHARES = (0.3, 0.55, 0.8)
_LEAST_CONTRAST, _TIED = 0.30, 0.5


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
        return max(self.dark - self.light, _LEAST_GAP)


def measure_staining(fields: Sequence[NDArray[np.uint8]]) -> Staining:
    """Measure a slide's staining on (h, w, 3) uint8 fields of the working resolution that show tissue."""
    sample = np.concatenate([field.reshape(-1, 3) for field in fields])
    white = np.clip(np.quantile(sample, 0.995, axis=0), 170, 255)
    planes = [_densities(field, white) for field in fields]
    red = [gaussian(p[0], _SMOOTH_UM / WORK_MPP).reshape(-1) for p in planes]
    green = np.concatenate([p[1].reshape(-1) for p in planes])
    density = np.concatenate(red)
    threshold = max(float(otsu(density[None], 0.0, _DENSEST)), _LEAST_THRESHOLD)
    dark = density > threshold
    means = [float(density[which].mean()) if which.any() else threshold for which in (dark, ~dark)]
    hue = float(np.median(density[dark] / np.maximum(green[dark], 0.02))) if dark.any() else 0.0
    return Staining((float(white[0]), float(white[1]), float(white[2])), threshold, means[0], means[1], hue)


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
    pale = _with_contrast(_part(red > low + np.float32(_SHARES[0]) * gap, area_px), red, gap)
    labels = _better_of(labels, pale, red, staining.gap, area_px)
    for share in _SHARES[1:]:
        parts = _part(red > low + np.float32(share) * gap, area_px)
        labels = _better_of(labels, parts, red, staining.gap, area_px)
    labels = _grown(_added(labels, pale, red, area_px), 1)
    return _plausible(labels, densities, staining, area_px)


def outlines(labels: Labels, *, inset_px: float = 0.0) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Trace every label 1..n, smoothed over about a pixel and, if asked, moved inwards by some part of one.

    Returns
    -------
    (m, 2) x, y in pixels (pixel borders are whole numbers), and (n + 1,) where each outline begins; the last entry is
    m. A label without pixels has an empty outline. Of a label in several pieces the first is traced, and holes are not.
    """
    n = int(labels.max(initial=0))
    return _trace(np.ascontiguousarray(labels, dtype=np.int32), n, float(inset_px))


def whole_pieces(labels: NDArray[np.integer]) -> Labels:
    """Label the largest piece (of pixels that share edges) of every label 1..n, in order; empty labels are skipped."""
    return _sized(np.ascontiguousarray(labels, dtype=np.int32), (1, np.inf))


def _densities(rgb: NDArray[np.uint8], white: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return planes of red and green: optical density against the slide's glass, not below 0."""
    out = np.empty((2, *rgb.shape[:2]), np.float32)
    for channel in range(2):
        light = np.maximum(np.arange(256), 1) / white[channel]
        out[channel] = np.maximum(-np.log10(light), 0).astype(np.float32)[rgb[..., channel]]
    return out


def _best_regions(red: Plane, staining: Staining, area_px: tuple[float, float]) -> Labels:
    """Return the best set of regions that do not overlap, over all thresholds."""
    level = np.clip(red * np.float32(255 / _DENSEST), 0, 255).astype(np.uint8)
    order, parent, sums = _component_tree(255 - level, red, 1)
    level = 255 - _opened(255 - level, order, parent, sums, _FILL_UM2 / WORK_MPP**2)
    filled = level.astype(np.float32) * np.float32(_DENSEST / 255)
    order, parent, sums = _component_tree(level, filled, 8)
    worth = np.full(level.size, -1, np.float32)
    which = np.flatnonzero((sums[:, 0] >= area_px[0]) & (sums[:, 0] <= area_px[1]))
    worth[which] = _worth(sums[which], staining.gap)
    return _select(level, order, parent, worth)


def _worth(sums: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Score regions by how sharp their edge is and how well they fill their ellipse; above 0 it may be a nucleus."""
    area, steps, rise = sums[:, 0], sums[:, 6], sums[:, 7]
    fill = _fill(sums)
    # In units of a step from ground to nucleus over 1 um.
    sharpness = rise / np.maximum(steps, 1) / WORK_MPP / gap
    quality = np.clip((fill - _LEAST_FILL) / (_FULL - _LEAST_FILL), 0, 1) * sharpness / (sharpness + _HALF_SHARP)
    area_um2 = area * WORK_MPP**2
    # Near-proportional to area: two halves are not better than the whole, two nuclei are better than their dumbbell.
    return (quality - _LEAST_QUALITY) * area_um2**_POWER * np.sqrt(np.minimum(area_um2 / 30.0, 1.0))


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
    sums = [np.vstack([np.zeros(8), _sums(side, red, k)]) for side, k in ((labels, n), (others, m))]
    tied = common > _TIED * np.minimum(sums[0][i, 0], sums[1][j, 0])
    edges = np.ones(int(tied.sum()), np.int8), (i[tied], n + 1 + j[tied])
    count, group = connected_components(coo_array(edges, shape=(n + m + 2, n + m + 2)), directed=False)
    ours, theirs = group[: n + 1], group[n + 1 :]
    worth = [np.where(k[:, 0] > 0, np.maximum(_worth(np.maximum(k, [1.0] + [0.0] * 7), gap), 0), 0) for k in sums]
    lost = np.bincount(theirs, worth[1], count) > np.bincount(ours, worth[0], count)
    lost &= np.bincount(ours, minlength=count) > 0
    kept, taken = _kept(labels, ~lost[ours]), _kept(others, lost[theirs])
    return _joined(kept, _sized(np.where(kept > 0, 0, taken), area_px))


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
        gap = np.maximum(high - low, np.float32(_LEAST_GAP))
        threshold = _widened(low + np.float32(_SHARES[0]) * gap, red.shape)
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
    labels = found.astype(np.int32)
    inner = labels > 0
    inner[:, 1:] &= ~((labels[:, 1:] != labels[:, :-1]) & (labels[:, :-1] > 0))
    inner[1:] &= ~((labels[1:] != labels[:-1]) & (labels[:-1] > 0))
    cut = (labels > 0) & ~inner
    ground = _pieces((~inner).astype(np.int32))
    small = np.bincount(ground.reshape(-1)) * WORK_MPP**2 < _HOLE_UM2
    small[0] = False
    inner |= small[ground] & ~cut
    inner = _smoothed(inner)
    depth_px = _depth(inner, round(_DEEPEST_UM / WORK_MPP))
    height = gaussian(depth_px * np.float32(WORK_MPP), _SEED_UM / WORK_MPP)
    return _sized(_merged(climb(height, inner), height), area_px)


def _merged(labels: Labels, height: Plane) -> Labels:
    """Unite basins where the saddle between them is about as high as the lower of their summits.

    What is no ellipse then is looked at again with less patience, and stays parted if the parts are better ellipses.
    """
    n = int(labels.max(initial=0))
    if n == 0:
        return labels
    low, high, saddle = _saddles(labels, height)
    order = np.lexsort((high, low, -saddle))
    pairs = low[order], high[order], saddle[order], _summits(labels, height, n)
    whole = _unite(*pairs, _NECK, _LEAST_NECK_UM)
    parts = _unite(*pairs, _WEAK_NECK, _LEAST_WEAK_NECK_UM)
    sums = np.vstack([np.zeros(8), _sums(labels, height, n)])
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
    good = (fill[0] < _POOR_FILL) & (gain > _FILL_GAIN) & (least * WORK_MPP**2 > _LEAST_PART_UM2)
    return np.asarray(good[whole])


def _sized(labels: Labels, area_px: tuple[float, float]) -> Labels:
    """Keep the largest piece of every label if its area is within bounds, and number them 1..n."""
    return _largest(labels, _pieces(labels), int(labels.max(initial=0)), float(area_px[0]), float(area_px[1]))


def _kept(labels: Labels, keep: NDArray[np.bool_]) -> Labels:
    keep = keep.copy()
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


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
    return _kept(labels, (inside - outside > _LEAST_CONTRAST * _mean(labels, gap)) | (count < 4))


def _added(labels: Labels, others: Labels, red: Plane, area_px: tuple[float, float]) -> Labels:
    """Add those of the others of which enough is left beside the labels."""
    free = _smoothed((others > 0) & ~_dilated(labels > 0))
    whole = np.bincount(others.reshape(-1))
    rest = np.where(free, others, 0)
    left = np.bincount(rest.reshape(-1), minlength=whole.size)
    rest = _sized(_kept(rest, left > 0.4 * whole), area_px)
    fill = np.r_[0.0, _fill(_sums(rest, red, int(rest.max(initial=0))))]
    return _joined(labels, _kept(rest, fill > 0.85))


def _plausible(
    labels: Labels, densities: NDArray[np.float32], staining: Staining, area_px: tuple[float, float]
) -> Labels:
    """Drop what is pink rather than blue, as red cells and debris are."""
    labels = _sized(labels, area_px)
    hue = _mean(labels, densities[0]) / np.maximum(_mean(labels, densities[1]), 0.02)
    return _kept(labels, hue > 0.5 * staining.hue)


def _grown(labels: Labels, steps: int) -> Labels:
    """Grow labels by some pixels where nothing else is; of two that meet, the lower number wins."""
    for _ in range(steps):
        labels = _grow(labels)
    return labels


def _smoothed(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Open by a cross of one pixel, 0.5 um; beyond the field there is nothing."""
    return _dilated(~_dilated(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1])


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


@kernel
def _grow(labels: Labels) -> Labels:
    h, w = labels.shape
    out = labels.copy()
    for y in range(h):
        for x in range(w):
            if labels[y, x] > 0:
                continue
            best = np.int32(0)
            for e in range(4):
                yy, xx = y + (e == 1) - (e == 0), x + (e == 3) - (e == 2)
                if 0 <= yy < h and 0 <= xx < w and labels[yy, xx] > 0 and (best == 0 or labels[yy, xx] < best):
                    best = labels[yy, xx]
            out[y, x] = best
    return out


@kernel
def _sums(labels: Labels, plane: Plane, n: int) -> NDArray[np.float64]:
    """Return for each label 1..n the eight sums of `_component_tree`."""
    h, w = labels.shape
    sums = np.zeros((n, 8), np.float64)
    for y in range(h):
        for x in range(w):
            i = labels[y, x]
            if i == 0:
                continue
            own = sums[i - 1]
            own[0] += 1
            own[1] += y
            own[2] += x
            own[3] += y * y
            own[4] += x * x
            own[5] += y * x
            for e in range(4):
                yy, xx = y + (e == 1) - (e == 0), x + (e == 3) - (e == 2)
                if 0 <= yy < h and 0 <= xx < w and labels[yy, xx] != i:
                    own[6] += 1
                    own[7] += abs(plane[y, x] - plane[yy, xx])
    return sums


@kernel
def _depth(inside: NDArray[np.bool_], most: int) -> Plane:
    """Return the distance of every pixel to the nearest outside, which goes on beyond the field; at most `most`."""
    h, w = inside.shape
    column = np.zeros((h, w), np.int32)
    for y in range(h):
        for x in range(w):
            if inside[y, x]:
                column[y, x] = min(column[y - 1, x] + 1 if y > 0 else 1, most)
    for y in range(h - 1, -1, -1):
        for x in range(w):
            if inside[y, x]:
                column[y, x] = min(column[y, x], column[y + 1, x] + 1 if y + 1 < h else 1)
    out = np.zeros((h, w), np.float32)
    for y in range(h):
        for x in range(w):
            best = column[y, x] ** 2
            d = 1
            while d * d < best:
                left = column[y, x - d] if x - d >= 0 else 0
                right = column[y, x + d] if x + d < w else 0
                best = min(best, d * d + min(left, right) ** 2)
                d += 1
            out[y, x] = np.sqrt(np.float32(best))
    return out


@kernel
def _pieces(labels: Labels) -> Labels:
    """Label pieces of equal non-zero label whose pixels share edges, in reading order."""
    h, w = labels.shape
    flat = labels.reshape(-1)
    out = np.zeros(h * w, np.int32)
    stack = np.empty(h * w, np.int32)
    n = 0
    for start in range(h * w):
        if flat[start] == 0 or out[start] > 0:
            continue
        n += 1
        out[start] = n
        stack[0] = start
        size = 1
        while size > 0:
            size -= 1
            p = stack[size]
            y, x = p // w, p % w
            for e in range(4):
                yy, xx = y + (e == 1) - (e == 0), x + (e == 3) - (e == 2)
                if 0 <= yy < h and 0 <= xx < w:
                    q = yy * w + xx
                    if out[q] == 0 and flat[q] == flat[p]:
                        out[q] = n
                        stack[size] = q
                        size += 1
    return out.reshape(h, w)


@kernel
def _largest(labels: Labels, pieces: Labels, n: int, low: float, high: float) -> Labels:
    """Number the largest piece of every label 1..n whose area is within bounds; of equal ones the first."""
    flat, part = labels.reshape(-1), pieces.reshape(-1)
    most = 0
    for k in range(part.size):
        most = max(most, part[k])
    size, origin = np.zeros(most + 1, np.int64), np.zeros(most + 1, np.int32)
    for k in range(part.size):
        size[part[k]] += 1
        origin[part[k]] = flat[k]
    best = np.zeros(n + 1, np.int32)
    for p in range(1, most + 1):
        i = origin[p]
        if best[i] == 0 or size[p] > size[best[i]]:
            best[i] = p
    number = np.zeros(most + 1, np.int32)
    count = 0
    for i in range(1, n + 1):
        if best[i] > 0 and low <= size[best[i]] <= high:
            count += 1
            number[best[i]] = count
    out = np.empty(labels.shape, np.int32)
    wide = out.reshape(-1)
    for k in range(part.size):
        wide[k] = number[part[k]]
    return out


@kernel
def _component_tree(
    level: NDArray[np.uint8], plane: Plane, n_sums: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    """Return pixels from high to low, each one's parent, and sums over the region that each one completes.

    The sums are area; with 8 of them also y, x, yy, xx and yx, and number and heights of the steps over the edge. A
    pixel whose parent is lower stands for the region of its level (Berger et al. 2007, ICIP 4:41).
    """
    h, w = level.shape
    n = h * w
    flat, value = level.reshape(-1), plane.reshape(-1)
    start = np.zeros(257, np.int64)
    for i in range(n):
        start[256 - flat[i]] += 1
    for k in range(1, 257):
        start[k] += start[k - 1]
    order = np.empty(n, np.int32)
    for i in range(n):
        k = 255 - flat[i]
        order[start[k]] = i
        start[k] += 1
    parent = np.empty(n, np.int32)
    up = np.full(n, -1, np.int32)
    sums = np.zeros((n, n_sums), np.float64)
    for k in range(n):
        p = order[k]
        y, x = p // w, p % w
        parent[p] = p
        up[p] = p
        own = sums[p]
        own[0] = 1
        if n_sums == 8:
            own[1], own[2], own[3], own[4], own[5] = y, x, y * y, x * x, y * x
        for e in range(4):
            yy, xx = y + (e == 1) - (e == 0), x + (e == 3) - (e == 2)
            if yy < 0 or yy >= h or xx < 0 or xx >= w:
                continue
            q = yy * w + xx
            sign = 1 if up[q] < 0 else -1
            if n_sums == 8:
                own[6] += sign
                own[7] += sign * abs(value[p] - value[q])
            if sign > 0:
                continue
            while up[q] != q:
                up[q] = up[up[q]]
                q = up[q]
            if q != p:
                parent[q] = p
                up[q] = p
                other = sums[q]
                for i in range(n_sums):
                    own[i] += other[i]
    return order, parent, sums


@kernel
def _opened(
    level: NDArray[np.uint8],
    order: NDArray[np.int32],
    parent: NDArray[np.int32],
    sums: NDArray[np.float64],
    area_px: float,
) -> NDArray[np.uint8]:
    """Lower peaks of less than an area to the height at which they reach it."""
    flat = level.reshape(-1)
    out = flat.copy()
    for k in range(order.size - 1, -1, -1):
        p = order[k]
        q = parent[p]
        if q != p and (flat[q] == flat[p] or sums[p, 0] < area_px):
            out[p] = out[q]
    return out.reshape(level.shape)


@kernel
def _select(level: NDArray[np.uint8], order: NDArray[np.int32], parent: NDArray[np.int32], worth: Plane) -> Labels:
    """Label the regions of the largest summed worth of which none contains another."""
    flat = level.reshape(-1)
    n = order.size
    inside = np.zeros(n, np.float32)
    for k in range(n):
        p = order[k]
        q = parent[p]
        if q != p and flat[q] == flat[p]:
            worth[p] = -1
        if q != p:
            inside[q] += max(worth[p], inside[p])
    labels = np.zeros(n, np.int32)
    count = 0
    for k in range(n - 1, -1, -1):
        p = order[k]
        q = parent[p]
        if q != p and labels[q] > 0:
            labels[p] = labels[q]
        elif worth[p] > 0 and worth[p] >= inside[p]:
            count += 1
            labels[p] = count
    return labels.reshape(level.shape)


@kernel
def _summits(labels: Labels, height: Plane, n: int) -> Plane:
    top = np.zeros(n + 1, np.float32)
    h, w = labels.shape
    for y in range(h):
        for x in range(w):
            top[labels[y, x]] = max(top[labels[y, x]], height[y, x])
    return top


@kernel
def _saddles(labels: Labels, height: Plane) -> tuple[NDArray[np.int32], NDArray[np.int32], Plane]:
    """Return pairs of labels at every edge between pixels of different ones, and the lower of the two heights."""
    h, w = labels.shape
    n = 0
    for y in range(h):
        for x in range(w):
            i = labels[y, x]
            n += int(i > 0 and x + 1 < w and labels[y, x + 1] > 0 and labels[y, x + 1] != i)
            n += int(i > 0 and y + 1 < h and labels[y + 1, x] > 0 and labels[y + 1, x] != i)
    low, high, saddle = np.empty(n, np.int32), np.empty(n, np.int32), np.empty(n, np.float32)
    n = 0
    for y in range(h):
        for x in range(w):
            i = labels[y, x]
            for e in range(2):
                yy, xx = y + e, x + 1 - e
                if i == 0 or yy >= h or xx >= w or labels[yy, xx] == 0 or labels[yy, xx] == i:
                    continue
                j = labels[yy, xx]
                low[n], high[n], saddle[n] = min(i, j), max(i, j), min(height[y, x], height[yy, xx])
                n += 1
    return low, high, saddle


@kernel
def _unite(
    low: NDArray[np.int32], high: NDArray[np.int32], saddle: Plane, top: Plane, relative: float, absolute: float
) -> NDArray[np.int64]:
    root = np.arange(top.size)
    for k in range(low.size):
        i, j = low[k], high[k]
        while root[i] != i:
            i = root[i]
        while root[j] != j:
            j = root[j]
        lower = min(top[i], top[j])
        if i != j and lower - saddle[k] < max(relative * lower, absolute):
            if top[i] >= top[j]:
                root[j] = i
            else:
                root[i] = j
    for i in range(root.size):
        k = i
        while root[k] != k:
            k = root[k]
        root[i] = k
    return root


@kernel
def _trace(labels: Labels, n: int, inset_px: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    h, w = labels.shape
    first = np.full(n + 1, -1, np.int64)
    room = 0
    for y in range(h):
        for x in range(w):
            i = labels[y, x]
            if i == 0:
                continue
            if first[i] < 0:
                first[i] = y * w + x
            room += int(y == 0 or labels[y - 1, x] != i) + int(y == h - 1 or labels[y + 1, x] != i)
            room += int(x == 0 or labels[y, x - 1] != i) + int(x == w - 1 or labels[y, x + 1] != i)
    xy = np.empty((room, 2), np.float64)
    begin = np.zeros(n + 1, np.int64)
    ring, soft = np.empty((room, 2), np.float64), np.empty((room, 2), np.float64)
    dy, dx = (0, 1, 0, -1), (1, 0, -1, 0)  # east, south, west, north
    m = 0
    for i in range(1, n + 1):
        begin[i - 1] = m
        if first[i] < 0:
            continue
        y, x, d, size = first[i] // w, first[i] % w, 0, 0
        top, left = y, x
        while True:  # corner to corner with the region on the right hand; midpoints of the edges are kept
            ring[size, 0], ring[size, 1] = x + 0.5 * dx[d], y + 0.5 * dy[d]
            size += 1
            y, x = y + dy[d], x + dx[d]
            # The two pixels ahead of the corner.
            if d == 0:
                ry, rx, ly, lx = y, x, y - 1, x
            elif d == 1:
                ry, rx, ly, lx = y, x - 1, y, x
            elif d == 2:
                ry, rx, ly, lx = y - 1, x - 1, y, x - 1
            else:
                ry, rx, ly, lx = y - 1, x, y - 1, x - 1
            right = 0 <= ry < h and 0 <= rx < w and labels[ry, rx] == i
            left_hand = 0 <= ly < h and 0 <= lx < w and labels[ly, lx] == i
            if not right:
                d = (d + 1) % 4
            elif left_hand:
                d = (d + 3) % 4
            if y == top and x == left and d == 0:
                break
        for _ in range(3):
            for k in range(size):
                a, b = ring[k - 1 if k else size - 1], ring[k + 1 if k + 1 < size else 0]
                soft[k, 0] = 0.25 * a[0] + 0.5 * ring[k, 0] + 0.25 * b[0]
                soft[k, 1] = 0.25 * a[1] + 0.5 * ring[k, 1] + 0.25 * b[1]
            ring[:size] = soft[:size]
        for k in range(0, size, 2 if size >= 12 else 1):
            a, b = ring[k - 1 if k else size - 1], ring[k + 1 if k + 1 < size else 0]
            along, down = b[0] - a[0], b[1] - a[1]
            step = inset_px / max(np.hypot(along, down), 1e-6)
            xy[m, 0], xy[m, 1] = ring[k, 0] - step * down, ring[k, 1] + step * along
            m += 1
    begin[n] = m
    return xy[:m], begin

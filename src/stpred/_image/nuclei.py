"""Nuclei from a plane of haematoxylin: threshold, splitting of touching nuclei, shape statistics. Arrays only."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from stpred._image._jit import kernel
from stpred._image.texture import Plane, gaussian

STAT_NAMES = (
    "area_px",
    "y_px",
    "x_px",
    "major_px",
    "minor_px",
    "angle_rad",
    "perimeter_px",
    "mean",
    "std",
    "hollowness",
)
"""Columns of `region_stats`."""

Labels = NDArray[np.int32]


@kernel
def otsu(image: Plane, low: float, high: float) -> float:
    """Return the threshold in [low, high] that parts two classes best, on 256 bins (Otsu 1979)."""
    n_bins = 256
    counts = np.zeros(n_bins, np.int64)
    scale = n_bins / (high - low)
    flat = image.ravel()
    for i in range(flat.size):
        counts[min(max(int((flat[i] - low) * scale), 0), n_bins - 1)] += 1
    total = 0.0
    for b in range(n_bins):
        total += b * counts[b]
    best, at, below, weight = -1.0, 0, 0.0, 0
    for b in range(n_bins - 1):
        weight += counts[b]
        below += b * counts[b]
        rest = flat.size - weight
        if weight == 0 or rest == 0:
            continue
        gap = below / weight - (total - below) / rest
        between = float(weight) * rest * gap * gap
        if between > best:
            best, at = between, b
    return low + (at + 1) / scale


@kernel
def climb(height: Plane, mask: NDArray[np.bool_]) -> Labels:
    """Label each masked pixel by the local maximum that steepest ascent over its 8 neighbours leads to.

    Equal heights are ordered by index, so that a plateau has one summit and no path is circular. Heights must not be
    negative. Returns int32 labels: 1..n in reading order of the summits, 0 outside the mask.
    """
    h, w = height.shape
    wide = w + 2
    # A frame of -1 around the mask spares the inner loop every question about borders.
    raised = np.full((h + 2) * wide, np.float32(-1))
    for y in range(h):
        for x in range(w):
            if mask[y, x]:
                raised[(y + 1) * wide + x + 1] = height[y, x]
    parent = np.full((h + 2) * wide, -1, np.int32)
    for y in range(1, h + 1):
        for i in range(y * wide + 1, y * wide + 1 + w):
            best, at = raised[i], i
            if best < 0:
                continue
            for j in (i - wide - 1, i - wide, i - wide + 1, i - 1):  # before it: only the strictly higher
                if raised[j] > best:
                    best, at = raised[j], j
            for j in (i + 1, i + wide - 1, i + wide, i + wide + 1):  # after it: the equal too
                if raised[j] >= best:
                    best, at = raised[j], j
            parent[i] = at
    labels = np.zeros((h + 2) * wide, np.int32)
    n = 0
    for i in range(parent.size):
        if parent[i] == i:
            n += 1
            labels[i] = n
    for i in range(parent.size):
        if parent[i] < 0:
            continue
        top = i
        while labels[top] == 0:
            top = parent[top]
        at = i
        while labels[at] == 0:
            labels[at] = labels[top]
            at = parent[at]
    return labels.reshape(h + 2, wide)[1:-1, 1:-1].copy()


@kernel
def region_stats(labels: Labels, intensity: Plane) -> NDArray[np.float64]:
    """Return one row per label 1..n with the columns `STAT_NAMES`: place, ellipse, outline and staining.

    Axes are full lengths of the ellipse of equal moments, 4 sqrt(eigenvalue of the covariance); the angle is that of
    the major axis against the x axis towards y, in (-pi/2, pi/2]. The perimeter counts pixel edges to anything else,
    times pi/4, which is right for a line of random direction. Hollowness is the mean squared distance from the centroid
    weighted by intensity over the unweighted one: 1 for an even filling, above 1 for a dark rim. Labels without pixels
    give zeros.
    """
    h, w = labels.shape
    n = 0
    for y in range(h):
        for x in range(w):
            n = max(n, labels[y, x])
    sums = np.zeros((n, 12), np.float64)
    for y in range(h):
        for x in range(w):
            label = labels[y, x]
            if label == 0:
                continue
            s = sums[label - 1]
            value = float(intensity[y, x])
            s[0] += 1
            s[1] += y
            s[2] += x
            s[3] += y * y
            s[4] += x * x
            s[5] += y * x
            s[6] += value
            s[7] += value * value
            s[8] += int(y == 0 or labels[y - 1, x] != label) + int(y == h - 1 or labels[y + 1, x] != label)
            s[8] += int(x == 0 or labels[y, x - 1] != label) + int(x == w - 1 or labels[y, x + 1] != label)
            s[9] += value * y
            s[10] += value * x
            s[11] += value * (y * y + x * x)
    out = np.zeros((n, 10), np.float64)
    for i in range(n):
        s, o = sums[i], out[i]
        area = s[0]
        if area == 0:
            continue
        cy, cx = s[1] / area, s[2] / area
        # A pixel is a square, not a point: its own variance is 1/12.
        vyy, vxx, vxy = s[3] / area - cy * cy + 1 / 12, s[4] / area - cx * cx + 1 / 12, s[5] / area - cy * cx
        half, spread = 0.5 * (vyy + vxx), math.sqrt((0.5 * (vyy - vxx)) ** 2 + vxy * vxy)
        mean = s[6] / area
        o[0], o[1], o[2] = area, cy, cx
        o[3], o[4] = 4 * math.sqrt(half + spread), 4 * math.sqrt(max(half - spread, 1 / 12))
        o[5] = 0.5 * math.atan2(2 * vxy, vxx - vyy)
        o[6] = s[8] * math.pi / 4
        o[7], o[8] = mean, math.sqrt(max(s[7] / area - mean * mean, 0.0))
        o[9] = 1.0
        if s[6] > 0:
            weighted = s[11] - 2 * (cy * s[9] + cx * s[10]) + (cy * cy + cx * cx) * s[6]
            o[9] = (weighted / s[6] + 1 / 6) / (vyy + vxx)
    return out


@kernel
def nearest_neighbours(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from each (n, 2) point to its nearest other; infinite for a single point."""
    n = points.shape[0]
    out = np.full(n, np.inf)
    for i in range(n):
        for j in range(i):
            d = math.hypot(points[i, 0] - points[j, 0], points[i, 1] - points[j, 1])
            out[i], out[j] = min(out[i], d), min(out[j], d)
    return out


def segment(
    haematoxylin: Plane,
    *,
    mpp: float,
    smooth_um: float = 0.6,
    split_um: float = 1.5,
    min_density: float = 0.12,
    min_area_um2: float = 8.0,
) -> tuple[Labels, float]:
    """Segment nuclei in a plane of haematoxylin.

    The plane is smoothed and thresholded at Otsu's level, but never below `min_density`, so that empty tissue has no
    nuclei. Touching nuclei are split where steepest ascent on a broader smoothing of the thresholded stain leads to
    different summits.

    Parameters
    ----------
    haematoxylin
        (h, w) float32 stain amounts in optical density.
    mpp
        Micrometres per pixel.
    smooth_um, split_um
        Standard deviation of the smoothing before the threshold and for the summits.
    min_density
        Least stain of a nucleus.
    min_area_um2
        Smaller regions are dropped.

    Returns
    -------
    int32 labels (h, w), 0 for background and 1..n for nuclei, and the threshold.
    """
    smooth = gaussian(haematoxylin, smooth_um / mpp)
    threshold = max(float(otsu(smooth, 0.0, 2.0)), min_density)
    mask = smooth > threshold
    # Stain above twice the threshold says little about shape: capped, the summits follow the outline too.
    height = gaussian(np.clip(smooth - np.float32(threshold), 0, np.float32(threshold)), split_um / mpp)
    return _keep_large(climb(height, mask), min_area_um2 / mpp**2), threshold


@kernel
def _keep_large(labels: Labels, min_area_px: float) -> Labels:
    """Drop regions below an area and number the others 1..n in order."""
    h, w = labels.shape
    n = 0
    for y in range(h):
        for x in range(w):
            n = max(n, labels[y, x])
    area = np.zeros(n + 1, np.int64)
    for y in range(h):
        for x in range(w):
            area[labels[y, x]] += 1
    new = np.zeros(n + 1, np.int32)
    kept = 0
    for i in range(1, n + 1):
        if area[i] >= min_area_px:
            kept += 1
            new[i] = kept
    out = np.empty((h, w), np.int32)
    for y in range(h):
        for x in range(w):
            out[y, x] = new[labels[y, x]]
    return out

"""Nuclei from a plane of haematoxylin: threshold, splitting of touching nuclei, shape statistics. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel
from stpred._image.texture import Plane, gaussian, histogram

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


def otsu(image: Plane, low: float, high: float) -> float:
    """Return the threshold in [low, high] that parts two classes best, on 256 bins (Otsu 1979)."""
    n_bins = 256
    counts = histogram(image, low, high, n_bins)
    below = np.cumsum(counts)[:-1]
    above = image.size - below
    level = np.cumsum(counts * np.arange(n_bins))
    gap = level[:-1] / np.maximum(below, 1) - (level[-1] - level[:-1]) / np.maximum(above, 1)
    between = below.astype(np.float64) * above * gap**2
    return low + (int(np.argmax(between)) + 1) * (high - low) / n_bins


def climb(height: Plane, mask: NDArray[np.bool_]) -> Labels:
    """Label each masked pixel by the local maximum that steepest ascent over its 8 neighbours leads to.

    Equal heights are ordered by index, so that a plateau has one summit and no path is circular. Heights must not be
    negative. Returns int32 labels: 1..n in reading order of the summits, 0 outside the mask.
    """
    h, w = height.shape
    # A frame of -1 around the mask spares the inner loop every question about borders.
    framed = np.full((h + 2, w + 2), -1, np.float32)
    framed[1:-1, 1:-1] = np.where(mask, height, np.float32(-1))
    labels = np.zeros((h + 2, w + 2), np.int32)
    _climb(framed.reshape(-1), w + 2, labels.reshape(-1))
    return np.ascontiguousarray(labels[1:-1, 1:-1])


def region_stats(labels: Labels, intensity: Plane) -> NDArray[np.float64]:
    """Return one row per label 1..n with the columns `STAT_NAMES`: place, ellipse, outline and staining.

    Axes are full lengths of the ellipse of equal moments, 4 sqrt(eigenvalue of the covariance); the angle is that of
    the major axis against the x axis towards y, in (-pi/2, pi/2]. The perimeter counts pixel edges to anything else,
    times pi/4, which is right for a line of random direction. Hollowness is the mean squared distance from the centroid
    weighted by (positive) intensity over the unweighted one: 1 for an even filling, above 1 for a dark rim. Labels
    without pixels give zeros.
    """
    n = int(labels.max(initial=0))
    area, y, x, yy, xx, yx, stain, squares, edges, weight, wy, wx, wr = _region_sums(labels, intensity, n).T
    some = np.maximum(area, 1)
    cy, cx = y / some, x / some
    # A pixel is a square, not a point: its own variance is 1/12.
    vyy, vxx, vyx = yy / some - cy**2 + 1 / 12, xx / some - cx**2 + 1 / 12, yx / some - cy * cx
    half, spread = (vyy + vxx) / 2, np.hypot((vyy - vxx) / 2, vyx)
    mean = stain / some
    weighted = wr - 2 * (cy * wy + cx * wx) + (cy**2 + cx**2) * weight
    columns = [
        area,
        cy,
        cx,
        4 * np.sqrt(half + spread),
        4 * np.sqrt(np.maximum(half - spread, 1 / 12)),
        np.arctan2(2 * vyx, vxx - vyy) / 2,
        edges * np.pi / 4,
        mean,
        np.sqrt(np.maximum(squares / some - mean**2, 0)),
        np.where(weight > 0, (weighted / np.where(weight > 0, weight, 1) + 1 / 6) / (vyy + vxx), 1),
    ]
    return np.column_stack(columns) * (area > 0)[:, None]


def nearest_neighbours(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance from each (n, 2) point to its nearest other; infinite for a single point."""
    from scipy.spatial import cKDTree

    if len(points) == 0:
        return np.zeros(0)
    return cKDTree(points).query(points, k=2)[0][:, 1]


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


def _keep_large(labels: Labels, min_area_px: float) -> Labels:
    """Drop regions below an area and number the others 1..n in order."""
    keep = np.bincount(labels.reshape(-1)) >= min_area_px
    keep[0] = False
    return np.where(keep, np.cumsum(keep), 0).astype(np.int32)[labels]


@kernel
def _climb(raised: Plane, wide: int, labels: Labels) -> None:
    parent = np.empty(raised.size, np.int32)
    n = 0
    for i in range(raised.size):
        best, at = raised[i], i
        parent[i] = -1
        if best < 0:
            continue
        for j in (i - wide - 1, i - wide, i - wide + 1, i - 1):  # before it: only the strictly higher
            if raised[j] > best:
                best, at = raised[j], j
        for j in (i + 1, i + wide - 1, i + wide, i + wide + 1):  # after it: the equal too
            if raised[j] >= best:
                best, at = raised[j], j
        parent[i] = at
        if at == i:
            n += 1
            labels[i] = n
    for i in range(raised.size):
        if parent[i] < 0:
            continue
        top = i
        while labels[top] == 0:
            top = parent[top]
        at = i
        while labels[at] == 0:
            labels[at] = labels[top]
            at = parent[at]


@kernel
def _region_sums(labels: Labels, intensity: Plane, n: int) -> NDArray[np.float64]:
    h, w = labels.shape
    sums = np.zeros((n, 13), np.float64)
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
            if value > 0:
                s[9] += value
                s[10] += value * y
                s[11] += value * x
                s[12] += value * (y * y + x * x)
    return sums

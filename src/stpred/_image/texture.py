"""Texture of one grey plane: Gaussian scale space, local binary patterns, structure tensor, distribution of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel

Plane = NDArray[np.float32]

N_LBP = 10
"""Codes of `lbp_histogram`: 0 to 8 ones on the circle with at most two changes, and 9 for all other patterns."""

_BITS = (np.arange(256)[:, None] >> np.arange(8)) & 1
_UNIFORM = (_BITS != np.roll(_BITS, 1, axis=1)).sum(1) <= 2
_LBP_CODES = np.where(_UNIFORM, _BITS.sum(1), N_LBP - 1).astype(np.int64)


def gaussian(image: Plane, sigma_px: float, *, truncate: float = 3.0) -> Plane:
    """Return a float32 plane blurred by a normalised Gaussian cut at `truncate` sigma; borders are mirrored."""
    if sigma_px <= 0:
        return image
    radius = min(max(1, math.ceil(truncate * sigma_px)), *image.shape)
    return _convolve(image, _half_gaussian(sigma_px, radius))


@lru_cache(maxsize=256)
def _half_gaussian(sigma_px: float, radius: int) -> Plane:
    """Return the weights from the centre outwards."""
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma_px) ** 2)
    return (weights / (2 * weights.sum() - 1)).astype(np.float32)


class ScaleSpace(NamedTuple):
    """Blurs of one plane, from fine to coarse; see `scale_space`."""

    fine: list[Plane]
    """K + 1 planes: the image itself, then every blur, halved as often as its width allows."""
    coarse: list[Plane]
    """K planes: every blur at the size of the plane in `fine` that it was made from."""
    steps: list[int]
    """K + 1 pixel distances of `fine`, in pixels of the image."""


def scale_space(image: Plane, sigmas_px: Sequence[float]) -> ScaleSpace:
    """Blur a plane by rising `sigmas_px`, each from the one before, halving once the blur is two pixels wide.

    At two pixels a Gaussian passes less than 1 % of what halving would fold back.
    """
    fine, coarse, steps = [image], [], [1]
    width_px = 0.0
    for sigma_px in sigmas_px:
        source, step = fine[-1], steps[-1]
        sigma_px = max(sigma_px, width_px)
        blurred = gaussian(source, math.sqrt(sigma_px**2 - width_px**2) / step)
        width_px = sigma_px
        coarse.append(blurred)
        small = width_px / step < 2 or min(blurred.shape) < 32
        fine.append(blurred if small else halve(blurred))
        steps.append(step if small else 2 * step)
    return ScaleSpace(fine, coarse, steps)


def halve(image: Plane) -> Plane:
    """Return every second pixel of every second row; blur first."""
    return np.ascontiguousarray(image[::2, ::2])


def lbp_histogram(image: Plane, radius_px: float, *, stride_px: int = 1, tolerance: float = 0.0) -> NDArray[np.float64]:
    """Return the share of each uniform rotation-invariant pattern of 8 neighbours.

    Local binary patterns of Ojala et al. 2002 (IEEE TPAMI 24:971).

    Parameters
    ----------
    image
        (h, w) float32 plane.
    radius_px
        Radius of the circle of neighbours; values between pixels are interpolated bilinearly.
    stride_px
        Only every `stride_px`-th row is read.
    tolerance
        A neighbour counts as one where it is no more than this below the centre; above 0, noise on flat ground is one
        pattern (all ones) and not all of them.

    Returns
    -------
    (10,) float64 shares that sum to one, of the pixels whose circle lies inside the image; zeros if there are none.
    """
    h, w = image.shape
    margin = math.ceil(radius_px)
    if min(h, w) <= 2 * margin:
        return np.zeros(N_LBP)
    whole, part = _circle(radius_px)
    counts = _lbp_counts(image, margin, stride_px, np.float32(tolerance), whole, part)
    shares = np.bincount(_LBP_CODES, weights=counts, minlength=N_LBP)
    return shares / shares.sum()


@lru_cache(maxsize=256)
def _circle(radius_px: float) -> tuple[NDArray[np.int64], Plane]:
    """Return (2, 8) rows and columns of the neighbours: whole pixels, and what is left to interpolate."""
    angle = 2 * np.pi * np.arange(8) / 8
    # Rounded, so that neighbours on the axes are exact pixels.
    offset = np.round([-radius_px * np.sin(angle), radius_px * np.cos(angle)], 5)
    whole = np.floor(offset)
    return whole.astype(np.int64), (offset - whole).astype(np.float32)


def block_tensor(image: Plane, n_blocks: int, *, margin: float = 0.0) -> NDArray[np.float64]:
    """Return the structure tensor summed over a grid of blocks: (n_blocks, n_blocks, 3) of gxx, gyy, gxy.

    Gradients are central differences; their products are divided by the number of pixels, so that the sum over the
    blocks is the mean over the image. The outermost pixels have no gradient (Bigun & Granlund 1987). `margin` is the
    share of rows and columns to leave out on every side.
    """
    rows, cols = (_block_bounds(n, n_blocks, margin) for n in image.shape)
    return _block_tensor(image, rows, cols) / max((rows[-1] - rows[0]) * (cols[-1] - cols[0]), 1)


@lru_cache(maxsize=256)
def _block_bounds(n: int, n_blocks: int, margin: float) -> NDArray[np.int64]:
    skip = int(n * margin)
    return np.clip(skip + np.arange(n_blocks + 1) * (n - 2 * skip) // n_blocks, 1, n - 1)


def coherence(tensor: NDArray[np.float64], *, floor: float) -> float:
    """Return how oriented block tensors are: the energy-weighted mean of (l1 - l2) / (l1 + l2) of their eigenvalues.

    Parameters
    ----------
    tensor
        (n, n, 3) sums of gxx, gyy and gxy from `block_tensor`.
    floor
        Energy that is added to the denominator, so that flat ground is not called oriented.

    Returns
    -------
    0 (no orientation) to 1 (parallel lines).
    """
    gxx, gyy, gxy = tensor[..., 0], tensor[..., 1], tensor[..., 2]
    return float(np.hypot(gxx - gyy, 2 * gxy).sum() / ((gxx + gyy).sum() + floor))


def pool(tensor: NDArray[np.float64], by: int) -> NDArray[np.float64]:
    """Return the (n, n, 3) block tensors summed over `by` x `by` blocks."""
    n = tensor.shape[0] // by
    return tensor[: n * by, : n * by].reshape(n, by, n, by, 3).sum((1, 3))


def distribution(image: Plane, low: float, high: float, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean, standard deviation, then the quantiles at `levels`, read off 1024 bins over [low, high]."""
    # Sums about a value of the image lose nothing where it is nearly constant.
    middle = image[image.shape[0] // 2, image.shape[1] // 2]
    m1, m2 = (_sums_about(image, middle) / image.size).tolist()
    moments = [float(middle) + m1, math.sqrt(max(m2 - m1 * m1, 0.0))]
    if len(levels) == 0:
        return np.array(moments)
    counts = histogram(image, low, high, 1024)
    reached = np.cumsum(counts)
    wanted = levels * image.size
    b = np.minimum(np.searchsorted(reached, wanted), 1023)
    part = (wanted - reached[b] + counts[b]) / np.maximum(counts[b], 1)
    return np.concatenate([moments, low + (b + np.clip(part, 0, 1)) * (high - low) / 1024])


def difference_moments(fine: Plane, coarse: Plane, *, margin: float = 0.0) -> tuple[float, float]:
    """Return the root mean square and the skewness of the band `fine` - `coarse` (0 where the band is empty).

    `margin` is the share of rows and columns to leave out on every side.
    """
    m1, m2, m3, _, _ = _difference_means(fine, coarse, fine, coarse, margin)
    variance = m2 - m1 * m1
    if variance <= 1e-8:  # below a tenth of a grey value there is nothing but rounding
        return math.sqrt(m2), 0.0
    return math.sqrt(m2), (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5


def difference_correlation(fine: Plane, coarse: Plane, other_fine: Plane, other_coarse: Plane, floor: float) -> float:
    """Return the correlation of two bands about zero; `floor` is added to each band's strength, against mere noise."""
    _, one, _, two, both = _difference_means(fine, coarse, other_fine, other_coarse, 0.0)
    return both / ((math.sqrt(one) + floor) * (math.sqrt(two) + floor))


def _difference_means(a: Plane, b: Plane, c: Plane, d: Plane, margin: float) -> list[float]:
    y, x = (int(n * margin) for n in a.shape)
    sums = _difference_sums(a, b, c, d, y, x)
    return (sums / ((a.shape[0] - 2 * y) * (a.shape[1] - 2 * x))).tolist()


def class_means(values: Plane, classes: NDArray[np.uint8], n_classes: int) -> NDArray[np.float64]:
    """Return (n_classes, 3): share, mean and standard deviation of `values` in each class; zeros for an empty one."""
    count, total, squares = _class_sums(values, classes, n_classes).T
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(squares / np.maximum(count, 1) - mean**2, 0))
    return np.column_stack([count / values.size, mean, spread])


@kernel
def _convolve(image: Plane, weights: Plane) -> Plane:
    """Convolve rows and columns with symmetric weights, given from the centre outwards."""
    h, w = image.shape
    radius = weights.size - 1
    out = np.empty((h, w), np.float32)
    row = np.empty(w + 2 * radius, np.float32)
    inner = row[radius : radius + w]
    for y in range(h):
        line = image[y]
        for x in range(w):
            inner[x] = weights[0] * line[x]
        for k in range(1, radius + 1):
            above, below = y - k, y + k
            line = image[above if above >= 0 else -above - 1]
            other = image[below if below < h else 2 * h - 1 - below]
            weight = weights[k]
            for x in range(w):
                inner[x] += weight * (line[x] + other[x])
        for k in range(radius):
            row[radius - 1 - k] = row[radius + k]
            row[radius + w + k] = row[radius + w - 1 - k]
        target = out[y]
        for x in range(w):
            target[x] = weights[0] * inner[x]
        for k in range(1, radius + 1):
            left, right = row[radius - k : radius - k + w], row[radius + k : radius + k + w]
            weight = weights[k]
            for x in range(w):
                target[x] += weight * (left[x] + right[x])
    return out


@kernel
def _lbp_counts(
    image: Plane,
    margin: int,
    stride_px: int,
    tolerance: np.float32,
    whole: NDArray[np.int64],
    part: Plane,
) -> NDArray[np.float64]:
    h, w = image.shape
    n = w - 2 * margin
    counts = np.zeros(256, np.float64)
    pattern = np.empty(n, np.uint8)
    for y in range(margin, h - margin, stride_px):
        for x in range(n):
            pattern[x] = 0
        centre = image[y, margin : margin + n]
        for k in range(8):
            top, left = y + whole[0, k], margin + whole[1, k]
            wy, wx = part[0, k], part[1, k]
            down, right = top + int(wy > 0), left + int(wx > 0)
            a, b = image[top, left : left + n], image[top, right : right + n]
            c, d = image[down, left : left + n], image[down, right : right + n]
            bit = np.uint8(1 << k)
            for x in range(n):
                above = a[x] + wx * (b[x] - a[x])
                below = c[x] + wx * (d[x] - c[x])
                value = above + wy * (below - above)
                pattern[x] |= bit * np.uint8(value >= centre[x] - tolerance)
        for x in range(n):
            counts[pattern[x]] += 1
    return counts


@kernel
def _block_tensor(image: Plane, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.float64]:
    sums = np.zeros((rows.size - 1, cols.size - 1, 3), np.float64)
    for by in range(rows.size - 1):
        for y in range(rows[by], rows[by + 1]):
            above, line, below = image[y - 1], image[y], image[y + 1]
            for bx in range(cols.size - 1):
                gxx, gyy, gxy = 0.0, 0.0, 0.0
                for x in range(cols[bx], cols[bx + 1]):
                    gx = 0.5 * (line[x + 1] - line[x - 1])
                    gy = 0.5 * (below[x] - above[x])
                    gxx += gx * gx
                    gyy += gy * gy
                    gxy += gx * gy
                sums[by, bx, 0] += gxx
                sums[by, bx, 1] += gyy
                sums[by, bx, 2] += gxy
    return sums


@kernel
def histogram(image: Plane, low: float, high: float, n_bins: int) -> NDArray[np.int64]:
    """Return the counts of `n_bins` equal bins over [low, high]; values beyond fall into the outermost."""
    h, w = image.shape
    counts = np.zeros(n_bins, np.int64)
    start, scale = np.float32(low), np.float32(n_bins / (high - low))
    for y in range(h):
        line = image[y]
        for x in range(w):
            b = int((line[x] - start) * scale)
            counts[0 if b < 0 else b if b < n_bins else n_bins - 1] += 1
    return counts


@kernel
def _sums_about(image: Plane, origin: np.float32) -> NDArray[np.float64]:
    h, w = image.shape
    lanes = np.zeros((2, w), np.float32)  # one per column, so that the compiler can use vector registers
    first, second = lanes[0], lanes[1]
    for y in range(h):
        line = image[y]
        for x in range(w):
            d = line[x] - origin
            first[x] += d
            second[x] += d * d
    sums = np.zeros(2, np.float64)
    for k in range(2):
        for x in range(w):
            sums[k] += lanes[k, x]
    return sums


@kernel
def _difference_sums(a: Plane, b: Plane, c: Plane, d: Plane, skip_y: int, skip_x: int) -> NDArray[np.float64]:
    """Return the sums of p, p^2, p^3, q^2 and p q, with p = a - b and q = c - d."""
    h = a.shape[0]
    w = a.shape[1] - 2 * skip_x
    lanes = np.zeros((5, w), np.float32)
    first, second, third, other, both = lanes[0], lanes[1], lanes[2], lanes[3], lanes[4]
    for y in range(skip_y, h - skip_y):
        aa, bb, cc, dd = a[y, skip_x:], b[y, skip_x:], c[y, skip_x:], d[y, skip_x:]
        for x in range(w):
            p = aa[x] - bb[x]
            q = cc[x] - dd[x]
            square = p * p
            first[x] += p
            second[x] += square
            third[x] += square * p
            other[x] += q * q
            both[x] += p * q
    sums = np.zeros(5, np.float64)
    for k in range(5):
        for x in range(w):
            sums[k] += lanes[k, x]
    return sums


@kernel
def _class_sums(values: Plane, classes: NDArray[np.uint8], n_classes: int) -> NDArray[np.float64]:
    h, w = values.shape
    sums = np.zeros((n_classes, 3), np.float64)
    for y in range(h):
        for x in range(w):
            k = classes[y, x]
            value = float(values[y, x])
            sums[k, 0] += 1
            sums[k, 1] += value
            sums[k, 2] += value * value
    return sums

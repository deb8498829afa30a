"""Texture of one grey plane: Gaussian scale space, local binary patterns, structure tensor, distribution of values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stpred._image._jit import kernel

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
    weights = np.exp(-0.5 * (np.arange(radius + 1) / sigma_px) ** 2)
    return _convolve(image, (weights / (2 * weights.sum() - 1)).astype(np.float32))


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
    return _lbp_histogram(image, float(radius_px), stride_px, np.float32(tolerance), _LBP_CODES)


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
def _lbp_histogram(
    image: Plane, radius_px: float, stride_px: int, tolerance: np.float32, codes: NDArray[np.int64]
) -> NDArray[np.float64]:
    h, w = image.shape
    margin = int(math.ceil(radius_px))
    n = w - 2 * margin
    counts = np.zeros(10, np.float64)
    if n <= 0 or h - 2 * margin <= 0:
        return counts
    pattern = np.empty(n, np.uint8)
    rows = 0
    for y in range(margin, h - margin, stride_px):
        pattern[:] = 0
        centre = image[y, margin : margin + n]
        for k in range(8):
            # Rounded, so that neighbours on the axes are exact pixels.
            oy = -round(radius_px * math.sin(2 * math.pi * k / 8), 5)
            ox = round(radius_px * math.cos(2 * math.pi * k / 8), 5)
            top, left = y + int(math.floor(oy)), margin + int(math.floor(ox))
            wy, wx = np.float32(oy - math.floor(oy)), np.float32(ox - math.floor(ox))
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
            counts[codes[pattern[x]]] += 1
        rows += 1
    return counts / (rows * n)


@kernel
def block_tensor(image: Plane, n_blocks: int) -> NDArray[np.float64]:
    """Return the structure tensor summed over a grid of blocks: (n_blocks, n_blocks, 3) of gxx, gyy, gxy.

    Gradients are central differences; their products are divided by the number of pixels, so that the sum over the
    blocks is the mean over the image. The outermost pixels have no gradient (Bigun & Granlund 1987).
    """
    h, w = image.shape
    sums = np.zeros((n_blocks, n_blocks, 3), np.float64)
    for by in range(n_blocks):
        for y in range(max(by * h // n_blocks, 1), min((by + 1) * h // n_blocks, h - 1)):
            above, line, below = image[y - 1], image[y], image[y + 1]
            for bx in range(n_blocks):
                gxx, gyy, gxy = 0.0, 0.0, 0.0
                for x in range(max(bx * w // n_blocks, 1), min((bx + 1) * w // n_blocks, w - 1)):
                    gx = 0.5 * (line[x + 1] - line[x - 1])
                    gy = 0.5 * (below[x] - above[x])
                    gxx += gx * gx
                    gyy += gy * gy
                    gxy += gx * gy
                sums[by, bx, 0] += gxx
                sums[by, bx, 1] += gyy
                sums[by, bx, 2] += gxy
    return sums / max((h - 2) * (w - 2), 1)


@kernel
def distribution(image: Plane, low: float, high: float, levels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return mean, standard deviation, then the quantiles at rising `levels`, read off 1024 bins over [low, high]."""
    n_bins = 1024
    h, w = image.shape
    n = h * w
    counts = np.zeros(n_bins, np.int64)
    first, second = np.zeros(w, np.float32), np.zeros(w, np.float32)  # a lane per column: see difference_moments
    middle = image[h // 2, w // 2]  # sums about a value of the image lose nothing where it is nearly constant
    scale = np.float32(n_bins / (high - low))
    start = np.float32(low)
    for y in range(h):
        line = image[y]
        for x in range(w):
            d = line[x] - middle
            first[x] += d
            second[x] += d * d
        if levels.size > 0:
            for x in range(w):
                counts[min(max(int((line[x] - start) * scale), 0), n_bins - 1)] += 1
    m1, m2 = 0.0, 0.0
    for x in range(w):
        m1 += first[x]
        m2 += second[x]
    m1, m2 = m1 / n, m2 / n
    out = np.empty(2 + levels.size, np.float64)
    out[0] = middle + m1
    out[1] = math.sqrt(max(m2 - m1 * m1, 0.0))
    seen, b = 0, 0
    for j in range(levels.size):
        wanted = levels[j] * n
        while b < n_bins - 1 and seen + counts[b] < wanted:
            seen += counts[b]
            b += 1
        inside = (wanted - seen) / counts[b] if counts[b] > 0 else 0.0
        out[2 + j] = low + (b + min(max(inside, 0.0), 1.0)) / scale
    return out


@kernel
def difference_moments(fine: Plane, coarse: Plane) -> tuple[float, float]:
    """Return the root mean square and the skewness of the band `fine` - `coarse` (0 where the band is empty)."""
    h, w = fine.shape
    sums = np.zeros((3, w), np.float32)  # a lane per column lets the compiler use vector registers
    first, second, third = sums[0], sums[1], sums[2]
    for y in range(h):
        above, below = fine[y], coarse[y]
        for x in range(w):
            d = above[x] - below[x]
            square = d * d
            first[x] += d
            second[x] += square
            third[x] += square * d
    m1, m2, m3 = 0.0, 0.0, 0.0
    for x in range(w):
        m1 += first[x]
        m2 += second[x]
        m3 += third[x]
    m1, m2, m3 = m1 / (h * w), m2 / (h * w), m3 / (h * w)
    variance = m2 - m1 * m1
    if variance <= 1e-8:  # below a tenth of a grey value there is nothing but rounding
        return math.sqrt(max(m2, 0.0)), 0.0
    return math.sqrt(m2), (m3 - 3 * m1 * m2 + 2 * m1**3) / variance**1.5


@kernel
def difference_correlation(fine: Plane, coarse: Plane, other_fine: Plane, other_coarse: Plane, floor: float) -> float:
    """Return the correlation of two bands about zero; `floor` is added to each band's strength, against mere noise."""
    h, w = fine.shape
    sums = np.zeros((3, w), np.float32)
    both, one, two = sums[0], sums[1], sums[2]
    for y in range(h):
        a, b, c, d = fine[y], coarse[y], other_fine[y], other_coarse[y]
        for x in range(w):
            p = a[x] - b[x]
            q = c[x] - d[x]
            both[x] += p * q
            one[x] += p * p
            two[x] += q * q
    product, first, second = 0.0, 0.0, 0.0
    for x in range(w):
        product += both[x]
        first += one[x]
        second += two[x]
    n = h * w
    return product / n / ((math.sqrt(first / n) + floor) * (math.sqrt(second / n) + floor))


@kernel
def class_means(values: Plane, classes: NDArray[np.uint8], n_classes: int) -> NDArray[np.float64]:
    """Return (n_classes, 3): share, mean and standard deviation of `values` in each class; zeros for an empty one."""
    out = np.zeros((n_classes, 3), np.float64)
    v, c = values.ravel(), classes.ravel()
    for i in range(v.size):
        row = out[c[i]]
        value = float(v[i])
        row[0] += 1
        row[1] += value
        row[2] += value * value
    for k in range(n_classes):
        count = out[k, 0]
        if count > 0:
            out[k, 0] = count / v.size
            out[k, 1] /= count
            out[k, 2] = math.sqrt(max(out[k, 2] / count - out[k, 1] ** 2, 0.0))
    return out

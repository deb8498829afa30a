"""The loops over pixels of `stpred._image.segment`: the component tree of a field, and what is done to label images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel
from stpred._image.nuclei import Labels
from stpred._image.texture import Plane


@kernel
def component_tree(
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
def opened(
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
def select(level: NDArray[np.uint8], order: NDArray[np.int32], parent: NDArray[np.int32], worth: Plane) -> Labels:
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
def label_sums(labels: Labels, plane: Plane, n: int) -> NDArray[np.float64]:
    """Return for each label 1..n the eight sums of `component_tree`."""
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
def grow(labels: Labels) -> Labels:
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
def depth(inside: NDArray[np.bool_], most: int) -> Plane:
    """Return the distance of every pixel to the nearest outside, which goes on beyond the field; at most `most`.

    SciPy's exact transform takes ten times as long, which is a third of the whole segmentation.
    """
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
def summits(labels: Labels, height: Plane, n: int) -> Plane:
    top = np.zeros(n + 1, np.float32)
    h, w = labels.shape
    for y in range(h):
        for x in range(w):
            top[labels[y, x]] = max(top[labels[y, x]], height[y, x])
    return top


@kernel
def saddles(labels: Labels, height: Plane) -> tuple[NDArray[np.int32], NDArray[np.int32], Plane]:
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
def unite(
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

"""What the morphology encoder measures on a regular grid inside a tile: the same planes, pooled over small windows."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._image.nuclei import region_stats, segment
from stpred._image.stain import optical_density, unmix
from stpred._image.texture import block_tensor, gaussian, scale_space
from stpred.encoders._built_in.morphology_features import (
    _AREAS_UM2,
    _CHROMATIN_UM,
    _EMPTY_DENSITY,
    _FLOOR,
    _ROUND,
    _SIZES,
)

Planes = NDArray[np.float64]

WINDOWS_UM = (0.0, 8.0)
"""Standard deviations of the windows around each patch; 0 is the patch alone."""

_BANDS_UM = (0.5, 1.0, 2.0, 4.0)
_EDGES_UM = (1.0, 2.0)
_KINDS = tuple(f"{shape}_{size}" for shape in ("round", "long") for size in _SIZES)
_SHAPES = ("log_area", "elongation", "staining", "contrast", "hollowness", "roughness")
_ORDINARY = (math.log(40), 0.4, 0.5, 0.1, 1.0, 0.1)
_PLACES = ("nuclear", "perinuclear", "stromal")
_STAINS = ("haematoxylin", "eosin")
_RARE = 0.05  # share of a window below which a compartment is described as an ordinary one


def dense_names() -> tuple[str, ...]:
    """Return the name of every number of a patch, in the order of `describe_patches`."""
    one = [
        *(f"{c}_mean" for c in (*_STAINS, "residual", "red", "green", "blue")),
        *(f"{s}_std" for s in _STAINS),
        *(f"{s}_band_{b:g}um_strength" for s in _STAINS for b in _BANDS_UM),
        *(f"{s}_edges_{e:g}um_{m}" for s in _STAINS for e in _EDGES_UM for m in ("energy", "coherence")),
        *(f"{p}_share" for p in ("empty", *_PLACES)),
        *(f"{p}_{s}_mean" for p in _PLACES for s in _STAINS),
        *(f"chromatin_texture_{b:g}um" for b in _CHROMATIN_UM),
        "nuclei_number",
        *(f"nuclei_{k}" for k in _KINDS),
        *(f"nuclei_{s}_mean" for s in _SHAPES),
        "nuclei_alignment",
    ]
    return tuple(f"{w}_{n}" for w in ("own", *(f"within_{2 * s:g}um" for s in WINDOWS_UM[1:])) for n in one)


def describe_patches(tile: NDArray[np.uint8], *, mpp: float, n: int) -> NDArray[np.float64]:
    """Return the (n, n, width) numbers of the patches of one (h, w, 3) uint8 tile, in the order of `dense_names`."""
    planes = _planes(tile, mpp=mpp, n=n)
    step_um = tile.shape[0] * mpp / n
    return np.concatenate([_derived(_windowed(planes, sigma / step_um), mpp=mpp) for sigma in WINDOWS_UM], axis=-1)


def _planes(tile: NDArray[np.uint8], *, mpp: float, n: int) -> Planes:
    """Return the (n, n, k) means over patches of everything that can be averaged."""
    channels = optical_density(tile)
    stains = unmix(channels)
    density = channels.mean(axis=0)
    spaces = [scale_space(p, [s / mpp for s in _BANDS_UM]) for p in stains[:2]]
    labels, _ = segment(stains[0], mpp=mpp)
    nuclear = labels > 0
    near = gaussian(nuclear.astype(np.float32), 1.5 / mpp) > 0.05
    empty = gaussian(density, 0.5 / mpp) < _EMPTY_DENSITY
    perinuclear = near & ~nuclear & ~empty
    places = [nuclear, perinuclear, ~(nuclear | perinuclear | empty)]
    bands = [[np.square(f - c) for f, c in zip(s.fine, s.coarse, strict=False)] for s in spaces]
    out = [block_means(p, n) for p in (*stains, *channels)]
    out += [block_means(np.square(p), n) for p in stains[:2]]
    out += [block_means(b, n) for of_stain in bands for b in of_stain]
    for space in spaces:
        for edge in _EDGES_UM:
            k = _BANDS_UM.index(edge) + 1
            tensor = block_tensor(space.fine[k], n) * (n / (space.steps[k] * mpp)) ** 2
            out += list(np.moveaxis(tensor, -1, 0))
    out += [block_means(p.astype(np.float32), n) for p in (empty & ~nuclear, *places)]
    out += [block_means(p * s, n) for p in places for s in stains[:2]]
    for k in range(len(_CHROMATIN_UM)):
        step = spaces[0].steps[k]
        out.append(block_means(bands[0][k] * nuclear[::step, ::step], n))
    out += [block_means(p, n) for p in _painted(labels, stains[0], mpp=mpp)]
    return np.stack(out, axis=-1)


def _painted(labels: NDArray[np.int32], haematoxylin: NDArray[np.float32], *, mpp: float) -> NDArray[Any]:
    """Return values of each nucleus on its pixels: number per pixel, number by kind, shape, direction."""
    stats = region_stats(labels, haematoxylin)
    area, _, _, major, minor, angle, perimeter, staining, contrast, hollowness = stats.T
    area = np.maximum(area, 1)
    elongation = np.log(np.maximum(major, 1e-6) / np.maximum(minor, 1e-6))
    roughness = np.log(np.maximum(perimeter, 1e-6) ** 2 / (4 * math.pi * area))
    kind = np.searchsorted(_AREAS_UM2, area * mpp**2, side="right") + len(_SIZES) * (elongation > _ROUND)
    of = np.column_stack(
        [
            1 / area,
            (np.arange(len(_KINDS)) == kind[:, None]) / area[:, None],
            np.log(area * mpp**2),
            elongation,
            staining,
            contrast,
            hollowness,
            roughness,
            elongation * np.cos(2 * angle),
            elongation * np.sin(2 * angle),
        ]
    )
    table = np.concatenate([np.zeros((1, of.shape[1])), of]).astype(np.float32)
    return np.moveaxis(table[labels], -1, 0)


def block_means(plane: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    """Return the (n, n) means of a plane over a grid of blocks."""
    rows, cols = (_shares(size, n) for size in plane.shape)
    return (rows @ plane @ cols.T).astype(np.float64)


@lru_cache(maxsize=64)
def _shares(size: int, n: int) -> NDArray[np.float32]:
    """Return (n, size) weights of the pixels along one axis in each of n blocks."""
    of = np.arange(size) * n // size
    member = (np.arange(n)[:, None] == of).astype(np.float32)
    return member / member.sum(axis=1, keepdims=True)


@lru_cache(maxsize=64)
def _weights(n: int, sigma: float) -> NDArray[np.float64]:
    """Return (n, n) weights of a Gaussian window along one axis, which ends at the border of the tile."""
    apart = np.arange(n)[:, None] - np.arange(n)
    weights = np.exp(-0.5 * (apart / sigma) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _windowed(planes: Planes, sigma: float) -> Planes:
    if sigma == 0:
        return planes
    weights = _weights(planes.shape[0], sigma)
    return np.einsum("ia,jb,abk->ijk", weights, weights, planes, optimize=True)


def _derived(planes: Planes, *, mpp: float) -> Planes:
    """Return the numbers of each window from its averages."""
    at = 0

    def take(count: int) -> Planes:
        nonlocal at
        at += count
        return planes[..., at - count : at]

    means, squares = take(6), take(2)
    out = [means, np.sqrt(np.maximum(squares - means[..., :2] ** 2, 0))]
    out.append(0.5 * np.log(take(2 * len(_BANDS_UM)) + _FLOOR**2))
    for _ in range(2 * len(_EDGES_UM)):
        gxx, gyy, gxy = np.moveaxis(take(3), -1, 0)
        energy = gxx + gyy + _FLOOR**2
        out.append(np.stack([0.5 * np.log(energy), np.hypot(gxx - gyy, 2 * gxy) / energy], axis=-1))
    shares = take(1 + len(_PLACES))
    out.append(shares)
    stained = take(2 * len(_PLACES)).reshape(*planes.shape[:2], len(_PLACES), 2)
    inside = shares[..., 1:, None]
    out.append(((stained + _RARE * means[..., None, :2]) / (inside + _RARE)).reshape(*planes.shape[:2], -1))
    nuclear = shares[..., 1:2]
    out.append(0.5 * np.log((take(len(_CHROMATIN_UM)) + _FLOOR**2) / (nuclear + _RARE)))
    out.append(np.sqrt(take(1 + len(_KINDS)) / mpp**2 * 1e4))
    ordinary = np.array(_ORDINARY)
    out.append((take(len(_SHAPES)) + _RARE * ordinary) / (nuclear + _RARE))
    turn = take(2)
    out.append(np.hypot(turn[..., :1], turn[..., 1:]) / (nuclear + _RARE))
    return np.concatenate(out, axis=-1)

"""How sharp a field is, and where tissue is folded. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._image.stain import optical_density, unmix
from stpred._image.texture import gaussian

SHARPNESS_MPP = 1.0
"""Micrometres per pixel of the fields that `sharpness` takes."""

_FINE_UM, _COARSE_UM, _BROAD_UM = 1.0, 2.5, 6.0
_MIN_TEXTURE = 0.01
"""Standard deviation of optical density between the two coarse scales below which a field has nothing to be sharp."""

_FOLD_RATIO, _FOLD_UM, _AROUND_UM = 1.6, 24.0, 600.0
_MIN_STAIN = 0.03


def sharpness(rgb: NDArray[np.uint8], *, mpp: float = SHARPNESS_MPP) -> float:
    """Return how much of a field's detail is finer than a micrometre, relative to detail of a few micrometres.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8 pixels, in or out of focus.
    mpp
        Micrometres per pixel, about 1.

    Returns
    -------
    Ratio of the standard deviations of optical density in the two bands, 0.3 to 1 in focus, and the lower the more it
    is blurred; NaN for a field without texture.
    """
    density = optical_density(rgb).mean(axis=0)
    fine = density - gaussian(density, _FINE_UM / mpp)
    coarse = gaussian(density, _COARSE_UM / mpp) - gaussian(density, _BROAD_UM / mpp)
    spread = float(coarse.std())
    return float(fine.std()) / spread if spread > _MIN_TEXTURE else float("nan")


def folds(thumbnail: NDArray[np.uint8], tissue: NDArray[np.bool_], *, mpp: float) -> NDArray[np.bool_]:
    """Return where tissue lies twice: both stains are far above what they are around.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB of some micrometres per pixel.
    tissue
        (h, w) where it shows tissue.
    mpp
        Micrometres per pixel.

    Returns
    -------
    (h, w) bool. Dense groups of nuclei are dark by haematoxylin alone, muscle and erythrocytes by eosin alone; a fold
    has more of both.
    """
    if not tissue.any():
        return np.zeros_like(tissue)
    stains = unmix(optical_density(thumbnail))[:2]
    inside = tissue.astype(np.float32)
    around = np.maximum(gaussian(inside, _AROUND_UM / mpp), 1e-3)
    found = tissue.copy()
    for plane in stains:
        near = gaussian(np.ascontiguousarray(plane * inside), _FOLD_UM / 3 / mpp)
        near /= np.maximum(gaussian(inside, _FOLD_UM / 3 / mpp), np.float32(1e-3))
        usual = np.maximum(gaussian(np.ascontiguousarray(plane * inside), _AROUND_UM / mpp) / around, _MIN_STAIN)
        found &= near > _FOLD_RATIO * usual
    return _of_size(found, _FOLD_UM**2 * 4 / mpp**2)


def _of_size(mask: NDArray[np.bool_], least_px: float) -> NDArray[np.bool_]:
    from scipy.ndimage import label

    labels, _ = label(mask)
    keep = np.bincount(labels.reshape(-1)) >= least_px
    keep[0] = False
    return np.asarray(keep[labels], dtype=bool)


def window_share(mask: NDArray[np.bool_], xy_px: NDArray[np.float64], *, size_px: float) -> NDArray[np.float64]:
    """Return (n,) the share of set pixels in a square about each (n, 2) point; what is off the image counts as unset.

    `size_px`: edge of the square, at least one pixel.
    """
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    half = max(size_px, 1.0) / 2
    low = np.round(xy_px - half).astype(np.int64)
    high = np.maximum(np.round(xy_px + half).astype(np.int64), low + 1)
    area = np.prod(high - low, axis=1)
    (x0, y0), (x1, y1) = (np.clip(p, 0, [mask.shape[1], mask.shape[0]]).T for p in (low, high))
    return (sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]) / area

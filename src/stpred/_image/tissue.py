"""Telling tissue from glass on a thumbnail."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Optical density of empty glass stays below the lower, that of stained tissue reaches the upper bound.
_GLASS_OD, _TISSUE_OD = 0.04, 0.12


def tissue_mask(
    thumbnail: NDArray[np.uint8], *, mpp: float, min_area_um2: float = 20_000.0, min_hole_um2: float = 20_000.0
) -> NDArray[np.bool_]:
    """Return where an H&E thumbnail shows tissue.

    Parameters
    ----------
    thumbnail
        (h, w, 3) uint8 RGB.
    mpp
        Micrometres per pixel of the thumbnail, 4 to 32 work well.
    min_area_um2, min_hole_um2
        Smaller pieces are dropped and smaller holes are filled.

    Returns
    -------
    (h, w) bool.

    Notes
    -----
    Optical density against the slide's own glass, smoothed over 10 um, cut at Otsu's threshold within physical bounds:
    a field full of tissue stays whole and an empty one stays empty.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    gray = thumbnail.astype(np.float32).mean(axis=2)
    glass = max(float(np.quantile(gray, 0.995)), 215.0)
    density = gaussian_filter(-np.log10((gray + 1) / (glass + 1)), 10.0 / mpp)
    flat = float(np.ptp(density)) < 1e-6
    cut = _TISSUE_OD if flat else float(np.clip(threshold_otsu(density), _GLASS_OD, _TISSUE_OD))
    mask = density > cut
    mask = _without_small(mask, min_px=min_area_um2 / mpp**2)
    return ~_without_small(~mask, min_px=min_hole_um2 / mpp**2)


def _without_small(mask: NDArray[np.bool_], *, min_px: float) -> NDArray[np.bool_]:
    """Drop connected pieces of fewer than `min_px` pixels."""
    from scipy.ndimage import label

    pieces, _ = label(mask)
    kept = np.bincount(pieces.ravel()) >= min_px
    kept[0] = False
    return np.asarray(kept[pieces], dtype=bool)

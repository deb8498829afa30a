"""Ground and nuclei of a slide in each colour, by which any stain looks alike to the network. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._image.tissue import white_level

_SMOOTH_PX = 1.0
_MAX_DENSITY, _MIN_THRESHOLD = 1.5, 0.06
_MIN_GAP = (0.10, 0.08, 0.05)
"""Least difference in optical density between ground and nuclei that counts as one, of red, green and blue."""
_FEW_PX = 20
_LOW, _HIGH = -2.0, 4.0


@dataclass(frozen=True)
class Levels:
    """What is measured once per slide.

    Attributes
    ----------
    white
        Grey values of red, green and blue where there is no tissue.
    ground, nuclei
        Mean optical density of each colour below and above the threshold on the density of red (Otsu's), which eosin
        hardly absorbs.
    """

    white: tuple[float, float, float]
    ground: tuple[float, float, float]
    nuclei: tuple[float, float, float]


def measure_levels(
    fields: Sequence[NDArray[np.uint8]], visible: Sequence[NDArray[np.bool_] | None] | None = None
) -> Levels:
    """Measure a slide on (h, w, 3) uint8 fields of its tissue, at 0.5 um per pixel.

    `visible`: (h, w) which pixels of each field are tissue or glass, neither fill nor pen; None: all.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.filters import threshold_otsu

    parts = [None] * len(fields) if visible is None else visible
    white = white_level(fields, visible)
    densities, smooth = [], []
    for field, part in zip(fields, parts, strict=True):
        density = _density(field, white)
        red = density[..., 0]
        if part is not None and part.any():  # what is no tissue must not seep in
            red = np.where(part, red, np.median(red[part]))
        blurred = gaussian_filter(red, _SMOOTH_PX)
        densities.append(density.reshape(-1, 3) if part is None else density[part])
        smooth.append(blurred.reshape(-1) if part is None else blurred[part])
    density, sample = np.concatenate(densities), np.concatenate(smooth).clip(0, _MAX_DENSITY)
    threshold = max(float(threshold_otsu(sample)) if np.ptp(sample) > 0 else 0.0, _MIN_THRESHOLD)
    dark = density[:, 0] > threshold
    if min(dark.sum(), (~dark).sum()) < _FEW_PX:
        ground, nuclei = np.quantile(density, [0.3, 0.95], axis=0).tolist()
    else:
        ground, nuclei = density[~dark].mean(axis=0).tolist(), density[dark].mean(axis=0).tolist()
    return Levels(white, tuple(ground), tuple(nuclei))


def normalised(rgb: NDArray[np.uint8], levels: Levels) -> NDArray[np.float32]:
    """Return (h, w, 3) float32 densities of a field: 0 as the slide's ground, 1 as its nuclei, in each colour."""
    ground = np.asarray(levels.ground, dtype=np.float32)
    gap = np.maximum(np.asarray(levels.nuclei) - levels.ground, _MIN_GAP).astype(np.float32)
    return np.clip((_density(rgb, levels.white) - ground) / gap, _LOW, _HIGH)


def _density(rgb: NDArray[np.uint8], white: tuple[float, float, float]) -> NDArray[np.float32]:
    grey = np.arange(1, 257, dtype=np.float32)  # of a pixel, plus one
    table = np.stack([np.log10((w + 1) / grey) for w in white]).astype(np.float32)
    return np.stack([table[c][rgb[..., c]] for c in range(3)], axis=-1)

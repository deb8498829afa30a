"""From stain to colour: Beer-Lambert absorption with a slide's own stain vectors, then a scanner's own response."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
EOSIN = np.array([0.07, 0.99, 0.11])
"""Stain vectors (red, green, blue) of Ruifrok & Johnston 2001, Anal. Quant. Cytol. Histol. 23:291."""
HAEMATOXYLIN_STRENGTH = 1.35
STRIP_PX = 128


def scan(
    haematoxylin: NDArray[np.float32], eosin: NDArray[np.float32], *, mpp: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return the uint8 RGB image (rows, columns, 3) that a scanner makes of two (rows, columns) stain maps.

    Stain vectors, white point, gamma, sharpness and noise are drawn from `rng`, so each slide has its own.
    """
    from scipy.ndimage import gaussian_filter

    vectors = [np.clip(v + rng.normal(0, 0.035, 3), 0.02, None) for v in (HAEMATOXYLIN, EOSIN)]
    h, e = (v / np.linalg.norm(v) for v in vectors)
    white, gamma = rng.uniform(234, 248, 3), rng.normal(1.0, 0.05)
    absorb_h, absorb_e = (np.float32(-gamma) * v.astype(np.float32) for v in (HAEMATOXYLIN_STRENGTH * h, e))
    blur_px, noise = rng.uniform(0.20, 0.32) / mpp, rng.uniform(1.2, 2.4)
    image = np.empty((*haematoxylin.shape, 3), dtype=np.uint8)
    halo = int(np.ceil(3 * blur_px))
    for top in range(0, len(image), STRIP_PX):
        # Strip by strip, everything stays in the processor's cache.
        rows = slice(max(0, top - halo), top + STRIP_PX + halo)
        out = image[top : top + STRIP_PX]
        for c in range(3):
            light = np.exp(absorb_h[c] * haematoxylin[rows] + absorb_e[c] * eosin[rows])
            light = gaussian_filter(light, blur_px, radius=halo)[top - rows.start :][: len(out)]
            light *= np.float32(white[c])
            light += np.float32(noise) * rng.standard_normal(light.shape, dtype=np.float32)
            out[..., c] = np.clip(np.rint(light, out=light), 0, 255)
    return image

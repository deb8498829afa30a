"""Cubic resampling of one tile from the pixels around it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Pixels around a tile that cubic interpolation and anti-aliasing reach for, in units of the kernel's own support.
CUBIC_REACH_PX = 2
# A rotation that moves a tile's corner by less than this is read as axis-aligned.
_STRAIGHT_PX = 0.02
# Scales that differ by less are the same.
LEVEL_TOLERANCE = 0.01


def resample(
    region: NDArray[np.uint8], center_px: NDArray[np.float64], linear: NDArray[np.float64], *, size_px: int
) -> NDArray[np.uint8]:
    """Read one square tile from a region by cubic resampling with anti-aliasing.

    Parameters
    ----------
    region
        (h, w, 3) uint8 pixels that cover the tile and the kernel's reach.
    center_px
        x, y of the tile's centre in the region (pixel borders are whole numbers).
    linear
        (2, 2) map from an offset in tile pixels to an offset in region pixels.
    size_px
        Edge of the tile.
    """
    straight = np.where(np.abs(linear) * size_px / 2 < _STRAIGHT_PX, 0.0, linear)
    swapped = straight[0, 0] == 0 and straight[1, 1] == 0
    if swapped or (straight[0, 1] == 0 and straight[1, 0] == 0):
        steps = np.array([straight[0, 1], straight[1, 0]] if swapped else [straight[0, 0], straight[1, 1]])
        half = np.abs(steps) * size_px / 2
        tile = _straight(region, center_px - half, center_px + half, size_px=size_px)
        if steps[0] < 0:
            tile = tile[:, ::-1]
        if steps[1] < 0:
            tile = tile[::-1]
        return np.ascontiguousarray(tile.swapaxes(0, 1) if swapped else tile)
    from PIL import Image

    # Rotated: interpolate on a grid at least as fine as the pixels, then shrink with the same anti-aliasing kernel.
    fine = max(1, int(np.ceil(np.linalg.norm(linear, ord=2) - LEVEL_TOLERANCE)))
    rim = CUBIC_REACH_PX + 1
    edge = (size_px + 2 * rim) * fine
    step = linear / fine
    corner = center_px - step @ np.full(2, edge / 2)
    matrix = (step[0, 0], step[0, 1], corner[0], step[1, 0], step[1, 1], corner[1])
    turned = Image.fromarray(region).transform((edge, edge), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    inner = (rim * fine, rim * fine, edge - rim * fine, edge - rim * fine)
    return np.asarray(turned.resize((size_px, size_px), Image.Resampling.BICUBIC, box=inner))


def _straight(
    region: NDArray[np.uint8], lower: NDArray[np.float64], upper: NDArray[np.float64], *, size_px: int
) -> NDArray[np.uint8]:
    """Return the tile between two corners (x, y) of a region."""
    (x0, y0), (x1, y1) = lower.astype(np.float32).tolist(), upper.astype(np.float32).tolist()  # as Pillow takes them
    if x1 - x0 == y1 - y0 == size_px and x0.is_integer() and y0.is_integer():
        return region[int(y0) : int(y1), int(x0) : int(x1)]
    like_pixels = max(abs(x1 - x0 - size_px), abs(y1 - y0 - size_px)) <= LEVEL_TOLERANCE * size_px
    if like_pixels and abs(region.shape[0] - region.shape[1]) <= 2:  # Pillow begins with the rows of tall regions
        from stpred.tiles._kernels import resized

        return resized(region, columns=(x0, x1), rows=(y0, y1), size_px=size_px)
    from PIL import Image

    image = Image.fromarray(region)
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1)))

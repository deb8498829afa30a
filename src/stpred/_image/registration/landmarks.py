"""Placements from pairs of points."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._image.registration.search import MAX_STRETCH

MIN_AFFINE = 6
"""Pairs from which on a stretch is told from the error of placing them."""


def from_landmarks(moving: NDArray[np.float64], fixed: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (3, 3) placement by which (n, 2) points of one side come nearest to those of the other.

    By least squares: turned, scaled and shifted, mirrored where that fits better (Umeyama 1991, IEEE TPAMI 13:376);
    from six pairs on stretched and sheared as well, as far as pixels stay square.
    """
    if len(moving) >= MIN_AFFINE:
        design = np.column_stack([moving, np.ones(len(moving))])
        affine = np.eye(3)
        affine[:2] = np.linalg.lstsq(design, fixed, rcond=None)[0].T
        largest, smallest = np.linalg.svd(affine[:2, :2], compute_uv=False)
        if smallest > 0 and largest / smallest - 1 <= MAX_STRETCH:
            return affine
    centre, other = moving.mean(axis=0), fixed.mean(axis=0)
    u, size, v = np.linalg.svd((fixed - other).T @ (moving - centre))
    # Without the usual sign, so that a mirror image is found as well.
    linear = u @ v * size.sum() / ((moving - centre) ** 2).sum()
    affine = np.eye(3)
    affine[:2, :2], affine[:2, 2] = linear, other - linear @ centre
    return affine

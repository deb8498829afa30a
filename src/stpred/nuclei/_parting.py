"""From the planes of the nucleus network to a label image. Arrays only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stpred._image.labels import Labels, kept, means, sized

# Chosen on the fields that the network was trained on, where all of them are on a plateau.
_MIN_SHARE, _MIN_MEAN_SHARE = 0.45, 0.65
_SMOOTH_PX = 0.8
_VOTE_PX, _MIN_VOTES, _MIN_DIP = 1.5, 6.0, 0.45


def part(planes: NDArray[np.float32], *, offset_px: float, area_px: tuple[float, float]) -> Labels:
    """Part the foreground into nuclei.

    Every pixel of the foreground votes for where it says that its nucleus' middle is (as in Cheng et al. 2020, CVPR,
    12475, Panoptic-DeepLab). Summits of the votes are seeds, from which depth is flooded down to the border of the
    foreground.

    Parameters
    ----------
    planes
        (4, h, w): share of foreground in [0, 1], depth, and the way to the middle of the nucleus, x and y in units of
        `offset_px`.
    offset_px
        See `planes`.
    area_px
        Smaller and larger nuclei are dropped.

    Returns
    -------
    (h, w) int32: 0 for ground, 1..n for nuclei; each is one piece of pixels that share edges.
    """
    from scipy.ndimage import gaussian_filter
    from skimage.segmentation import watershed

    inside = planes[0] > _MIN_SHARE
    if not inside.any():
        return np.zeros(inside.shape, np.int32)
    y, x = np.nonzero(inside)
    middle = np.column_stack([y + planes[3][inside] * offset_px, x + planes[2][inside] * offset_px])
    seeds = _summits(_votes(middle, inside.shape))
    labels = watershed(-gaussian_filter(planes[1], _SMOOTH_PX), seeds, mask=inside)
    labels = sized(labels.astype(np.int32), area_px)
    return kept(labels, np.r_[False, means(labels, planes[0])[:, 3] > _MIN_MEAN_SHARE])


def _votes(middle: NDArray[np.floating], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return how many pixels say that the middle of their nucleus is about here, (h, w)."""
    from scipy.ndimage import gaussian_filter

    height, width = shape
    y, x = np.rint(middle).astype(np.int64).T
    at = y.clip(0, height - 1) * width + x.clip(0, width - 1)
    votes = np.bincount(at, minlength=height * width).reshape(height, width).astype(np.float64)
    return np.asarray(gaussian_filter(votes, _VOTE_PX) * (2 * np.pi * _VOTE_PX**2))


def _summits(votes: NDArray[np.float64]) -> NDArray[np.int32]:
    """Label summits of enough votes, between any two of which there is a dip by enough of a factor, 1..n."""
    from scipy.ndimage import label
    from skimage.morphology import reconstruction

    height = np.log1p(votes)
    flooded = reconstruction(np.maximum(height - _MIN_DIP, 0), height)
    tops = (height - flooded > 0.999 * _MIN_DIP) & (votes > _MIN_VOTES)
    return np.asarray(label(tops, np.ones((3, 3)))[0], dtype=np.int32)

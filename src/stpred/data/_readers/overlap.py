"""Whether the counts of a slide's locations can be separated: they must be larger than a pixel and lie apart."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.checks import InputError

if TYPE_CHECKING:
    from stpred.data._readers.pixels import SlidePixelGrid
    from stpred.data._regions import Region

logger = logging.getLogger("stpred")

_MAX_OVERLAP = 0.5
"""Fraction of the targets' area in other targets above which their counts cannot be separated."""


def check_apart(grid: SlidePixelGrid, region: Region) -> None:
    """Refuse locations that were measured but hold no pixel, or that mostly lie in each other."""
    sizes = grid.sizes()
    said = f"{region.shapes_key!r} of slide {region.slide!r}"
    if np.median(sizes) < 1:
        raise InputError(
            f"The locations {said} are {np.sqrt(np.median(sizes)) * grid.mpp:.3g} um wide, less than a pixel of "
            f"{grid.mpp:g} um; train on larger ones, or with a finer tile=TileSpec(mpp=..., size_px=...)."
        )
    shared = _shared(grid)
    if shared > _MAX_OVERLAP:
        raise InputError(
            f"The locations {said} overlap: {shared:.0%} of their area lies in another one as well, so counts cannot "
            "be separated; check their radius, or train on bins or spots that lie side by side."
        )
    if shared > 0.005:
        logger.warning(
            "The locations %s overlap (%.1f %% of their area); a pixel counts for the nearest centre.",
            said, 100 * shared,
        )  # fmt: skip


def _shared(grid: SlidePixelGrid, *, max_targets: int = 500) -> float:
    """Return the share of targets' area that lies in another target, too, by points in some of the targets."""
    rng = np.random.default_rng(0)
    rows = np.sort(rng.choice(len(grid.low), min(max_targets, len(grid.low)), replace=False))
    overlap, total = 0, 0
    for row in rows.tolist():
        points = grid.low[row] + rng.random((64, 2)) * (grid.high[row] - grid.low[row])
        points = points[grid.contains(np.full(len(points), row), points)]
        near = np.flatnonzero(((grid.high > grid.low[row]) & (grid.low < grid.high[row])).all(axis=1))
        others = near[near != row]
        hit = np.zeros(len(points), dtype=bool)
        for other in others.tolist():
            hit |= grid.contains(np.full(len(points), other), points)
        overlap, total = overlap + int(hit.sum()), total + len(points)
    return overlap / max(total, 1)

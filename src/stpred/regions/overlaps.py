"""Telling cells apart that were outlined twice, in bounded time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_HELD = 50
"""Other cells whose centres lie within an outline from which on it is a region."""
MAX_REGIONS = 0.02
"""Share of outlines that may be such regions; where more are, the cells lie upon one another."""
MAX_PAIRS = 400_000
"""Pairs whose intersection is made at least; for many polygons :data:`PAIRS_EACH` for each."""
PAIRS_EACH = 20
MAX_BOXES = 100
"""Boxes that those of one polygon meet on average, beyond which there is no telling cells apart."""
MAX_CORNERS = 200_000_000
"""Corners of all polygons whose intersections are made."""
_ROWS = 20_000


class OverlapError(ValueError):
    """Polygons that overlap too often to be cells side by side."""


def distinct(polygons: NDArray[Any], *, limit: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which polygons are mostly covered by a larger one that is kept, and which surround many others.

    Parameters
    ----------
    polygons
        (n,) valid polygons.
    limit
        Share of the smaller's area from which on it is covered; of equal ones the first is kept.

    Returns
    -------
    (n,) whether each is covered, and whether each is a region around others, which then covers none.

    Raises
    ------
    OverlapError
        If there are too many overlaps to look at.
    """
    import pandas as pd
    import shapely

    n = len(polygons)
    same = pd.Series(shapely.to_wkb(shapely.normalize(polygons)))
    drop = same.duplicated().to_numpy().copy()
    around = np.zeros(n, dtype=bool)
    rows = np.flatnonzero(~drop)
    shapes = polygons[rows]
    area = shapely.area(shapes)
    a, b = _candidates(shapes, area, limit)
    held = np.bincount(a, minlength=len(rows))
    centre = shapely.get_coordinates(shapely.centroid(shapes))
    region = np.zeros(len(rows), dtype=bool)
    many = np.flatnonzero(held > MAX_HELD)
    if len(many) > max(3, MAX_REGIONS * len(rows)):
        raise OverlapError(f"{len(many)} of {len(rows)} have over {MAX_HELD} others in the same place")
    for i in many:
        shapely.prepare(shapes[i])
        region[i] = shapely.contains_xy(shapes[i], centre[b[a == i]]).sum() > MAX_HELD
    kept = ~(region[a] | region[b])
    a, b = a[kept], b[kept]
    corners = shapely.get_num_coordinates(shapes)
    if len(a) > max(MAX_PAIRS, PAIRS_EACH * n) or (corners[a] + corners[b]).sum() > MAX_CORNERS:
        raise OverlapError(f"{len(rows)} have {len(a)} overlaps")
    shared = shapely.area(shapely.intersection(shapes[a], shapes[b]))
    covered = shared > limit * area[b]
    a, b = a[covered], b[covered]
    rank = _rank(area)
    gone = np.zeros(len(rows), dtype=bool)
    for larger, smaller in sorted(zip(a.tolist(), b.tolist(), strict=True), key=lambda ab: rank[ab[0]]):
        gone[smaller] |= not gone[larger]
    drop[rows[gone]] = True
    around[rows[region]] = True
    # Copies of a region are regions.
    copies = same.map(pd.Series(around[rows], index=same.to_numpy()[rows])).to_numpy(dtype=bool)
    return drop & ~copies, copies


def _rank(area: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the place of each from the largest to the smallest; of equal ones the first comes first."""
    rank = np.empty(len(area), dtype=np.int64)
    rank[np.lexsort((np.arange(len(area)), -area))] = np.arange(len(area))
    return rank


def _candidates(
    shapes: NDArray[Any], area: NDArray[np.float64], limit: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return pairs, larger and smaller, whose boxes share enough that the larger may cover the smaller."""
    import shapely

    rank = _rank(area)
    box = shapely.bounds(shapes)
    tree = shapely.STRtree(shapes)
    found_a, found_b, met = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    step = max(100, min(_ROWS, 20_000_000 // max(1, len(shapes))))
    for start in range(0, len(shapes), step):
        a, b = tree.query(shapes[start : start + step])
        a = a + start
        met += len(a)
        if met > MAX_BOXES * max(len(shapes), 20_000):
            raise OverlapError(f"{len(shapes)} have over {met // 2} overlaps")
        pair = rank[a] < rank[b]
        a, b = a[pair], b[pair]
        low, high = np.maximum(box[a, :2], box[b, :2]), np.minimum(box[a, 2:], box[b, 2:])
        may = np.prod(np.maximum(high - low, 0), axis=1) > limit * area[b]
        found_a.append(a[may])
        found_b.append(b[may])
    return np.concatenate(found_a), np.concatenate(found_b)

"""Matching of the locations of two regions: geometries or centroids in, pairs of rows out."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, positive
from stpred._core.geometry import _valid

Matches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Rows of the first side, rows of the second, and the quality of each pair."""

_MAX_PAIRS = 200_000
"""Overlapping pairs whose intersections are computed at once."""


def match_overlap(ours: ArrayLike, theirs: ArrayLike, *, min_overlap: float = 0.5) -> Matches:
    """Pair (n,) and (m,) polygons of one frame one to one by their overlap, such as nuclei with the cells around them.

    Two polygons are a pair when each is the one with which the other shares the largest area (equal areas: the lower
    row), and that area is at least `min_overlap` (0 to 1) of the smaller one. Intersection over union would not tell a
    nucleus deep in its cell, a tenth of it, from two neighbours that overlap a little. Invalid polygons are repaired,
    empty ones match nothing. The third result is the shared area relative to the smaller polygon.
    """
    import shapely

    if isinstance(min_overlap, (str, bool)) or not 0 <= float(min_overlap) <= 1:
        raise InputError(f"`min_overlap` must lie between 0 and 1, got {min_overlap!r}.")
    first, second = (_valid(side) for side in (ours, theirs))
    i, j, shared = shared_areas(first, second)
    overlap = shared / np.minimum(shapely.area(first)[i], shapely.area(second)[j])
    best = _best(i, j, shared) & _best(j, i, shared) & (overlap >= min_overlap)
    return _sorted(i[best], j[best], overlap[best])


def match_nearest(ours_um: ArrayLike, theirs_um: ArrayLike, *, max_distance_um: float = 5.0) -> Matches:
    """Pair (n, 2) and (m, 2) centroids one to one: each is the other's nearest, within `max_distance_um`.

    The third result is their distance in micrometres.
    """
    from scipy.spatial import cKDTree

    limit = positive(max_distance_um, name="max_distance_um", unit="um")
    first, second = (np.asarray(side, dtype=np.float64).reshape(-1, 2) for side in (ours_um, theirs_um))
    if len(first) == 0 or len(second) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    distance, nearest = cKDTree(second).query(first)
    back = cKDTree(first).query(second)[1]
    rows = np.arange(len(first))
    mutual = (back[nearest] == rows) & (distance <= limit)
    return _sorted(rows[mutual], nearest[mutual], distance[mutual])


def n_inside(ours: ArrayLike, theirs: ArrayLike) -> tuple[float, bool]:
    """Return the number of centroids of the finer polygons in a coarser one, and whether the coarser are `ours`.

    The number is the median over the coarser polygons that hold any, 0 if none does.
    """
    import shapely

    first, second = (np.asarray(side, dtype=object).ravel() for side in (ours, theirs))
    ours_coarser = bool(np.median(shapely.area(first)) >= np.median(shapely.area(second)))
    coarse, fine = (first, second) if ours_coarser else (second, first)
    _, holder = shapely.STRtree(coarse).query(shapely.centroid(fine), predicate="intersects")
    numbers = np.bincount(holder)
    return (float(np.median(numbers[numbers > 0])) if numbers.any() else 0.0), ours_coarser


def shared_areas(
    ours: NDArray[Any], theirs: NDArray[Any]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return every pair of polygons that share an area, as rows of both, and that area."""
    import shapely

    i, j = shapely.STRtree(theirs).query(ours, predicate="intersects")
    area = np.empty(len(i), dtype=np.float64)
    for start in range(0, len(i), _MAX_PAIRS):
        part = slice(start, start + _MAX_PAIRS)
        area[part] = shapely.area(shapely.intersection(ours[i[part]], theirs[j[part]]))
    kept = area > 0
    return i[kept].astype(np.int64), j[kept].astype(np.int64), area[kept]


def _best(of: NDArray[np.int64], other: NDArray[np.int64], value: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark for each row in `of` its pair of the largest value, of equal ones that with the lowest `other`."""
    order = np.lexsort((other, -value, of))
    first = np.ones(len(order), dtype=bool)
    first[1:] = np.diff(of[order]) > 0
    best = np.zeros(len(order), dtype=bool)
    best[order[first]] = True
    return best


def _sorted(i: NDArray[np.int64], j: NDArray[np.int64], value: NDArray[np.float64]) -> Matches:
    order = np.argsort(i, kind="stable")
    return i[order].astype(np.int64), j[order].astype(np.int64), value[order].astype(np.float64)

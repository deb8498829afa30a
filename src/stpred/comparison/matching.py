"""Which location of one region is which of another: geometries or centroids in, pairs of rows out; and square bins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, positive
from stpred._core.geometry import _valid

if TYPE_CHECKING:
    pass

Matches = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]
"""Rows of the first side, rows of the second, and how good each pair is."""

_PAIRS = 200_000
"""Overlapping pairs whose intersections are made at once."""


def match_overlap(ours: ArrayLike, theirs: ArrayLike, *, min_overlap: float = 0.5) -> Matches:
    """Pair polygons one to one by their overlap, such as nuclei with the cells around them.

    Two polygons are a pair when each is the one with which the other shares the largest area (equal areas: the lower
    row), and that area is at least `min_overlap` of the smaller one. (Intersection over union would not tell a nucleus
    deep in its cell, a tenth of it, from two neighbours that overlap a little.)

    Parameters
    ----------
    ours, theirs
        (n,) and (m,) shapely polygons in the same frame; invalid ones are repaired, empty ones match nothing.
    min_overlap
        Smallest shared area relative to the area of the smaller polygon, 0 to 1.

    Returns
    -------
    Rows of `ours` (ascending), rows of `theirs`, both (p,) int64, and the shared area relative to the smaller polygon,
    (p,) float64.
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
    """Pair points one to one: each is the other's nearest, and they are not too far apart.

    Parameters
    ----------
    ours_um, theirs_um
        (n, 2) and (m, 2) centroids in micrometres.
    max_distance_um
        Largest distance of a pair.

    Returns
    -------
    Rows of `ours_um` (ascending), rows of `theirs_um`, both (p,) int64, and their distance in micrometres, (p,)
    float64.
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


def held(ours: ArrayLike, theirs: ArrayLike) -> tuple[float, bool]:
    """Say how many of the finer polygons one of the coarser holds, and which are the coarser.

    Parameters
    ----------
    ours, theirs
        (n,) and (m,) shapely polygons in the same frame.

    Returns
    -------
    Median number of centroids of the finer side in those of the coarser that hold any (0 if none does), and whether
    the coarser side is `ours`.
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
    for start in range(0, len(i), _PAIRS):
        part = slice(start, start + _PAIRS)
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

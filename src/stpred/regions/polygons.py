"""Polygons of cells: built from tables of vertices, repaired in bounded time, and told apart where they overlap."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.geometry import largest_part

MAX_COORDINATE = 1e12
"""Coordinates beyond this, in pixels or micrometres, are no place on a slide; areas of larger ones lose all digits."""
MAX_VERTICES = 10_000_000
"""Vertices of one outline; more are no outline of a cell."""
MAX_RINGS = 100
"""Rings into which the vertices of one group are split at most."""
LINEWORK_PAIRS = 100
"""Pairs of edges whose boxes meet up to which an outline is split along its own lines, which takes long for more."""
LINEWORK_TOTAL = 100_000
"""Pairs of all outlines together up to which that is done, the simplest first (about 4 s)."""
REPAIR_PAIRS = 300_000
"""Pairs up to which an outline is repaired at all: 1000 random corners have so many, a traced cell has a few."""
REPAIR_TOTAL = 600_000
"""Pairs of all outlines together up to which they are repaired, the simplest first (about 6 s)."""


def from_vertices(xy: NDArray[Any], group: NDArray[np.int64]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Build valid polygons from vertices in any order of groups.

    The vertices of a group are a ring in the order of their rows. A group whose ring closes before its end has several
    rings, as cells of several parts have. Rings with fewer than three corners, without an area, or with coordinates
    that are no places give no polygon; rows without any coordinate are padding.

    Parameters
    ----------
    xy
        (n, 2) coordinates.
    group
        (n,) whole numbers >= 0; rows below 0 belong to no group.

    Returns
    -------
    (m,) polygons by group and row, and the (m,) group of each.
    """
    import shapely

    xy = np.asarray(xy, dtype=np.float64).reshape(-1, 2)
    group = np.asarray(group, dtype=np.int64)
    used = (group >= 0) & ~np.isnan(xy).all(axis=1)
    xy, group = xy[used], group[used]
    if (np.diff(group) < 0).any():
        order = np.argsort(group, kind="stable")
        xy, group = xy[order], group[order]
    bad = ~(np.abs(xy) < MAX_COORDINATE).all(axis=1)
    if bad.any():
        kept = ~np.isin(group, group[bad])
        xy, group = xy[kept], group[kept]
    if len(group) == 0:
        return np.empty(0, object), np.empty(0, np.int64)
    again = np.r_[False, (xy[1:] == xy[:-1]).all(axis=1) & (group[1:] == group[:-1])]
    xy, group = xy[~again], group[~again]
    ring = _split_at_closures(xy, group)
    start = np.flatnonzero(np.r_[True, ring[1:] != ring[:-1]])
    end = np.r_[start[1:], len(ring)] - 1
    corners = end - start + 1 - (xy[start] == xy[end]).all(axis=1)
    solid = (corners >= 3) & (corners <= MAX_VERTICES)
    which = np.repeat(np.where(solid, np.cumsum(solid) - 1, -1), end - start + 1)
    if not solid.any():
        return np.empty(0, object), np.empty(0, np.int64)
    polygons = shapely.polygons(shapely.linearrings(xy[which >= 0], indices=which[which >= 0]))
    polygons, owner = repaired(polygons), group[start[solid]]
    flat = ~(shapely.area(polygons) > 0)
    return polygons[~flat], owner[~flat]


def _split_at_closures(xy: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the rings of vertices whose groups follow each other: one ends where it returns to its first vertex."""
    ring = np.cumsum(np.r_[1, group[1:] != group[:-1]])[: len(group)] - 1
    begins = np.zeros(len(ring), dtype=np.int64)
    open_rows = np.arange(len(ring))  # rows whose group may hold a closure that was not looked at
    for _ in range(MAX_RINGS - 1):
        if len(open_rows) == 0:
            break
        number = ring[open_rows]
        first = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
        size = np.diff(np.r_[first, len(number)])
        closing = (xy[open_rows] == np.repeat(xy[open_rows[first]], size, axis=0)).all(axis=1)
        closing[first] = False
        at = np.where(closing, np.arange(len(number)), len(number))
        at = np.minimum.reduceat(at, first)
        split = at < first + size - 1  # a closure at the last row is the end of a usual ring
        if not split.any():
            break
        begins[open_rows[at[split] + 1]] = 1
        rest = np.repeat(split, size) & (np.arange(len(number)) > np.repeat(at, size))
        open_rows = open_rows[rest]  # only what is left of split groups is looked at again
    return ring + np.cumsum(begins)


def largest_of(polygons: NDArray[Any], owner: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rows of the largest polygon of each owner, by owner; of equal ones the first."""
    import shapely

    order = np.lexsort((np.arange(len(owner)), -shapely.area(polygons), owner))
    first = np.r_[True, np.diff(owner[order]) != 0][: len(order)]
    return order[first]


def repaired(polygons: NDArray[Any]) -> NDArray[Any]:
    """Return polygons of which those that cross or touch themselves are repaired, keeping the largest part.

    Valid ones stay as they are. One whose edges cross too often to be the outline of anything becomes an empty
    polygon, as does one that is not finite; so the time is bounded.
    """
    import shapely

    polygons = np.array(polygons, dtype=object).ravel()
    size = shapely.get_num_coordinates(polygons)
    polygons[~_finite(polygons) | (size > MAX_VERTICES)] = shapely.Polygon()
    broken = np.flatnonzero(~shapely.is_valid(polygons))
    pairs = np.array([_crossing_boxes(p) for p in polygons[broken]], dtype=np.int64)
    order = np.argsort(pairs, kind="stable")
    for i, n, total in zip(broken[order], pairs[order], np.cumsum(pairs[order]), strict=True):
        if n <= REPAIR_PAIRS and total <= REPAIR_TOTAL:
            polygons[i] = largest_part(polygons[i], linework=n <= LINEWORK_PAIRS and total <= LINEWORK_TOTAL)
        else:
            polygons[i] = shapely.Polygon()
    return polygons


def _finite(polygons: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell whether all coordinates are finite and on a slide."""
    import shapely

    xy, index = shapely.get_coordinates(polygons, return_index=True)
    bad = ~(np.abs(xy) < MAX_COORDINATE).all(axis=1)
    fine = np.ones(len(polygons), dtype=bool)
    fine[index[bad]] = False
    return fine


def _crossing_boxes(polygon: Any) -> int:
    """Count pairs of edges of a polygon, not neighbours, whose boxes meet, up to just over :data:`REPAIR_PAIRS`."""
    import shapely

    edges = []
    for ring in shapely.get_rings(polygon):
        xy = shapely.get_coordinates(ring)
        edges.append(np.stack([xy[:-1], xy[1:]], axis=1))
    boxes = np.concatenate(edges) if edges else np.empty((0, 2, 2))
    low, high = boxes.min(axis=1), boxes.max(axis=1)
    found = shapely.box(*low.T, *high.T)
    tree = shapely.STRtree(found)
    # Every edge meets itself and its two neighbours, and every pair is found twice.
    total, n, start, step = 0, len(found), 0, 16
    while start < n and total <= 2 * (REPAIR_PAIRS + 1) + 3 * start:
        total += tree.query(found[start : start + step]).shape[1]
        start += step
        step *= 2 if total < 8 * start else 1  # a tangle meets everything at once; an outline only itself
    return max(0, (total - 3 * min(start, n)) // 2)

"""Which squares of a lattice, anchored at the frame's origin, lie in which shape."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, listing, positive
from stpred._core.geometry import geometries_um, square_bins

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

Inside = Callable[[NDArray[np.int64], NDArray[np.float64]], NDArray[np.bool_]]
"""Says of (m,) shapes and as many (m, 2) points which points lie in their shapes."""

_AT_ONCE = 2_000_000
"""Squares that are looked at in one go."""

_NUDGE = 1e-6
"""By how much of a square a centre is moved: on a border of two shapes it lies in one, whatever rounding does to it."""


def centres_inside(
    low: NDArray[np.float64], high: NDArray[np.float64], size: float, inside: Inside
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the squares whose centres lie in each shape; a centre on a border counts right of or below it.

    Parameters
    ----------
    low, high
        (n, 2) corners of the shapes' boxes.
    size
        Edge of the squares; square (i, j) begins at (i, j) times it.
    inside
        Returns which points lie in their shapes.

    Returns
    -------
    (m,) int64 shape of each square, ascending, and (m, 2) int64 column and row.
    """
    half = 0.5 + _NUDGE
    first, last = np.ceil(low / size - half).astype(np.int64), np.floor(high / size - half).astype(np.int64)
    wide, tall = (last - first + 1).clip(0).T
    begin = np.concatenate([[0], np.cumsum(wide * tall)])
    found, squares = [np.empty(0, np.int64)], [np.empty((0, 2), np.int64)]
    for start in range(0, int(begin[-1]), _AT_ONCE):
        number = np.arange(start, min(start + _AT_ONCE, int(begin[-1])))
        shape = np.searchsorted(begin, number, side="right") - 1
        row, column = np.divmod(number - begin[shape], wide[shape])
        square = np.column_stack([column, row]) + first[shape]
        kept = inside(shape, np.asarray((square + half) * size, dtype=np.float64))
        found.append(shape[kept])
        squares.append(square[kept])
    return np.concatenate(found), np.concatenate(squares)


def max_squares(low: NDArray[np.float64], high: NDArray[np.float64], size: float) -> float:
    """Return how many squares the boxes of shapes hold, about."""
    return float(np.prod((high - low) / size + 1, axis=1).sum())


_MAX_SQUARES = 2e8


def cut(sdata: SpatialData, shapes_key: str, *, size_um: float = 8.0, coordinate_system: str = keys.UM) -> GeoDataFrame:
    """Return the squares of a region in micrometres, with the id of the shape that each belongs to as ``parent``."""
    import geopandas as gpd
    import shapely

    size = positive(size_um, name="size_um", unit="micrometres")
    shapes, ids = geometries_um(sdata, shapes_key, coordinate_system=coordinate_system)
    if len(shapes) == 0:
        raise InputError(f"Shapes {shapes_key!r} are empty.")
    if (odd := ~np.isfinite(shapely.bounds(shapes)).all(axis=1)).any():
        raise InputError(f"{int(odd.sum())} of the shapes {shapes_key!r} have no finite outline: {listing(ids[odd])}.")
    if not ids.is_unique:
        repeated = ids[ids.duplicated()].unique()
        raise InputError(f"The index of shapes {shapes_key!r} is not unique: {listing(repeated)}.")
    squares, parent = squares_in(shapes, size)
    if len(squares) == 0:
        raise InputError(
            f"No shape of {shapes_key!r} holds the centre of a square of {size:g} um; choose a smaller one."
        )
    if (without := np.bincount(parent, minlength=len(shapes)) == 0).any():
        logger.warning(
            "%d of %d %r hold no centre of a square of %g um (or only such as are nearer to another's centre) and have "
            "none: %s.",
            int(without.sum()), len(shapes), shapes_key, size, listing(ids[without]),
        )  # fmt: skip
    corners = np.hstack([squares, squares + 1]) * size
    return gpd.GeoDataFrame(
        {"parent": ids.to_numpy()[parent]},
        geometry=shapely.box(*corners.T),
        index=[f"x{column}y{row}" for column, row in squares.tolist()],
    )


def squares_in(shapes: NDArray[Any], size_um: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the squares of a lattice anchored at the frame's origin whose centres lie in shapes.

    Parameters
    ----------
    shapes
        (n,) valid shapely polygons in micrometres.
    size_um
        Edge of the squares; square (i, j) begins at (i, j) times it.

    Returns
    -------
    (s, 2) int64 column and row of the squares, by row and then column, and the (s,) int64 shape that each belongs to:
    of several that hold its centre the one of the nearest centroid, of equally near ones the first.
    """
    import shapely

    low, high = np.hsplit(shapely.bounds(shapes), 2)
    if (total := max_squares(low, high, size_um)) > _MAX_SQUARES:
        raise InputError(f"Squares of `size_um`={size_um:g} would be about {total:.0e}; choose larger ones.")
    shapely.prepare(shapes)
    parent, found = centres_inside(low, high, size_um, lambda shape, xy: shapely.contains_xy(shapes[shape], xy))
    centers = (found + 0.5) * size_um
    squares, member = square_bins(centers, size_um)
    distance = np.linalg.norm(centers - shapely.get_coordinates(shapely.centroid(shapes))[parent], axis=1)
    order = np.lexsort((parent, distance, member))
    return squares, parent[order[np.unique(member[order], return_index=True)[1]]]

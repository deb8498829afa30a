"""Shapes in micrometres: polygons of a region, squares that points lie in, distances from the image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core import keys
from stpred._core.checks import InputError, listing, positive
from stpred._core.elements import affine_to

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData


def square_bins(points_um: ArrayLike, size_um: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return in which square of a lattice anchored at the frame's origin each point lies.

    Parameters
    ----------
    points_um
        (n, 2) x, y in micrometres.
    size_um
        Edge of the squares; a point on a border belongs to the square right of or below it.

    Returns
    -------
    (b, 2) int64 column and row of the squares that hold a point, by row and then column, and the (n,) int64 square of
    each point.
    """
    size = positive(size_um, name="size_um", unit="um")
    return _unique_squares(np.floor(np.asarray(points_um, dtype=np.float64).reshape(-1, 2) / size).astype(np.int64))


def _unique_squares(cells: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different columns and rows, by row and then column, and which of them each is."""
    if len(cells) == 0:
        return cells, np.empty(0, np.int64)
    low = cells.min(axis=0)
    wide = int(cells[:, 0].max() - low[0]) + 1
    # One number per square sorts many times faster than pairs do.
    numbers, member = np.unique((cells[:, 1] - low[1]) * wide + cells[:, 0] - low[0], return_inverse=True)
    return np.column_stack([numbers % wide, numbers // wide]) + low, np.asarray(member, dtype=np.int64).ravel()


def geometries_um(
    sdata: SpatialData, shapes_key: str, *, rows: NDArray[np.int64] | None = None, coordinate_system: str = keys.UM
) -> tuple[NDArray[Any], pd.Index]:
    """Return the (n,) polygons of a region in micrometres (circles as polygons, broken ones repaired) and its ids.

    `rows` are the positions of those that are wanted; None: all.
    """
    import shapely

    affine = placed(sdata, shapes_key, coordinate_system=coordinate_system)
    element = sdata.shapes[shapes_key] if rows is None else sdata.shapes[shapes_key].iloc[rows]
    shapes = element.geometry.to_numpy()
    if "radius" in element.columns:
        # 32 corners to the quarter keep the area of a circle to 0.04 %.
        shapes = shapely.buffer(shapes, element["radius"].to_numpy(dtype=np.float64), quad_segs=32)
    shapes = shapes if shapely.is_valid(shapes).all() else _valid(shapes)
    moved = shapely.transform(shapes, lambda xy: xy @ affine[:2, :2].T + affine[:2, 2])
    return np.asarray(moved, dtype=object), element.index


def placed(sdata: SpatialData, shapes_key: str, *, coordinate_system: str = keys.UM) -> NDArray[np.float64]:
    """Return the (3, 3) affine of a region to micrometres; refuse a region without shapes and one without a place."""
    if shapes_key not in sdata.shapes:
        where = "a label image here" if shapes_key in sdata.labels else "no element of the object"
        raise InputError(
            f"The table's region {shapes_key!r} is {where}, so its locations have no outline and no place; add the "
            f"polygons as `sdata.shapes[{shapes_key!r}]` (stpred.io.xenium reads them, spatialdata.to_polygons makes "
            f"them from labels) and let the table annotate them; shapes: {listing(sdata.shapes)}."
        )
    affine = affine_to(sdata.shapes[shapes_key], coordinate_system)
    if affine is None:
        raise InputError(
            f"Shapes {shapes_key!r} are not placed in the coordinate system {coordinate_system!r}; run "
            "stpred.pp.calibrate(sdata) first."
        )
    return affine


def box_of(points_um: NDArray[np.float64]) -> list[float]:
    """Return x0, y0, x1, y1 of (n, 2) points, rounded for a message."""
    return [round(float(v), 1) for v in (*points_um.min(axis=0), *points_um.max(axis=0))]


def largest_part(polygon: Any, *, linework: bool = True) -> Any:
    """Return the largest polygon of a repaired geometry; an empty one if there is none.

    `linework` splits it along its own lines, which takes long where many edges cross; without it, it is repaired by
    its rings.
    """
    import shapely

    options = {"method": "linework"} if linework else {"method": "structure", "keep_collapsed": False}
    parts = shapely.get_parts(shapely.get_parts(shapely.make_valid(polygon, **options)))
    parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
    return parts[np.argmax(shapely.area(parts))] if len(parts) else shapely.Polygon()


def _valid(side: ArrayLike) -> NDArray[Any]:
    import shapely

    shapes = np.asarray(side, dtype=object).ravel().copy()
    broken = ~shapely.is_valid(shapes)
    # Polygons stay polygons: lines and points to which a part collapses have no area.
    shapes[broken] = shapely.make_valid(shapes[broken], method="structure", keep_collapsed=False)
    return shapes


MAX_OUTSIDE = 0.1
"""Fraction of positions wholly off the image from which on they are refused: they and the image do not belong together.
"""

EDGE_PX = 2.0
"""By how much an image may be smaller than what it was cut with: borders of a crop fall between pixels."""


def distance_outside(xy_px: np.ndarray, *, width: int, height: int) -> np.ndarray:
    """Return how many pixels (n, 2) positions lie off an image; 0 on it."""
    xy = np.asarray(xy_px, dtype=np.float64)
    beyond = np.maximum(np.maximum(-xy, xy - np.array([width, height], dtype=np.float64)), 0)
    return np.asarray(np.hypot(beyond[:, 0], beyond[:, 1]), dtype=np.float64)

"""Sums of counts over shapes: :func:`spatialdata.aggregate` in blocks of neighbouring shapes, with sparse results."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred.comparison.transcripts import NUDGE_UM

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

MAX_VALUES = 4_000_000
"""Pairs of a region (or a polygon) and a gene that are made explicit at once."""

MIN_DENSE = 0.1
"""Counts per cell and gene below which a point for each count takes less time than a value for each gene."""


def sums(
    shapes: NDArray[Any], places: NDArray[Any], values: pd.Categorical | csr_matrix, *, agg_func: str = "sum"
) -> tuple[csr_matrix, NDArray[np.bool_]]:
    """Return the (shapes, genes) sums of the values whose places lie in the shapes, and which places lie in any.

    Places are (n, 2) points or (n,) polygons, which count by their shares; with ``agg_func="count"`` they are counted.
    """
    import shapely
    from scipy.sparse import csr_matrix, vstack

    genes = values.shape[1] if isinstance(values, csr_matrix) else len(values.categories)
    most = max(1, MAX_VALUES // max(1, genes))
    columns = isinstance(values, csr_matrix) and (places.ndim == 1 or values.mean() > MIN_DENSE)
    few = most if columns else len(places)
    inside = np.zeros(len(places), dtype=bool)
    order, parts = [], []
    for rows, near in _by_place(shapely.bounds(shapes), places, most=(most, few)):
        geometry = shapely.points(places[near]) if places.ndim == 2 else places[near]
        near = near[np.unique(shapely.STRtree(shapes[rows]).query(geometry, predicate="intersects")[0])]
        inside[near] = True
        order.append(rows)
        if len(near) == 0 or genes == 0:
            parts.append(csr_matrix((len(rows), genes)))
        elif columns:
            parts.append(_of_counts(shapes[rows], places[near], values[near], agg_func=agg_func))
        else:
            parts.append(_of_points(shapes[rows], places[near], values[near]))
    return csr_matrix(vstack(parts)[np.argsort(np.concatenate(order))]), inside


def _by_place(
    bounds: NDArray[np.float64], places: NDArray[Any], *, most: tuple[int, int]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield regions side by side and the places in their common box, `most` or fewer of both.

    Regions are halved and the places cut to each half, so that the cost grows with their number and little more.
    """
    import shapely

    low, high = (places, places) if places.ndim == 2 else np.split(shapely.bounds(places), 2, axis=1)
    stack = [(np.arange(len(bounds)), np.arange(len(places)))]
    while stack:
        rows, near = stack.pop()
        corner, far = np.fmin.reduce(bounds[rows, :2]), np.fmax.reduce(bounds[rows, 2:])
        near = near[((high[near] >= corner) & (low[near] <= far)).all(axis=1)]
        if len(rows) == 1 or (len(rows) <= most[0] and len(near) <= most[1]):
            yield rows, near
        else:
            axis = int(np.argmax(far - corner))
            rows = rows[np.argsort(bounds[rows, axis] + bounds[rows, axis + 2], kind="stable")]
            stack += [(half, near) for half in np.array_split(rows, 2)]


def _of_points(shapes: NDArray[Any], xy_um: NDArray[np.float64], values: pd.Categorical | csr_matrix) -> csr_matrix:
    """Count points by the category of their gene; of the counts of cells each is a point of its own."""
    import pandas as pd
    from scipy.sparse import csr_matrix
    from spatialdata.models import PointsModel

    if isinstance(values, csr_matrix):
        counts = values.tocoo()
        number, genes = counts.data.astype(np.int64), [str(i) for i in range(values.shape[1])]
        if not number.any():
            return csr_matrix((len(shapes), len(genes)))
        xy_um = xy_um[np.repeat(counts.row, number)]
        values = pd.Categorical.from_codes(np.repeat(counts.col, number), genes)
    frame = pd.DataFrame({"x": xy_um[:, 0], "y": xy_um[:, 1], "gene": values})
    return _spatialdata(PointsModel.parse(frame), shapes, value_key="gene", agg_func="count")


def _of_counts(shapes: NDArray[Any], places: NDArray[Any], X: csr_matrix, *, agg_func: str) -> csr_matrix:
    """Sum counts, a column of values for each gene, so many at once as may be explicit."""
    import geopandas as gpd
    import pandas as pd
    import shapely
    from scipy.sparse import csr_matrix, hstack
    from spatialdata.models import ShapesModel

    polygons = places.ndim == 1
    # A centroid is a disc too small to reach over a border: of points with some hundred columns dask runs out of stack.
    place = {"geometry": places} if polygons else {"geometry": shapely.points(places), "radius": NUDGE_UM / 10}
    parts, step = [], max(1, MAX_VALUES // len(places))
    for start in range(0, X.shape[1], step):
        dense = X[:, start : start + step].toarray().astype(np.float64)
        genes = [f"g{i}" for i in range(dense.shape[1])]
        frame = gpd.GeoDataFrame(pd.DataFrame(dense, columns=genes).assign(**place))
        options = {"value_key": genes, "agg_func": agg_func, "fractions": polygons}
        parts.append(_spatialdata(ShapesModel.parse(frame), shapes, **options))
    return csr_matrix(hstack(parts))


def _spatialdata(values: Any, shapes: NDArray[Any], **kwargs: Any) -> csr_matrix:
    """Return the table of :func:`spatialdata.aggregate` without its zeros."""
    import geopandas as gpd
    import spatialdata
    from scipy.sparse import csr_matrix
    from spatialdata.models import ShapesModel

    by = ShapesModel.parse(gpd.GeoDataFrame(geometry=shapes))
    with warnings.catch_warnings():  # polygons that only touch share no area, as they should
        warnings.filterwarnings("ignore", message="`keep_geom_type=True` in overlay")
        result = spatialdata.aggregate(values=values, by=by, deepcopy=False, **kwargs)
    sums = csr_matrix(result.tables["table"].X)
    sums.eliminate_zeros()
    return sums

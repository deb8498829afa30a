"""Segmented cells and nuclei of Space Ranger: GeoJSON of one polygon per cell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, warn
from stpred._core.files import read_json
from stpred.io._tables.columns import MAX_PX

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

logger = logging.getLogger("stpred")

MAX_CORNERS = 100_000
"""Corners of one polygon; those of cells have some thirty."""


def read_segments(path: Path) -> GeoDataFrame:
    """Return the outlines of a GeoJSON of Space Ranger, indexed as its barcodes are (``cellid_000000001-1``).

    Of several parts the largest is taken; polygons without an area, or whose corners are no positions, are left out
    with a warning, and so is a second one of the same cell.

    Raises
    ------
    InputError
        If the file is no GeoJSON of polygons with a ``cell_id``, or if none is left.
    """
    import geopandas as gpd
    import shapely
    from spatialdata.models import ShapesModel

    features = read_json(path, what="segmentation").get("features")
    if not isinstance(features, list) or not features:
        raise InputError(f"The segmentation {str(path)!r} holds no list of features.")
    numbers, rings, odd = [], [], 0
    for feature in features:
        number = _cell_id(feature, path)
        ring = _outline(feature.get("geometry"))
        if ring is None:
            odd += 1
        else:
            numbers.append(number)
            rings.append(ring)
    if rings:
        corners = np.concatenate(rings)
        polygons = shapely.polygons(
            shapely.linearrings(corners, indices=np.repeat(np.arange(len(rings)), [len(r) for r in rings]))
        )
        ids, flat = np.asarray(numbers), ~(shapely.area(polygons) > 0)
        repeated = np.ones(len(ids), bool)
        repeated[np.unique(np.where(flat, -1, ids), return_index=True)[1]] = False
        kept = ~flat & ~repeated
        ids, polygons, odd = ids[kept], polygons[kept], odd + int((~kept).sum())
    if not rings or not len(ids):
        raise InputError(f"The segmentation {str(path)!r} holds no polygon with an area in {len(features)} features.")
    if odd:
        warn(
            f"{odd} of {len(features)} polygons of {path.name!r} are left out: they have no area, are no polygons, lie "
            "nowhere, or are of a cell that has one."
        )
    index = [f"cellid_{n:09d}-1" for n in ids]
    return ShapesModel.parse(gpd.GeoDataFrame({"geometry": polygons}, index=index))


def _cell_id(feature: Any, path: Path) -> int:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    number = properties.get("cell_id") if isinstance(properties, dict) else None
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**53:
        raise InputError(
            f"The segmentation {str(path)!r} has a feature without a whole number as cell_id, but {str(number)[:40]!r}."
        )
    return number


def _outline(geometry: Any) -> np.ndarray | None:
    """Return the (n, 2) corners of the outer ring, of several polygons the one of the largest area, or None."""
    if not isinstance(geometry, dict):
        return None
    found = geometry.get("coordinates")
    if not isinstance(found, list):
        return None
    parts = found if geometry.get("type") == "MultiPolygon" else [found] if geometry.get("type") == "Polygon" else []
    rings = [r for r in (_ring(p) for p in parts) if r is not None]
    return max(rings, key=_area) if rings else None


def _ring(part: Any) -> np.ndarray | None:
    if not isinstance(part, list) or not part or not isinstance(part[0], list) or len(part[0]) > MAX_CORNERS:
        return None
    try:
        ring = np.array([p[:2] for p in part[0]], dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # corners that are no pairs of numbers
        return None
    if ring.ndim != 2 or ring.shape[1] != 2 or len(ring) < 3 or not (np.abs(ring) <= MAX_PX).all():
        return None
    return ring


def _area(ring: np.ndarray) -> float:
    x, y = ring.T - ring[0][:, None]
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)

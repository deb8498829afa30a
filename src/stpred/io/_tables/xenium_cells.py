"""Cells of a Xenium bundle: counts and polygons, matched by the ``cell_id`` that every file states."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, warn
from stpred._core.files import readable
from stpred.io._tables.matrix import check_10x_mtx, read_10x_h5
from stpred.regions.polygons import from_vertices, largest_of
from stpred.regions.vertices import cell_ids, numbers, read_table, read_vertices

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame

logger = logging.getLogger("stpred")

_CELL_AREA_UM2 = 80.0
_TABLES = (".parquet", ".csv.gz", ".csv")
_CENTROID = ("x_centroid", "y_centroid")
SLACK_UM = 2.0
"""How far, beside its own radius, a polygon's centroid may lie from the one that is stated: the polygon is a simplified
outline of the mask whose centroid that is."""
MISPLACED_LIMIT = 0.1
"""Share of polygons that lie elsewhere from which on they are taken for those of other cells."""


def read_cells(bundle: Path) -> tuple[AnnData, dict[str, GeoDataFrame]]:
    """Return counts (rows named by cell id, what is known of the cells in ``obs``) and polygons in micrometres."""
    counts = _counts(bundle)
    cells = _cells(bundle)
    if cells is not None:
        found, path = cells
        if not counts.obs_names.isin(found.index).any():
            raise InputError(
                f"{path.name!r} states none of the cells of the counts ({listing(found.index, most=3)} against "
                f"{listing(counts.obs_names, most=3)}); are both of one bundle?"
            )
        counts.obs = found.reindex(counts.obs_names).assign(cell_id=counts.obs_names.to_numpy())
    stated = None if cells is None else _table_centres(*cells)
    shapes = {}
    boundaries = _find(bundle, "cell_boundaries")
    if boundaries is not None:
        shapes[keys.CELLS] = _cell_polygons(boundaries, stated)
    elif cells is not None:
        logger.info("No cell boundaries: cells are circles of their area.")
        shapes[keys.CELLS] = _discs(*cells)
    else:
        raise MissingFileError(f"{str(bundle)!r} has neither cell_boundaries nor cells (parquet, csv.gz or csv).")
    nuclei = _find(bundle, "nucleus_boundaries")
    if nuclei is not None:
        found_nuclei = _nuclei(nuclei, None if boundaries is None else shapes[keys.CELLS])
        if found_nuclei is not None:
            shapes[keys.NUCLEI] = found_nuclei
    return counts, shapes


def _counts(bundle: Path) -> AnnData:
    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        if (path := bundle / "cell_feature_matrix.h5").exists():
            counts = read_10x_h5(path)
        elif (path := bundle / "cell_feature_matrix").is_dir():
            check_10x_mtx(path)
            with readable(path, what="counts"):
                counts = sc.read_10x_mtx(path, gex_only=True, make_unique=False)
        else:
            packed = [
                n for n in ("cell_feature_matrix.zarr.zip", "cell_feature_matrix.tar.gz") if (bundle / n).exists()
            ]
            more = f"; {packed[0]!r} is not read: copy the h5 of the bundle, or unpack the folder" if packed else ""
            raise MissingFileError(
                f"{str(bundle)!r} has no counts; looked for 'cell_feature_matrix.h5' and 'cell_feature_matrix'{more}."
            )
    ids, row = cell_ids(counts.obs_names)
    if len(ids) < len(row) or (row < 0).any():
        raise InputError(
            f"The counts {path.name!r} name {len(row)} cells with {len(ids)} different ids; ids must be unique."
        )
    counts.obs_names = ids[row]
    return counts


def _find(bundle: Path, stem: str) -> Path | None:
    return next((p for s in _TABLES if (p := bundle / f"{stem}{s}").exists()), None)


def _cells(bundle: Path) -> tuple[pd.DataFrame, Path] | None:
    """Return what the bundle states of its cells, by cell id."""
    path = _find(bundle, "cells")
    if path is None:
        return None
    frame = read_table(path, what="cells", needed=("cell_id",))
    ids, row = cell_ids(frame["cell_id"])
    frame, row = frame[row >= 0], row[row >= 0]
    if len(ids) < len(row):
        raise InputError(f"{path.name!r} has {len(row)} rows of {len(ids)} cells; every cell must be stated once.")
    # Lists and other values of several parts describe no cell, and a table cannot hold them.
    plain = [c for c in frame if frame[c].dtype != object or all(v is None or np.isscalar(v) for v in frame[c])]
    return frame[plain].set_axis(ids[row], axis=0), path


def _table_centres(cells: pd.DataFrame, path: Path) -> pd.DataFrame | None:
    """Return the stated centroids in micrometres by cell id, of the cells that have one."""
    if not set(_CENTROID) <= set(cells):
        logger.info("%r states no centroids, so the place of the polygons is not checked.", path.name)
        return None
    import pandas as pd

    xy = pd.DataFrame({c: numbers(cells[c], name=c, path=path) for c in _CENTROID}, index=cells.index)
    return xy[np.isfinite(xy.to_numpy()).all(axis=1)]


def _cell_polygons(path: Path, stated: pd.DataFrame | None) -> GeoDataFrame:
    """Return one polygon per cell in the order of the file: the largest of several, at its cell's stated centroid."""
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata.models import ShapesModel

    vertices = read_vertices(path)
    polygons, piece = from_vertices(vertices.xy, vertices.piece)
    owner = vertices.cell_of_piece[piece]
    rows = largest_of(polygons, owner)
    several = len(polygons) - len(rows)
    polygons, owner = polygons[rows], owner[rows]
    if not len(polygons):
        raise InputError(f"{path.name!r} holds no polygon with an area.")
    if several:
        logger.info("%s: of cells in several parts the largest is kept (%d others).", path.name, several)
    left_out = []
    if flat := len(vertices.ids) - len(polygons):
        left_out.append(f"{flat} have no valid outline with an area")
    ids = vertices.ids[owner]
    if stated is not None:
        row = stated.index.get_indexer(ids)
        there = row >= 0
        if not there.any():
            raise InputError(
                f"{path.name!r} outlines none of the cells that are stated ({listing(ids, most=3)} against "
                f"{listing(stated.index, most=3)}); are both of one bundle?"
            )
        centres = shapely.get_coordinates(shapely.centroid(polygons))
        distance = np.zeros(len(ids))
        distance[there] = np.hypot(*(centres[there] - stated.to_numpy(dtype=np.float64)[row[there]]).T)
        radius = np.sqrt(shapely.area(polygons) / np.pi)
        off = distance > SLACK_UM + radius
        shifted = np.median((distance - SLACK_UM / 2 - radius / 4)[there]) > 0
        if off.sum() > MISPLACED_LIMIT * there.sum() or shifted:
            raise InputError(
                f"The polygons of {path.name!r} are not those of their cells: {int(off.sum())} of {int(there.sum())} "
                f"lie beyond their radius from their cell's stated centroid (median {np.median(distance[there]):.1f} "
                f"um, up to {distance.max():.0f} um); are both files of one bundle, and in micrometres?"
            )
        if off.any():
            left_out.append(f"{int(off.sum())} lie up to {distance[off].max():.0f} um from their stated centroid")
            polygons, ids = polygons[~off], ids[~off]
    if left_out:
        warn(f"Of {len(vertices.ids)} cells outlined in {path.name!r}, {' and '.join(left_out)}; they are left out.")
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=polygons, index=pd.Index(ids, name="cell_id")))


def _nuclei(path: Path, cells: GeoDataFrame | None) -> GeoDataFrame | None:
    """Return the nuclei: a cell may have several, which their label tells apart, or a ring that begins anew."""
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata.models import ShapesModel

    vertices = read_vertices(path)
    polygons, piece = from_vertices(vertices.xy, vertices.piece)
    if vertices.labels is not None:  # one label is one nucleus, also where its outline falls apart
        rows = largest_of(polygons, piece)
        polygons, piece = polygons[rows], piece[rows]
    if not len(polygons):
        logger.info("%r holds no polygon with an area; the object has no nuclei.", path.name)
        return None
    owner = vertices.cell_of_piece[piece]
    ids = vertices.ids[owner]
    left_out = []
    if flat := len(vertices.cell_of_piece) - len(np.unique(piece)):
        left_out.append(f"{flat} have no valid outline with an area")
    kept = np.ones(len(ids), dtype=bool)
    if cells is not None:
        row = cells.index.get_indexer(ids)
        there = row >= 0
        outside = np.zeros(len(ids))
        outside[there] = shapely.distance(cells.geometry.to_numpy()[row[there]], shapely.centroid(polygons[there]))
        off = outside > SLACK_UM
        if off.sum() > MISPLACED_LIMIT * max(1, there.sum()):
            raise InputError(
                f"The nuclei of {path.name!r} are not those of their cells: {int(off.sum())} of {int(there.sum())} lie "
                f"outside (median {np.median(outside[off]):.1f} um); are both files of one bundle, and in micrometres?"
            )
        if off.any():
            left_out.append(f"{int(off.sum())} lie up to {outside.max():.0f} um outside their cell")
            kept = ~off
    if left_out:
        warn(
            f"Of {len(vertices.cell_of_piece)} nuclei outlined in {path.name!r}, {' and '.join(left_out)}; they are "
            "left out."
        )
    labels = None if vertices.labels is None else vertices.labels[piece]
    columns: dict[str, Any] = {"geometry": polygons[kept]}
    index = pd.Index(ids[kept], name="cell_id")
    if not index.is_unique or labels is not None:
        columns["cell_id"] = ids[kept]
        index = pd.Index(labels[kept]) if labels is not None else index
        if not index.is_unique:
            index = pd.RangeIndex(1, len(index) + 1)
    return ShapesModel.parse(gpd.GeoDataFrame(columns, index=index))


def _discs(cells: pd.DataFrame, path: Path) -> GeoDataFrame:
    from spatialdata.models import ShapesModel

    xy = _table_centres(cells, path)
    if xy is None or len(xy) == 0:
        raise InputError(f"{path.name!r} states no {_CENTROID[0]!r} and {_CENTROID[1]!r}, and there are no boundaries.")
    area: NDArray[np.float64] = np.full(len(xy), _CELL_AREA_UM2)
    if "cell_area" in cells:
        area = numbers(cells["cell_area"], name="cell_area", path=path)[cells.index.isin(xy.index)]
        area = np.where(np.isfinite(area) & (area > 0), area, _CELL_AREA_UM2)
    return ShapesModel.parse(xy.to_numpy(), geometry=0, radius=np.sqrt(area / np.pi), index=xy.index)

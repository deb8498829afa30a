"""Cells and counts of a Xenium bundle that lacks what the vendor's reader needs."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing
from stpred._core.files import readable
from stpred.io._matrix import check_10x_mtx, read_10x_h5

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame

logger = logging.getLogger("stpred")

_CELL_AREA_UM2 = 80.0
_TABLES = (".parquet", ".csv.gz", ".csv")


def read_partial(bundle: Path) -> tuple[AnnData, dict[str, GeoDataFrame]]:
    """Return counts (rows named by cell id, what is known of the cells in ``obs``) and polygons in micrometres."""
    counts = _counts(bundle)
    cells = _frame(bundle, "cells")
    if cells is not None:
        counts.obs = counts.obs.join(cells.set_index("cell_id"))
    shapes = {}
    boundaries = _frame(bundle, "cell_boundaries")
    if boundaries is not None:
        shapes[keys.CELLS] = _polygons(boundaries, what="cell_boundaries", by="cell_id")
    elif cells is not None:
        logger.info("No cell boundaries: cells are circles of their area.")
        shapes[keys.CELLS] = _discs(cells)
    else:
        raise MissingFileError(f"{str(bundle)!r} has neither cell_boundaries nor cells (parquet, csv.gz or csv).")
    nuclei = _frame(bundle, "nucleus_boundaries")
    if nuclei is not None:  # a cell may have several nuclei, which only the label tells apart
        by = "label_id" if "label_id" in nuclei else "cell_id"
        shapes[keys.NUCLEI] = _polygons(nuclei, what="nucleus_boundaries", by=by)
    return counts, shapes


def _counts(bundle: Path) -> AnnData:
    import warnings

    import scanpy as sc

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Variable names are not unique")
        if (h5 := bundle / "cell_feature_matrix.h5").exists():
            return read_10x_h5(h5)
        if (mtx := bundle / "cell_feature_matrix").is_dir():
            check_10x_mtx(mtx)
            with readable(mtx, what="counts"):
                return sc.read_10x_mtx(mtx, gex_only=True, make_unique=False)
    raise MissingFileError(
        f"{str(bundle)!r} has no counts; looked for 'cell_feature_matrix.h5' and 'cell_feature_matrix'."
    )


def _frame(bundle: Path, stem: str) -> pd.DataFrame | None:
    import pandas as pd

    for suffix in _TABLES:
        path = bundle / f"{stem}{suffix}"
        if path.exists():
            with readable(path, what="file"):
                frame = pd.read_parquet(path) if suffix == ".parquet" else pd.read_csv(path)
            if "cell_id" not in frame:
                raise InputError(f"{path.name!r} has no column 'cell_id'; it has {listing(frame.columns)}.")
            frame["cell_id"] = [c.decode() if isinstance(c, bytes) else str(c) for c in frame["cell_id"]]
            return frame
    return None


def _polygons(vertices: pd.DataFrame, *, what: str, by: str) -> GeoDataFrame:
    """Return one polygon per id from a table of vertices, in the order of first appearance."""
    import geopandas as gpd
    import pandas as pd
    import shapely
    from spatialdata.models import ShapesModel

    vertices = vertices.dropna(subset=["vertex_x", "vertex_y"])
    codes, names = pd.factorize(vertices[by])
    corners = np.bincount(codes, minlength=len(names))
    if (flat := corners < 3).any():
        logger.info("%s: %d polygons have fewer than three corners and are left out.", what, int(flat.sum()))
        vertices = vertices[~flat[codes]]
        codes, names = pd.factorize(vertices[by])
    order = np.argsort(codes, kind="stable")
    points = vertices[["vertex_x", "vertex_y"]].to_numpy(dtype=np.float64)[order]
    rings = shapely.linearrings(points, indices=codes[order])
    columns = {"geometry": shapely.polygons(rings)}
    if by != "cell_id":
        columns["cell_id"] = vertices.drop_duplicates(by)["cell_id"].to_numpy()
    return ShapesModel.parse(gpd.GeoDataFrame(columns, index=pd.Index(names)))


def _discs(cells: pd.DataFrame) -> GeoDataFrame:
    from spatialdata.models import ShapesModel

    area = (
        cells["cell_area"].to_numpy(dtype=np.float64) if "cell_area" in cells else np.full(len(cells), _CELL_AREA_UM2)
    )
    return ShapesModel.parse(
        cells[["x_centroid", "y_centroid"]].to_numpy(dtype=np.float64),
        geometry=0,
        radius=np.sqrt(area / np.pi),
        index=cells["cell_id"].to_numpy(),
    )

"""Files of outlined cells: GeoJSON, GeoParquet and Xenium's boundaries."""

from __future__ import annotations

import contextlib
import gzip
import logging
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core.checks import InputError
from stpred._core.files import parse_json, readable, reason
from stpred.regions.polygons import from_vertices
from stpred.regions.vertices import VERTICES, read_vertices

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

logger = logging.getLogger("stpred")

CELL_TYPE = "cell_type"

MAX_RATIO = 200
"""Bytes of JSON that a compressed byte can stand for; coordinates have about five."""

_REGIONS = ("annotation", "root", "tma_core", "tmacore")
"""Kinds of QuPath objects that are no cells; an export may hold them beside these."""


def read_cells(path: Path) -> tuple[GeoDataFrame, Literal["um", "px"] | None]:
    """Return a file's geometries, and their units where the format says them."""
    name = path.name.lower()
    if name.endswith((".csv.gz", ".csv")):
        return _from_vertices(path), "um"
    if name.endswith(".parquet"):
        return _from_parquet(path)
    if name.endswith((".geojson", ".json", ".geojson.gz", ".json.gz", ".geojson.zip")):
        return _from_geojson(path), None
    raise InputError(
        f"{path.name!r} is no file of cells that is known; .geojson (also .gz or .zip), .parquet (GeoParquet or "
        "Xenium's boundaries) and Xenium's .csv.gz are."
    )


def _from_parquet(path: Path) -> tuple[GeoDataFrame, Literal["um", "px"] | None]:
    import geopandas as gpd
    from pyarrow import parquet

    with readable(path, what="file of cells"):
        try:
            vertices = set(VERTICES) <= set(parquet.read_schema(path).names)
            frame = None if vertices else gpd.read_parquet(path)
        except Exception as error:
            raise InputError(
                f"{path.name!r} is neither GeoParquet nor a table with {', '.join(VERTICES)}: {reason(error)}."
            ) from error
    if frame is None:
        return _from_vertices(path), "um"
    return frame, None


def _from_vertices(path: Path) -> GeoDataFrame:
    """Build polygons of one row per vertex; newer bundles have several pieces per cell, told apart by ``label_id``."""
    import geopandas as gpd

    vertices = read_vertices(path)
    polygons, piece = from_vertices(vertices.xy, vertices.piece)
    none = np.setdiff1d(np.arange(len(vertices.cell_of_piece)), piece)
    cell = vertices.cell_of_piece[np.r_[piece, none]]
    ids = vertices.ids.astype(np.int64) if vertices.whole_ids else vertices.ids
    return gpd.GeoDataFrame(geometry=np.r_[polygons, np.full(len(none), None)], index=ids[cell])


def _from_geojson(path: Path) -> GeoDataFrame:
    """Read a FeatureCollection, a list of features as QuPath and CellViT write it, one feature, or bare geometries."""
    import geopandas as gpd
    from shapely.geometry import shape

    with readable(path, what="file of cells"):
        packed = path.name.lower().endswith((".gz", ".zip"))
        text = _unpacked(path) if packed else path.read_bytes()
    features = _features(parse_json(text, path=path.name, what="file of cells"), path)
    kinds = [str(_properties(f).get("objectType", "")).lower() for f in features]
    if any(k in ("cell", "detection") for k in kinds) and (no := [k for k in kinds if k in _REGIONS]):
        logger.info("%r holds %d regions beside the cells; they are left out.", path.name, len(no))
        features = [f for f, k in zip(features, kinds, strict=True) if k not in _REGIONS]
    geometry, classes, ids = [], [], []
    for number, feature in enumerate(features):
        # QuPath exports the nucleus of a cell beside its outline; the cell is what was asked for.
        place = feature.get("geometry", feature if "coordinates" in feature or "geometries" in feature else None)
        if place is None:
            continue
        try:
            geometry.append(shape(place))
        except Exception as error:
            raise InputError(
                f"Feature {number} of {path.name!r} has no geometry that can be read: {reason(error)}."
            ) from error
        classes.append(class_of(_properties(feature)))
        ids.append(feature.get("id"))
    columns = {} if all(c is None for c in classes) else {CELL_TYPE: classes}
    return gpd.GeoDataFrame(columns, geometry=geometry, index=_plain_ids(ids))


def _unpacked(path: Path) -> bytes:
    """Return what a gzip file, or the only file of a zip archive, holds, if that is not absurdly much."""
    most = MAX_RATIO * path.stat().st_size + 1_000_000
    with contextlib.ExitStack() as stack:
        if path.name.lower().endswith(".gz"):
            file: Any = stack.enter_context(gzip.open(path))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [n for n in archive.namelist() if n.lower().endswith("json") and not n.startswith("__MACOSX")]
            if len(names) != 1:
                raise InputError(f"The archive {path.name!r} holds {len(names)} GeoJSON files; one is needed.")
            file = stack.enter_context(archive.open(names[0]))
        text = file.read(most + 1)
    if len(text) > most:
        raise InputError(
            f"The file of cells {path.name!r} unpacks to over {MAX_RATIO} times its size; it is no GeoJSON."
        )
    return text


def _features(data: Any, path: Path) -> list[dict[str, Any]]:
    """Return the features of what a GeoJSON file holds."""
    if isinstance(data, dict):
        data = data["features"] if "features" in data else [data]
    if not isinstance(data, list) or not all(isinstance(f, dict) for f in data):
        raise InputError(f"{path.name!r} is no GeoJSON: a FeatureCollection or a list of features is needed.")
    features: list[dict[str, Any]] = []
    for part in data:  # some programs write a list of collections
        inner = part.get("features")
        features += [f for f in inner if isinstance(f, dict)] if isinstance(inner, list) else [part]
    return features


def _properties(feature: dict[str, Any]) -> dict[str, Any]:
    found = feature.get("properties")
    return found if isinstance(found, dict) else {}


def _plain_ids(ids: list[Any]) -> list[Any] | None:
    """Return ids as an index can hold them, or None where they do not tell the cells apart."""
    if any(i is None for i in ids):
        return None
    kinds = {type(i) for i in ids}
    if kinds != {str} and not (kinds == {int} and all(abs(i) < 2**63 for i in ids)):
        ids = [i if isinstance(i, str) else str(i) for i in ids]
    return ids if len(set(ids)) == len(ids) else None


def class_of(properties: dict[str, Any]) -> str | None:
    """Return the class name of a feature: QuPath's classification, or a property of that name."""
    found = properties.get("classification")
    if isinstance(found, str) and found.startswith("{"):  # some readers turn nested properties into text
        with contextlib.suppress(InputError):
            found = parse_json(found, path="classification", what="text")
    if isinstance(found, dict):
        name, names = found.get("name"), found.get("names")
        return str(name) if name else " ".join(map(str, names)) or None if isinstance(names, list) else None
    if isinstance(found, float) and np.isnan(found):
        found = None
    found = found or properties.get(CELL_TYPE) or properties.get("class")
    if found is None and "objectType" not in properties:  # the name of QuPath's objects is their own, not their class
        found = properties.get("name")
    return None if found is None else str(found)

"""View configurations of vitessce for a store of SpatialData."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, distinct, key_in
from stpred._core.disk.staging import staged_file
from stpred._core.elements import affine_to, find_image, table_regions
from stpred.io._export.chosen import Chosen, chosen, free_file, shapes_of

if TYPE_CHECKING:
    from spatialdata import SpatialData

SCHEMA_VERSION = "1.0.17"

_SPOT = "spot"
"""Vitessce's name of what lies in a layer of spots."""

_IMAGE, _SPOTS = "init_A_image_0", "init_A_obsSpots_0"
"""Scopes that vitessce itself gives to the first layers of a dataset; others would be added beside its own."""


def write_vitessce(
    sdata: SpatialData,
    table_key: str,
    path: str | Path,
    *,
    genes: Iterable[str] | None = None,
    layer: str | None = None,
    groupby: str | Sequence[str] | None = None,
    url: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    overwrite: bool = False,
) -> Path:
    """Write a view configuration (JSON) of vitessce that shows a stored prediction upon its H&E image in a browser.

    Vitessce reads the store itself: nothing is copied. Serve the folder of the store over HTTP with CORS, and open the
    configuration in an own page, at vitessce.io, or in a notebook (``VitessceConfig.from_dict``). The package
    ``vitessce`` is not needed to write it.

    Parameters
    ----------
    sdata
        Object that was read from, or written to, a store, with the table and its shapes.
    table_key
        Name of the table.
    path
        File to write, ``.json``. It appears whole or not at all.
    genes
        Genes that are selected at first (the first one gives the colours); None: the first of the table. All can be
        chosen in the view.
    layer
        Layer of the values; None: ``X``.
    groupby
        Columns of ``obs`` that can be shown as sets, such as cell types.
    url
        Address under which the store is served; None: its path relative to the file's folder.
    image_key
        H&E image; None finds it.
    coordinate_system
        The slide's coordinates in micrometres, in which vitessce lays everything upon one another.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path. Circles are shown as they are; vitessce draws no polygons of SpatialData, so cells and squares are shown
    as circles of the same area (their median) around their centres, ``obsm["spatial"]``.

    Raises
    ------
    InputError
        If the object, or the table in it, is not on disk, genes or columns do not exist, or the file exists.

    References
    ----------
    Keller et al., Vitessce: integrative visualization of multimodal and spatially resolved single-cell data. Nature
    Methods 22, 63-67 (2025).

    Examples
    --------
    >>> import json, pathlib, tempfile, stpred as st
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> sdata = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> sdata.write(folder / "slide.zarr")
    >>> _ = st.io.write_vitessce(sdata, "spots_counts", folder / "slide.json", genes=["EPCAM"])
    >>> json.loads((folder / "slide.json").read_text())["datasets"][0]["files"][0]["url"]
    'slide.zarr'
    """
    path = free_file(path, (".json",), what="configuration", overwrite=overwrite)
    found = chosen(sdata, table_key, genes=genes, layer=layer, coordinate_system=coordinate_system)
    store = _store(sdata, found, table_key)
    sets = [] if groupby is None else [str(c) for c in distinct(groupby, name="groupby")]
    for column in sets:
        key_in(column, found.table.obs, what=f"column of obs of {found.what}", name="groupby")
    image = find_image(sdata, image_key, coordinate_system=coordinate_system)
    _on_disk(store, "images", image)
    shapes = shapes_of(sdata, found)
    to_um = affine_to(shapes, coordinate_system)
    if to_um is None:
        raise InputError(f"Shapes {found.region!r} are not placed in the coordinate system {coordinate_system!r}.")
    address = url or Path(os.path.relpath(store, path.absolute().parent)).as_posix()
    place = {"coordinateSystem": coordinate_system}
    options: dict[str, Any] = {"image": {"path": f"images/{image}", **place}}
    matrix = "X" if layer is None else f"layers/{layer}"
    if "radius" in shapes:
        files, radius = _circles(options, found, table_key, matrix, sets, place, address), None
    else:
        files = _centres(options, found, table_key, matrix, sets, address)
        scale = abs(np.linalg.det(to_um[:2, :2]))
        radius = float(f"{np.sqrt(np.median(shapes.geometry.area) * scale / np.pi):.6g}")
    first = found.genes[:1] if genes is None else found.genes
    config = _config(f"{store.stem}: {table_key}", files, first, radius=radius, sets=bool(sets))
    with staged_file(path, what="configuration") as part:
        part.write_text(json.dumps(config, indent=1), encoding="utf-8")
    return path


def _store(sdata: SpatialData, found: Chosen, table_key: str) -> Path:
    """Return the folder of the object on disk, which has the table and its shapes."""
    if sdata.path is None:
        raise InputError("The object is not on disk, where vitessce reads it; write it first with sdata.write(...).")
    store = Path(sdata.path)
    _on_disk(store, "tables", table_key)
    _on_disk(store, "shapes", found.region)
    return store


def _on_disk(store: Path, kind: str, key: str) -> None:
    if not (store / kind / key).exists():
        raise InputError(
            f"The store {str(store)!r} has no {kind}/{key} yet, so vitessce could not read it; write it with "
            f"sdata.write_element({key!r})."
        )


def _obs_sets(prefix: str, columns: Sequence[str]) -> list[dict[str, str]]:
    return [{"name": c, "path": f"{prefix}obs/{c}"} for c in columns]


def _circles(
    options: dict[str, Any],
    found: Chosen,
    table_key: str,
    matrix: str,
    sets: Sequence[str],
    place: Mapping[str, str],
    address: str,
) -> list[dict[str, Any]]:
    """Return the files of a region of circles: the store alone."""
    table, region = f"tables/{table_key}", {"region": found.region}
    options = options | {
        "obsFeatureMatrix": {"path": f"{table}/{matrix}", **region},
        "obsSpots": {"path": f"shapes/{found.region}", "tablePath": table, **region, **place},
    }
    if sets:
        options["obsSets"] = {"tablePath": table, "obsSets": _obs_sets(f"{table}/", sets), **region}
    return [_file("spatialdata.zarr", address, options)]


def _centres(
    options: Mapping[str, Any], found: Chosen, table_key: str, matrix: str, sets: Sequence[str], address: str
) -> list[dict[str, Any]]:
    """Return the files of a region of polygons: the store's image, and the table with its centres."""
    if keys.SPATIAL not in found.table.obsm:
        raise InputError(
            f"The {found.what} has no obsm['spatial'], the centres that vitessce shows in place of outlines."
        )
    if len(table_regions(found.table)) > 1:
        raise InputError(f"The {found.what} annotates several regions; put the rows of one into a table of its own.")
    own: dict[str, Any] = {"obsFeatureMatrix": {"path": matrix}, "obsSpots": {"path": f"obsm/{keys.SPATIAL}"}}
    if sets:
        own["obsSets"] = _obs_sets("", sets)
    table = f"{address.rstrip('/')}/tables/{table_key}"
    return [_file("spatialdata.zarr", address, dict(options)), _file("anndata.zarr", table, own)]


def _file(kind: str, url: str, options: dict[str, Any]) -> dict[str, Any]:
    return {"fileType": kind, "url": url, "options": options, "coordinationValues": {"obsType": _SPOT}}


def _config(
    name: str, files: list[dict[str, Any]], genes: list[str], *, radius: float | None, sets: bool
) -> dict[str, Any]:
    """Return the configuration: the slide, its layers, the genes and where there are some the sets."""
    spots = {"obsType": "A", "featureSelection": "A", "obsColorEncoding": "A"}
    space: dict[str, Any] = {
        "dataset": {"A": "A"},
        "obsType": {"A": _SPOT},
        "featureSelection": {"A": genes},
        "obsColorEncoding": {"A": "geneSelection"},
        "imageLayer": {_IMAGE: "__dummy__"},
        "photometricInterpretation": {_IMAGE: "RGB"},
        "spotLayer": {_SPOTS: "__dummy__"},
    }
    if radius is not None:
        space["spatialSpotRadius"] = {_SPOTS: radius}
    layer = {k: {_SPOTS: v} for k, v in spots.items()}
    layer |= {} if radius is None else {"spatialSpotRadius": {_SPOTS: _SPOTS}}
    space["metaCoordinationScopes"] = {_IMAGE: {"imageLayer": [_IMAGE]}, _SPOTS: {"spotLayer": [_SPOTS]}}
    space["metaCoordinationScopesBy"] = {
        _IMAGE: {"imageLayer": {"photometricInterpretation": {_IMAGE: _IMAGE}}},
        _SPOTS: {"spotLayer": layer},
    }
    linked: dict[str, Any] = {"dataset": "A"} | spots
    layers: dict[str, Any] = {"metaCoordinationScopes": [_IMAGE, _SPOTS], "metaCoordinationScopesBy": [_IMAGE, _SPOTS]}
    height = 4 if sets else 6
    views = [("spatialBeta", linked | layers, 0, 0, 8, 12), ("layerControllerBeta", linked | layers, 8, 0, 4, height)]
    views.append(("featureList", linked, 8, height, 4, height))
    if sets:
        views.append(("obsSets", linked, 8, 2 * height, 4, height))
    return {
        "version": SCHEMA_VERSION,
        "name": name,
        "description": "Written by stpred.",
        "datasets": [{"uid": "A", "name": name, "files": files}],
        "coordinationSpace": space,
        "layout": [
            {"component": c, "coordinationScopes": scopes, "x": x, "y": y, "w": w, "h": h}
            for c, scopes, x, y, w, h in views
        ],
        "initStrategy": "auto",
    }

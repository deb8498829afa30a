"""GeoJSON of cells or spots with their values, as QuPath reads it."""

from __future__ import annotations

import gzip
import json
import logging
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, one_of, positive
from stpred._core.disk.staging import staged_file
from stpred._core.elements import affine_to, apply_affine, find_image, mpp_of, table_regions
from stpred.io._export.chosen import Chosen, chosen, free_file, shapes_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

OBJECT_TYPES = ("cell", "detection", "annotation", "tile")

MAX_VALUES = 100_000_000
"""Values in one file: about 2 GB of text."""

_ROWS = 20_000
"""Outlines whose text is in memory at once."""

_DIGITS = 2
"""Decimals of a pixel."""

_CORNERS = 32
"""Of the polygon that stands for a circle; QuPath makes an ellipse of it."""

_NAMESPACE = uuid.UUID("6f1d5c0e-7a53-4a43-9d0a-3b7e3c1f5a10")

_SAME = 1e-3
"""Relative difference of two pixel sizes that are one."""


def write_geojson(
    sdata: SpatialData,
    table_key: str,
    path: str | Path,
    *,
    genes: Iterable[str] | None = None,
    layer: str | None = None,
    groupby: str | None = None,
    object_type: str | None = None,
    mpp: float | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    overwrite: bool = False,
) -> Path:
    """Write cells, spots or squares with their values as GeoJSON that QuPath reads.

    Drag the file onto the open slide in QuPath (0.4 or later), or use its "Import objects": the genes are measurements,
    which can be shown by colour (Measure, Show measurement maps).

    Parameters
    ----------
    sdata
        Object with the table and the shapes that it annotates.
    table_key
        Name of the table, predicted or measured.
    path
        File to write: ``.geojson``, or ``.geojson.gz``. It appears whole or not at all.
    genes
        Genes to write; None: all.
    layer
        Layer of the values, such as ``"std"``; None: ``X``.
    groupby
        Column of ``obs``, such as cell types, that becomes QuPath's classification.
    object_type
        ``"cell"``, ``"detection"``, ``"annotation"`` or ``"tile"``; None: cells are cells, anything else detections.
    mpp
        Micrometres per pixel of the image as QuPath shows it. None takes that of the image that was predicted from, as
        the table's provenance states it, or else of the image in the object.
    image_key
        H&E image whose place relates micrometres and pixels; None finds it. One that was not predicted from, by its
        name, is taken in its own pixels. An object without an image needs `mpp`, and
        its coordinates must begin at the image's corner.
    coordinate_system
        The slide's coordinates in micrometres.
    overwrite
        Replace an existing file.

    Returns
    -------
    The path. The file is a FeatureCollection of polygons in pixels of the full-resolution image (to 0.01 pixels; a
    circle is a polygon that is marked as QuPath marks ellipses), each with ``objectType``, ``name`` (the instance id),
    ``classification`` and ``measurements`` (values to 7 digits, ``ood_score`` where there is one; NaN is left out). It
    is written block by block.

    Raises
    ------
    InputError
        If genes, table, layer or column do not exist, the file exists, nothing states the size of a pixel, or more
        than 100 million values are asked for.

    References
    ----------
    Bankhead et al., QuPath: Open source software for digital pathology image analysis. Scientific Reports 7, 16878
    (2017).

    Examples
    --------
    >>> import json, pathlib, tempfile, stpred as st
    >>> sdata = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "cells.geojson"
    >>> _ = st.io.write_geojson(sdata, "cells_counts", path, genes=["EPCAM"], groupby="type")
    >>> first = json.loads(path.read_text())["features"][0]["properties"]
    >>> first["objectType"], list(first["measurements"])
    ('cell', ['EPCAM'])
    """
    path = free_file(path, (".geojson", ".geojson.gz"), what="GeoJSON file", overwrite=overwrite)
    found = chosen(sdata, table_key, genes=genes, layer=layer, coordinate_system=coordinate_system)
    if object_type is None:
        object_type = "cell" if found.region.split("-")[0] == keys.CELLS else "detection"
    one_of(object_type, OBJECT_TYPES, name="object_type")
    if (n := len(found.rows) * len(found.columns)) > MAX_VALUES:
        raise InputError(
            f"{len(found.rows):,} locations x {len(found.columns):,} genes are {n:,} values, more than the "
            f"{MAX_VALUES:,} that a GeoJSON file is for; name some with `genes`."
        )
    groups = None if groupby is None else _groups(found, groupby)
    outlines = _outlines(sdata, found, mpp=mpp, image_key=image_key, coordinate_system=coordinate_system)
    header: dict[str, Any] = {
        k: found.provenance[k] for k in ("model", "model_id", "output_scale") if k in found.provenance
    }
    header |= {"table": table_key, "region": found.region, "layer": layer, "mpp": outlines.mpp}
    with staged_file(path, what="GeoJSON file") as part:
        packed = path.name.lower().endswith(".gz")
        with gzip.open(part, "wt", 5, encoding="utf-8") if packed else part.open("w", encoding="utf-8") as file:
            file.write(f'{{"type":"FeatureCollection","stpred":{json.dumps(header)},"features":[')
            _write(file, found, outlines, object_type=object_type, groups=groups)
            file.write("\n]}\n")
    return path


class _Outlines:
    """Polygons of shapes in pixels, as GeoJSON.

    Parameters
    ----------
    shapes
        (n,) shapes in their own coordinates.
    affine
        (3, 3) from these to pixels.
    mpp
        Micrometres per pixel.
    """

    def __init__(self, shapes: Any, affine: NDArray[np.float64], mpp: float) -> None:
        self.shapes, self.affine, self.mpp = shapes, affine, mpp
        self.radius = shapes["radius"].to_numpy(dtype=np.float64) if "radius" in shapes else None

    def block(self, rows: slice) -> list[str]:
        """Return the geometries of some rows."""
        import shapely

        geometry = self.shapes.geometry.to_numpy()[rows]
        if (shapely.is_missing(geometry) | shapely.is_empty(geometry)).any():
            raise InputError("Some shapes have no outline; remove them with their rows of the table first.")
        if self.radius is None:
            moved = shapely.transform(geometry, lambda xy: np.round(apply_affine(self.affine, xy), _DIGITS))
            return [str(text) for text in shapely.to_geojson(moved)]
        radius = self.radius[rows] * np.sqrt(abs(np.linalg.det(self.affine[:2, :2])))
        angle = np.linspace(0, 2 * np.pi, _CORNERS + 1)
        ring = np.column_stack([np.cos(angle), np.sin(angle)])
        centre = apply_affine(self.affine, shapely.get_coordinates(geometry))
        rings = np.round(centre[:, None] + radius[:, None, None] * ring, _DIGITS)
        texts = shapely.to_geojson(shapely.polygons(rings))
        return [f'{text[:-1]},"isEllipse":true}}' for text in texts]


def _outlines(
    sdata: SpatialData, found: Chosen, *, mpp: float | None, image_key: str | None, coordinate_system: str
) -> _Outlines:
    """Return the outlines of the rows in pixels of the full-resolution image."""
    shapes = shapes_of(sdata, found)
    to_um = affine_to(shapes, coordinate_system)
    if to_um is None:
        raise InputError(
            f"Shapes {found.region!r} are not placed in the coordinate system {coordinate_system!r}; run "
            "stpred.pp.calibrate(sdata) first."
        )
    if mpp is not None:
        mpp = positive(mpp, name="mpp", unit="um per pixel")
    if image_key is None and not sdata.images:
        if mpp is None:
            raise InputError(
                "The object has no image, so nothing says how large the pixels are that QuPath works in; pass `mpp`, "
                "the um per pixel of the slide."
            )
        return _Outlines(shapes, np.diag([1 / mpp, 1 / mpp, 1.0]) @ to_um, mpp)
    key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    image_to_um = affine_to(sdata.images[key], coordinate_system)
    if image_to_um is None:
        raise InputError(f"Image {key!r} is not placed in the coordinate system {coordinate_system!r}.")
    own = mpp_of(image_to_um, what=f"image {key!r}")
    full = mpp if mpp is not None else _predicted_from(found, image_key) or own
    if abs(own / full - 1) > _SAME:
        logger.info("Image %r has %.4g um per pixel; coordinates are in pixels of %.4g um.", key, own, full)
    else:
        full = own
    return _Outlines(shapes, np.diag([own / full, own / full, 1.0]) @ np.linalg.inv(image_to_um) @ to_um, full)


def _predicted_from(found: Chosen, image_key: str | None) -> float | None:
    """Return um per pixel of the image that a prediction was made from; the object may hold a small copy of it."""
    if len(table_regions(found.table)) > 1:  # what is known of the slide is that of the first of several
        return None
    if image_key is not None and image_key != found.provenance.get("image_key", image_key):
        return None
    size = found.provenance.get("mpp")
    return None if size is None else float(size)


def _groups(found: Chosen, groupby: str) -> list[str | None]:
    """Return (n,) classifications as JSON, None where there is none."""
    import pandas as pd

    key_in(groupby, found.table.obs, what=f"column of obs of {found.what}", name="groupby")
    column = found.table.obs[groupby].iloc[found.rows].astype("category")
    names = [str(c) for c in column.cat.categories]
    texts = [json.dumps({"name": n, "color": c}) for n, c in zip(names, _colours(found, groupby, names), strict=True)]
    return [None if code < 0 else texts[code] for code in pd.Categorical(column).codes]


def _colours(found: Chosen, groupby: str, names: list[str]) -> list[list[int]]:
    """Return a colour of 0 to 255 per group: scanpy's, where the table has them."""
    from matplotlib import colormaps, colors

    kept = found.table.uns.get(f"{groupby}_colors")
    given = [str(c) for c in kept] if kept is not None and len(kept) == len(names) else []
    shown: list[Any] = given or [colormaps["tab20"](i % 20) for i in range(len(names))]
    return [[round(255 * v) for v in colors.to_rgb(c)] for c in shown]


def _write(
    file: TextIO, found: Chosen, outlines: _Outlines, *, object_type: str, groups: list[str | None] | None
) -> None:
    """Write the features, a block of rows at a time."""
    names = [json.dumps(g) for g in found.genes]
    score = None
    if found.layer is None and keys.OOD_SCORE in found.table.obs and keys.OOD_SCORE not in found.genes:
        names.append(json.dumps(keys.OOD_SCORE))
        score = found.table.obs[keys.OOD_SCORE].to_numpy(dtype=np.float64)[found.rows]
    template = ",".join(f"{n.replace('%', '%%')}:%.7g" for n in names)
    ids, between = [str(i) for i in found.ids], "\n"
    for rows, values in found.blocks(most=_ROWS):
        if score is not None:
            values = np.column_stack([values, score[rows]])
        whole = np.isfinite(values).all(axis=1)
        for k, geometry in enumerate(outlines.block(rows)):
            at = rows.start + k
            row = values[k].tolist()
            if whole[k]:
                measured = template % tuple(row)
            else:
                measured = ",".join(f"{n}:{v:.7g}" for n, v in zip(names, row, strict=True) if np.isfinite(v))
            group = groups[at] if groups is not None else None
            classified = "" if group is None else f'"classification":{group},'
            own = uuid.uuid5(_NAMESPACE, f"{found.region}/{ids[at]}")
            file.write(
                f'{between}{{"type":"Feature","id":"{own}","geometry":{geometry},"properties":{{"objectType":'
                f'"{object_type}","name":{json.dumps(ids[at])},{classified}"measurements":{{{measured}}}}}}}'
            )
            between = ",\n"

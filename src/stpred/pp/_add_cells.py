from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stpred import regions
from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, element_name, listing, one_of, warn
from stpred._core.elements import affine_to, apply_affine, find_image, need_sdata, scale0
from stpred._core.files import readable
from stpred._core.geometry import MAX_OUTSIDE
from stpred.pp._cell_files import CELL_TYPE, class_of, read_cells
from stpred.regions.overlaps import OverlapError, distinct
from stpred.regions.polygons import repaired
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

OVERLAP_LIMIT = 0.7
"""Fraction of the smaller of two polygons within the other from which on they are the same cell."""

MAX_NESTED = 3
"""Geometry collections within each other that are opened."""


def add_cells(
    sdata: SpatialData,
    cells: Any,
    *,
    key_added: str | None = None,
    units: Literal["um", "px"] | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
) -> None:
    """Bring cells or nuclei that another program outlined.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image.
    cells
        One of: a path to GeoJSON (QuPath, CellViT, HEST), to GeoParquet, or to Xenium's ``cell_boundaries`` or
        ``nucleus_boundaries`` (parquet or csv.gz); a GeoDataFrame of polygons; a label image of the size of the
        full-resolution H&E image (NumPy or xarray), or the name of a labels element.
    key_added
        Name of the shapes; None makes ``nuclei``, with the frame's suffix in a frame other than ``"um"``.
    units
        What the coordinates count: ``"px"`` of the full-resolution H&E image (QuPath, CellViT, HEST) or ``"um"`` of
        the slide's frame. Needed for GeoJSON, GeoParquet and GeoDataFrames; Xenium's boundaries are micrometres, and a
        label image has the place of the H&E image or its element.
    image_key
        H&E image; None takes the one in the micrometre frame.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    None. Writes ``sdata.shapes[key_added]``: valid polygons in micrometres with ``area_um2``, ``eccentricity`` (0
    round, towards 1 long) and, where classes were given, ``cell_type``. Ids that are unique are kept as the index.

    Raises
    ------
    InputError
        If the cells cannot be read, `units` is missing or contradicts them, or more than 10 % are off the image.

    Notes
    -----
    Invalid polygons are repaired, keeping their largest part; of several pieces of one class each becomes a cell. Of
    two that overlap by over 70 % of the smaller, the larger is kept, and cells off the image are left out; a warning
    counts both.

    Examples
    --------
    >>> import geopandas as gpd
    >>> import stpred as st
    >>> from shapely import Point
    >>> slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
    >>> found = gpd.GeoDataFrame({"cell_type": ["tumour"]}, geometry=[Point(300, 200).buffer(10)])
    >>> st.pp.add_cells(slide, found, units="px")
    >>> slide.shapes["nuclei"].centroid.x.round(6).tolist()
    [150.0]
    """
    need_sdata(sdata)
    key_added = element_name(keys.in_frame(keys.NUCLEI, coordinate_system) if key_added is None else key_added)
    regions.check_shapes(sdata, key_added)
    if units is not None:
        one_of(units, ("um", "px"), name="units")
    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    frame, what, own_units = _read(sdata, cells, pyramid, image_key, coordinate_system)
    if own_units is not None and units not in (None, own_units):
        raise InputError(f"{what} is in {own_units!r} by its format, so units={units!r} cannot be; leave `units` out.")
    units = own_units or units
    if units is None:
        raise InputError(
            f"The coordinates of {what} may be pixels or micrometres: pass units='px' if they are those of the "
            f"full-resolution image (QuPath, CellViT and HEST write these), or units='um'."
        )
    frame = _polygons(frame, what)
    if units == "px":
        frame = _moved(frame, pyramid.levels[0].to_um)
    frame = _on_image(frame, pyramid, what, image_key)
    frame = _measured(_distinct(frame, what))
    regions.put_shapes(sdata, key_added, frame, coordinate_system=coordinate_system)


def _read(
    sdata: SpatialData, cells: Any, pyramid: Pyramid, image_key: str, coordinate_system: str
) -> tuple[GeoDataFrame, str, Literal["um", "px"] | None]:
    """Return a frame of geometries, what to call it, and its units where the format says them."""
    import geopandas as gpd
    import xarray as xr

    if isinstance(cells, gpd.GeoDataFrame):
        return cells, "the GeoDataFrame", None
    if isinstance(cells, str) and cells in sdata.labels:
        element = sdata.labels[cells]
        affine = affine_to(element, coordinate_system)
        if affine is None:
            raise InputError(f"Labels {cells!r} are not placed in the coordinate system {coordinate_system!r}.")
        return _moved(_from_labels(scale0(element).values, f"labels {cells!r}"), affine), f"labels {cells!r}", "um"
    if isinstance(cells, (np.ndarray, xr.DataArray)):
        labels = np.asarray(cells)
        if labels.shape != pyramid.shape:
            raise InputError(
                f"The label image has shape {labels.shape}, the H&E image {image_key!r} {pyramid.shape}; give labels "
                "of the full-resolution image, or put them into `sdata.labels` with their own place and pass the name."
            )
        return _from_labels(labels, "the label image"), "the label image", "px"
    if not isinstance(cells, (str, Path)):
        raise InputError(
            f"`cells` must be a path, a GeoDataFrame, a label image or the name of a labels element, got "
            f"{type(cells).__name__}."
        )
    path = Path(cells)
    with readable(path, what="file of cells"):
        there = path.is_file()
    if not there:
        raise MissingFileError(
            f"`cells`={str(cells)[:200]!r} is neither a file nor a labels element of the object; labels: "
            f"{listing(sorted(sdata.labels))}."
        )
    frame, units = read_cells(path)
    return frame, f"{path.name!r}", units


def _from_labels(labels: NDArray[Any], what: str) -> GeoDataFrame:
    """Outline each label; its number is its id."""
    import geopandas as gpd
    import shapely

    from stpred._image.labels import outlines, whole_pieces

    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        raise InputError(
            f"{what} must be a (rows, columns) array of whole numbers >= 0, got {labels.dtype} of shape {labels.shape}."
        )
    zero = np.zeros(1, labels.dtype)
    ids, numbers = np.unique(np.concatenate([zero, labels.reshape(-1)]), return_inverse=True)
    if len(ids) < 2:
        raise InputError(f"{what} holds no cell: every pixel is 0.")
    if len(ids) == 2 and labels.size > 10_000 and (numbers == 1).sum() > 2_000:
        logger.warning("%s has a single label; if it is a mask of all cells, label its pieces first.", what)
    xy, begin = outlines(whole_pieces(numbers[1:].reshape(labels.shape)))
    length = np.diff(begin)
    rings = shapely.linearrings(xy, indices=np.repeat(np.arange(len(length)), length))
    return gpd.GeoDataFrame(geometry=shapely.polygons(rings), index=ids[1:])


def _polygons(frame: GeoDataFrame, what: str) -> GeoDataFrame:
    """Return one valid polygon per row with the class; refuse what has no area."""
    import geopandas as gpd
    import pandas as pd
    import shapely

    if getattr(frame, "_geometry_column_name", None) not in frame:
        raise InputError(f"{what[:1].upper() + what[1:]} has no column of geometries; name it with .set_geometry().")
    if len(frame) == 0:
        raise InputError(f"There is no cell in {what}.")
    classes = next((c for c in (CELL_TYPE, "classification", "class", "cell_class") if c in frame), None)
    names = None if classes is None else [class_of({"classification": v}) for v in frame[classes]]
    shapes = frame.geometry.to_numpy()
    some = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    parts, row = shapes[some], np.flatnonzero(some)
    for _ in range(MAX_NESTED):
        parts, inner = shapely.get_parts(parts, return_index=True)
        row = row[inner]
    flat = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    if not flat.any():
        kinds = sorted(set(frame.geom_type.dropna()))
        hint = "; give centres a radius with .buffer() first" if "Point" in kinds else ""
        raise InputError(f"{what[:1].upper() + what[1:]} has no polygons but {kinds or 'empty geometries'}{hint}.")
    parts, row = shapely.force_2d(parts[flat]), row[flat]
    parts = repaired(parts)
    solid = shapely.area(parts) > 0
    parts, row = parts[solid], row[solid]
    dropped = int(len(frame) - len(np.unique(row)))
    if dropped:
        warn(f"{dropped} of {len(frame)} cells of {what} have no valid outline with an area and are left out.")
    if not len(parts):
        raise InputError(f"No cell of {what} has a valid outline with an area.")
    index = frame.index[row]
    if not index.is_unique or isinstance(index, pd.MultiIndex):
        index = pd.RangeIndex(1, len(row) + 1)
    columns = {} if names is None else {CELL_TYPE: pd.Categorical([names[i] for i in row])}
    return gpd.GeoDataFrame(columns, geometry=parts, index=index)


def _moved(frame: GeoDataFrame, affine: NDArray[np.float64]) -> GeoDataFrame:
    import shapely

    return frame.set_geometry(shapely.transform(frame.geometry.to_numpy(), lambda xy: apply_affine(affine, xy)))


def _on_image(frame: GeoDataFrame, pyramid: Pyramid, what: str, image_key: str) -> GeoDataFrame:
    """Leave out cells whose centre is off the image; refuse many, with both boxes."""
    center = frame.geometry.centroid
    inside = pyramid.contains(np.column_stack([center.x, center.y]))
    x0, y0, x1, y1 = frame.bounds.to_numpy().T
    left, top, right, bottom = pyramid.bounds_um
    fits = (x1 - x0 <= right - left) & (y1 - y0 <= bottom - top)  # what is larger than the slide lies not on it
    inside &= fits
    off = np.flatnonzero(~inside)
    # By the border, as a crop of the image leaves them.
    cut = pyramid.touches(frame.geometry.to_numpy()[off]) & fits[off]
    fraction = float((~cut).sum()) / len(frame)
    if fraction > MAX_OUTSIDE:
        box = [round(float(v), 1) for v in frame.total_bounds]
        raise InputError(
            f"{fraction:.0%} of the cells of {what} lie outside image {image_key!r} or are larger: they span {box} "
            f"um, the image {[round(v, 1) for v in pyramid.bounds_um]} um (x0, y0, x1, y1); check `units`, that the "
            "image is the full-resolution one, and that x and y are not swapped."
        )
    if fraction > 0:
        count = int((~cut).sum())
        warn(f"{count} cells of {what} are off image {image_key!r} and left out.")
    if cut.any():
        logger.info("%d cells of %s have their centre off image %r and are left out.", int(cut.sum()), what, image_key)
    if not inside.any():
        raise InputError(f"No cell of {what} has its centre on image {image_key!r}; check `units` and the image.")
    return frame[inside]


def _distinct(frame: GeoDataFrame, what: str) -> GeoDataFrame:
    """Keep the larger of polygons that are mostly the same, and leave out those around many cells."""
    try:
        drop, around = distinct(frame.geometry.to_numpy(), limit=OVERLAP_LIMIT)
    except OverlapError as error:
        raise InputError(f"The cells of {what} lie upon one another: {error}; give one outline per cell.") from error
    if around.any():
        warn(
            f"{int(around.sum())} of {len(frame)} cells of {what} are outlines around many others, so they are regions "
            "and left out."
        )
    if drop.any():
        warn(f"{int(drop.sum())} of {len(frame)} cells of {what} lie within or upon larger ones and are left out.")
    return frame[~(drop | around)]


def _measured(frame: GeoDataFrame) -> GeoDataFrame:
    """Add area and eccentricity."""
    import shapely

    from stpred.nuclei import eccentricity

    shapes = frame.geometry.to_numpy()
    frame = frame.assign(area_um2=shapely.area(shapes), eccentricity=eccentricity(shapes))
    first = ["area_um2", "eccentricity"]
    return frame[first + [c for c in frame if c not in first]]

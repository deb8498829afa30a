"""Nuclei of a slide in an object: finding the image, and saying why nothing was found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core import keys
from stpred._core.checks import InputError, key_in
from stpred._core.elements import affine_to, find_image, need_sdata
from stpred.nuclei._detect import check, detect
from stpred.nuclei._methods import DEFAULT, MIN_AREA_UM2, Segmenter
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData


def outline(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    tissue_key: str | None = None,
    method: str | Segmenter = DEFAULT,
    min_area_um2: float = MIN_AREA_UM2,
    max_area_um2: float = 350.0,
    chunk_um: float = 512.0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> GeoDataFrame:
    """Return polygons in micrometres around the nuclei of a slide; other arguments are those of :func:`detect`."""
    need_sdata(sdata)
    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    check(pyramid, image=f"Image {image_key!r}")
    frame = detect(
        pyramid,
        method=method,
        tissue=None if tissue_key is None else _area(sdata, tissue_key, coordinate_system),
        min_area_um2=min_area_um2,
        max_area_um2=max_area_um2,
        chunk_um=chunk_um,
        device=device,
    )
    if len(frame) == 0:
        raise InputError(
            f"No nucleus of {min_area_um2:g} to {max_area_um2:g} um2 was found on image {image_key!r} "
            f"({pyramid.mpp:.3g} um per pixel); is it an H&E slide in focus, and is that its resolution?"
        )
    return frame


def _area(sdata: SpatialData, key: str, coordinate_system: str) -> object:
    """Return the union of shapes, in micrometres."""
    import shapely
    from shapely.affinity import affine_transform

    key_in(key, sdata.shapes, what="shapes element", name="tissue_key")
    affine = affine_to(sdata.shapes[key], coordinate_system)
    if affine is None:
        raise InputError(f"Shapes {key!r} are not placed in the coordinate system {coordinate_system!r}.")
    element = sdata.shapes[key]
    geometry = element.buffer(element["radius"]) if "radius" in element else element.geometry
    area = affine_transform(
        shapely.union_all(geometry.to_numpy()), affine[:2, :2].ravel().tolist() + affine[:2, 2].tolist()
    )
    shapely.prepare(area)
    return area

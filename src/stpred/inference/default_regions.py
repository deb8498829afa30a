"""Locations of a slide that has none: a grid on its tissue, or its nuclei."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from stpred import nuclei, regions
from stpred._core import keys
from stpred._core.elements import find_image

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred._core.places import Place

logger = logging.getLogger("stpred")


def with_default_regions(sdata: SpatialData, place: Place, *, cells: bool) -> SpatialData:
    """Return an object of the slide's images and shapes with its tissue and a grid of 100 um, or with its nuclei."""
    frame = place.coordinate_system
    if not cells:
        sdata, tissue_key = with_tissue(sdata, place)
        grid_key = keys.in_frame(keys.GRID, frame)
        grid = regions.lay_grid(sdata, tissue_key=tissue_key, image_key=place.image_key, coordinate_system=frame)
        regions.put_shapes(sdata, grid_key, grid, coordinate_system=frame)
        logger.info("The slide has no region: added %r with %d points on %r.", grid_key, len(grid), tissue_key)
        return sdata
    sdata, key = _copy(sdata), keys.in_frame(keys.NUCLEI, frame)
    found = nuclei.outline(sdata, image_key=place.image_key, coordinate_system=frame)
    regions.put_shapes(sdata, key, found, coordinate_system=frame)
    logger.info("The slide has no region: found %d nuclei, %r.", len(found), key)
    return sdata


def with_tissue(sdata: SpatialData, place: Place) -> tuple[SpatialData, str]:
    """Return an object of the slide's images and shapes, with its tissue, and what that is called."""
    sdata, frame = _copy(sdata), place.coordinate_system
    key = keys.in_frame(keys.TISSUE, frame)
    if key not in sdata.shapes:
        image_key = find_image(sdata, place.image_key, coordinate_system=frame)
        found = regions.outline_tissue(sdata, image_key=image_key, coordinate_system=frame)
        regions.put_shapes(sdata, key, found, coordinate_system=frame)
    return sdata, key


def put_regions(sdata: SpatialData, created: SpatialData) -> None:
    """Put the regions that were created for a result into the slide."""
    for key in [k for k in created.shapes if k not in sdata.shapes]:
        sdata.shapes[key] = created.shapes[key]


def _copy(sdata: SpatialData) -> SpatialData:
    from spatialdata import SpatialData as Object

    return Object(images=dict(sdata.images), shapes=dict(sdata.shapes), attrs=dict(sdata.attrs))

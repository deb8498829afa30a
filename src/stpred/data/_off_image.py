"""Locations that are not on the image: cut by its border, misplaced, or on fill."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, warn
from stpred._core.geometry import EDGE_PX, MAX_OUTSIDE, box_of, geometries_um, placed
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")


def locations_on(
    pyramid: Pyramid,
    sdata: SpatialData,
    coords_um: NDArray[np.float64],
    at: NDArray[np.int64],
    *,
    slide: str,
    shapes_key: str,
    image_key: str,
    coordinate_system: str,
) -> NDArray[np.bool_]:
    """Return which locations lie on the image and not on its fill; refuse an object where many lie wholly off it.

    Parameters
    ----------
    coords_um
        (n, 2) centres.
    at
        (n,) rows of their shapes.
    """
    what, image = f"{shapes_key!r} in slide {slide!r}", f"image {image_key!r}"
    inside = pyramid.contains(coords_um)
    if not inside.all():
        off = np.flatnonzero(~inside)
        cut = _cut_by_border(sdata, shapes_key, at[off], coords_um[off], pyramid, coordinate_system=coordinate_system)
        _check_inside(pyramid, coords_um, off, cut, what=what, image=image)
    return _without_fill(pyramid, coords_um, inside, what=what, image=image)


def _cut_by_border(
    sdata: SpatialData,
    shapes_key: str,
    at: NDArray[np.int64],
    coords_um: NDArray[np.float64],
    pyramid: Pyramid,
    *,
    coordinate_system: str,
) -> NDArray[np.bool_]:
    """Return for shapes whose centre is off the image (rows `at`) which of them reach onto it all the same.

    ``spatialdata.polygon_query`` keeps whatever touches the polygon, so a crop has them all along its border.
    """
    frame = sdata.shapes[shapes_key]
    if "radius" in frame:
        affine = placed(sdata, shapes_key, coordinate_system=coordinate_system)
        radius = frame["radius"].to_numpy(dtype=np.float64)[at] * float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
        return pyramid.distance_um(coords_um) <= radius + EDGE_PX * pyramid.mpp
    shapes, _ = geometries_um(sdata, shapes_key, rows=at, coordinate_system=coordinate_system)
    return pyramid.touches(shapes)


def _check_inside(
    pyramid: Pyramid,
    coords_um: NDArray[np.float64],
    off: NDArray[np.int64],
    cut: NDArray[np.bool_],
    *,
    what: str,
    image: str,
) -> None:
    """Refuse an object where many locations lie wholly off the image, with both boxes.

    Parameters
    ----------
    coords_um
        (n, 2) centres.
    off, cut
        (m,) rows whose centre is off the image, and which of these the border of the image cuts.
    """
    missed = off[~cut]
    fraction = len(missed) / len(coords_um)
    if fraction > MAX_OUTSIDE:
        image_box = [round(v, 1) for v in pyramid.bounds_um]
        raise InputError(
            f"{fraction:.0%} of {what} lie outside {image}: locations span "
            f"{box_of(coords_um)} um, the image "
            f"{image_box} um (x0, y0, x1, y1); check that the image is the full-resolution one and that x and y are "
            f"not swapped."
        )
    if len(missed):
        logger.warning("%d of %s are off the image and skipped.", len(missed), what)
    if cut.any():
        logger.info(
            "%d of %d %s are cut by the border of the image, with their centre off it, and are skipped.",
            *(int(cut.sum()), len(coords_um), what),
        )


def _without_fill(
    pyramid: Pyramid,
    coords_um: NDArray[np.float64],
    inside: NDArray[np.bool_],
    *,
    what: str,
    image: str,
) -> NDArray[np.bool_]:
    """Return which of the locations that are on the image are not on its fill."""
    if pyramid.fill is None or not (filled := inside & pyramid.fill.covers(coords_um)).any():
        return inside
    warn(
        f"{int(filled.sum())} of {len(inside)} {what} lie where {image} is "
        "only fill (one colour up to its border, from rotation, registration or stitching) and are skipped."
    )
    return inside & ~filled

"""Tissue on a slide: a mask of it, its outline and its colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, warn
from stpred._core.elements import find_image
from stpred._image.tissue import Survey, survey
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData


MIN_PIECE_UM2 = 20_000.0
"""Area below which a piece of tissue is left out."""

TISSUE_MPP = 8.0
"""Resolution at which tissue is separated from glass."""


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue, for repeated look-ups: (h, w) mask, where it begins, and its resolution."""

    mask: NDArray[np.bool_]
    origin_um: NDArray[np.float64]
    mpp: float = TISSUE_MPP

    @classmethod
    def of(cls, pyramid: Pyramid) -> TissueMask:
        """Look at a small copy of the slide."""
        found, origin_um, mpp = survey_slide(pyramid)
        return cls(found.tissue, origin_um, mpp)

    def __call__(self, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which (n, 2) points lie on tissue."""
        mask = self.mask
        column, row = np.floor((points_um - self.origin_um) / self.mpp).astype(int).T
        on = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
        return np.asarray(on & mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], dtype=bool)


def on_tissue(pyramid: Pyramid, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which (n, 2) points lie on tissue."""
    return TissueMask.of(pyramid)(points_um)


def tissue_colour(pyramid: Pyramid) -> NDArray[np.float32]:
    """Return (2, 3) mean and standard deviation of red, green and blue over the tissue, on the 0..1 scale."""
    mpp = pyramid.coarse_mpp(TISSUE_MPP)
    thumbnail, _ = pyramid.thumbnail(mpp)
    found = survey(thumbnail, mpp=mpp)
    mask = found.tissue if found.tissue.any() else ~found.excluded
    pixels = thumbnail[mask] if mask.any() else thumbnail.reshape(-1, 3)
    shares = np.stack([np.bincount(plane, minlength=256) for plane in pixels.T]) / len(pixels)
    values = np.arange(256) / 255
    mean = shares @ values
    std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
    return np.stack([mean, std.clip(1e-3)]).astype(np.float32)


def survey_slide(
    pyramid: Pyramid, *, min_area_um2: float = MIN_PIECE_UM2, method: str | None = None, threshold: float | None = None
) -> tuple[Survey, NDArray[np.float64], float]:
    """Survey a small copy of the slide; return where it begins in micrometres and its resolution, too.

    The copy is of `TISSUE_MPP`, or coarser where it had more than 10 million pixels so.
    """
    mpp = pyramid.coarse_mpp(TISSUE_MPP)
    thumbnail, origin_um = pyramid.thumbnail(mpp)
    return survey(thumbnail, mpp=mpp, min_area_um2=min_area_um2, method=method, threshold=threshold), origin_um, mpp


def warn_doubts(found: Survey, image_key: str) -> None:
    """Warn where the outline of the tissue may be wrong."""
    if found.doubts:
        warn(
            f"The outline of the tissue on image {image_key!r} is unsure: {'; '.join(found.doubts)}. Look at it; "
            "`stpred.pp.tissue` takes `method` and `threshold`."
        )


def outline_tissue(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    min_area_um2: float = MIN_PIECE_UM2,
    method: str | None = None,
    threshold: float | None = None,
) -> GeoDataFrame:
    """Return polygons in micrometres around the pieces of tissue; `method` and `threshold` as of `pp.tissue`."""
    import geopandas as gpd
    from shapely import Polygon, make_valid
    from skimage.measure import approximate_polygon, find_contours

    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    found, origin_um, mpp = survey_slide(pyramid, min_area_um2=min_area_um2, method=method, threshold=threshold)
    mask = found.tissue
    if not mask.any():
        raise InputError(f"No tissue was found on image {image_key!r}; is it an H&E slide, stained and in focus?")
    warn_doubts(found, image_key)
    rings = []
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        # Padding by one pixel and pixel centres at half: column c of the padded mask is c - 0.5 pixels from the border.
        ring = approximate_polygon(contour, tolerance=0.7)[:, ::-1] - 0.5
        if len(ring) >= 4:
            rings.append(Polygon(ring * mpp + origin_um))
    rings.sort(key=lambda p: -p.area)
    pieces: list[Polygon] = []
    for ring in rings:  # a contour inside a piece is its hole
        inside = next((i for i, piece in enumerate(pieces) if piece.contains(ring.representative_point())), None)
        if inside is None:
            pieces.append(ring)
        else:
            pieces[inside] = pieces[inside].difference(ring)
    geometry = [make_valid(p) for p in pieces]
    frame = gpd.GeoDataFrame(geometry=geometry).explode(index_parts=False)
    return frame.set_axis([f"tissue{i}" for i in range(len(frame))])

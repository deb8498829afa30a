"""Making regions where a slide has none: the outline of the tissue, lattices of points on it, and squares of shapes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, one_of, positive
from stpred._core.elements import find_image
from stpred._core.geometry import geometries_um
from stpred.regions.tissue import TissueMask, on_tissue, survey_slide, warn_doubts
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")


@dataclass(frozen=True)
class Lattice:
    """Spacing and arrangement of locations."""

    pitch_um: float
    hexagonal: bool

    @classmethod
    def of(cls, coords_um: NDArray[np.float64]) -> Lattice | None:
        """Measure it on (n, 2) centres; None for fewer than three locations."""
        if len(coords_um) < 3:
            return None
        from scipy.spatial import cKDTree

        tree = cKDTree(coords_um)
        # Spots are not always where they should be: the four nearest say more of the pitch than the very nearest.
        pitch = float(np.median(tree.query(coords_um, k=min(5, len(coords_um)))[0][:, 1:]))
        if pitch <= 0:
            return None
        around = tree.query_ball_point(coords_um, 1.2 * pitch, return_length=True) - 1
        return cls(pitch, hexagonal=bool(np.quantile(around, 0.75) >= 5))

    def points(self, bounds_um: tuple[float, float, float, float]) -> NDArray[np.float64]:
        """Return (n, 2) points of the lattice in a box, anchored at the frame's origin so that boxes agree on them."""
        x0, y0, x1, y1 = bounds_um
        step_y = self.pitch_um * (np.sqrt(3) / 2 if self.hexagonal else 1.0)
        rows = np.arange(np.ceil(y0 / step_y), np.floor(y1 / step_y) + 1)
        parts = []
        for row in rows:
            shift = 0.5 * (row % 2) if self.hexagonal else 0.0
            columns = np.arange(np.ceil(x0 / self.pitch_um - shift), np.floor(x1 / self.pitch_um - shift) + 1)
            parts.append(np.column_stack([(columns + shift) * self.pitch_um, np.full(len(columns), row * step_y)]))
        return np.concatenate(parts) if parts else np.empty((0, 2))


def tissue_points(pyramid: Pyramid, lattice: Lattice) -> NDArray[np.float64]:
    """Return the (n, 2) points of a lattice that lie on the image and its tissue."""
    points = lattice.points(pyramid.bounds_um)
    points = points[pyramid.contains(points)]
    return points[on_tissue(pyramid, points)]


def lay_grid(
    sdata: SpatialData,
    *,
    pitch_um: float = 100.0,
    layout: Literal["square", "hexagonal"] = "square",
    image_key: str | None = None,
    tissue_key: str | None = None,
    coordinate_system: str = keys.UM,
) -> GeoDataFrame:
    """Return circles in micrometres, one per lattice point that lies on the image and on tissue."""
    import geopandas as gpd
    from shapely import contains_xy, points, prepare, union_all

    pitch_um = positive(pitch_um, name="pitch_um", unit="micrometres")
    one_of(layout, ("square", "hexagonal"), name="layout")
    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    centers = Lattice(pitch_um, layout == "hexagonal").points(pyramid.bounds_um)
    centers = centers[pyramid.contains(centers)]
    if tissue_key is None:
        found, origin_um, mpp = survey_slide(pyramid)
        warn_doubts(found, image_key)
        centers = centers[TissueMask(found.tissue, origin_um, mpp)(centers)]
    else:
        area = union_all(geometries_um(sdata, tissue_key, coordinate_system=coordinate_system)[0])
        prepare(area)
        centers = centers[contains_xy(area, centers)]
    if len(centers) == 0:
        raise InputError(f"No grid point of pitch {pitch_um:g} um lies on the tissue of image {image_key!r}.")
    # An area as large as the lattice's cell, so that tables of different pitch can be compared by area.
    radius = pitch_um / 2
    index = [f"x{x:.0f}y{y:.0f}" for x, y in centers] if pitch_um >= 2 else [str(i) for i in range(len(centers))]
    return gpd.GeoDataFrame({"radius": np.full(len(centers), radius)}, geometry=points(centers), index=index)

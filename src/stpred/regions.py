"""Making regions where a slide has none: the outline of the tissue, lattices of points on it, and squares of shapes."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys, tables
from stpred._core.checks import InputError, listing, one_of, positive
from stpred._core.elements import find_image, need_sdata, table_regions
from stpred._core.matching import geometries_um, square_bins
from stpred._core.squares import centres_inside, most_squares
from stpred._image.tissue import Survey, survey
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

TISSUE_MPP = 8.0
"""Resolution at which tissue is told from glass."""

_MOST_SQUARES = 2e8


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


@dataclass(frozen=True)
class TissueMask:
    """Where a slide has tissue, to be asked again and again: (h, w) mask of `TISSUE_MPP`, and where it begins."""

    mask: NDArray[np.bool_]
    origin_um: NDArray[np.float64]

    @classmethod
    def of(cls, pyramid: Pyramid) -> TissueMask:
        """Look at a small copy of the slide."""
        found, origin_um = look(pyramid)
        return cls(found.tissue, origin_um)

    def __call__(self, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Say which (n, 2) points lie on tissue."""
        mask = self.mask
        column, row = np.floor((points_um - self.origin_um) / TISSUE_MPP).astype(int).T
        on = (column >= 0) & (row >= 0) & (column < mask.shape[1]) & (row < mask.shape[0])
        return np.asarray(on & mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], dtype=bool)


def on_tissue(pyramid: Pyramid, points_um: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Say which (n, 2) points lie on tissue."""
    return TissueMask.of(pyramid)(points_um)


def tissue_colour(pyramid: Pyramid) -> NDArray[np.float32]:
    """Return (2, 3) mean and standard deviation of red, green and blue over the tissue, on the 0..1 scale."""
    thumbnail, _ = pyramid.thumbnail(TISSUE_MPP)
    found = survey(thumbnail, mpp=TISSUE_MPP)
    mask = found.tissue if found.tissue.any() else ~found.excluded
    pixels = thumbnail[mask if mask.any() else np.ones_like(mask)] / 255.0
    return np.stack([pixels.mean(axis=0), pixels.std(axis=0).clip(1e-3)]).astype(np.float32)


def look(pyramid: Pyramid, **how: Any) -> tuple[Survey, NDArray[np.float64]]:
    """Survey a small copy of the slide, of `TISSUE_MPP`; return where it begins in micrometres, too."""
    thumbnail, origin_um = pyramid.thumbnail(TISSUE_MPP)
    return survey(thumbnail, mpp=TISSUE_MPP, **how), origin_um


def say_doubts(found: Survey, image_key: str, *, stacklevel: int = 2) -> None:
    """Warn where the outline of the tissue may be wrong."""
    if found.doubts:
        warnings.warn(
            f"The outline of the tissue on image {image_key!r} is unsure: {'; '.join(found.doubts)}. Look at it; "
            "`stpred.pp.tissue` takes `method` and `threshold`.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )


def outline_tissue(
    sdata: SpatialData,
    *,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    min_area_um2: float = 20_000.0,
    method: str | None = None,
    threshold: float | None = None,
) -> GeoDataFrame:
    """Return polygons in micrometres around the pieces of tissue; `method` and `threshold` as of `pp.tissue`."""
    import geopandas as gpd
    from shapely import Polygon, make_valid
    from skimage.measure import approximate_polygon, find_contours

    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    found, origin_um = look(pyramid, min_area_um2=min_area_um2, method=method, threshold=threshold)
    mask = found.tissue
    if not mask.any():
        raise InputError(f"No tissue was found on image {image_key!r}; is it an H&E slide, stained and in focus?")
    say_doubts(found, image_key, stacklevel=3)
    rings = []
    for contour in find_contours(np.pad(mask, 1).astype(float), 0.5):
        # Padding by one pixel and pixel centres at half: column c of the padded mask is c - 0.5 pixels from the border.
        ring = approximate_polygon(contour, tolerance=0.7)[:, ::-1] - 0.5
        if len(ring) >= 4:
            rings.append(Polygon(ring * TISSUE_MPP + origin_um))
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
        found, origin_um = look(pyramid)
        say_doubts(found, image_key, stacklevel=3)
        centers = centers[TissueMask(found.tissue, origin_um)(centers)]
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


def cut(sdata: SpatialData, shapes_key: str, *, size_um: float = 8.0, coordinate_system: str = keys.UM) -> GeoDataFrame:
    """Return the squares of a region in micrometres, with the id of the shape that each belongs to as ``parent``."""
    import geopandas as gpd
    import shapely

    size = positive(size_um, name="size_um", unit="micrometres")
    shapes, ids = geometries_um(sdata, shapes_key, coordinate_system=coordinate_system)
    if len(shapes) == 0:
        raise InputError(f"Shapes {shapes_key!r} are empty.")
    if (odd := ~np.isfinite(shapely.bounds(shapes)).all(axis=1)).any():
        raise InputError(f"{int(odd.sum())} of the shapes {shapes_key!r} have no finite outline: {listing(ids[odd])}.")
    if not ids.is_unique:
        repeated = ids[ids.duplicated()].unique()
        raise InputError(f"The index of shapes {shapes_key!r} is not unique: {listing(repeated)}.")
    squares, parent = squares_in(shapes, size)
    if len(squares) == 0:
        raise InputError(
            f"No shape of {shapes_key!r} holds the centre of a square of {size:g} um; choose a smaller one."
        )
    if (without := np.bincount(parent, minlength=len(shapes)) == 0).any():
        logger.warning(
            "%d of %d %r hold no centre of a square of %g um (or only such as are nearer to another's centre) and have "
            "none: %s.",
            int(without.sum()), len(shapes), shapes_key, size, listing(ids[without]),
        )  # fmt: skip
    corners = np.hstack([squares, squares + 1]) * size
    return gpd.GeoDataFrame(
        {"parent": ids.to_numpy()[parent]},
        geometry=shapely.box(*corners.T),
        index=[f"x{column}y{row}" for column, row in squares.tolist()],
    )


def squares_in(shapes: NDArray[Any], size_um: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find the squares of a lattice anchored at the frame's origin whose centres lie in shapes.

    Parameters
    ----------
    shapes
        (n,) valid shapely polygons in micrometres.
    size_um
        Edge of the squares; square (i, j) begins at (i, j) times it.

    Returns
    -------
    (s, 2) int64 column and row of the squares, by row and then column, and the (s,) int64 shape that each belongs to:
    of several that hold its centre the one of the nearest centroid, of equally near ones the first.
    """
    import shapely

    low, high = np.hsplit(shapely.bounds(shapes), 2)
    if (total := most_squares(low, high, size_um)) > _MOST_SQUARES:
        raise InputError(f"Squares of `size_um`={size_um:g} would be about {total:.0e}; choose larger ones.")
    shapely.prepare(shapes)
    parent, found = centres_inside(low, high, size_um, lambda shape, xy: shapely.contains_xy(shapes[shape], xy))
    centers = (found + 0.5) * size_um
    squares, member = square_bins(centers, size_um)
    distance = np.linalg.norm(centers - shapely.get_coordinates(shapely.centroid(shapes))[parent], axis=1)
    order = np.lexsort((parent, distance, member))
    return squares, parent[order[np.unique(member[order], return_index=True)[1]]]


def check_shapes(sdata: SpatialData, key: str) -> None:
    """Refuse a name of shapes that is taken by another element, or by shapes that carry measured values."""
    need_sdata(sdata)
    tables.check_name(sdata, key, kind="shapes")
    for name, table in sdata.tables.items() if key in sdata.shapes else ():
        if key in table_regions(table) and keys.UNS not in table.uns:
            raise InputError(
                f"Shapes {key!r} carry the measured table {name!r}, so they are not overwritten; choose another "
                "`key_added`."
            )


def put_shapes(sdata: SpatialData, key: str, frame: GeoDataFrame, *, coordinate_system: str = keys.UM) -> None:
    """Put shapes whose coordinates are micrometres into the object."""
    import warnings

    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    check_shapes(sdata, key)
    if frame.empty:
        raise InputError(
            f"No shapes {key!r} were found: none is left on this image in the frame {coordinate_system!r}."
        )
    element = ShapesModel.parse(frame, transformations={coordinate_system: Identity()})
    if key in sdata.shapes:
        warnings.warn(f"Shapes {key!r} existed and are overwritten in memory.", UserWarning, stacklevel=3)
        del sdata.shapes[key]
    sdata.shapes[key] = element

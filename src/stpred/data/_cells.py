"""Locations seen through the cells in them: which cells are where, and the batch of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import affine_to, shapes_in
from stpred._core.geometry import geometries_um, placed
from stpred._core.places import Place
from stpred.data._features import embed, embed_wide, stored_features
from stpred.data._regions import CellsInside, Region, read_region
from stpred.encoders.base import Encoder
from stpred.models.batch import Batch, Needs, Patches

if TYPE_CHECKING:
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

LARGEST_CELL_UM2 = 600.0
"""Shapes that differ in size are cells if their median area is below this: a circle of 28 um."""

SAMPLE = 2000
"""Cells, spread evenly over a slide's, that its feature statistics are taken from whatever is asked for."""


def with_cells(region: Region, *, cells_key: str | None = None, prefer: str | None = None) -> Region:
    """Return a region with the cells in each location; locations without any are left out, and listed.

    Parameters
    ----------
    region
        Spots, bins, a grid, annotations, or cells.
    cells_key
        Region of the cells; the region itself says that its locations are the cells. None: the region itself if it
        looks like cells, else `prefer` if it is there, else ``nuclei``, else ``cells``.
    prefer
        Region of cells that a model was trained through.
    """
    found = cells_region(region, cells_key=cells_key, prefer=prefer)
    if found == region.shapes_key:
        n = len(region.coords_um)
        own = replace(region, counts=None, totals=None, var=None)
        return replace(region, cells=CellsInside(own, links.Links(np.arange(n + 1), np.arange(n))))
    cells = read_region(
        region.sdata,
        Place(shapes_key=found, image_key=region.image_key, coordinate_system=region.coordinate_system),
        slide=region.slide,
    )
    inside = inside_of(region, cells.coords_um)
    kept = inside.counts() > 0
    if not kept.any():
        raise InputError(
            f"None of the {len(kept)} locations of {region.shapes_key!r} in slide {region.slide!r} holds a cell of "
            f"{found!r} ({len(cells.coords_um)} cells)."
        )
    without = tuple(region.instances[~kept].tolist())
    if without:
        logger.warning(
            "%d of %d %r in slide %r hold no cell of %r and are left out: %s.",
            len(without), len(kept), region.shapes_key, region.slide, found, listing(without),
        )  # fmt: skip
    some = replace(region, cells=CellsInside(cells, inside)).take(np.flatnonzero(kept))
    return replace(some, without_cells=without)


def cells_region(region: Region, *, cells_key: str | None, prefer: str | None) -> str:
    """Return the name of the region of cells that a region is seen through."""
    there = shapes_in(region.sdata, region.coordinate_system)
    if cells_key is not None:
        return key_in(cells_key, there, what="shapes element", name="cells_key")
    if looks_like_cells(region.sdata, region.shapes_key, coordinate_system=region.coordinate_system):
        return region.shapes_key
    usual = [keys.in_frame(k, region.coordinate_system) for k in (keys.NUCLEI, keys.CELLS)]
    for name in (prefer, *usual):
        if name is not None and name in there:
            return name
    raise InputError(
        f"Slide {region.slide!r} has no cells to see {region.shapes_key!r} through; find them with "
        f"stpred.pp.nuclei(sdata), bring your own with stpred.pp.add_cells, or name their shapes with `cells_key` "
        f"(there are {listing(there)})."
    )


def looks_like_cells(sdata: SpatialData, shapes_key: str, *, coordinate_system: str = keys.UM) -> bool:
    """Whether shapes are cells by their geometry: small, and of different sizes, unlike spots, bins and grids."""
    frame = sdata.shapes[shapes_key]
    area = np.pi * frame["radius"].to_numpy() ** 2 if "radius" in frame else frame.geometry.area.to_numpy()
    affine = affine_to(frame, coordinate_system)
    if affine is None:
        return False
    area = area * abs(np.linalg.det(affine[:2, :2]))
    return bool(np.median(area) < LARGEST_CELL_UM2 and area.std() > 0.02 * area.mean())


def inside_of(region: Region, points_um: NDArray[np.float64]) -> links.Links:
    """Link each location to the points that it holds, nearest first; a point in two goes to the nearest."""
    from shapely import STRtree
    from shapely import points as as_points

    where = {"coordinate_system": region.coordinate_system}
    frame = region.sdata.shapes[region.shapes_key]
    rows = frame.index.get_indexer(region.instances)
    if "radius" in frame:
        affine = placed(region.sdata, region.shapes_key, **where)
        radius = frame["radius"].to_numpy()[rows] * float(np.sqrt(abs(np.linalg.det(affine[:2, :2]))))
        return links.within(region.coords_um, radius, points_um, nearest_only=True)
    shapes, _ = geometries_um(region.sdata, region.shapes_key, rows=rows, **where)
    point, location = STRtree(shapes).query(as_points(points_um), predicate="intersects")
    distance = np.linalg.norm(points_um[point] - region.coords_um[location], axis=1)
    order = np.lexsort((location, distance, point))
    nearest = order[np.unique(point[order], return_index=True)[1]]
    point, location, distance = point[nearest], location[nearest], distance[nearest]
    order = np.lexsort((point, distance, location))
    counts = np.bincount(location, minlength=len(rows))
    return links.Links(np.concatenate([[0], np.cumsum(counts)]), point[order])


@dataclass(frozen=True)
class Points:
    """Locations at the training pitch that cells lie in, and which of them each target sees."""

    coords_um: NDArray[np.float64]
    links: links.Links
    sources: NDArray[np.int64]
    name: str


def cell_batch(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    points: Points | None = None,
    sample: NDArray[Any] | None = None,
    **measured: Any,
) -> Batch:
    """Embed the cells of a region's locations, and what they need around them, once each.

    Parameters
    ----------
    region
        Locations with their cells.
    encoder
        What turns tiles into features.
    needs
        What the model asks for.
    points
        Locations whose tiles are seen beside the cells.
    sample
        Features of the slide's sample of cells, if they are known already.
    **measured
        As of `make_batch`.
    """
    if region.cells is None:
        raise InputError(f"{region.shapes_key!r} of slide {region.slide!r} came without cells.")
    cells, inside = region.cells.region, region.cells.links
    asked = _in_order(inside.indices)
    spread = sample_of(cells) if sample is None else np.empty(0, dtype=np.int64)
    rows = _in_order(np.concatenate([asked, spread]))
    around = None
    if needs.context_um is not None:
        around = links.radius(cells.coords_um[rows], cells.coords_um, radius_um=needs.context_um)
    elif needs.n_neighbors is not None:
        around = links.knn(cells.coords_um[rows], cells.coords_um, k=needs.n_neighbors)
    shown = rows if around is None else _in_order(np.concatenate([rows, around.indices]))
    features = _features(cells, encoder, shown)
    place = np.full(len(cells.coords_um), -1, dtype=np.int64)
    place[shown] = np.arange(len(shown))
    cell_links = None
    if around is not None:
        near = links.Links(around.indptr, place[around.indices])
        if needs.context_um is not None:
            features = _with_context(features, near)
        else:
            empty = np.full(len(shown) - len(rows), near.indices.size)
            cell_links = links.Links(np.concatenate([near.indptr, empty]), near.indices)
    n_own = len(features)
    if sample is not None:
        features = np.concatenate([features, np.asarray(sample, dtype=features.dtype)])
    within = links.Links(inside.indptr, place[inside.indices])
    batch = Batch(
        region.slide,
        features,
        within.indices[within.indptr[:-1]],
        place[spread] if sample is None else n_own + np.arange(len(sample)),
        region.coords_um,
        cells=within,
        cell_links=cell_links,
        totals=region.totals,
        n_measured=None if region.counts is None else region.counts.shape[1],
        context=None if points is None else points.name,
        **measured,
    )
    if points is None or needs.patch_um is None:
        return batch
    tiles = embed_wide(region, encoder, points.coords_um, size_um=needs.patch_um)
    return replace(batch, patches=Patches(tiles, points.links, points.sources))


def sample_of(cells: Region) -> NDArray[np.int64]:
    """Return rows of at most `SAMPLE` cells, spread evenly over all of them in their order."""
    n = len(cells.coords_um)
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))


def _features(cells: Region, encoder: Encoder, rows: NDArray[np.int64]) -> NDArray[Any]:
    """Return (len(rows), width) features of some of the cells, stored ones where these were made of the same."""
    stored = stored_features(cells, encoder)
    if stored is not None:
        return stored[rows]
    return embed(cells, encoder, cells.coords_um[rows])


def _with_context(features: NDArray[Any], near: links.Links) -> NDArray[np.float32]:
    """Return the first rows' features beside the mean of those around them and the log of how many these are.

    A cell without others around it is its own surroundings.
    """
    own = np.asarray(features[: near.n_targets], dtype=np.float32)
    mean = near.mean(np.asarray(features, dtype=np.float32), fill=0.0)
    alone = near.counts() == 0
    mean[alone] = own[alone]
    return np.concatenate([own, mean, np.log1p(near.counts(), dtype=np.float32)[:, None]], axis=1)


def _in_order(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return distinct rows by their first occurrence, so that the cells of a location lie together."""
    values, first = np.unique(rows, return_index=True)
    return values[np.argsort(first, kind="stable")]

"""From locations to the `Batch` that every model sees, in training, validation and prediction alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stpred import links
from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.places import Place
from stpred.data._cells import Points, cell_batch, sample_of
from stpred.data._features import embed, embed_parts, embed_wide, stored_features
from stpred.data._regions import CellsInside, Region, read_region
from stpred.data._scene import scene_batch, scene_reader
from stpred.data._tokens import TokenReader, median_width_um, token_batch
from stpred.encoders.base import Encoder
from stpred.encoders.tokens import with_tokens
from stpred.models.batch import Batch, Needs
from stpred.regions import Lattice, on_tissue, tissue_colour

SAME_PITCH = 0.1
"""Relative difference of pitch up to which a region gives its own context."""

FINER = 0.75
"""Width of locations relative to those of training up to which they are finer, and seen in several tiles."""

CENTRE = 1.0
"""Width of a location in sub-tiles below which only the sub-tile about its centre speaks for it."""

FEW_SOURCES = 30
"""Fewer locations than this are no basis for a slide's own feature statistics."""

PIXEL_BLOCK = 1024
"""Locations whose pixels are in memory at a time in prediction."""

CELL_BYTES = 2**29
"""Features of cells that are in memory at a time in prediction."""


def make_batch(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    lattice: Lattice | None = None,
    home: str | None = None,
    **measured: Any,
) -> Batch:
    """Embed a region's locations, and what their context needs, once each.

    Parameters
    ----------
    region
        Locations to embed.
    encoder
        What turns tiles into features.
    needs
        What the model asks for.
    lattice
        Training lattice of the model; None while training, when the region itself is the lattice. A region of another
        pitch takes its context from shared points at the training pitch: the slide's locations of the region `home`
        where there is one near the target, otherwise a grid on the tissue.
    home
        Name of the region that the model was trained on.
    **measured
        ``y``, ``truth``, ``scale``, ``colour`` of the batch, to carry along.
    """
    what = f"Image {region.image_key!r} of slide {region.slide!r}"
    region.pyramid.check_resolution(encoder.card.tile, what=what)
    if needs.cells:
        seen = None if needs.patch_um is None else _points(region, needs, lattice, home)
        return cell_batch(region, encoder, needs, points=seen, **measured)
    if needs.tokens:
        return token_batch(region, encoder, needs, **measured)
    if needs.pixel_grid:
        return scene_batch(region, encoder.card.tile, **measured)
    n = len(region.coords_um)
    around = _surroundings(region, needs, lattice, home)
    features = stored_features(region, encoder)
    points = np.concatenate([around.home_um, around.grid_um])
    if features is None:
        features = embed(region, encoder, np.concatenate([region.coords_um, points]))
    elif len(points):
        features = np.concatenate([features, embed(region, encoder, points)])
    if needs.slide_colour and measured.get("colour") is None:
        measured["colour"] = tissue_colour(region.pyramid)
    rows = np.arange(n)
    at_home, on_grid = n + np.arange(len(around.home_um)), n + len(around.home_um) + np.arange(len(around.grid_um))
    batch = Batch(
        region.slide,
        features,
        rows,
        # What speaks for the slide as a whole: its own locations at the training pitch, or else the grid.
        at_home if len(at_home) else on_grid if len(on_grid) else rows,
        region.coords_um,
        totals=region.totals,
        n_measured=None if region.counts is None else region.counts.shape[1],
        context=around.name,
        **measured,
    )
    if lattice is None or len(points) == 0:
        batch = with_needs(batch, needs)
    elif needs.linked:
        batch = replace(batch, links=_link(batch, needs, around, at_home, on_grid, beyond_um=lattice.pitch_um / 2))
    if needs.parts is None:
        return batch
    centre = lattice is not None and median_width_um(region) < CENTRE * encoder.card.tile.size_um / needs.parts
    return with_parts(batch, region, encoder, needs.parts, centre=centre)


def with_needs(batch: Batch, needs: Needs) -> Batch:
    """Return the batch with links among its targets, for a region that is its own context."""
    if not needs.linked:
        return replace(batch, links=None)
    around = _neighbors(needs, batch.coords_um, batch.coords_um)
    return replace(batch, links=links.Links(around.indptr, batch.targets[around.indices]))


def _neighbors(
    needs: Needs, targets_um: NDArray[np.float64], sources_um: NDArray[np.float64], *, beyond_um: float = 0.0
) -> links.Links:
    if needs.n_neighbors is not None:
        return links.knn(targets_um, sources_um, k=needs.n_neighbors, beyond_um=beyond_um)
    return links.radius(targets_um, sources_um, radius_um=needs.context_um, beyond_um=beyond_um)  # type: ignore[arg-type]


def with_parts(batch: Batch, region: Region, encoder: Encoder, parts: int, *, centre: bool = False) -> Batch:
    """Return the batch with the sub-tiles of its targets embedded behind what is there.

    `centre`: of each tile only a sub-tile about its centre, which is what is near a target that is smaller than that.
    """
    if centre:
        size_um = encoder.card.tile.size_um / parts
        found, each = embed_wide(region, encoder, region.coords_um, size_um=size_um), 1
    else:
        found, each = embed_parts(region, encoder, region.coords_um, parts=parts), parts**2
    n, first = len(region.coords_um), len(batch.features)
    rows = links.Links(np.arange(n + 1) * each, first + np.arange(n * each))
    return replace(batch, features=np.concatenate([batch.features, found]), parts=rows)


def prediction_batches(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    stride_um: float | None = None,
    width_um: float | None = None,
    **how: Any,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield rows of the region and their batch: all at once, or in blocks of pixels, of tokens, or of many cells.

    `stride_um` is the distance of the overlapping tiles in which tokens are seen; None: half a tile, and where
    locations are no finer than those of training, which were `width_um` wide, a whole one.
    """
    n = len(region.coords_um)
    if needs.tokens:
        yield from token_reader(region, encoder, needs, stride_um=stride_um, width_um=width_um, **how).blocks(region)
        return
    if needs.pixel_grid:
        yield from scene_reader(region, encoder, stride_um=stride_um, **how).blocks(region)
        return
    if stride_um is not None:
        raise InputError("`stride_um` is for models of tokens (patches of tiles), such as 'student'.")
    if needs.cells:
        yield from _cell_blocks(region, encoder, needs, **how)
        return
    if getattr(encoder, "dtype", np.float32) != np.uint8 or n <= PIXEL_BLOCK:
        yield np.arange(n), make_batch(region, encoder, needs, **how)
        return
    if needs.slide_colour:
        how["colour"] = tissue_colour(region.pyramid)
    # From top to bottom, as the image is stored, so that hardly any chunk is decoded twice.
    order = np.lexsort((region.coords_um[:, 0], np.floor(region.coords_um[:, 1] / (4 * encoder.card.tile.size_um))))
    for rows in np.array_split(order, -(-n // PIXEL_BLOCK)):
        yield rows, make_batch(region.take(rows), encoder, needs, **how)


def _cell_blocks(
    region: Region, encoder: Encoder, needs: Needs, **how: Any
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield rows and batches of a region seen through cells; of many cells, in blocks by place."""
    n = len(region.coords_um)
    cells, links_inside = region.cells.region, region.cells.links  # type: ignore[union-attr]
    n_blocks = -(-links_inside.indices.size * encoder.card.width * 4 // CELL_BYTES)
    if n_blocks <= 1:
        yield np.arange(n), make_batch(region, encoder, needs, **how)
        return
    spread = cells.take(sample_of(cells))
    own = replace(spread, cells=CellsInside(cells, links.Links(np.arange(len(spread.coords_um) + 1), sample_of(cells))))
    known = cell_batch(own, encoder, replace(needs, patch_um=None))
    sample = known.features[known.sources]
    strip = np.floor(region.coords_um[:, 1] / max(np.ptp(region.coords_um[:, 1]) / np.sqrt(n_blocks), 1e-9))
    for rows in np.array_split(np.lexsort((region.coords_um[:, 0], strip)), n_blocks):
        yield rows, make_batch(region.take(rows), encoder, needs, sample=sample, **how)


def token_reader(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    lattice: Lattice | None = None,
    home: str | None = None,
    stride_um: float | None = None,
    width_um: float | None = None,
) -> TokenReader:
    """Return what reads a region, or parts of it, through tokens; parameters as of `prediction_batches`."""
    tile = encoder.card.tile
    what = f"Image {region.image_key!r} of slide {region.slide!r}"
    region.pyramid.check_resolution(tile, what=what)
    spread, name = region, "region"
    if lattice is not None:
        if stride_um is None and (width_um is None or median_width_um(region) < FINER * width_um):
            n = with_tokens(encoder, needs.token_um).card.dense[0]
            stride_um = max(1, n // 2) * tile.size_um / n
        if home is None or home != region.shapes_key or region.edge_um is not None:
            found = None if home is None else _home_region(region, home)
            name = "grid" if found is None else str(home)
            spread = _on_grid(region, lattice, edge_um=tile.size_um / 2) if found is None else found
    reader = TokenReader.of(spread, encoder, needs, context=name, stride_um=stride_um)
    if name == "region" or needs.footprint_um is None:
        return reader
    # A square that stood for training locations would blur anything finer.
    return replace(reader, needs=replace(needs, footprint_um=None))


def _on_grid(region: Region, lattice: Lattice, *, edge_um: float) -> Region:
    """Return squares on the slide's tissue at the training pitch."""
    points = lattice.points(region.pyramid.bounds_um)
    points = points[region.pyramid.contains(points)]
    points = points[on_tissue(region.pyramid, points)]
    if len(points) == 0:
        raise InputError(f"Slide {region.slide!r} has no tissue to take the statistics of its patches from.")
    return replace(
        region,
        coords_um=points,
        instances=pd.RangeIndex(len(points)),
        counts=None,
        totals=None,
        cells=None,
        edge_um=edge_um,
    )


def _points(region: Region, needs: Needs, lattice: Lattice | None, home: str | None) -> Points:
    """Find the locations at the training pitch that targets lie in, and those around these.

    The slide's own ones of the training region where a target has one near, else those of a grid; which one a target
    gets depends on its place alone.
    """
    name = region.shapes_key if lattice is None else home
    if lattice is None and region.cells is not None and region.cells.region.shapes_key == region.shapes_key:
        raise InputError(
            f"{region.shapes_key!r} of slide {region.slide!r} are cells; this model is trained on spots or bins that "
            f"hold cells, whose tiles it sees beside them."
        )
    at_home = np.empty((0, 2)) if name is None else _home(region, name)
    if lattice is None:
        lattice = Lattice.of(at_home)
        lattice = Lattice(needs.patch_um or 100.0, hexagonal=False) if lattice is None else lattice
    elif not _serves(Lattice.of(at_home), lattice, len(at_home), Needs()):
        at_home = np.empty((0, 2))
    coords, radius_um = region.coords_um, float(needs.patch_context_um)  # type: ignore[arg-type]
    covered = np.zeros(len(coords), dtype=bool)
    if len(at_home):
        covered = np.isfinite(cKDTree(at_home).query(coords, distance_upper_bound=1.01 * lattice.pitch_um)[0])
    grid = np.empty((0, 2))
    if not covered.all():
        wide = Needs(context_um=radius_um + lattice.pitch_um, slide_statistics=needs.slide_statistics)
        grid = _grid(region, wide, lattice, coords[~covered], whole=len(at_home) == 0)
    own = np.zeros(len(coords), dtype=np.int64)
    near = []
    for mask, places, start in ((covered, at_home, 0), (~covered, grid, len(at_home))):
        if len(places):
            own[mask] = start + cKDTree(places).query(coords[mask])[1]
            found = links.radius(places, places, radius_um=radius_um)
            near.append(links.Links(found.indptr, found.indices + start))
    indptr = np.concatenate([[0], *(x.indptr[1:] + sum(y.indices.size for y in near[:i]) for i, x in enumerate(near))])
    around = links.Links(indptr, np.concatenate([x.indices for x in near])).take(own)
    first = links.Links(around.indptr + np.arange(len(own) + 1), np.insert(around.indices, around.indptr[:-1], own))
    sources = np.arange(len(at_home) or len(grid))
    told = "grid" if len(at_home) == 0 else str(name) if covered.all() else f"{name}+grid"
    return Points(np.concatenate([at_home, grid]), first, sources, told)


@dataclass(frozen=True)
class _Surroundings:
    """Points at the training pitch around a region of another.

    Attributes
    ----------
    home_um, grid_um
        (h, 2) locations of the training region on this slide and (g, 2) points of a grid; empty where not needed.
    covered
        (n,) whether a target has a training location nearby and takes its context from there, or else from the grid.
    name
        What the context is called.
    """

    home_um: NDArray[np.float64]
    grid_um: NDArray[np.float64]
    covered: NDArray[np.bool_]
    name: str | None


def _surroundings(region: Region, needs: Needs, lattice: Lattice | None, home: str | None) -> _Surroundings:
    """Find the points that targets take their context from; which ones a target gets depends on its place alone."""
    none, coords = np.empty((0, 2)), region.coords_um
    covered = np.zeros(len(coords), dtype=bool)
    if not needs.sources:
        return _Surroundings(none, none, covered, None)
    if lattice is None or _serves(Lattice.of(coords), lattice, len(coords), needs):
        return _Surroundings(none, none, covered, "region")
    at_home = _home(region, home) if home is not None and home != region.shapes_key else none
    if not _serves(Lattice.of(at_home), lattice, len(at_home), needs):
        at_home = none
    if len(at_home):
        covered = np.isfinite(cKDTree(at_home).query(coords, distance_upper_bound=1.01 * lattice.pitch_um)[0])
        if covered.all() or not needs.linked:
            return _Surroundings(at_home, none, covered, home)
    grid = _grid(region, needs, lattice, coords[~covered], whole=len(at_home) == 0)
    return _Surroundings(at_home, grid, covered, "grid" if len(at_home) == 0 else f"{home}+grid")


def _grid(
    region: Region, needs: Needs, lattice: Lattice, targets_um: NDArray[np.float64], *, whole: bool
) -> NDArray[np.float64]:
    """Return points of the training lattice on the tissue around targets; `whole`: they speak for the slide, too."""
    points = lattice.points(region.pyramid.bounds_um)
    points = points[region.pyramid.contains(points)]
    if whole and (needs.slide_statistics or needs.whole_slide):
        # What speaks for a slide's tissue is the same whichever targets are asked for.
        points = points[on_tissue(region.pyramid, points)]
    else:
        reach = _reach_um(needs, lattice)
        points = points[np.isfinite(cKDTree(targets_um).query(points, distance_upper_bound=reach)[0])]
        if needs.n_neighbors is not None and (tissue := on_tissue(region.pyramid, points)).any():
            points = points[tissue]
    if len(points) == 0 and whole:
        raise InputError(f"Slide {region.slide!r} has no tissue to take the context of {region.shapes_key!r} from.")
    return points


def _link(
    batch: Batch,
    needs: Needs,
    around: _Surroundings,
    at_home: NDArray[np.int64],
    on_grid: NDArray[np.int64],
    *,
    beyond_um: float,
) -> links.Links:
    """Link covered targets to the training region, others to the grid.

    Training never shows a location to itself, so a point on top of the target is left out as well.
    """
    owners, sources = [], []
    for mask, rows, places in ((around.covered, at_home, around.home_um), (~around.covered, on_grid, around.grid_um)):
        mine = np.flatnonzero(mask)
        if len(mine) == 0 or len(places) == 0:
            continue
        found = _neighbors(needs, batch.coords_um[mine], places, beyond_um=beyond_um)
        owners.append(np.repeat(mine, found.counts()))
        sources.append(rows[found.indices])
    owner = np.concatenate([np.empty(0, dtype=np.int64), *owners])
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(batch.targets))
    return links.Links(
        np.concatenate([[0], np.cumsum(counts)]), np.concatenate([np.empty(0, dtype=np.int64), *sources])[order]
    )


def _serves(own: Lattice | None, lattice: Lattice, n: int, needs: Needs) -> bool:
    """Whether locations of this lattice can be the context of a model that was trained on the other."""
    same = own is not None and abs(own.pitch_um / lattice.pitch_um - 1) <= SAME_PITCH
    return same and (not needs.slide_statistics or n >= FEW_SOURCES)


def _home(region: Region, home: str) -> NDArray[np.float64]:
    """Return the centres of the slide's own training region, as training and prediction on it would take them."""
    found = _home_region(region, home)
    return np.empty((0, 2)) if found is None else found.coords_um


def _home_region(region: Region, home: str) -> Region | None:
    """Return the slide's own training region, if it has one."""
    there = region.sdata.shapes
    home = next((name for name in (keys.in_frame(home, region.coordinate_system), home) if name in there), "")
    if not home:
        return None
    try:
        return read_region(
            region.sdata,
            Place(shapes_key=home, image_key=region.image_key, coordinate_system=region.coordinate_system),
            slide=region.slide,
        )
    except InputError:  # not placed in this frame, or empty: then it is no context either
        return None


def _reach_um(needs: Needs, lattice: Lattice) -> float:
    """Return how far a target's context may lie: twice as far for the nearest, which thin out at borders."""
    if needs.n_neighbors is None:
        return float(needs.context_um)  # type: ignore[arg-type]
    per_um2 = (2 / np.sqrt(3) if lattice.hexagonal else 1.0) / lattice.pitch_um**2
    return float(2 * np.sqrt((needs.n_neighbors + 1) / (np.pi * per_um2)) + lattice.pitch_um)


def reach_um(batch: Batch) -> float | None:
    """Return how far the context of a training batch goes: the median distance of its targets' farthest neighbours."""
    if batch.links is None or batch.links.indices.size == 0:
        return None
    counts = batch.links.counts()
    target = np.repeat(np.arange(len(counts)), counts)
    distance = np.linalg.norm(batch.coords_um[target] - batch.coords_um[batch.links.indices], axis=1)
    farthest = np.zeros(len(counts))
    np.maximum.at(farthest, target, distance)
    return float(np.median(farthest[counts > 0]))

"""Locations as sets of the cells in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core.checks import InputError
from stpred.data._features import embed_region, embed_wide
from stpred.data._readers.cell_tiles import crops_and_tiles, tiles_of_cells, tiles_of_sample
from stpred.data._readers.reader import PlainReader, blocks_of, evenly
from stpred.data._readers.surroundings import PatchPoints, patch_points
from stpred.data._regions import CellsInside, Region
from stpred.encoders.base import Encoder
from stpred.models.batch import Batch, Needs, Patches

MAX_SAMPLE = 2000
"""Cells, spread evenly over a slide's, that its feature statistics are taken from whatever is predicted."""

CELL_BYTES = 2**28
"""Features of cells that are in memory at a time in prediction, beside the tiles and means that are put beside them."""


class CellReader(PlainReader):
    """Embeds the cells in each location, what is around them, and the tiles of models that see both."""

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch; of many cells, in blocks by place."""
        region = self.region if part is None else part
        n = len(region.coords_um)
        cells, inside = region.cells.region, region.cells.links  # type: ignore[union-attr]
        n_blocks = -(-inside.indices.size * self.encoder.card.width * 4 // CELL_BYTES)
        if n_blocks <= 1:
            yield np.arange(n), self.batch(region)
            return
        first = replace(cells.take(np.array([0])), cells=CellsInside(cells, links.Links(np.arange(2), np.array([0]))))
        batch = cell_batch(first, self.encoder, replace(self.needs, patch_um=None))
        sample = batch.features[batch.sources]
        strip = np.floor(region.coords_um[:, 1] / max(np.ptp(region.coords_um[:, 1]) / np.sqrt(n_blocks), 1e-9))
        for rows in np.array_split(np.lexsort((region.coords_um[:, 0], strip)), n_blocks):
            yield rows, self.batch(region.take(rows), sample)

    def batch(self, region: Region, sample: NDArray[Any] | None = None) -> Batch:
        """Embed the cells of a region; `sample`: features that describe the slide, if they were computed before."""
        points = None if self.needs.patch_um is None else patch_points(region, self.needs, self.trained_on)
        return cell_batch(region, self.encoder, self.needs, points=points, sample=sample)


def cell_batch(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    points: PatchPoints | None = None,
    sample: NDArray[Any] | None = None,
) -> Batch:
    """Embed the cells of a region's locations, and what they need around them, once each.

    Parameters
    ----------
    region, encoder, needs
        Locations with their cells, what turns tiles into features, and what the model asks for.
    points
        Locations whose tiles go with the cells.
    sample
        Features of the slide's sample of cells, if they were computed before.
    """
    if region.cells is None:
        raise InputError(f"{region.shapes_key!r} of slide {region.slide!r} came without cells.")
    cells, inside = region.cells.region, region.cells.links
    crops, tiles = crops_and_tiles(encoder, needs.tile_um)
    own = _in_order(inside.indices)
    spread = _sample_of(cells) if sample is None else np.empty(0, dtype=np.int64)
    rows = _in_order(np.concatenate([own, spread]))
    around = None
    if needs.context_um is not None:
        around = links.radius(cells.coords_um[rows], cells.coords_um, radius_um=needs.context_um)
    elif needs.n_neighbors is not None:
        around = links.knn(cells.coords_um[rows], cells.coords_um, n_neighbors=needs.n_neighbors)
    shown = rows if around is None else _in_order(np.concatenate([rows, around.indices]))
    features = embed_region(cells, crops, rows=shown)
    place = np.full(len(cells.coords_um), -1, dtype=np.int64)
    place[shown] = np.arange(len(shown))
    cell_links, blocks = None, blocks_of(crops)
    if around is not None:
        near = links.Links(around.indptr, place[around.indices])
        if needs.context_um is not None:
            features = _with_context(features, near)
            blocks = None if blocks is None and tiles is None else (*crops.card.blocks, *crops.card.blocks, 1)
        else:
            empty = np.full(len(shown) - len(rows), near.indices.size)
            cell_links = links.Links(np.concatenate([near.indptr, empty]), near.indices)
    within, sources = links.Links(inside.indptr, place[inside.indices]), place[spread]
    if tiles is not None:
        features = np.concatenate([features[place[own]], features[sources]])
        within, sources = _in_new_order(own, inside), len(own) + np.arange(len(spread))
        beside = [_tiles(region, tiles, own), tiles_of_sample(region, tiles, cells.coords_um[spread])]
        features = np.concatenate([features, np.concatenate(beside).astype(features.dtype)], axis=1)
        blocks = (*(crops.card.blocks if blocks is None else blocks), *tiles.card.blocks)
    if sample is not None:
        sources = len(features) + np.arange(len(sample))
        features = np.concatenate([features, np.asarray(sample, dtype=features.dtype)])
    batch = Batch(
        region.slide,
        features,
        within.indices[within.indptr[:-1]],
        sources,
        region.coords_um,
        cells=within,
        cell_links=cell_links,
        totals=region.totals,
        n_measured=region.n_measured,
        context=None if points is None else points.name,
        n_tile=None if tiles is None else tiles.card.width,
        blocks=blocks,
    )
    if points is None or needs.patch_um is None:
        return batch
    patches = embed_wide(region, encoder, points.coords_um, size_um=needs.patch_um)
    return replace(batch, patches=Patches(patches, points.links, points.sources))


def _tiles(region: Region, encoder: Encoder, own: NDArray[np.int64]) -> NDArray[Any]:
    """Return the features of the tiles that go with the cells of a region's locations."""
    cells, inside = region.cells.region, region.cells.links  # type: ignore[union-attr]
    owner = np.empty(len(cells.coords_um), dtype=np.int64)
    owner[inside.indices[::-1]] = np.repeat(np.arange(inside.n_targets), inside.counts())[::-1]
    return tiles_of_cells(region, encoder, cells.coords_um[own], owner[own])


def _in_new_order(own: NDArray[np.int64], inside: links.Links) -> links.Links:
    """Return links to cells as links to their places among `own`."""
    order = np.argsort(own)
    return links.Links(inside.indptr, order[np.searchsorted(own, inside.indices, sorter=order)])


def _sample_of(cells: Region) -> NDArray[np.int64]:
    """Return rows of at most `MAX_SAMPLE` cells, spread evenly over all of them in their order."""
    return evenly(len(cells.coords_um), MAX_SAMPLE)


def _with_context(features: NDArray[Any], near: links.Links) -> NDArray[np.float32]:
    """Return the first rows' features beside the mean of those around them and the log of their number.

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

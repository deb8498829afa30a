"""Locations as the tiles around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core.compute.moments import Moments
from stpred._core.disk.on_disk import joined
from stpred.data._features import embed_centre, embed_parts, embed_region
from stpred.data._readers.footprints import median_width_um
from stpred.data._readers.reader import PlainReader, blocks_of
from stpred.data._readers.surroundings import Surroundings, link, near, neighbors, surroundings
from stpred.data._regions import Region
from stpred.data._scratch import release
from stpred.encoders.base import Encoder
from stpred.models.batch import Batch, Needs
from stpred.regions import tissue_colour

CENTRE = 1.0
"""Width of a location in sub-tiles below which only the sub-tile about its centre stands for it."""

PIXEL_BLOCK = 1024
"""Locations whose pixels are in memory at a time in prediction."""


TILE_BYTES = 2**25
"""Features of tiles from which on they are in a file in prediction, and batches are made of them block by block."""

BLOCK_BYTES = 2**24
"""Features of the targets of such a block."""


class TileReader(PlainReader):
    """Embeds the tile of each location, and those that its context needs, once each."""

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch: all at once where they are few, otherwise in blocks from top to bottom."""
        region = self.region if part is None else part
        n = len(region.coords_um)
        pixels = getattr(self.encoder, "dtype", np.float32) == np.uint8
        if n <= PIXEL_BLOCK or not (pixels or self._many(region)):
            yield np.arange(n), self.batch(region)
        elif pixels:
            for rows in self._strips(region, PIXEL_BLOCK):
                yield rows, self.batch(region.take(rows))
        else:
            yield from self._from_file(region)

    def _many(self, region: Region) -> bool:
        """Whether features are too many for memory, of a model that does not need those of all locations at once."""
        each = 1 + (self.needs.parts or 0) ** 2
        if len(region.coords_um) * each * self.encoder.card.width * 4 <= TILE_BYTES:
            return False
        return not (self.needs.whole_slide and len(self._around(region).points_um) == 0)

    def _around(self, region: Region) -> Surroundings:
        return surroundings(region, self.needs, self.trained_on)

    def _strips(self, region: Region, most: int) -> list[NDArray[np.int64]]:
        """Return rows from top to bottom, as the image is stored, so that hardly any chunk is decoded twice."""
        strip_um = 4 * self.encoder.card.tile.size_um
        order = np.lexsort((region.coords_um[:, 0], np.floor(region.coords_um[:, 1] / strip_um)))
        return np.array_split(order, -(-len(order) // most))

    def _from_file(self, region: Region) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Embed everything in one pass into a file, and yield batches with what of it they need."""
        around = self._around(region)
        features = embed_region(region, self.encoder, points_um=around.points_um, spill=True)
        joint = self._unlinked(region, around, features)
        if self.needs.slide_statistics:
            joint = replace(joint, moments=Moments.of(features, joint.sources, done=release))
        parts = self._parts(region, around, joint)
        for rows in self._strips(region, max(BLOCK_BYTES // features[:1].nbytes, PIXEL_BLOCK)):
            covered = replace(around, covered=around.covered[rows])
            batch = self._linked(joint.take(rows), covered, region.coords_um)
            yield rows, parts.put(compact(batch, self.needs), rows)
            release(features)

    @cached_property
    def _colour(self) -> NDArray[np.float32] | None:
        return tissue_colour(self.region.pyramid) if self.needs.slide_colour else None

    def whole(self) -> Batch:
        """Return all locations as one batch, whose features stay on disk where they are kept there."""
        return self.batch(self.region, on_disk=True)

    def batch(self, region: Region, *, on_disk: bool = False) -> Batch:
        """Embed a region and its surroundings."""
        needs, encoder = self.needs, self.encoder
        around = self._around(region)
        features = embed_region(region, encoder, points_um=around.points_um, on_disk=on_disk)
        batch = self._unlinked(region, around, features)
        batch = self._linked(batch, around, region.coords_um)
        if needs.parts is None:
            return batch
        batch = with_parts(batch, region, encoder, needs.parts, centre=self._by_centre(region), on_disk=on_disk)
        return with_source_parts(batch, region, encoder, needs.parts) if needs.whole_slide else batch

    def _by_centre(self, region: Region) -> bool:
        """Whether locations are so small that one sub-tile about the centre stands for them."""
        if self.trained_on.lattice is None or self.needs.parts is None:
            return False
        return median_width_um(region) < CENTRE * self.encoder.card.tile.size_um / self.needs.parts

    def _unlinked(self, region: Region, around: Surroundings, features: Any) -> Batch:
        """Return a batch of all locations: their features, and behind them those of the points around."""
        n, n_home = len(region.coords_um), len(around.home_um)
        rows, at_home = np.arange(n), n + np.arange(n_home)
        on_grid = n + n_home + np.arange(len(around.grid_um))
        batch = Batch(
            region.slide,
            features,
            rows,
            # What describes the slide as a whole: its own locations at the training pitch, or else the grid.
            at_home if len(at_home) else on_grid if len(on_grid) else rows,
            region.coords_um,
            totals=region.totals,
            n_measured=region.n_measured,
            colour=self._colour,
            context=around.name,
            blocks=blocks_of(self.encoder),
        )
        if self.needs.places:
            batch = replace(batch, places_um=np.concatenate([region.coords_um, around.points_um]))
        return batch

    def _linked(self, batch: Batch, around: Surroundings, coords_um: NDArray[np.float64]) -> Batch:
        """Link some targets to their neighbours: points around, or else others of the (n, 2) locations themselves."""
        needs, lattice = self.needs, self.trained_on.lattice
        if not needs.linked:
            return batch
        if lattice is None or len(around.points_um) == 0:
            found = neighbors(needs, batch.coords_um, coords_um)
            within = near(needs, batch.coords_um, coords_um)
            return replace(batch, links=found, near=within, radii_um=needs.radii_um)
        at_home = len(coords_um) + np.arange(len(around.home_um))
        on_grid = len(coords_um) + len(at_home) + np.arange(len(around.grid_um))
        return link(batch, needs, around, at_home, on_grid, beyond_um=lattice.pitch_um / 2)

    def _parts(self, region: Region, around: Surroundings, joint: Batch) -> _Parts:
        """Embed the sub-tiles of all locations into a file, and those of what the slide is described by."""
        needs, encoder = self.needs, self.encoder
        if needs.parts is None:
            return _Parts()
        centre = self._by_centre(region)
        embed = embed_centre if centre else embed_parts
        found = embed(region, encoder, region.coords_um, parts=needs.parts, spill=True)
        sources = None
        if needs.whole_slide:
            places = np.concatenate([region.coords_um, around.points_um])[joint.sources]
            sources = places, embed_parts(region, encoder, places, parts=needs.parts)
        return _Parts(found, 1 if centre else needs.parts**2, sources)


@dataclass(frozen=True)
class _Parts:
    """Sub-tiles of all targets of a slide, and places and sub-tiles of its sources."""

    features: Any = None
    each: int = 1
    sources: tuple[NDArray[np.float64], NDArray[Any]] | None = None

    def put(self, batch: Batch, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of some targets with their sub-tiles, and those of its sources."""
        if self.features is None:
            return batch
        own = (rows[:, None] * self.each + np.arange(self.each)).ravel()
        batch, parts = _behind(batch, self.features[own], self.each, batch.coords_um)
        release(self.features)
        batch = replace(batch, parts=parts)
        if self.sources is None:
            return batch
        places, found = self.sources
        batch, parts = _behind(batch, found, len(found) // len(places), places)
        return replace(batch, source_parts=parts)


def compact(batch: Batch, needs: Needs) -> Batch:
    """Return the batch with those embedded points alone that its targets need, in their order."""
    wanted = [batch.targets] if batch.links is None else [batch.targets, batch.links.indices]
    sources = batch.sources
    if not needs.whole_slide:
        # Statistics are there; of the sources' places only the corner matters.
        corner = [] if batch.places_um is None else batch.places_um[sources].argmin(axis=0)
        sources = sources[corner] if len(corner) else batch.targets[:1]
    used = np.unique(np.concatenate([*wanted, sources]))

    def place(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(used, rows)

    return replace(
        batch,
        features=np.asarray(batch.features[used]),
        targets=place(batch.targets),
        sources=place(sources),
        places_um=None if batch.places_um is None else batch.places_um[used],
        links=None if batch.links is None else replace(batch.links, indices=place(batch.links.indices)),
    )


def with_needs(batch: Batch, needs: Needs) -> Batch:
    """Return the batch with links among its targets, for a region that is its own context."""
    if needs.whole_slide and batch.parts is not None:
        batch = replace(batch, source_parts=batch.parts)
    if not needs.linked:
        return replace(batch, links=None, near=None, radii_um=())
    around = neighbors(needs, batch.coords_um, batch.coords_um)
    return replace(
        batch,
        links=links.Links(around.indptr, batch.targets[around.indices]),
        near=near(needs, batch.coords_um, batch.coords_um),
        radii_um=needs.radii_um,
    )


def with_parts(
    batch: Batch, region: Region, encoder: Encoder, parts: int, *, centre: bool = False, on_disk: bool = True
) -> Batch:
    """Return the batch with the sub-tiles of its targets embedded behind what is there.

    `centre`: of each tile only a sub-tile about its centre, which is what is near a target that is smaller than that.
    `on_disk`: features that are kept on disk stay there.
    """
    if centre:
        found, each = embed_centre(region, encoder, region.coords_um, parts=parts), 1
    else:
        found, each = embed_parts(region, encoder, region.coords_um, parts=parts, on_disk=on_disk), parts**2
    batch, rows = _behind(batch, found, each, region.coords_um)
    return replace(batch, parts=rows)


def with_source_parts(batch: Batch, region: Region, encoder: Encoder, parts: int) -> Batch:
    """Return the batch with the sub-tiles of its sources, which are the targets themselves or are embedded behind."""
    if np.array_equal(batch.sources, batch.targets) and batch.parts is not None:
        return replace(batch, source_parts=batch.parts)
    assert batch.places_um is not None
    places = batch.places_um[batch.sources]
    batch, rows = _behind(batch, embed_parts(region, encoder, places, parts=parts), parts**2, places)
    return replace(batch, source_parts=rows)


def _behind(batch: Batch, found: Any, each: int, centres_um: NDArray[np.float64]) -> tuple[Batch, links.Links]:
    """Put `each` sub-tiles of some centres behind the embedded points; return also which are whose."""
    n, first = len(centres_um), len(batch.features)
    rows = links.Links(np.arange(n + 1) * each, first + np.arange(n * each))
    places = batch.places_um
    if places is not None:
        places = np.concatenate([places, np.repeat(centres_um, each, axis=0)])
    return replace(batch, features=joined([batch.features, found], axis=0), places_um=places), rows

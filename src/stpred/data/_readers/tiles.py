"""Locations as the tiles around them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core.disk.on_disk import joined
from stpred.data._features import embed_centre, embed_parts, embed_region
from stpred.data._readers.footprints import median_width_um
from stpred.data._readers.reader import PlainReader, blocks_of
from stpred.data._readers.surroundings import link, near, neighbors, surroundings
from stpred.data._regions import Region
from stpred.encoders.base import Encoder
from stpred.models.batch import Batch, Needs
from stpred.regions import tissue_colour

CENTRE = 1.0
"""Width of a location in sub-tiles below which only the sub-tile about its centre stands for it."""

PIXEL_BLOCK = 1024
"""Locations whose pixels are in memory at a time in prediction."""


class TileReader(PlainReader):
    """Embeds the tile of each location, and those that its context needs, once each."""

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch: all at once, or in blocks where features are the pixels themselves."""
        region = self.region if part is None else part
        n = len(region.coords_um)
        if getattr(self.encoder, "dtype", np.float32) != np.uint8 or n <= PIXEL_BLOCK:
            yield np.arange(n), self.batch(region)
            return
        # From top to bottom, as the image is stored, so that hardly any chunk is decoded twice.
        strip_um = 4 * self.encoder.card.tile.size_um
        order = np.lexsort((region.coords_um[:, 0], np.floor(region.coords_um[:, 1] / strip_um)))
        for rows in np.array_split(order, -(-n // PIXEL_BLOCK)):
            yield rows, self.batch(region.take(rows))

    @cached_property
    def _colour(self) -> NDArray[np.float32] | None:
        return tissue_colour(self.region.pyramid) if self.needs.slide_colour else None

    def whole(self) -> Batch:
        """Return all locations as one batch, whose features stay on disk where they are kept there."""
        return self.batch(self.region, on_disk=True)

    def batch(self, region: Region, *, on_disk: bool = False) -> Batch:
        """Embed a region and its surroundings."""
        needs, encoder, lattice = self.needs, self.encoder, self.trained_on.lattice
        n = len(region.coords_um)
        around = surroundings(region, needs, self.trained_on)
        points = around.points_um
        features = embed_region(region, encoder, points_um=points, on_disk=on_disk)
        rows, n_home = np.arange(n), len(around.home_um)
        at_home, on_grid = n + np.arange(n_home), n + n_home + np.arange(len(around.grid_um))
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
            blocks=blocks_of(encoder),
        )
        if lattice is None or len(points) == 0:
            batch = with_needs(batch, needs)
        elif needs.linked:
            batch = link(batch, needs, around, at_home, on_grid, beyond_um=lattice.pitch_um / 2)
        if needs.places:
            batch = replace(batch, places_um=np.concatenate([region.coords_um, points]))
        if needs.parts is None:
            return batch
        centre = lattice is not None and median_width_um(region) < CENTRE * encoder.card.tile.size_um / needs.parts
        batch = with_parts(batch, region, encoder, needs.parts, centre=centre, on_disk=on_disk)
        return with_source_parts(batch, region, encoder, needs.parts) if needs.whole_slide else batch


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

"""Locations as the tokens (patches of tiles) in their footprints.

Where tiles overlap, a token has a view in each of them, and what is predicted from its views is averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stpred import links
from stpred._core.checks import InputError
from stpred._core.geometry import square_bins
from stpred.data._features import check_resolution, embed, embed_dense
from stpred.data._readers.footprints import TokenGrid, areas_um2, distinct, footprints, median_width_um
from stpred.data._readers.reader import Context, blocks_of, evenly
from stpred.data._readers.surroundings import home_region
from stpred.data._regions import Region
from stpred.encoders.base import Encoder
from stpred.encoders.composite import members_of
from stpred.encoders.tokens import token_edge_um, with_hierarchy, with_tokens
from stpred.models.batch import Batch, Needs
from stpred.regions import Lattice, tissue_points

FINER = 0.75
"""Width of locations relative to those of training up to which they are finer, and read in several tiles."""

MAX_SAMPLE = 400
"""Locations whose tokens describe a slide as a whole."""

BLOCK_BYTES = 2**28
"""Features of tokens that are in memory at a time in prediction."""

_TILES = 256
"""Tiles whose tokens are in memory at a time."""


@dataclass(frozen=True)
class TokenReader:
    """Reads a slide's locations through tokens; what describes the slide is the same for all blocks.

    Attributes
    ----------
    region, encoder, needs, stride_um
        As of `token_batch`.
    spread
        Locations whose tokens describe the slide.
    context
        What these are called: ``"region"``, ``"grid"``, or the slide's own training region.
    """

    region: Region
    encoder: Any
    needs: Needs
    spread: Region
    context: str
    stride_um: float | None = None

    @classmethod
    def of(
        cls,
        region: Region,
        encoder: Encoder,
        needs: Needs,
        context: Context | None = None,
        *,
        stride_um: float | None = None,
    ) -> TokenReader:
        """Choose the distance of the tiles, and the locations that describe the slide: at the training pitch."""
        check_resolution(region, encoder)
        context = Context() if context is None else context
        if context.lattice is None:
            return cls(region, encoder, needs, region, "region", stride_um)
        tile, width_um, home = encoder.card.tile, context.width_um, context.home
        if (
            not needs.isolated
            and stride_um is None
            and (width_um is None or median_width_um(region) < FINER * width_um)
        ):
            n = with_tokens(encoder, needs.token_um).card.dense[0]
            stride_um = max(1, n // 2) * tile.size_um / n
        if home is not None and home == region.shapes_key and region.edge_um is None:
            return cls(region, encoder, needs, region, "region", stride_um)
        found = None if home is None else home_region(region, home)
        if found is None:
            return cls(region, encoder, needs, _on_grid(region, context.lattice, tile.size_um / 2), "grid", stride_um)
        return cls(region, encoder, needs, found, str(home), stride_um)

    @cached_property
    def sample(self) -> NDArray[np.float32]:
        """(s, width) tokens that describe the slide."""
        some = evenly(len(self.spread.coords_um), MAX_SAMPLE)
        batch = token_batch(self.spread.take(some), self.encoder, self.needs)
        return batch.features[batch.sources]

    def whole(self) -> Batch:
        """Return all locations as one batch, described by tokens of their own."""
        return token_batch(self.region, self.encoder, self.needs, stride_um=self.stride_um)

    def blocks(self, part: Region | None = None) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows and their batch, in compact blocks that bound what is in memory."""
        region = self.region if part is None else part
        # A square that stood for training locations would blur anything finer.
        needs = self.needs if self.context == "region" else replace(self.needs, footprint_um=None)
        encoder, grid = described(self.encoder, needs, stride_um=self.stride_um)
        bytes_each = grid.copies * width_of(encoder, needs) * 4
        edge_um = max(int(np.sqrt(BLOCK_BYTES / bytes_each)) - grid.n, grid.n) * grid.token_um
        low = region.coords_um.min(axis=0)
        fits = (np.ptp(region.coords_um, axis=0) < edge_um).all()
        _, block = square_bins(region.coords_um - (low if fits else 0), edge_um)
        order = np.argsort(block, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            batch = token_batch(region.take(rows), self.encoder, needs, stride_um=self.stride_um, sample=self.sample)
            yield rows, replace(batch, context=self.context)


def _on_grid(region: Region, lattice: Lattice, edge_um: float) -> Region:
    """Return squares on the slide's tissue at the training pitch."""
    points = tissue_points(region.pyramid, lattice)
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


def token_batch(
    region: Region,
    encoder: Any,
    needs: Needs,
    *,
    stride_um: float | None = None,
    sample: NDArray[np.float32] | None = None,
) -> Batch:
    """Describe the tokens in the footprints of a region's locations, once for every tile that they lie in.

    Parameters
    ----------
    region
        The locations.
    encoder
        Any encoder; without tokens of its own it is applied to sub-tiles.
    needs
        What the model asks for.
    stride_um
        Between tiles; None: side by side.
    sample
        (s, width) tokens that describe the slide, where they exist already; None: those of some locations of the
        region itself.
    """
    encoder, grid = described(encoder, needs, stride_um=stride_um)
    if grid.token_um < region.pyramid.mpp:
        raise InputError(
            f"The patches of {grid.token_um:g} um are smaller than a pixel of image {region.image_key!r} "
            f"({region.pyramid.mpp:.4g} um) of slide {region.slide!r}; use the full-resolution image or larger patches."
        )
    weights, tokens = footprints(region, grid, edge_um=needs.footprint_um)
    which, tiles, places = grid.views(tokens)
    if needs.isolated:
        features = embed(region, encoder, grid.centres_um(tiles))
    else:
        features = _embedded(region, encoder, grid, tiles, places)
    # Views of one token share its weight, so that their predictions are averaged.
    views = csr_array((1 / np.bincount(which)[which], (which, np.arange(len(which)))), (len(tokens), len(which)))
    found = csr_array(weights @ views)
    parts = links.Links(found.indptr, found.indices, found.data)
    if sample is None:
        some = evenly(len(region.coords_um), MAX_SAMPLE)
        sources = np.unique(parts.take(some).indices)
    else:
        sources = len(features) + np.arange(len(sample))
        features = np.concatenate([features, sample])
    return Batch(
        region.slide,
        features,
        parts.indices[parts.indptr[:-1]],
        sources,
        region.coords_um,
        parts=parts,
        area_um2=areas_um2(region, edge_um=needs.footprint_um),
        totals=region.totals,
        n_measured=region.n_measured,
        blocks=blocks_of(encoder, dense=not needs.isolated),
    )


def described(encoder: Any, needs: Needs, *, stride_um: float | None = None) -> tuple[Any, TokenGrid]:
    """Return what describes tokens as a model needs them (with its own tokens or without), and their lattice."""
    if needs.isolated:
        return encoder, TokenGrid.isolated(encoder, needs.token_um, stride_um=stride_um)
    encoder = with_tokens(encoder, needs.token_um)
    encoder = with_hierarchy(encoder) if needs.hierarchy else encoder
    return encoder, TokenGrid.of(encoder.card, stride_um=stride_um)


def width_of(encoder: Any, needs: Needs) -> int:
    """Return the number of features of a token."""
    return int(encoder.card.width if needs.isolated else encoder.card.dense[2])


def token_width_um(encoder: Any, needs: Needs) -> float:
    """Return the edge of the tokens that a model needs, in micrometres."""
    if needs.isolated:
        return TokenGrid.isolated(encoder, needs.token_um).token_um
    return token_edge_um(encoder, needs.token_um)


def _embedded(
    region: Region, encoder: Any, grid: TokenGrid, tiles: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the (s, width) tokens at (s, 2) places of (s, 2) tiles, each of which is embedded once."""
    tiles, number = distinct(tiles)
    features = np.empty((len(places), encoder.card.dense[2]), np.float32)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(0, len(tiles) + _TILES, _TILES))
    for k, start in enumerate(range(0, len(tiles), _TILES)):
        rows = order[ends[k] : ends[k + 1]]
        dense = embed_dense(region, encoder, grid.centres_um(tiles[start : start + _TILES]))
        features[rows] = dense[number[rows] - start, places[rows, 1], places[rows, 0]]
    return features


def masked_tokens(
    region: Region, encoder: Any, needs: Needs, *, n: int, keep_um: float | None, fill: NDArray[np.uint8], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float32], NDArray[np.float32]]:
    """Describe single tokens as they are, and with everything around them in their tile painted over.

    Parameters
    ----------
    region
        Each token lies at the centre of one of these locations, drawn at random.
    encoder, needs
        As of `token_batch`.
    n
        Number of tokens, each at a random place in its tile.
    keep_um
        Edge of the square around a token that stays; None: the token itself.
    fill
        (3,) colour of the rest.
    seed
        Of the draws.

    Returns
    -------
    (n, 2) centres, and the (n, width) tokens as they are and without their surroundings.
    """
    encoder, grid = described(encoder, needs)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(region.coords_um), n, replace=n > len(region.coords_um))
    places = rng.integers(grid.n, size=(n, 2))
    tokens = np.floor(region.coords_um[chosen] / grid.token_um).astype(np.int64)
    centres = np.asarray((tokens - places + grid.n / 2) * grid.token_um, dtype=np.float64)
    members: tuple[Any, ...] = members_of(encoder)
    windows = []
    for spec in (m.card.tile for m in members):
        step_px = spec.size_px / grid.n
        token_px = grid.token_um / spec.mpp if needs.isolated else step_px
        half = (token_px if keep_um is None else max(keep_um / spec.mpp, token_px)) / 2
        low = np.floor((places + 0.5) * step_px - half + 1e-6).astype(int).clip(0)
        high = np.ceil((places + 0.5) * step_px + half - 1e-6).astype(int).clip(max=spec.size_px)
        windows.append((low, high))
    views = [(centres, m.card.tile) for m in members]
    plain, alone = (np.empty((n, width_of(encoder, needs)), np.float32) for _ in range(2))
    for rows, tiles in region.pyramid.read_several(views):
        at = (np.arange(len(rows)), places[rows, 1], places[rows, 0])
        for out, seen in ((plain, tiles), (alone, _painted(tiles, windows, rows, fill))):
            each = zip(members, seen, strict=True)
            encoded = [m.encode(own) if needs.isolated else m.encode_dense(own)[at] for m, own in each]
            out[rows] = np.concatenate(encoded, axis=1)
    return np.asarray((tokens + 0.5) * grid.token_um, dtype=np.float64), plain, alone


def _painted(
    tiles: list[NDArray[np.uint8]],
    windows: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    rows: NDArray[np.int64],
    fill: NDArray[np.uint8],
) -> list[NDArray[np.uint8]]:
    """Return each encoder's tiles with everything outside the windows of these rows in one colour."""
    out = []
    for own, (low, high) in zip(tiles, windows, strict=True):
        painted = np.broadcast_to(fill, own.shape).astype(np.uint8)
        for k, row in enumerate(rows):
            window = slice(low[row, 1], high[row, 1]), slice(low[row, 0], high[row, 0])
            painted[(k, *window)] = own[(k, *window)]
        out.append(painted)
    return out

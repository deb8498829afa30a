"""Locations seen through the tokens (patches of tiles) in their footprints; tokens lie on one lattice of the slide.

Token (i, j) is the square ``[i, i + 1) x [j, j + 1)`` times the edge of a token in the micrometre frame, whatever
locations are asked for, so that what is predicted at a place does not depend on what else is predicted. Tiles start at
every `step`-th token. With steps smaller than the tile a token is seen in several tiles, and what is predicted from
them is averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stpred import links
from stpred._core.checks import InputError, positive
from stpred._core.elements import affine_to
from stpred._core.geometry import geometries_um, square_bins
from stpred.data._features import embed_dense
from stpred.data._regions import Region
from stpred.encoders.base import EncoderCard
from stpred.encoders.tokens import with_tokens
from stpred.models.batch import Batch, Needs
from stpred.regions.squares import Inside, centres_inside

SAMPLE = 400
"""Locations whose tokens speak for a slide as a whole."""

BLOCK_BYTES = 2**28
"""Features of tokens that are in memory at a time in prediction."""

_TILES = 256
"""Tiles whose tokens are in memory at a time."""

_FEW = 6
"""Tokens across a footprint below which a token counts by the share of it that lies inside."""

_SHARES = 8
"""Points along each edge of a token by which that share is told."""


@dataclass(frozen=True)
class TokenGrid:
    """Edge of a token in micrometres, tokens along the edge of a tile, and tokens between the starts of tiles."""

    token_um: float
    n: int
    step: int

    @classmethod
    def of(cls, card: EncoderCard, *, stride_um: float | None = None) -> TokenGrid:
        """Lay it out for an encoder with tokens; `stride_um` None: tiles side by side."""
        n = card.dense[0]  # type: ignore[index]
        token_um = card.tile.size_um / n
        if stride_um is None:
            return cls(token_um, n, n)
        stride_um = positive(stride_um, name="stride_um", unit="micrometres")
        step = round(stride_um / token_um)
        if not 1 <= step <= n or abs(step * token_um - stride_um) > 1e-3 * token_um:
            raise InputError(
                f"`stride_um` must be a multiple of the patch of {token_um:.6g} um of the encoder {card.name!r}, "
                f"up to its tile of {card.tile.size_um:.6g} um, got {stride_um:g}; such as "
                f"{max(1, min(n, step)) * token_um:.6g}."
            )
        return cls(token_um, n, step)

    @property
    def copies(self) -> float:
        """Tiles that see a token, on average."""
        return (self.n / self.step) ** 2

    def seen(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return every sight of (m, 2) tokens: which token, (s, 2) the tile, (s, 2) column and row in the tile."""
        last = np.floor_divide(tokens, self.step)
        back = np.arange(-(-self.n // self.step))
        which, tiles, places = [], [], []
        for back_x in back:
            for back_y in back:
                tile = last - np.array([back_x, back_y])
                place = tokens - tile * self.step
                rows = np.flatnonzero((place < self.n).all(axis=1))
                which.append(rows)
                tiles.append(tile[rows])
                places.append(place[rows])
        return np.concatenate(which), np.concatenate(tiles), np.concatenate(places)

    def centres_um(self, tiles: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the (t, 2) centres of tiles."""
        return np.asarray((tiles * self.step + self.n / 2) * self.token_um, dtype=np.float64)


def footprints(region: Region, grid: TokenGrid, *, edge_um: float | None = None) -> tuple[Any, NDArray[np.int64]]:
    """Return the tokens in each location's footprint.

    Parameters
    ----------
    region
        The locations; their shapes are the footprints.
    grid
        The lattice of tokens.
    edge_um
        Instead of the shapes: a square of this edge around each location.

    Returns
    -------
    (n, m) sparse weights, each row adding up to 1, and the (m, 2) columns and rows of the tokens. Tokens of large
    footprints count by their centres, of small ones by the share that lies inside; a footprint that is smaller still
    has the token that its centre lies in.
    """
    coords = region.coords_um
    low, high, inside = outlines(region, edge_um=edge_um)
    small = (high - low).mean(axis=1) < _FEW * grid.token_um
    owners, found = [], []
    for share, rows in ((1, np.flatnonzero(~small)), (_SHARES, np.flatnonzero(small))):
        step = grid.token_um / share
        shape, fine = centres_inside(low[rows], high[rows], step, of_rows(rows, inside))
        owners.append(rows[shape])
        found.append(np.floor_divide(fine, share))
    none = np.flatnonzero(np.bincount(np.concatenate(owners), minlength=len(coords)) == 0)
    owner = np.concatenate([*owners, none])
    found.append(np.floor(coords[none] / grid.token_um).astype(np.int64))
    tokens, member = _distinct(np.concatenate(found))
    weights = csr_array((np.ones(len(owner)), (owner, member)), shape=(len(coords), len(tokens)))
    weights.sum_duplicates()
    totals = np.asarray(weights.sum(axis=1)).ravel()
    weights.data /= np.repeat(totals, np.diff(weights.indptr))
    return weights, tokens


def of_rows(rows: NDArray[np.int64], inside: Inside) -> Inside:
    """Return what says of some rows, counted anew, what lies in them."""
    return lambda shape, xy: inside(rows[shape], xy)


def _distinct(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different pairs of whole numbers, and which of them each is."""
    return square_bins(pairs + 0.5, 1.0)


def outlines(
    region: Region, *, edge_um: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Inside]:
    """Return the (n, 2) corners of the boxes around each location's footprint, and what says what lies in it.

    The footprint is its shape, or a square of `edge_um`.
    """
    coords, edge_um = region.coords_um, region.edge_um if edge_um is None else edge_um
    if edge_um is not None:
        half = edge_um / 2

        def in_square(owner: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
            away = xy - coords[owner]
            return np.asarray(((away >= -half) & (away < half)).all(axis=1), dtype=bool)

        return coords - half, coords + half, in_square
    element = region.sdata.shapes[region.shapes_key]
    rows = element.index.get_indexer(region.instances)
    radius = _radii(element, region.coordinate_system)
    if radius is not None:
        radius = radius[rows]

        def in_disc(owner: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
            return np.asarray(np.square(xy - coords[owner]).sum(axis=1) <= np.square(radius[owner]), dtype=bool)

        return coords - radius[:, None], coords + radius[:, None], in_disc
    import shapely

    where = {"coordinate_system": region.coordinate_system}
    polygons, _ = geometries_um(region.sdata, region.shapes_key, rows=rows, **where)
    shapely.prepare(polygons)
    low, high = np.hsplit(shapely.bounds(polygons), 2)

    def in_polygon(owner: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(shapely.contains_xy(polygons[owner], xy), dtype=bool)

    return low, high, in_polygon


def _radii(element: Any, coordinate_system: str) -> NDArray[np.float64] | None:
    """Return the (n,) radii in micrometres of circles that stay circles there; None for anything else."""
    affine = affine_to(element, coordinate_system)
    if "radius" not in element or affine is None:
        return None
    turned = affine[:2, :2]
    scale2 = abs(float(np.linalg.det(turned)))
    if not np.allclose(turned @ turned.T, scale2 * np.eye(2), rtol=0.02, atol=0.02 * scale2):
        return None
    return np.asarray(element["radius"].to_numpy(dtype=np.float64) * np.sqrt(scale2))


def median_width_um(region: Region) -> float:
    """Return the median width of a region's locations."""
    if region.edge_um is not None:
        return float(region.edge_um)
    low, high, _ = outlines(region)
    return float(np.median(high - low))


def token_batch(
    region: Region,
    encoder: Any,
    needs: Needs,
    *,
    stride_um: float | None = None,
    sample: NDArray[np.float32] | None = None,
    **measured: Any,
) -> Batch:
    """Describe the tokens in the footprints of a region's locations, once for every tile that they are seen in.

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
        (s, width) tokens that speak for the slide, where these are known already; None: those of some locations of the
        region itself.
    **measured
        As of `make_batch`.
    """
    encoder = with_tokens(encoder, needs.token_um)
    grid = TokenGrid.of(encoder.card, stride_um=stride_um)
    if grid.token_um < region.pyramid.mpp:
        raise InputError(
            f"The patches of {grid.token_um:g} um are smaller than a pixel of image {region.image_key!r} "
            f"({region.pyramid.mpp:.4g} um) of slide {region.slide!r}; use the full-resolution image or larger patches."
        )
    weights, tokens = footprints(region, grid, edge_um=needs.footprint_um)
    which, tiles, places = grid.seen(tokens)
    tiles, number = _distinct(tiles)
    width = encoder.card.dense[2]
    features = np.empty((len(which), width), np.float32)
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(0, len(tiles) + _TILES, _TILES))
    for k, start in enumerate(range(0, len(tiles), _TILES)):
        rows = order[ends[k] : ends[k + 1]]
        dense = embed_dense(region, encoder, grid.centres_um(tiles[start : start + _TILES]))
        features[rows] = dense[number[rows] - start, places[rows, 1], places[rows, 0]]
    # Sights of one token share its weight, so that their predictions are averaged.
    sights = csr_array((1 / np.bincount(which)[which], (which, np.arange(len(which)))), (len(tokens), len(which)))
    found = csr_array(weights @ sights)
    parts = links.Links(found.indptr, found.indices, found.data)
    if sample is None:
        some = np.unique(np.linspace(0, len(region.coords_um) - 1, min(len(region.coords_um), SAMPLE)).astype(np.int64))
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
        totals=region.totals,
        n_measured=None if region.counts is None else region.counts.shape[1],
        **measured,
    )


@dataclass(frozen=True)
class TokenReader:
    """Reads blocks of a slide's locations through tokens; what speaks for the slide is the same for all of them.

    Attributes
    ----------
    encoder, needs, stride_um
        As of `token_batch`.
    sample
        (s, width) tokens that speak for the slide.
    context
        Where these are from.
    """

    encoder: Any
    needs: Needs
    sample: NDArray[np.float32]
    context: str
    stride_um: float | None = None

    @classmethod
    def of(cls, spread: Region, encoder: Any, needs: Needs, *, context: str, **how: Any) -> TokenReader:
        """Read the tokens that speak for a slide, at some of the locations `spread`."""
        n = len(spread.coords_um)
        some = np.unique(np.linspace(0, n - 1, min(n, SAMPLE)).astype(np.int64))
        known = token_batch(spread.take(some), encoder, needs)
        return cls(encoder, needs, known.features[known.sources], context, **how)

    def blocks(self, region: Region) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """Yield rows of the region and their batch, in compact blocks that bound what is in memory."""
        described = with_tokens(self.encoder, self.needs.token_um)
        grid = TokenGrid.of(described.card, stride_um=self.stride_um)
        bytes_each = grid.copies * described.card.dense[2] * 4
        edge_um = max(int(np.sqrt(BLOCK_BYTES / bytes_each)) - grid.n, grid.n) * grid.token_um
        low = region.coords_um.min(axis=0)
        fits = (np.ptp(region.coords_um, axis=0) < edge_um).all()
        _, block = square_bins(region.coords_um - (low if fits else 0), edge_um)
        order = np.argsort(block, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(block[order])) + 1):
            batch = token_batch(
                region.take(rows), self.encoder, self.needs,
                stride_um=self.stride_um, sample=self.sample,
            )  # fmt: skip
            yield rows, replace(batch, context=self.context)


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
    encoder = with_tokens(encoder, needs.token_um)
    grid = TokenGrid.of(encoder.card)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(region.coords_um), n, replace=n > len(region.coords_um))
    places = rng.integers(grid.n, size=(n, 2))
    tokens = np.floor(region.coords_um[chosen] / grid.token_um).astype(np.int64)
    centres = np.asarray((tokens - places + grid.n / 2) * grid.token_um, dtype=np.float64)
    spec = encoder.card.tile
    token_px = spec.size_px / grid.n
    half = (token_px if keep_um is None else max(keep_um / spec.mpp, token_px)) / 2
    low = np.floor((places + 0.5) * token_px - half + 1e-6).astype(int).clip(0)
    high = np.ceil((places + 0.5) * token_px + half - 1e-6).astype(int).clip(max=spec.size_px)
    plain, alone = (np.empty((n, encoder.card.dense[2]), np.float32) for _ in range(2))
    for rows, tiles in region.pyramid.read(centres, spec):
        painted = np.broadcast_to(fill, tiles.shape).astype(np.uint8)
        for k, row in enumerate(rows):
            window = slice(low[row, 1], high[row, 1]), slice(low[row, 0], high[row, 0])
            painted[(k, *window)] = tiles[(k, *window)]
        at = (np.arange(len(rows)), places[rows, 1], places[rows, 0])
        plain[rows] = encoder.encode_dense(tiles)[at]
        alone[rows] = encoder.encode_dense(painted)[at]
    return np.asarray((tokens + 0.5) * grid.token_um, dtype=np.float64), plain, alone

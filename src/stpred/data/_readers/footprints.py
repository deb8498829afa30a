"""Outlines of locations, and the tokens (patches of tiles) in them; tokens lie on one lattice of the slide.

Token (i, j) is the square ``[i, i + 1) x [j, j + 1)`` times the edge of a token in the micrometre frame, whatever
locations are predicted, so that what is predicted at a place does not depend on what else is predicted. Tiles start at
every `step`-th token. With steps smaller than the tile a token lies in several tiles.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from stpred._core.checks import InputError, positive
from stpred._core.elements import affine_to
from stpred._core.geometry import geometries_um, square_bins
from stpred.data._regions import Region
from stpred.encoders.base import Encoder, EncoderCard
from stpred.encoders.composite import members_of
from stpred.encoders.tokens import TOKEN_UM
from stpred.regions.squares import Inside, centres_inside

MIN_TOKENS_ACROSS = 6
"""Tokens across a footprint below which a token counts by the fraction of it that lies inside."""

_ROWS = 2**15
"""Locations whose outlines are in memory at a time where only their widths are wanted."""

FRACTION_POINTS = 8
"""Points along each edge of a token by which that fraction is measured."""


@dataclass(frozen=True)
class TokenGrid:
    """Edge of a token in micrometres, tokens along the edge of a tile, and tokens between the starts of tiles."""

    token_um: float
    n: int
    step: int

    @classmethod
    def isolated(cls, encoder: Encoder, token_um: float | None, *, stride_um: float | None = None) -> TokenGrid:
        """Lay it out for tokens that have a tile each, of the encoder's around them; they are seen once."""
        token_um = TOKEN_UM if token_um is None else positive(token_um, name="token_um", unit="micrometres")
        smallest = min(m.card.tile.size_um for m in members_of(encoder))
        if token_um > smallest * (1 + 1e-6):
            raise InputError(
                f"Isolated patches of {token_um:g} um are wider than the tile of {smallest:g} um of the encoder "
                f"{encoder.card.name!r} around them; pass a smaller `token_um` or an encoder of larger tiles."
            )
        if stride_um is not None:
            raise InputError(
                f"`stride_um` is the distance of tiles that share patches, got {stride_um:g}; isolated patches have a "
                "tile each: leave it out."
            )
        return cls(token_um, 1, 1)

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

    def views(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Return every view of (m, 2) tokens: which token, (s, 2) the tile, (s, 2) column and row in the tile."""
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
    small = (high - low).mean(axis=1) < MIN_TOKENS_ACROSS * grid.token_um
    owners, found = [], []
    for share, rows in ((1, np.flatnonzero(~small)), (FRACTION_POINTS, np.flatnonzero(small))):
        step = grid.token_um / share
        shape, fine = centres_inside(low[rows], high[rows], step, of_rows(rows, inside))
        owners.append(rows[shape])
        found.append(np.floor_divide(fine, share))
    none = np.flatnonzero(np.bincount(np.concatenate(owners), minlength=len(coords)) == 0)
    owner = np.concatenate([*owners, none])
    found.append(np.floor(coords[none] / grid.token_um).astype(np.int64))
    tokens, member = distinct(np.concatenate(found))
    weights = csr_array((np.ones(len(owner)), (owner, member)), shape=(len(coords), len(tokens)))
    weights.sum_duplicates()
    totals = np.asarray(weights.sum(axis=1)).ravel()
    weights.data /= np.repeat(totals, np.diff(weights.indptr))
    return weights, tokens


def of_rows(rows: NDArray[np.int64], inside: Inside) -> Inside:
    """Return the inside test of some rows, numbered anew."""
    return lambda shape, xy: inside(rows[shape], xy)


def distinct(pairs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the different pairs of whole numbers, and which of them each is."""
    return square_bins(pairs + 0.5, 1.0)


def outlines(
    region: Region, *, edge_um: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64], Inside]:
    """Return the (n, 2) corners of the boxes around each location's footprint, and its inside test.

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


def areas_um2(region: Region, *, edge_um: float | None = None) -> NDArray[np.float64]:
    """Return the (n,) areas of the locations' footprints: their shapes, or squares of `edge_um`."""
    n, edge_um = len(region.coords_um), region.edge_um if edge_um is None else edge_um
    if edge_um is not None:
        return np.full(n, float(edge_um) ** 2)
    import shapely

    element = region.sdata.shapes[region.shapes_key]
    rows = element.index.get_indexer(region.instances)
    radius = _radii(element, region.coordinate_system)
    if radius is not None:
        return np.asarray(np.pi * np.square(radius[rows]))
    polygons, _ = geometries_um(region.sdata, region.shapes_key, rows=rows, coordinate_system=region.coordinate_system)
    return np.asarray(shapely.area(polygons), dtype=np.float64)


def median_width_um(region: Region) -> float:
    """Return the median width of a region's locations."""
    if region.edge_um is not None:
        return float(region.edge_um)
    widths = np.empty_like(region.coords_um)
    for first in range(0, len(widths), _ROWS):  # polygons are copied for it
        rows = np.arange(first, min(first + _ROWS, len(widths)))
        low, high, _ = outlines(replace(region, instances=region.instances[rows], coords_um=region.coords_um[rows]))
        widths[rows] = high - low
    return float(np.median(widths))

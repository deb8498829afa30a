"""Tiles of locations beside the crops of their cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from stpred.data._features import embed_region
from stpred.data._readers.footprints import outlines
from stpred.data._readers.reader import evenly
from stpred.data._regions import Region
from stpred.encoders.base import Encoder
from stpred.encoders.composite import members_of, side_by_side

STEP = 0.25
"""Pitch of the lattice on which tiles around single cells are read, in edges of the narrowest tile."""

WIDEST = 1.5
"""Width, in edges of the narrowest tile, up to which a location has one tile around its centre."""

MAX_SAMPLE = 256
"""Cells, spread evenly over a slide's, whose tiles the statistics of a slide's tiles are taken from."""


def crops_and_tiles(encoder: Encoder, tile_um: float | None) -> tuple[Encoder, Encoder | None]:
    """Split several encoders into those of cells and those of tiles, which are at least `tile_um` wide.

    Without any that is narrower, or any as wide, all are those of cells.
    """
    members = members_of(encoder)
    if tile_um is None:
        return encoder, None
    wide = [m for m in members if m.card.tile.size_um >= tile_um]
    if len(wide) in (0, len(members)):
        return encoder, None
    return side_by_side([m for m in members if m not in wide]), side_by_side(wide)


def tiles_of_cells(
    region: Region, encoder: Encoder, cells_um: NDArray[np.float64], owners: NDArray[np.int64]
) -> NDArray[Any]:
    """Return (m, width) features of the tiles that go with cells.

    A location about as wide as a tile has one around its centre, for all of its cells. Cells in others (and cells that
    are locations themselves) have the tile around the point of a lattice that is nearest to them.

    Parameters
    ----------
    region
        The locations.
    encoder
        Encoders of tiles.
    cells_um
        (m, 2) centres of cells.
    owners
        (m,) the location of each.
    """
    edge_um = min(m.card.tile.size_um for m in members_of(encoder))
    low, high, _ = outlines(region)
    width = (high - low).mean(axis=1)
    whole = (width >= STEP * edge_um) & (width <= WIDEST * edge_um)
    rows, row = np.unique(owners[whole[owners]], return_inverse=True)
    points, point = np.unique(_snapped(cells_um[~whole[owners]], STEP * edge_um), axis=0, return_inverse=True)
    found = embed_region(region, encoder, rows=rows, points_um=points)
    place = np.empty(len(owners), dtype=np.int64)
    place[whole[owners]] = row.ravel()
    place[~whole[owners]] = len(rows) + point.ravel()
    return found[place]


def tiles_of_sample(region: Region, encoder: Encoder, cells_um: NDArray[np.float64]) -> NDArray[Any]:
    """Return (m, width) features of tiles around a slide's sample of cells; of many, each has that of one nearby."""
    edge_um = min(m.card.tile.size_um for m in members_of(encoder))
    some = cells_um[evenly(len(cells_um), MAX_SAMPLE)]
    points, point = np.unique(_snapped(some, STEP * edge_um), axis=0, return_inverse=True)
    found = embed_region(region, encoder, rows=np.empty(0, dtype=np.int64), points_um=points)
    return found[point.ravel()[cKDTree(some).query(cells_um)[1]]]


def _snapped(places_um: NDArray[np.float64], step_um: float) -> NDArray[np.float64]:
    return np.asarray(np.round(places_um / step_um) * step_um, dtype=np.float64)

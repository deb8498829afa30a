"""Locations seen through tokens: which tokens lie where, in which tiles they are seen, and what comes of it."""

from __future__ import annotations

from dataclasses import replace

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from numpy.typing import NDArray
from shapely import Point, Polygon, box
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, data
from stpred._core.places import Place
from stpred.data._readers.footprints import TokenGrid, footprints
from stpred.data._readers.tokens import token_batch
from stpred.encoders import EncoderCard
from stpred.models import Batch, Needs, Student
from stpred.regions import Lattice, squares
from stpred.regions.squares import centres_inside, max_squares
from stpred.testing import add_shapes, copy_slide, picture_slide

SIDE = 256  # um and pixels of the picture
TOKENS = Needs(tokens=True)


class Colours:
    """Tokens are the mean colours of patches of 1 um pixels, plus what their place in the tile adds."""

    def __init__(self, *, n: int = 4, token_px: int = 8, pattern: NDArray[np.float64] | None = None) -> None:
        self.card = EncoderCard("colours", st.TileSpec(1.0, n * token_px), 3, dense=(n, n, 3))
        self.pattern = np.zeros((n, n)) if pattern is None else pattern
        self.tiles = 0

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        return tiles.mean(axis=(1, 2)).astype(np.float32)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        n = len(self.pattern)
        self.tiles += len(tiles)
        px = tiles.shape[1] // n
        out = tiles.reshape(len(tiles), n, px, n, px, 3).mean(axis=(2, 4)) + self.pattern[None, :, :, None]
        return out.astype(np.float32)

    def to(self, device: str | None) -> Colours:
        return self


def put(
    slide: SpatialData, name: str, frame: gpd.GeoDataFrame, *, affine: NDArray[np.float64] | None = None
) -> SpatialData:
    slide = copy_slide(slide)
    add_shapes(slide, name, frame, affine=affine)
    return slide


def discs(xy: NDArray[np.float64], radius: float) -> gpd.GeoDataFrame:
    return gpd.GeoDataFrame({"radius": np.full(len(xy), radius)}, geometry=[Point(*p) for p in xy])


@pytest.fixture(scope="module")
def coordinates() -> SpatialData:
    """A picture whose red is x and whose green is y, with discs, squares and odd polygons on it."""
    y, x = np.mgrid[:SIDE, :SIDE]
    slide = picture_slide(np.stack([x, y, np.full_like(x, 9)], axis=-1).astype(np.uint8))
    rng = np.random.default_rng(0)
    slide = put(slide, "spots", discs(rng.uniform(60, 196, (9, 2)), 27.5))
    slide = put(
        slide, "lattice", discs(np.stack(np.meshgrid([60.0, 128, 196], [60.0, 128, 196]), -1).reshape(-1, 2), 25)
    )
    slide = put(slide, "tiny", discs(rng.uniform(40, 216, (12, 2)), 0.5))
    bins = [box(x, y, x + 16, y + 16) for x in range(64, 192, 16) for y in range(64, 192, 16)]
    slide = put(slide, "bins", gpd.GeoDataFrame(geometry=bins))
    return put(slide, "cells", gpd.GeoDataFrame(geometry=blobs(rng, n=20, radius=9)))


def blobs(rng: np.random.Generator, *, n: int, radius: float) -> list[Polygon]:
    """Star-shaped outlines of 12 corners at random places."""
    turn = np.linspace(0, 2 * np.pi, 13)[:-1]
    out = []
    for centre in rng.uniform(60, 196, (n, 2)):
        reach = radius * rng.uniform(0.6, 1.4, 12)
        out.append(Polygon(centre + np.column_stack([reach * np.cos(turn), reach * np.sin(turn)])))
    return out


def as_tokens(weights: object, tokens: NDArray[np.int64], row: int) -> dict[tuple[int, int], float]:
    start, end = weights.indptr[row : row + 2]  # type: ignore[attr-defined]
    pairs = zip(weights.indices[start:end], weights.data[start:end], strict=True)  # type: ignore[attr-defined]
    return {(int(tokens[k, 0]), int(tokens[k, 1])): float(w) for k, w in pairs}


def seen(batch: Batch) -> NDArray[np.float64]:
    """Mean colours of the locations."""
    return np.asarray(batch.parts.mean(batch.features), dtype=np.float64)


# Squares whose centres lie inside.


def test_centres_inside_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    centres, radii = rng.uniform(-60, 60, (15, 2)), rng.uniform(0.5, 30, 15)

    def inside(shape: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.square(xy - centres[shape]).sum(axis=1) <= radii[shape] ** 2

    size = 3.7
    grid = np.stack(np.meshgrid(np.arange(-40, 40), np.arange(-40, 40)), -1).reshape(-1, 2)
    want = [
        {tuple(g) for g in grid[np.linalg.norm((grid + 0.5) * size - c, axis=1) <= r].tolist()}
        for c, r in zip(centres, radii, strict=True)
    ]
    low, high = centres - radii[:, None], centres + radii[:, None]
    for at_once in (2_000_000, 7):
        monkeypatch.setattr(squares, "_AT_ONCE", at_once)
        owner, found = centres_inside(low, high, size, inside)
        assert (np.diff(owner) >= 0).all()
        for i in range(15):
            mine = [tuple(s) for s in found[owner == i].tolist()]
            assert len(mine) == len(set(mine))
            assert set(mine) == want[i]
    assert max_squares(low, high, size) >= sum(len(w) for w in want)


def test_a_centre_on_a_border_lies_in_one_of_two_neighbours() -> None:
    edges = np.array([-12.0, 4.0, 12.0, 20.0, 28.0])  # through centres of squares of 8
    low = np.column_stack([edges[:-1], np.full(4, -4.0)])
    high = np.column_stack([edges[1:], np.full(4, 12.0)])

    def inside(shape: NDArray[np.int64], xy: NDArray[np.float64]) -> NDArray[np.bool_]:
        return ((xy >= low[shape]) & (xy <= high[shape])).all(axis=1)  # closed: alone it would count borders twice

    owner, found = centres_inside(low, high, 8.0, inside)
    assert len({tuple(s) for s in found.tolist()}) == len(found)
    assert [(found[owner == i][:, 0]).tolist() for i in range(4)] == [[-2, -1] * 2, [0] * 2, [1] * 2, [2] * 2]
    assert set(found[:, 1].tolist()) == {-1, 0}


def test_shapes_without_any_centre_have_none() -> None:
    none = np.empty((0, 2))
    owner, found = centres_inside(none, none, 8.0, lambda shape, xy: np.ones(len(shape), bool))
    assert len(owner) == len(found) == 0
    low = np.array([[0.5, 0.5], [101.0, 97.0]])
    owner, found = centres_inside(low, low + 1.0, 8.0, lambda shape, xy: np.ones(len(shape), bool))
    assert len(owner) == len(found) == 0


# Tiles that see a token.


@pytest.mark.parametrize(("n", "step"), [(1, 1), (4, 4), (4, 2), (4, 1), (5, 2), (7, 3), (6, 4), (5, 5)])
def test_every_token_is_seen_in_every_tile_that_covers_it(n: int, step: int) -> None:
    grid = TokenGrid(8.0, n, step)
    tokens = np.stack(np.meshgrid(np.arange(-9, 14), np.arange(-5, 16)), -1).reshape(-1, 2)
    which, tiles, places = grid.views(tokens)
    found = {(*tokens[k].tolist(), *t, *p) for k, t, p in zip(which, tiles.tolist(), places.tolist(), strict=True)}
    assert len(found) == len(which)
    want = set()
    covers = {x: [t for t in range(-40, 40) if t * step <= x < t * step + n] for x in range(-9, 16)}
    for x, y in tokens.tolist():
        want |= {(x, y, a, b, x - a * step, y - b * step) for a in covers[x] for b in covers[y]}
    assert found == want
    assert set(which.tolist()) == set(range(len(tokens)))
    whole = np.stack(np.meshgrid(np.arange(n * step), np.arange(n * step)), -1).reshape(-1, 2)
    assert len(grid.views(whole)[0]) == pytest.approx(grid.copies * len(whole))
    np.testing.assert_allclose(grid.centres_um(np.array([[0, 2]])), [[4.0 * n, 4.0 * n + 16 * step]])


def test_strides_are_multiples_of_the_patch() -> None:
    card = Colours(n=4).card  # 32 um in four
    assert (TokenGrid.of(card).token_um, TokenGrid.of(card).n, TokenGrid.of(card).step) == (8.0, 4, 4)
    assert [TokenGrid.of(card, stride_um=s).step for s in (8, 16.0, 24, 32)] == [1, 2, 3, 4]
    for stride, such in ((12.0, 16), (40.0, 32), (1.0, 8), (33, 32)):
        match = rf"`stride_um` must be a multiple of the patch of 8 um of the encoder 'colours'.*such as {such}\."
        with pytest.raises(InputError, match=match):
            TokenGrid.of(card, stride_um=stride)
    with pytest.raises(InputError, match="stride_um"):
        TokenGrid.of(card, stride_um=-8.0)


# Footprints.


@pytest.mark.parametrize("name", ["spots", "bins", "cells", "tiny"])
@pytest.mark.parametrize("token_um", [2.0, 8.0, 14.0])
def test_tokens_count_by_the_share_of_them_inside(coordinates: SpatialData, name: str, token_um: float) -> None:
    region = data.read_region(coordinates, Place(shapes_key=name))
    weights, tokens = footprints(region, TokenGrid(token_um, 4, 4))
    assert weights.shape == (len(region.coords_um), len(tokens))
    assert len({tuple(t) for t in tokens.tolist()}) == len(tokens)
    np.testing.assert_allclose(np.asarray(weights.sum(axis=1)).ravel(), 1, rtol=1e-12)
    shapes = coordinates.shapes[name].loc[region.instances]
    outlines = shapes.geometry
    if "radius" in shapes:  # by shapely: the oldest geopandas does not hand quad_segs on
        outlines = shapely.buffer(shapes.geometry.to_numpy(), shapes["radius"].to_numpy(), quad_segs=200)
    across = np.median([np.ptp(np.reshape(o.bounds, (2, 2)), axis=0).mean() for o in outlines]) / token_um
    for i, outline in enumerate(outlines[:6]):
        found = as_tokens(weights, tokens, i)
        x0, y0, x1, y1 = (np.array(outline.bounds) // token_um).astype(int)
        around = [(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)]
        share = {t: outline.intersection(box(*np.multiply(t, token_um), *np.add(t, 1) * token_um)).area for t in around}
        if across >= 6:
            want = {t for t in around if outline.contains(Point((np.array(t) + 0.5) * token_um + 1e-6))}
            assert set(found) == want
            assert len(set(found.values())) == 1
        else:
            # Sixteen points tell the share of a token: the more there are in all, the better.
            assert set(found) <= {t for t, area in share.items() if area > 0}
            apart = sum(abs(found.get(t, 0.0) - share[t] / outline.area) for t in around) / 2
            assert apart < 0.6 * (token_um / 4) / np.sqrt(outline.area)


def test_a_footprint_smaller_than_all_has_the_token_of_its_centre(coordinates: SpatialData) -> None:
    region = data.read_region(coordinates, Place(shapes_key="tiny"))
    weights, tokens = footprints(region, TokenGrid(14.0, 4, 4))
    single = np.diff(weights.indptr) == 1
    assert single.sum() >= 10
    for i in np.flatnonzero(single):
        assert as_tokens(weights, tokens, i) == {tuple((region.coords_um[i] // 14.0).astype(int).tolist()): 1.0}


def test_bins_on_the_lattice_are_their_own_tokens(coordinates: SpatialData) -> None:
    region = data.read_region(coordinates, Place(shapes_key="bins"))
    weights, tokens = footprints(region, TokenGrid(16.0, 4, 4))
    assert (np.diff(weights.indptr) == 1).all()
    np.testing.assert_array_equal(tokens[weights.indices], np.floor(region.coords_um / 16).astype(int))
    weights, _ = footprints(region, TokenGrid(4.0, 4, 4))
    assert (np.diff(weights.indptr) == 16).all()
    np.testing.assert_allclose(weights.data, 1 / 16)


def test_a_square_may_stand_for_the_shape(coordinates: SpatialData) -> None:
    region = data.read_region(coordinates, Place(shapes_key="spots"))
    grid = TokenGrid(2.0, 4, 4)
    weights, tokens = footprints(region, grid, edge_um=40.0)
    pixels = replace(region, edge_um=40.0)
    other, same = footprints(pixels, grid)
    np.testing.assert_array_equal(tokens, same)
    assert abs(weights - other).max() == 0
    for i, (x, y) in enumerate(region.coords_um):
        want = {
            (a, b)
            for a in range(int(x - 22) // 2, int(x + 22) // 2)
            for b in range(int(y - 22) // 2, int(y + 22) // 2)
            if -20 <= 2 * a + 1 - x < 20 and -20 <= 2 * b + 1 - y < 20
        }
        assert set(as_tokens(weights, tokens, i)) == want


@pytest.mark.parametrize("turn", [0.0, np.pi / 6, np.pi / 2])
def test_placed_shapes_have_the_footprint_of_those_drawn_there(coordinates: SpatialData, turn: float) -> None:
    """Shapes in other units, turned: circles stay circles, polygons are moved corner by corner."""
    rng = np.random.default_rng(3)
    cos, sin = np.cos(turn), np.sin(turn)
    affine = np.array([[2 * cos, -2 * sin, 128.0], [2 * sin, 2 * cos, 128.0], [0, 0, 1]])
    back = np.linalg.inv(affine)
    circles, outlines = discs(rng.uniform(80, 170, (6, 2)), 20.0), blobs(rng, n=6, radius=12)

    def own(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return xy @ back[:2, :2].T + back[:2, 2]

    halved = discs(own(shapely.get_coordinates(circles.geometry)), 10.0)
    moved = gpd.GeoDataFrame(geometry=[shapely.transform(o, own) for o in outlines])
    slide = put(coordinates, "a", circles)
    slide = put(slide, "b", halved, affine=affine)
    slide = put(slide, "c", gpd.GeoDataFrame(geometry=outlines))
    slide = put(slide, "d", moved, affine=affine)
    for first, second in ("ab", "cd"):
        for token_um in (2.0, 9.0):
            grid = TokenGrid(token_um, 4, 4)
            a, at_a = footprints(data.read_region(slide, Place(shapes_key=first)), grid)
            b, at_b = footprints(data.read_region(slide, Place(shapes_key=second)), grid)
            for i in range(6):
                left, right = as_tokens(a, at_a, i), as_tokens(b, at_b, i)
                assert sum(abs(left.get(t, 0) - right.get(t, 0)) for t in {*left, *right}) < 0.02


def test_circles_that_are_squeezed_become_ellipses(coordinates: SpatialData) -> None:
    slide = put(coordinates, "flat", discs(np.array([[128.0, 32.0]]), 20.0), affine=np.diag([1.0, 4.0, 1.0]))
    weights, tokens = footprints(data.read_region(slide, Place(shapes_key="flat")), TokenGrid(4.0, 4, 4))
    x, y = ((np.array([*as_tokens(weights, tokens, 0)]) + 0.5) * 4).T
    assert (((x - 128) / 20) ** 2 + ((y - 128) / 80) ** 2 <= 1.01).all()
    assert len(x) * 16 == pytest.approx(np.pi * 20 * 80, rel=0.03)


def test_a_footprint_does_not_depend_on_the_size_of_others(coordinates: SpatialData) -> None:
    mixed = [box(53, 51, 123, 121), *(box(150 + 12 * i, 150, 159 + 12 * i, 159) for i in range(4))]
    region = data.read_region(put(coordinates, "mixed", gpd.GeoDataFrame(geometry=mixed)), Place(shapes_key="mixed"))
    grid = TokenGrid(8.0, 4, 4)
    together, alone = footprints(region, grid), footprints(region.take(np.array([0])), grid)
    assert as_tokens(*together, 0) == pytest.approx(as_tokens(*alone, 0))


# Batches.


def test_a_disc_is_seen_where_it_is(coordinates: SpatialData) -> None:
    region = data.read_region(coordinates, Place(shapes_key="spots"))
    for stride_um in (None, 16.0, 8.0):
        batch = token_batch(region, Colours(), TOKENS, stride_um=stride_um)
        xy = seen(batch)[:, :2] + 0.5  # pixel k spans k to k + 1
        assert np.abs(xy - region.coords_um).max() < 8 / 6  # of about forty tokens, in or out by their centres
        # The mean of exactly the tokens in the footprint.
        weights, tokens = footprints(region, TokenGrid(8.0, 4, 4))
        np.testing.assert_allclose(xy, weights @ ((tokens + 0.5) * 8.0), atol=1e-3)
        np.testing.assert_allclose(seen(batch)[:, 2], 9, atol=1e-4)
        np.testing.assert_allclose(batch.parts.sum(np.ones(len(batch.features))), 1, rtol=1e-5)
        assert np.array_equal(batch.targets, batch.parts.indices[batch.parts.indptr[:-1]])
        assert np.array_equal(batch.sources, np.unique(batch.parts.indices))
        assert batch.coords_um is region.coords_um


@pytest.mark.parametrize("name", ["spots", "cells", "tiny", "bins"])
def test_a_location_does_not_depend_on_who_else_is_asked(
    coordinates: SpatialData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    encoder = Colours(pattern=rng.normal(0, 20, (4, 4)))  # tokens depend on their place, so tiles must be the same
    region = data.read_region(coordinates, Place(shapes_key=name))
    once = seen(token_batch(region, encoder, TOKENS, stride_um=16.0))
    rows = rng.permutation(len(once))[:5]
    part = token_batch(region.take(rows), encoder, TOKENS, stride_um=16.0)
    np.testing.assert_allclose(seen(part), once[rows], rtol=1e-5)
    (alone,) = seen(token_batch(region.take(rows[:1]), encoder, TOKENS, stride_um=16.0))
    np.testing.assert_allclose(alone, once[rows[0]], rtol=1e-5)
    monkeypatch.setattr("stpred.data._readers.tokens._TILES", 3)
    np.testing.assert_allclose(seen(token_batch(region, encoder, TOKENS, stride_um=16.0)), once, rtol=1e-5)


@pytest.mark.parametrize("name", ["spots", "cells", "bins"])
def test_blocks_of_prediction_change_nothing(
    coordinates: SpatialData, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Colours(pattern=np.random.default_rng(0).normal(0, 20, (4, 4)))
    region = data.read_region(coordinates, Place(shapes_key=name))
    ((rows, whole),) = data.reader_for(region, encoder, TOKENS, stride_um=8.0).blocks()
    once = np.empty((len(rows), 3))
    once[rows] = seen(whole)
    monkeypatch.setattr("stpred.data._readers.tokens.BLOCK_BYTES", 1)  # blocks of a tile
    monkeypatch.setattr("stpred.data._readers.tokens._TILES", 5)
    found, number = np.full((len(rows), 3), np.nan), 0
    for rows, batch in data.reader_for(region, encoder, TOKENS, stride_um=8.0).blocks():
        assert np.isnan(found[rows]).all()  # nothing comes twice
        found[rows] = seen(batch)
        np.testing.assert_array_equal(batch.features[batch.sources], whole.features[whole.sources])
        assert batch.context == whole.context == "region"
        number += 1
    assert number > 3
    np.testing.assert_allclose(found, once, rtol=1e-5)


def test_tokens_that_do_not_know_their_place_are_the_same_at_every_stride(coordinates: SpatialData) -> None:
    for name in ("spots", "cells", "tiny"):
        region = data.read_region(coordinates, Place(shapes_key=name))
        whole = seen(token_batch(region, Colours(), TOKENS))
        for stride_um in (8.0, 16.0, 24.0):
            np.testing.assert_allclose(
                seen(token_batch(region, Colours(), TOKENS, stride_um=stride_um)), whole, rtol=1e-5
            )


def test_every_tile_is_embedded_once(coordinates: SpatialData) -> None:
    region = data.read_region(coordinates, Place(shapes_key="bins"))  # 128 um from 64 um on: 4 x 4 tiles
    encoder = Colours()
    token_batch(region, encoder, TOKENS)
    assert encoder.tiles == 16
    encoder = Colours()
    token_batch(region, encoder, TOKENS, stride_um=16.0)  # one half tile more on either side
    assert encoder.tiles == 9 * 9


def test_patches_smaller_than_a_pixel_are_refused(coordinates: SpatialData) -> None:
    coarse = picture_slide(np.full((64, 64, 3), 200, np.uint8), mpp=4.0)
    region = data.read_region(put(coarse, "spots", discs(np.full((3, 2), 128.0), 27.5)), Place(shapes_key="spots"))
    match = r"The patches of 2 um are smaller than a pixel of image 'he' \(4 um\) of slide 'slide'"
    with pytest.raises(InputError, match=match):
        token_batch(region, Colours(n=16, token_px=2), TOKENS)
    assert len(token_batch(region, Colours(n=8, token_px=4), TOKENS).targets) == 3


# What speaks for a slide, and how often a token is seen.


def test_finer_regions_are_seen_in_overlapping_tiles_and_by_the_same_statistics(coordinates: SpatialData) -> None:
    encoder = Colours()
    trained = data.read_region(coordinates, Place(shapes_key="lattice"))
    lattice = Lattice.of(trained.coords_um)
    assert lattice is not None
    assert data.median_width_um(trained) == 50
    context = data.Context(lattice, "lattice", width_um=50.0)
    known = data.reader_for(trained, encoder, TOKENS).whole()
    ((_, same),) = data.reader_for(trained, encoder, TOKENS, context).blocks()
    np.testing.assert_array_equal(same.features[same.sources], known.features[known.sources])
    np.testing.assert_array_equal(seen(same), seen(known))
    cells = data.read_region(coordinates, Place(shapes_key="cells"))
    ((_, finer),) = data.reader_for(cells, encoder, TOKENS, context).blocks()
    np.testing.assert_array_equal(finer.features[finer.sources], known.features[known.sources])
    assert finer.context == "lattice"
    own = len(finer.features) - len(finer.sources)
    _, tokens = footprints(cells, TokenGrid.of(encoder.card))
    assert own == 4 * len(tokens)
    ((_, once),) = data.reader_for(cells, encoder, TOKENS, context, stride_um=32.0).blocks()
    assert len(once.features) - len(once.sources) == len(tokens)
    # Locations as wide as those of training are seen as these were, whatever they are called.
    alike = data.read_region(coordinates, Place(shapes_key="spots"))
    ((_, coarse),) = data.reader_for(alike, encoder, TOKENS, context).blocks()
    assert len(coarse.features) - len(coarse.sources) == len(footprints(alike, TokenGrid.of(encoder.card))[1])
    with pytest.raises(InputError, match="`stride_um` is for models of tokens"):
        next(data.reader_for(cells, encoder, Needs(), stride_um=32.0).blocks())


@pytest.mark.parametrize("n", [1, 3])
def test_finer_regions_can_be_predicted_from_an_odd_number_of_patches(coordinates: SpatialData, n: int) -> None:
    lattice = Lattice.of(data.read_region(coordinates, Place(shapes_key="lattice")).coords_um)
    cells = data.read_region(coordinates, Place(shapes_key="cells"))
    ((_, batch),) = data.reader_for(cells, Colours(n=n), TOKENS, data.Context(lattice=lattice, home="lattice")).blocks()
    assert np.abs(seen(batch)[:, :2] + 0.5 - cells.coords_um).max() < 8


def test_overlapping_tiles_take_their_grid_out_of_a_map() -> None:
    """Tokens that know their place in the tile print the grid of tiles on a map, unless tiles overlap."""
    n, token = 8, 4  # tiles of 32 um
    y, x = np.mgrid[:SIDE, :SIDE]
    truth = 120 + 60 * np.sin(2 * np.pi * x / 80) * np.cos(2 * np.pi * y / 100)
    slide = picture_slide(np.repeat(truth[..., None], 3, axis=2).astype(np.uint8))
    wave = 40 * np.cos(2 * np.pi * np.arange(n) / n)
    encoder = Colours(n=n, token_px=token, pattern=np.random.default_rng(0).normal(0, 15, (n, n)) + wave)
    side = 160 // token  # pixels of a map of 160 um, five tiles, away from the border
    j, i = np.meshgrid(np.arange(side), np.arange(side))
    centres = 48.0 + (np.column_stack([j.ravel(), i.ravel()]) + 0.5) * token
    base = data.read_region(put(slide, "spots", discs(centres[:3], 5)), Place(shapes_key="spots"))
    pixels = replace(base, coords_um=centres, instances=pd.RangeIndex(len(centres)), edge_um=float(token))
    config = Student.Config(hidden=(), standardize="none", scale_genes=False)
    model = Student(config, n_features=3, n_genes=1).eval()
    with torch.no_grad():  # the network hands on its red
        model.layers[0].weight.copy_(torch.tensor([[1.0, 0.0, 0.0]]))
        model.layers[0].bias.zero_()
    local = truth[48:208, 48:208].reshape(side, token, side, token).mean(axis=(1, 3))
    power, fit = {}, {}
    for stride_um in (32.0, 8.0):
        found = np.empty(len(centres))
        for rows, batch in data.reader_for(pixels, encoder, model.needs, stride_um=stride_um).blocks():
            found[rows] = model.predict(batch)[0][:, 0]
        image = found.reshape(side, side)
        along = np.abs(np.fft.rfft(image - local, axis=1)) ** 2
        power[stride_um] = along.mean(axis=0)[5]  # five periods of a tile
        fit[stride_um] = np.corrcoef(image.ravel(), local.ravel())[0, 1]
    assert power[32.0] > 10 * power[8.0]
    assert fit[8.0] > fit[32.0] + 0.02
    assert fit[8.0] > 0.99

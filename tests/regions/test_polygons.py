from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest
import shapely
from shapely import Point, Polygon, box

from stpred.regions.overlaps import OverlapError, distinct
from stpred.regions.polygons import from_vertices, largest_of, repaired
from stpred.regions.vertices import cell_ids


def ring(x: float, y: float, r: float = 4.0) -> np.ndarray:
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]], dtype=float)
    return corners * r + [x, y]


def test_vertices_of_groups_in_any_order_make_their_polygons() -> None:
    rings = [ring(0, 0), ring(20, 0, 2.0), ring(40, 0, 3.0)]
    xy, group = np.concatenate(rings), np.repeat([2, 0, 1], 5)
    mixed = np.argsort(np.tile(np.arange(5), 3), kind="stable")  # one row of each group in turn
    for rows in (np.arange(15), mixed):
        polygons, owner = from_vertices(xy[rows], group[rows])
        assert owner.tolist() == [0, 1, 2]
        assert shapely.equals(polygons, [Polygon(rings[k]) for k in (1, 2, 0)]).all()


def test_rings_that_close_early_are_parts_and_the_largest_is_found() -> None:
    xy = np.concatenate([ring(0, 0, 1.0), ring(20, 0, 5.0), ring(40, 0, 2.0)])
    polygons, owner = from_vertices(xy, np.array([0] * 10 + [1] * 5))
    assert owner.tolist() == [0, 0, 1]
    assert shapely.area(polygons[largest_of(polygons, owner)]).tolist() == [100.0, 16.0]


@pytest.mark.parametrize(
    "corners",
    [
        [[0, 0], [1, 1]],
        [[0, 0], [1, 1], [2, 2], [0, 0]],
        [[0, 0], [1, 1], [0, 0], [1, 1]],
        [[0, 0], [np.inf, 1], [1, 2], [0, 0]],
        [[0, 0], [np.nan, 1], [1, 2], [0, 0]],
        [[0, 0], [1e300, 1], [1, 2], [0, 0]],
    ],
)
def test_what_is_no_outline_gives_none_and_others_stay(corners: list[list[float]]) -> None:
    xy = np.concatenate([corners, ring(9, 9)])
    polygons, owner = from_vertices(xy, np.r_[np.zeros(len(corners), int), np.ones(5, int)])
    assert owner.tolist() == [1]
    assert polygons[0].area == 64
    assert len(from_vertices(np.array(corners), np.zeros(len(corners), int))[0]) == 0


def test_padding_and_repeated_vertices_do_not_matter() -> None:
    xy = np.concatenate([np.repeat(ring(5, 5), 2, axis=0), np.full((3, 2), np.nan)])
    polygons, _ = from_vertices(xy, np.zeros(len(xy), int))
    assert polygons[0].equals(Polygon(ring(5, 5)))


def test_repair_keeps_valid_ones_and_the_largest_part_of_others() -> None:
    fine, bow = box(0, 0, 2, 3), Polygon([(0, 0), (3, 3), (3, 0), (0, 1)])
    got = repaired([fine, bow, Polygon([(0, 0), (np.nan, 1), (1, 1)])])
    assert got[0] is fine
    assert got[1].is_valid
    assert got[1].area == pytest.approx(max(p.area for p in shapely.get_parts(shapely.make_valid(bow))))
    assert got[2].is_empty


def test_tangled_outlines_take_bounded_time() -> None:
    rng = np.random.default_rng(0)
    tangles = [Polygon(rng.random((k, 2))) for k in (3000, 400, 400, 20_000)]
    start = time.process_time()
    got = repaired(tangles)
    assert time.process_time() - start < 10
    assert [p.is_empty for p in got] == [True, False, False, True]
    assert shapely.is_valid(got).all()


@pytest.mark.parametrize(
    ("column", "ids", "rows"),
    [
        (pd.Series([7, 3, 7], dtype="int32"), ["7", "3"], [0, 1, 0]),
        (pd.Series([7.0, np.nan, 3.0]), ["7", "3"], [0, -1, 1]),
        (pd.Series([b"a-1", b"b-1"]), ["a-1", "b-1"], [0, 1]),
        (pd.Series(["x", None, "y", "x"], dtype="category"), ["x", "y"], [0, -1, 1, 0]),
        (pd.Series(["1.0", "2.0"]), ["1", "2"], [0, 1]),
        (pd.Series([b"a", "a", 1, 1.0], dtype=object), ["a", "1"], [0, 0, 1, 1]),
    ],
)
def test_ids_of_any_kind_are_the_same_text(column: pd.Series, ids: list[str], rows: list[int]) -> None:
    found, which = cell_ids(column)
    assert found.tolist() == ids
    assert which.tolist() == rows


def naive(polygons: list[Polygon], limit: float) -> list[bool]:
    drop = [False] * len(polygons)
    order = sorted(range(len(polygons)), key=lambda i: (-polygons[i].area, i))
    for n, i in enumerate(order):
        drop[i] = any(
            not drop[j] and polygons[i].intersection(polygons[j]).area > limit * polygons[i].area for j in order[:n]
        )
    return drop


def test_distinct_is_the_slow_search() -> None:
    rng = np.random.default_rng(1)
    centres = rng.uniform(0, 60, (120, 2))
    polygons = [Point(*c).buffer(r, 8) for c, r in zip(centres, rng.uniform(2, 6, 120), strict=True)]
    polygons += polygons[:10]
    drop, around = distinct(np.array(polygons, dtype=object), limit=0.7)
    assert drop.tolist() == naive(polygons, 0.7)
    assert not around.any()
    assert 10 < drop.sum() < 80


def test_regions_around_cells_drop_none_of_them() -> None:
    cells = [Point(10 * i, 10 * j).buffer(4) for i in range(15) for j in range(15)]
    drop, around = distinct(np.array([box(-9, -9, 150, 150), *cells], dtype=object), limit=0.7)
    assert np.flatnonzero(around).tolist() == [0]
    assert not drop.any()


def test_cells_upon_one_another_are_refused_and_copies_are_one() -> None:
    one = Point(5, 5).buffer(3)
    drop, around = distinct(np.array([one] * 3000, dtype=object), limit=0.7)
    assert drop.sum() == 2999
    assert not around.any()
    rng = np.random.default_rng(2)
    stars = repaired([Polygon(rng.random((6, 2))) for _ in range(1500)])
    start = time.process_time()
    with pytest.raises(OverlapError, match="1500"):
        distinct(stars, limit=0.7)
    assert time.process_time() - start < 5

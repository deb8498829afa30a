from __future__ import annotations

import numpy as np
import pytest
import shapely

from stpred import InputError
from stpred._core import geometry
from stpred.comparison import matching


def discs(xy: np.ndarray, radius: float | np.ndarray = 5.0) -> np.ndarray:
    return shapely.buffer(shapely.points(xy), radius, quad_segs=8)


def scattered(n: int, *, seed: int = 0, size: float = 200.0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, size, (n, 2))


def slow_overlap(ours: np.ndarray, theirs: np.ndarray, min_overlap: float) -> dict[int, int]:
    """Every polygon against every other, in plain loops."""
    area = np.array([[a.intersection(b).area for b in theirs] for a in ours])
    found = {}
    for i in range(len(ours)):
        j = int(area[i].argmax())
        smaller = min(ours[i].area, theirs[j].area)
        if area[i, j] > 0 and int(area[:, j].argmax()) == i and area[i, j] / smaller >= min_overlap:
            found[i] = j
    return found


def slow_nearest(ours: np.ndarray, theirs: np.ndarray, limit: float) -> dict[int, int]:
    far = np.linalg.norm(ours[:, None] - theirs[None], axis=2)
    best = far.argmin(axis=1)
    return {i: int(j) for i, j in enumerate(best) if far[:, j].argmin() == i and far[i, j] <= limit}


@pytest.mark.parametrize("min_overlap", [0.0, 0.3, 0.8])
def test_overlap_equals_the_slow_loop_and_does_not_depend_on_the_side(min_overlap: float) -> None:
    ours = discs(scattered(80), np.random.default_rng(1).uniform(3, 12, 80))
    theirs = discs(scattered(60, seed=2), 9.0)
    i, j, value = matching.match_overlap(ours, theirs, min_overlap=min_overlap)
    assert dict(zip(i.tolist(), j.tolist(), strict=True)) == slow_overlap(ours, theirs, min_overlap)
    assert len(i) > 2
    assert len(set(j)) == len(j)
    assert (np.diff(i) > 0).all()
    smaller = np.minimum(shapely.area(ours[i]), shapely.area(theirs[j]))
    assert np.allclose(value, shapely.area(shapely.intersection(ours[i], theirs[j])) / smaller)
    jj, ii, _ = matching.match_overlap(theirs, ours, min_overlap=min_overlap)
    assert set(zip(ii, jj, strict=True)) == set(zip(i, j, strict=True))


@pytest.mark.parametrize("limit", [0.5, 3.0, 50.0])
def test_nearest_equals_the_slow_loop(limit: float) -> None:
    ours, theirs = scattered(80), scattered(60, seed=2)
    i, j, distance = matching.match_nearest(ours, theirs, max_distance_um=limit)
    assert dict(zip(i.tolist(), j.tolist(), strict=True)) == slow_nearest(ours, theirs, limit)
    assert np.allclose(distance, np.linalg.norm(ours[i] - theirs[j], axis=1))
    jj, ii, _ = matching.match_nearest(theirs, ours, max_distance_um=limit)
    assert set(zip(ii, jj, strict=True)) == set(zip(i, j, strict=True))


def test_nuclei_find_their_cells_in_spite_of_jitter_and_losses() -> None:
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.arange(0, 200, 12.0), np.arange(0, 200, 12.0))
    centres = np.column_stack([x.ravel(), y.ravel()])
    kept = rng.permutation(len(centres))[: len(centres) * 3 // 4]
    nuclei = centres[kept] + rng.uniform(-1.5, 1.5, (len(kept), 2))
    for i, j, _ in (
        matching.match_overlap(discs(nuclei, 2.5), discs(centres, 6.0)),
        matching.match_nearest(nuclei, centres, max_distance_um=5),
    ):
        assert len(i) == len(kept)
        assert np.array_equal(j, kept[i])


def test_of_two_nuclei_in_a_cell_the_larger_part_counts_and_a_mere_touch_does_not() -> None:
    cell = discs(np.array([[0.0, 0.0]]), 10.0)
    nuclei = discs(np.array([[-5.0, 0.0], [4.0, 0.0], [11.0, 0.0]]), np.array([2.0, 3.0, 2.0]))
    assert [r.tolist() for r in matching.match_overlap(nuclei, cell)[:2]] == [[1], [0]]
    beside = [shapely.box(0, 0, 1, 1)], [shapely.box(1, 0, 2, 1)]
    assert len(matching.match_overlap(*beside, min_overlap=0.0)[0]) == 0
    assert len(matching.match_overlap([], beside[0])[0]) == 0
    assert len(matching.match_nearest(np.empty((0, 2)), [[0.0, 0.0]])[0]) == 0


def test_a_broken_polygon_is_repaired() -> None:
    bow = shapely.Polygon([(0, 0), (4, 4), (4, 0), (0, 4)])
    assert not bow.is_valid
    i, j, value = matching.match_overlap([bow], [shapely.box(0, 0, 4, 4)])
    assert (i.tolist(), j.tolist()) == ([0], [0])
    assert value[0] == pytest.approx(1.0)


def test_how_many_of_the_finer_the_coarser_hold() -> None:
    centres = np.array([[0.0, 0.0], [100.0, 0.0]])
    cells = np.concatenate([c + scattered(n, size=20.0) - 10 for c, n in zip(centres, (3, 7), strict=True)])
    spots = discs(centres, 27.5)
    assert matching.n_inside(spots, discs(cells, 3.0)) == (5.0, True)
    assert matching.n_inside(discs(cells, 3.0), spots) == (5.0, False)
    assert matching.n_inside(spots, discs(cells + 1000, 3.0))[0] == 0


@pytest.mark.parametrize("size", [8, 2.5])
def test_square_bins_equal_the_slow_loop(size: float) -> None:
    points = scattered(300) - 90
    squares, member = geometry.square_bins(points, size)
    assert [tuple(squares[m]) for m in member] == [(int(x // size), int(y // size)) for x, y in points]
    assert len({tuple(s) for s in squares}) == len(squares)
    assert np.array_equal(np.lexsort(squares.T), np.arange(len(squares)))


def test_limits_are_checked() -> None:
    with pytest.raises(InputError, match=r"`min_overlap` must lie between 0 and 1, got 3"):
        matching.match_overlap([], [], min_overlap=3)
    with pytest.raises(InputError, match="`max_distance_um` must be a positive number of um"):
        matching.match_nearest([[0, 0]], [[0, 0]], max_distance_um=0)
    with pytest.raises(InputError, match="`size_um` must be a positive"):
        geometry.square_bins([[0, 0]], -1)

from __future__ import annotations

import numpy as np
import pytest

from stpred import InputError
from stpred import links as lk
from stpred.links import Links


def sets(links: Links) -> list[list[int]]:
    return [links.indices[a:b].tolist() for a, b in zip(links.indptr[:-1], links.indptr[1:], strict=True)]


def hexagon(n: int = 9, pitch: float = 100.0) -> np.ndarray:
    row, col = np.mgrid[:n, :n].reshape(2, -1)
    return np.column_stack([pitch * (col + 0.5 * (row % 2)), pitch * row * np.sqrt(3) / 2])


def square(n: int = 9, pitch: float = 200.0) -> np.ndarray:
    return pitch * np.mgrid[:n, :n].reshape(2, -1).T.astype(float)


@pytest.fixture
def clouds() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.uniform(0, 500, size=(30, 2)), rng.uniform(0, 500, size=(200, 2))


def test_within_and_radius_match_loops(clouds) -> None:
    targets, sources = clouds
    radii = np.random.default_rng(1).uniform(10, 90, size=len(targets))
    distance = np.linalg.norm(targets[:, None] - sources[None], axis=2)
    by_own = [[j for j in np.argsort(d, kind="stable") if d[j] <= r] for d, r in zip(distance, radii, strict=True)]
    assert sets(lk.within(targets, radii, sources)) == by_own
    fixed = [[j for j in np.argsort(d, kind="stable") if d[j] <= 60] for d in distance]
    assert sets(lk.within(targets, 60, sources)) == fixed
    assert sets(lk.radius(targets, sources, radius_um=60)) == fixed


def test_within_nearest_only_gives_each_point_once(clouds) -> None:
    targets, sources = clouds
    distance = np.linalg.norm(targets[:, None] - sources[None], axis=2)
    nearest = distance.argmin(0)
    expected = [
        [j for j in np.argsort(distance[i], kind="stable") if distance[i, j] <= 80 and nearest[j] == i]
        for i in range(len(targets))
    ]
    found = lk.within(targets, 80, sources, nearest_only=True)
    assert sets(found) == expected
    assert np.bincount(found.indices).max() == 1
    assert np.bincount(lk.within(targets, 80, sources).indices).max() > 1


@pytest.mark.parametrize("include_self", [False, True])
def test_knn_matches_a_loop(clouds, include_self) -> None:
    _, sources = clouds
    targets = np.vstack([sources[:15], clouds[0]])
    for k in (1, 7, 300):
        expected = []
        for t in targets:
            d = np.linalg.norm(sources - t, axis=1)
            order = np.argsort(d, kind="stable")
            own, others = order[d[order] == 0].tolist(), order[d[order] > 0][:k].tolist()
            expected.append(own * include_self + others)
        assert sets(lk.knn(targets, sources, n_neighbors=k, include_self=include_self)) == expected
    capped = lk.knn(targets, sources, n_neighbors=7, max_distance_um=40)
    full = lk.knn(targets, sources, n_neighbors=7)
    for t, near, seven in zip(targets, sets(capped), sets(full), strict=True):
        assert near == [j for j in seven if np.linalg.norm(sources[j] - t) <= 40]


@pytest.mark.parametrize(("grid", "pitch", "reach", "expected"), [(hexagon, 100, 1.2, 6), (square, 200, 1.5, 8)])
def test_lattice_neighbours(grid, pitch, reach, expected) -> None:
    xy = grid(9)
    for angle in (0.0, 0.7):
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        placed = xy @ rotation.T + 12345.678
        counts = lk.radius(placed, placed, radius_um=reach * pitch).counts()
        assert counts[4 * 9 + 4] == expected
        assert counts.max() == expected
        assert lk.radius(placed, placed, radius_um=reach * pitch, include_self=True).counts().max() == expected + 1


def test_rings_are_the_complete_rings_of_a_hexagon() -> None:
    xy = hexagon(15)
    middle = 7 * 15 + 7
    for rings in (1, 2, 3):
        ring = lk.knn(xy, xy, rings=rings).take([middle]).indices
        far = np.linalg.norm(xy[ring] - xy[middle], axis=1)
        assert len(ring) == 3 * rings * (rings + 1)
        assert far.max() == pytest.approx(100 * rings)
    np.testing.assert_array_equal(lk.knn(xy, xy, rings=3).indices, lk.knn(xy, xy, n_neighbors=36).indices)


def test_ties_do_not_depend_on_rounding() -> None:
    # Four equally far neighbours of which two are wanted: the lowest rows, wherever the frame lies.
    xy = square(5)
    for shift in (0.0, 1e5 / 3, 7777.7777):
        assert lk.knn(xy + shift, xy + shift, n_neighbors=2).take([12]).indices.tolist() == [7, 11]
        assert lk.radius(xy + shift, xy + shift, radius_um=201).take([12]).indices.tolist() == [7, 11, 13, 17]


def test_self_is_decided_by_place_not_by_row() -> None:
    xy = square(3)
    shuffled = xy[::-1]
    assert lk.knn(xy, shuffled, n_neighbors=1, include_self=True).indices[::2].tolist() == list(range(9))[::-1]
    assert not (np.linalg.norm(shuffled[lk.knn(xy, shuffled, n_neighbors=1).indices] - xy, axis=1) == 0).any()
    doubled = np.vstack([xy, xy])  # two sources at each place
    assert lk.knn(xy, doubled, n_neighbors=2).counts().tolist() == [2] * 9
    assert lk.knn(xy, doubled, n_neighbors=2, include_self=True).counts().tolist() == [4] * 9


def test_from_labels_matches_a_loop() -> None:
    labels = np.random.default_rng(0).integers(-1, 6, size=50)
    assert sets(lk.from_labels(labels, 8)) == [np.flatnonzero(labels == t).tolist() for t in range(8)]


@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_match_loops(weighted) -> None:
    rng = np.random.default_rng(0)
    links = lk.from_labels(rng.integers(-1, 6, size=50), 8)
    weights = rng.uniform(0.1, 1, size=links.indices.size).astype(np.float32) if weighted else None
    links = Links(links.indptr, links.indices, weights)
    values = rng.normal(size=(50, 3))
    values[np.setdiff1d(np.arange(50), links.indices)] = np.nan  # unlinked rows must not leak
    for t, rows in enumerate(sets(links)):
        w = np.ones(len(rows)) if weights is None else weights[links.indptr[t] : links.indptr[t + 1]].astype(float)
        expected = (values[rows] * w[:, None]).sum(0)
        np.testing.assert_allclose(links.sum(values, fill=-1)[t], expected if rows else -1)
        np.testing.assert_allclose(links.mean(values)[t], expected / w.sum() if rows else np.nan)
    np.testing.assert_allclose(links.mean(values[:, 0]), links.mean(values)[:, 0])
    np.testing.assert_allclose(links.mean(values.reshape(50, 3, 1))[..., 0], links.mean(values))
    assert links.mean(values.astype(np.float16)).dtype == np.float32
    assert links.sum(np.arange(50)).dtype == np.float64
    np.testing.assert_allclose(links.to_csr(50).toarray().sum(1), links.sum(np.ones(50)), rtol=1e-6)


def test_take_keeps_order_repeats_and_weights() -> None:
    links = Links([0, 2, 2, 5], [4, 1, 0, 2, 3], [0.1, 0.2, 0.3, 0.4, 0.5])
    taken = links.take([2, 0, 1, 2])
    assert sets(taken) == [[0, 2, 3], [4, 1], [], [0, 2, 3]]
    np.testing.assert_allclose(taken.weights, [0.3, 0.4, 0.5, 0.1, 0.2, 0.3, 0.4, 0.5])
    assert sets(links.take(np.array([True, False, True]))) == [[4, 1], [0, 2, 3]]
    assert links.take([]).n_targets == 0
    order = np.array([2, 0, 1])
    values = np.random.default_rng(0).normal(size=(5, 2))
    np.testing.assert_array_equal(links.take(order).mean(values), links.mean(values)[order])


def test_empty_sides() -> None:
    nothing = np.empty((0, 2))
    assert lk.knn([[0, 0]], nothing, n_neighbors=3).counts().tolist() == [0]
    assert lk.within(nothing, 5, [[0, 0]]).n_targets == 0
    assert lk.knn(nothing, [[0, 0]], n_neighbors=1).n_targets == 0
    assert lk.radius([[0, 0]], nothing, radius_um=5).mean(np.empty((0, 4))).shape == (1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Links([0, 2], [1]), "`Links.indptr` must rise from 0 to the 1 links"),
        (lambda: Links([1, 1], [0]), "must rise from 0"),
        (lambda: Links([0, 2, 1], [0]), "must rise from 0"),
        (lambda: Links([], []), "must rise from 0"),
        (lambda: Links([0, 1], [-1]), "row numbers of 0 or more, got -1"),
        (lambda: Links([0, 1], [0.5]), "`indices` must be a list of whole numbers"),
        (lambda: Links([0, 1], [0], [1, 2]), "must be 1 finite numbers"),
        (lambda: Links([0, 1], [0], [np.nan]), "must be 1 finite numbers"),
        (lambda: Links([0, 1], [3]).mean(np.zeros((3, 1))), "point to source row 3, but there are 3 sources"),
        (lambda: Links([0, 1], [3]).take([1]), r"must lie in 0..0, got 1..1"),
        (lambda: Links([0, 1], [3]).take(np.array([True, False])), "must have 1 values"),
        (lambda: lk.within([[0, 0]], -1, [[0, 0]]), "`radius_um` must be one positive number or 1 of them, got -1"),
        (lambda: lk.within([[0, 0]], [1, 2], [[0, 0]]), "one positive number or 1 of them"),
        (lambda: lk.radius([[0, 0, 0]], [[0, 0]], radius_um=1), r"`targets_um` must be \(n, 2\) .* shape \(1, 3\)"),
        (lambda: lk.radius([[0, 0]], [[0, 0], [0, np.nan]], radius_um=1), "`sources_um` has NaN .* in row 1"),
        (lambda: lk.knn([[0, 0]], [[0, 0]]), "either `n_neighbors` or `rings`"),
        (lambda: lk.knn([[0, 0]], [[0, 0]], n_neighbors=1, rings=1), "either `n_neighbors` or `rings`"),
        (lambda: lk.knn([[0, 0]], [[0, 0]], n_neighbors=0), "`n_neighbors` must be a positive whole number, got 0"),
        (lambda: lk.knn([[0, 0]], [[0, 0]], rings=1.5), "`rings` must be a positive whole number"),
        (lambda: lk.from_labels([0, 3], 3), "below the number of targets, 3, got 3"),
    ],
)
def test_bad_input_is_named(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()

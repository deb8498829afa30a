"""Which metagenes stay, go and split: every rule by example, and what holds after any sequence of reviews."""

from __future__ import annotations

import numpy as np
import pytest

from stpred.models.xfuse.metagenes import Tree, drop_and_split, flattened, keep_spare, leaves, unflattened


def review(
    forest: list[Tree], *, good: str = "", bad: str = "", capacity: int = 20
) -> tuple[list[Tree], list[int], list[tuple[int, int | None]]]:
    """Name metagenes by digits: those that contribute, and those that do not."""
    contributes = {int(m): True for m in good} | {int(m): False for m in bad}
    grown, change = drop_and_split(forest, contributes, capacity=capacity)
    return grown, change.dropped, change.added


def test_metagenes_outside_the_forest_become_trees_and_split_if_they_contribute() -> None:
    forest, dropped, added = review([], good="02", bad="13")
    assert dropped == [1, 3]
    assert added == [(1, 0), (3, 2)]  # numbers that have just become free are taken again
    assert forest == [(0, 1), (2, 3)]


def test_a_lone_metagene_splits() -> None:
    assert review([], good="0", capacity=2) == ([(0, 1)], [], [(1, 0)])


def test_one_metagene_stays_though_none_contributes() -> None:
    assert review([], bad="143") == ([1], [3, 4], [])
    assert review([5, (2, 3)], bad="235") == ([5], [2, 3], [])


@pytest.mark.parametrize(("bad", "left"), [("0", 1), ("1", 0)])
def test_split_with_a_leaf_that_does_not_contribute_collapses_to_the_other(bad: str, left: int) -> None:
    forest, dropped, added = review([(0, 1)], good=str(left), bad=bad)
    assert dropped == [int(bad)]
    # After the collapse the other has no sibling, so it splits anew, into the number that is free.
    assert added == [(int(bad), left)]
    assert forest == [(left, int(bad))]


def test_collapse_goes_up_the_tree() -> None:
    # ((0, 1), 2): both of 0 and 1 are idle, then the one that was left is an idle leaf beside 2.
    assert review([((0, 1), 2)], good="2", bad="01")[:2] == ([(2, 0)], [0, 1])
    # An idle leaf beside a split goes; the split remains as it was, and its leaves split on.
    forest, dropped, added = review([((0, 1), 2)], good="01", bad="2", capacity=4)
    assert dropped == [2]
    assert added == [(2, 0), (3, 1)]
    assert forest == [((0, 2), (1, 3))]


def test_leaf_that_is_gone_gives_its_place_to_its_sibling() -> None:
    forest, dropped, added = review([((0, 1), 2)], good="02", capacity=3)
    assert (forest, dropped, added) == ([((0, 1), 2)], [], [(1, 0)])
    assert review([(0, 1), 2], good="2", capacity=3) == ([(2, 0)], [], [(0, 2)])


def test_trees_of_one_idle_leaf_go_while_there_is_another() -> None:
    assert review([0, (1, 2)], good="12", bad="0", capacity=3)[:2] == ([((1, 0), 2)], [0])
    # The last tree stays: nothing else was in the forest, though others come in from outside of it.
    forest, dropped, _ = review([0], good="1", bad="0", capacity=2)
    assert (forest, dropped) == ([0, 1], [])


def test_leaf_beside_an_idle_tree_is_split_only_as_far_as_there_is_room() -> None:
    forest, _, added = review([(0, 1), 2], good="012", capacity=4)
    assert added == [(3, 0)]
    assert forest == [((0, 3), 1), 2]
    assert review([(0, 1), 2], good="012", capacity=3) == ([(0, 1), 2], [], [])


def test_spare_metagenes_are_the_least_superfluous() -> None:
    scores = {0: -5.0, 1: 3.0, 2: 0.0, 3: 1.0, 4: -0.1}
    change = keep_spare(scores, spare=2, capacity=10)
    assert (change.dropped, change.added) == ([1], [])  # 2 at exactly nothing is idle, but the best of the idle
    assert keep_spare(scores, spare=0, capacity=10).dropped == [1, 2, 3]


def test_missing_spares_are_made_afresh_up_to_the_capacity() -> None:
    change = keep_spare({0: -1.0, 3: 2.0}, spare=3, capacity=10)
    assert (change.dropped, change.added) == ([], [(1, None), (2, None)])
    assert keep_spare({0: -1.0, 3: 2.0}, spare=3, capacity=4).added == [(1, None), (2, None)]
    assert keep_spare({0: -1.0, 1: -2.0}, spare=3, capacity=2).added == []
    assert keep_spare({0: -1.0, 1: -2.0}, spare=3, capacity=3).added == [(2, None)]


def test_no_spare_leaves_the_best_one_where_none_contributes() -> None:
    change = keep_spare({0: 4.0, 1: 2.0, 2: 3.0}, spare=0, capacity=5)
    assert (change.dropped, change.added) == ([0, 2], [])
    assert keep_spare({2: 0.5}, spare=0, capacity=5).dropped == []


def test_forest_comes_back_from_whole_numbers() -> None:
    forest: list[Tree] = [3, ((0, (1, 5)), 2), (4, 6)]
    assert flattened(forest) == [3, -1, -1, 0, -1, 1, 5, 2, -1, 4, 6]
    assert unflattened(flattened(forest)) == forest
    assert unflattened([]) == flattened([]) == []


@pytest.mark.parametrize("seed", range(30))
def test_any_sequence_of_reviews_keeps_forest_and_metagenes_in_step(seed: int) -> None:
    rng = np.random.default_rng(seed)
    capacity = int(rng.integers(1, 12))
    active = set(range(int(rng.integers(1, capacity + 1))))
    forest: list[Tree] = []
    for step in range(25):
        split = step % 4 != 3
        if split:
            contributes = {m: bool(rng.random() < 0.7) for m in active}
            before = list(forest)
            forest, change = drop_and_split(forest, contributes, capacity=capacity)
            assert {p for _, p in change.added} <= {m for m in active if contributes[m]}
            assert not {p for _, p in change.added} & set(change.dropped)
            gone = [m for m in change.dropped if contributes[m]]
            assert not gone, (before, contributes)
        else:  # the other strategy in between: metagenes go and come that the forest does not know
            change = keep_spare({m: float(rng.normal()) for m in active}, spare=int(rng.integers(3)), capacity=capacity)
            assert all(parent is None for _, parent in change.added)
        assert set(change.dropped) <= active
        active -= set(change.dropped)
        new = [m for m, _ in change.added]
        assert len(set(new)) == len(new)
        assert not set(new) & active
        active |= set(new)
        assert active
        assert len(active) <= capacity
        assert active <= set(range(capacity))
        if split:
            found = [m for tree in forest for m in leaves(tree)]
            assert sorted(found) == sorted(active)
        assert unflattened(flattened(forest)) == forest
        assert len(flattened(forest)) <= 2 * capacity  # what the model has room for

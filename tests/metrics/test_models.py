from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stpred import InputError, metrics


@pytest.fixture
def scores() -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.round(rng.normal(size=(10, 1)) + rng.normal(size=(10, 4)) * 0.3 + [0.0, 0.9, 0.1, 0.8], 1)  # with ties


def test_comparison_equals_scipy(scores) -> None:
    found = metrics.compare_models(scores, ["a", "b", "c", "d"])
    expected = stats.friedmanchisquare(*scores.T)
    assert found.friedman_statistic == pytest.approx(expected.statistic)
    assert found.friedman_p == pytest.approx(expected.pvalue)
    ranks = stats.rankdata(-scores, axis=1).mean(axis=0)
    np.testing.assert_allclose(found.ranks.loc[["a", "b", "c", "d"], "mean_rank"], ranks)
    assert found.ranks["mean_rank"].is_monotonic_increasing
    np.testing.assert_allclose(found.ranks.loc[["a", "b", "c", "d"], "sd"], scores.std(axis=0, ddof=1))
    assert len(found.pairs) == 6
    for row in found.pairs.itertuples():
        first, second = (scores[:, "abcd".index(n)] for n in (row.first, row.second))
        assert row.difference == pytest.approx((first - second).mean())
        assert row.t_p == pytest.approx(stats.ttest_rel(first, second).pvalue)
        assert row.wilcoxon_p == pytest.approx(stats.wilcoxon(np.round(first - second, 6)).pvalue)
        assert row.nemenyi == (abs(ranks["abcd".index(row.first)] - ranks["abcd".index(row.second)]) > found.cd)
    for test in ("wilcoxon", "t"):
        np.testing.assert_allclose(found.pairs[f"{test}_holm"], metrics.holm(found.pairs[f"{test}_p"]))
    assert found.n_blocks == 10


def test_critical_difference_of_the_published_table() -> None:
    # Demšar (2006), table 5: q of two to five models at 0.05, below it one at 0.1.
    rng = np.random.default_rng(0)
    for k, q in {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728}.items():
        found = metrics.compare_models(rng.normal(size=(14, k)), list("abcde")[:k])
        assert found.cd == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), rel=1e-3)
    loose = metrics.compare_models(rng.normal(size=(14, 4)), list("abcd"), alpha=0.1)
    assert loose.cd == pytest.approx(2.291 * np.sqrt(20 / 84), rel=1e-3)


def test_groups_are_the_largest_runs_within_the_critical_difference() -> None:
    from stpred.metrics._models import _bars

    ranks = np.array([1.0, 1.8, 2.5, 4.0, 6.0])
    assert [list(r) for r in _bars(ranks, cd=1.6)] == [[0, 1, 2], [2, 3]]
    assert _bars(ranks, cd=0.5) == []
    assert [list(r) for r in _bars(ranks, cd=9.0)] == [[0, 1, 2, 3, 4]]
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 4)) * 0.1 + [0.0, 0.0, 5.0, 5.01]
    found = metrics.compare_models(values, ["a", "b", "c", "d"])
    assert [set(g) for g in found.groups] == [{"c", "d"}, {"a", "b"}]
    assert found.friedman_p < 1e-6


def test_errors_rank_the_other_way(scores) -> None:
    higher = metrics.compare_models(scores, list("abcd"))
    lower = metrics.compare_models(-scores, list("abcd"), higher_is_better=False)
    np.testing.assert_allclose(lower.ranks["mean_rank"], higher.ranks["mean_rank"])
    assert lower.groups == higher.groups
    order = [2, 0, 3, 1]
    moved = metrics.compare_models(scores[:, order], ["c", "a", "d", "b"])
    np.testing.assert_allclose(moved.ranks.loc[higher.ranks.index, "mean_rank"], higher.ranks["mean_rank"])


def test_equal_models_and_two_models() -> None:
    values = np.tile(np.arange(5.0)[:, None], 2)
    same = metrics.compare_models(values, ["a", "b"])
    assert (same.friedman_p, same.ranks["mean_rank"].tolist()) == (1.0, [1.5, 1.5])
    assert same.pairs.loc[0, ["wilcoxon_p", "t_p", "wilcoxon_holm", "t_holm"]].tolist() == [1.0] * 4
    shifted = metrics.compare_models(values + [0.0, 0.1], ["a", "b"])
    assert shifted.pairs.loc[0, "wilcoxon_p"] == pytest.approx(2 / 2**5)
    assert shifted.pairs.loc[0, "t_p"] == 0
    assert shifted.friedman_statistic == pytest.approx(5)  # the sign test's square: 25 / 5


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (np.ones((2, 3)), "abc", "three or more blocks .* got 2: ranks of fewer cannot differ from chance"),
        (np.ones((5, 1)), "a", "two or more models, got 1"),
        (np.ones((5, 3)), "ab", r"\(blocks, 2\) matrix"),
        (np.ones((5, 3)), "aba", r"repeated are \['a'\]"),
        (np.array([[1, np.nan], [2, 1], [0, 1]]), "ab", r"1 of 3 blocks lack one, of \['b'\]"),
    ],
)
def test_comparison_refuses(values: np.ndarray, names: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.compare_models(values, list(names))
    with pytest.raises(InputError, match="`alpha` must lie"):
        metrics.compare_models(np.eye(3), list("abc"), alpha=0)

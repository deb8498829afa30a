from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse, stats

from stpred import InputError, metrics


def test_fisher_t_test_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    r = np.tanh(rng.normal(0.1, 0.2, size=(7, 12)))
    r[2:5, 3] = np.nan
    r[2:, 4] = np.nan  # two slides are left
    statistic, p = metrics.fisher_t_test(r)
    expected = stats.ttest_1samp(np.arctanh(r), 0, alternative="greater", nan_policy="omit")
    defined = np.arange(12) != 4
    np.testing.assert_allclose(statistic[defined], np.asarray(expected.statistic)[defined], rtol=1e-10)
    np.testing.assert_allclose(p[defined], np.asarray(expected.pvalue)[defined], rtol=1e-10)
    assert np.isnan(p[4])
    one = metrics.fisher_t_test(r[:, 0])
    assert one == (pytest.approx(statistic[0]), pytest.approx(p[0]))
    assert np.ndim(one[1]) == 0


def test_fisher_t_test_is_one_tailed_and_knows_extremes() -> None:
    r = np.array([0.2, 0.3, 0.25, 0.4])
    assert metrics.fisher_t_test(r)[1] == pytest.approx(1 - metrics.fisher_t_test(-r)[1])
    assert metrics.fisher_t_test([0.3, 0.3, 0.3])[1] == 0
    statistic, p = metrics.fisher_t_test([1.0, 0.9, 0.8])
    assert np.isfinite(statistic)
    assert 0 < p < 0.5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([0.3, 0.4], "three or more of them, got 2: two leave a single degree"),
        ([[0.3], [0.4]], "got 2"),
        ([0.3, np.nan, 0.4], "got 2"),
        ([], "got 0"),
        (0.3, r"shape \(slides,\)"),
        ([0.3, 0.4, 1.4], "between -1 and 1"),
    ],
)
def test_fisher_t_test_refuses(given, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.fisher_t_test(given)


def test_median_p() -> None:
    assert metrics.median_p([0.01, 0.03, 0.9]) == pytest.approx(0.06)
    assert metrics.median_p([0.4, 0.6, 0.8]) == 1
    found = metrics.median_p([[0.01, 0.2], [0.03, np.nan]])
    assert found[0] == pytest.approx(0.04)
    assert np.isnan(found[1])
    with pytest.raises(InputError, match="one or more repeats"):
        metrics.median_p([])
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.median_p([1.2])


def test_median_p_holds_its_level() -> None:
    rng = np.random.default_rng(0)
    shared, own = rng.normal(size=(1, 4000)), rng.normal(size=(9, 4000))
    for weight in (0.0, 0.5, 1.0):
        z = np.sqrt(weight) * shared + np.sqrt(1 - weight) * own
        assert (metrics.median_p(stats.norm.sf(z)) <= 0.05).mean() < 0.06


def test_holm_equals_statsmodels() -> None:
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for p in (rng.random(30) ** 4, np.round(rng.random(50), 1) / 20, np.array([0.2]), np.array([1.0, 0.0])):
        np.testing.assert_allclose(metrics.holm(p), multipletests(p, method="holm")[1], rtol=1e-12)
    with_nan = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(metrics.holm(with_nan), [0.03, np.nan, 0.06, 0.06])
    assert metrics.holm([]).shape == (0,)
    with pytest.raises(InputError, match="one row of p-values"):
        metrics.holm([[0.1]])
    with pytest.raises(InputError, match="between 0 and 1"):
        metrics.holm([-0.1])


def test_bootstrap_equals_scipy() -> None:
    values = np.random.default_rng(0).gamma(2, size=15)
    found = metrics.bootstrap_ci(values, n_samples=20_000)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    expected = theirs.confidence_interval
    np.testing.assert_allclose(found, [expected.low, expected.high], atol=0.02)
    narrow = metrics.bootstrap_ci(values, level=0.5)
    assert found[0] < narrow[0] < values.mean() < narrow[1] < found[1]
    assert metrics.bootstrap_ci(values) == metrics.bootstrap_ci(values)
    assert metrics.bootstrap_ci(values) != metrics.bootstrap_ci(values, seed=1)


def test_bootstrap_of_genes_is_that_of_each(monkeypatch) -> None:
    from stpred.metrics import _statistics

    values = np.random.default_rng(0).normal(size=(8, 9))
    values[[1, 4], 2] = np.nan
    values[1:, 5] = np.nan
    values[:, 6] = np.nan
    expected = metrics.bootstrap_ci(values, n_samples=500)
    monkeypatch.setattr(_statistics, "_CELLS", 1000)  # two genes at a time
    low, high = metrics.bootstrap_ci(values, n_samples=500)
    np.testing.assert_allclose([low, high], expected)
    for g in range(9):
        np.testing.assert_allclose(metrics.bootstrap_ci(values[:, g], n_samples=500), (low[g], high[g]), rtol=1e-12)
    np.testing.assert_allclose([low[5], high[5]], values[0, 5], rtol=1e-12)
    assert np.isnan(low[6])


def test_bootstrap_over_donors_draws_all_of_their_slides() -> None:
    values = np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.9])
    donors = np.array(["a", "a", "a", "a", "b", "c"])
    rng = np.random.default_rng(3)
    means = []
    for _ in range(20_000):
        drawn = rng.choice(["a", "b", "c"], size=3)
        means.append(np.concatenate([values[donors == d] for d in drawn]).mean())
    found = metrics.bootstrap_ci(values, groups=donors, n_samples=20_000, level=0.8)
    np.testing.assert_allclose(found, np.quantile(means, [0.1, 0.9]), atol=0.02)
    one_each = metrics.bootstrap_ci(values, groups=np.arange(6))
    assert one_each == metrics.bootstrap_ci(values)
    # Copies of a slide are no evidence.
    low, high = metrics.bootstrap_ci(np.repeat(values[3:], 20), groups=np.repeat([0, 1, 2], 20))
    np.testing.assert_allclose([low, high], metrics.bootstrap_ci(values[3:]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [0.3]}, "two or more slides to draw from, got 1"),
        ({"values": [0.3, 0.4], "groups": ["a", "a"]}, "two or more donors to draw from, got 1"),
        ({"values": [0.3, 0.4], "groups": ["a"]}, "one label for each of the 2 rows"),
        ({"values": [0.3, 0.4], "level": 95}, "`level` must lie between"),
        ({"values": [0.3, 0.4], "n_samples": 0}, "`n_samples` must be a positive whole number"),
        ({"values": 0.3}, r"shape \(slides,\)"),
    ],
)
def test_bootstrap_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.bootstrap_ci(**arguments)


def _donors(counts: list[int], *, n_donors: int = 23) -> np.ndarray:
    """Scores of genes that are positive in the given numbers of donors."""
    return np.array([[0.2 if d < c else -0.1 for c in counts] for d in range(n_donors)])


def test_consistent_genes_of_a_published_case_by_hand() -> None:
    # 23 donors, 250 genes, 102 of them positive in 20 or more donors. By hand, of 2^23 = 8388608 outcomes, those with
    # 20 or more heads are 1771 + 253 + 23 + 1 = 2048, with 21 or more 277, with 22 or more 24; 19 or more are 10903.
    counts = [23] * 20 + [22] * 20 + [21] * 20 + [20] * 42 + [19] * 40 + [12] * 108
    found = metrics.consistent_genes(_donors(counts))
    assert found.n_positive.tolist() == counts
    assert (found.n_donors == 23).all()
    for heads, outcomes in {23: 1, 22: 24, 21: 277, 20: 2048, 19: 10903}.items():
        here = found.n_positive == heads
        np.testing.assert_allclose(found.p_value[here], outcomes / 8388608, rtol=1e-12)
        assert found.p_value[here][0] == pytest.approx(stats.binomtest(heads, 23, 0.5, alternative="greater").pvalue)
    # Step down: 60 genes come first, so that 190 are left for the genes of 20 donors, and 148 for those of 19.
    assert found.p_holm[60] == pytest.approx(190 * 2048 / 8388608)  # 0.046
    assert found.p_holm[102] == pytest.approx(148 * 10903 / 8388608)  # 0.19
    assert found.consistent.sum() == 102
    np.testing.assert_array_equal(found.consistent, found.n_positive >= 20)
    np.testing.assert_array_equal(
        found.consistent, metrics.consistent_genes(_donors(counts), min_positive=20).consistent
    )


def test_twenty_of_23_donors_need_46_better_genes_among_250() -> None:
    # 2048 / 8388608 * (250 - k) <= 0.05 holds from k = 46 on; Bonferroni alone (k = 0) would refuse them: 0.061.
    for better, passes in {45: False, 46: True}.items():
        found = metrics.consistent_genes(_donors([23] * better + [20] * 30 + [11] * (220 - better)))
        assert found.consistent[better : better + 30].all() == passes
        assert found.consistent[:better].all()


def test_donors_without_a_score_are_no_trials() -> None:
    scores = np.full((10, 4), 0.3)
    scores[5:, 0] = np.nan
    scores[:, 1] = np.nan
    scores[:3, 2] = 0.0  # no correlation is not a positive one
    found = metrics.consistent_genes(scores)
    assert found.n_donors.tolist() == [5, 0, 10, 10]
    assert found.n_positive.tolist() == [5, 0, 7, 10]
    np.testing.assert_allclose(found.p_value, [1 / 32, np.nan, 176 / 1024, 1 / 1024])
    assert found.consistent.tolist() == [False, False, False, True]
    assert metrics.consistent_genes(scores, alpha=0.1).consistent.tolist() == [True, False, False, True]
    assert metrics.consistent_genes(scores, min_positive=7).consistent.tolist() == [False, False, True, True]
    assert metrics.consistent_genes(np.full((4, 1), -0.2)).p_value[0] == 1


def test_consistent_genes_refuses() -> None:
    with pytest.raises(InputError, match=r"\(donors, genes\) matrix"):
        metrics.consistent_genes([0.1, 0.2])
    with pytest.raises(InputError, match="`alpha` must lie"):
        metrics.consistent_genes([[0.1]], alpha=5)
    with pytest.raises(InputError, match="`min_positive` must be"):
        metrics.consistent_genes([[0.1]], min_positive=0)


def test_permutation_null_equals_a_loop() -> None:
    rng = np.random.default_rng(0)
    observed = rng.poisson(2.0, size=(30, 5)).astype(float)
    predicted = observed * [1, 0.3, 0, 0, 0] + rng.normal(size=(30, 5))
    predicted[:, 4] = 3.0
    found = metrics.permutation_null(predicted, sparse.csr_matrix(observed), n_permutations=300)
    order = np.random.default_rng(0)
    null = np.array([metrics.pearson(predicted[order.permutation(30)], observed) for _ in range(300)])
    np.testing.assert_allclose(found.null, null, atol=1e-12)
    np.testing.assert_allclose(found.pearson, metrics.pearson(predicted, observed), atol=1e-12)
    expected = (1 + (null[:, :4] >= found.pearson[:4]).sum(axis=0)) / 301
    np.testing.assert_allclose(found.p_value[:4], expected)
    assert found.p_value[0] == pytest.approx(1 / 301)
    assert np.isnan(found.p_value[4])


def test_permutation_p_is_uniform_for_noise_and_never_zero() -> None:
    rng = np.random.default_rng(1)
    found = metrics.permutation_null(rng.normal(size=(40, 1000)), rng.normal(size=(40, 1000)), n_permutations=99)
    assert stats.kstest(found.p_value, "uniform").pvalue > 0.01
    assert found.p_value.min() >= 0.01


def test_permutation_null_is_too_narrow_for_smooth_maps() -> None:
    rng = np.random.default_rng(1)
    maps = np.cumsum(rng.normal(size=(2, 60, 400)), axis=1)  # two unrelated maps, each smooth along a line
    found = metrics.permutation_null(maps[0], maps[1], n_permutations=99)
    assert (found.p_value <= 0.05).mean() > 0.2  # as its documentation warns


def test_blocks_keep_locations_in_their_slide() -> None:
    rng = np.random.default_rng(0)
    slide = np.repeat(["a", "b", "c"], [20, 15, 5])[rng.permutation(40)]
    level = np.array([{"a": 0.0, "b": 5.0, "c": 9.0}[s] for s in slide])[:, None]
    # The slides differ and nothing else is known: alike in all permutations.
    found = metrics.permutation_null(level, level + rng.normal(size=(40, 1)), blocks=slide, n_permutations=50)
    np.testing.assert_allclose(found.null[:, 0], found.pearson[0], atol=1e-12)
    assert found.p_value[0] == 1
    assert metrics.permutation_null(level, level + rng.normal(size=(40, 1)), n_permutations=50).p_value[0] < 0.05
    noise = rng.normal(size=(2, 40, 300))
    within = metrics.permutation_null(noise[0] + level, noise[1] + level, blocks=slide, n_permutations=99)
    assert stats.kstest(within.p_value, "uniform").pvalue > 0.01
    with pytest.raises(InputError, match="`blocks` must have one label for each of the 40 rows"):
        metrics.permutation_null(level, level, blocks=[1, 2])


def test_permutation_null_refuses() -> None:
    with pytest.raises(InputError, match="matrices of one shape"):
        metrics.permutation_null(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match="`n_permutations` must be a positive whole number"):
        metrics.permutation_null(np.zeros((3, 2)), np.zeros((3, 2)), n_permutations=0)
    assert np.isnan(metrics.permutation_null(np.zeros((0, 2)), np.zeros((0, 2)), n_permutations=3).p_value).all()

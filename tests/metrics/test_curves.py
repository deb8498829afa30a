from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from stpred import InputError, metrics
from stpred.training import HeldOut


def test_top_genes_are_medians_of_the_first_and_their_area_is_what_settings_are_chosen_by() -> None:
    rng = np.random.default_rng(0)
    scores = rng.uniform(-0.2, 0.8, (4, 230))
    found = metrics.top_genes(scores, n_samples=300)
    assert found.n_genes.tolist() == [100, 150, 200, 230]
    mean = scores.mean(axis=0)
    np.testing.assert_allclose(found.value, [np.median(mean[:n]) for n in found.n_genes])
    assert found.area == pytest.approx(HeldOut(scores, scores, np.full(4, 50)).quality("top_genes"))
    assert ((found.low < found.value) & (found.value < found.high)).all()
    assert found.area_low < found.area < found.area_high
    # Bands by hand, one sample of donors after another.
    drawn = np.random.default_rng(0).multinomial(4, np.full(4, 0.25), size=300)
    values = scores
    slow = [np.median(np.repeat(values, n, axis=0).mean(axis=0)[:150]) for n in drawn]
    np.testing.assert_allclose([found.low[1], found.high[1]], np.quantile(slow, [0.025, 0.975]))
    best = metrics.top_genes(scores, n_genes=[1, 50, 230], statistic="mean", ranked=False)
    np.testing.assert_allclose(best.value, [np.sort(mean)[::-1][:n].mean() for n in (1, 50, 230)])
    holes = scores.copy()
    holes[1:, 5] = np.nan
    assert metrics.top_genes(holes[:, 5:6], n_samples=50).value == [holes[0, 5]]
    some = metrics.top_genes(holes, n_genes=[6], n_samples=50)
    assert some.value == [np.median([*mean[:5], holes[0, 5]])]
    assert np.isfinite([some.low, some.high]).all()
    one = metrics.top_genes(scores[:1], n_genes=[7])
    assert np.isnan([one.low[0], one.area_low]).all()
    assert one.area == one.value[0] == np.median(values[0, :7])


def test_positive_donors_against_both_nulls() -> None:
    rng = np.random.default_rng(0)
    alike = np.repeat(rng.normal(size=(9, 1)), 40, axis=1)  # all genes of a donor are positive, or none
    tossed = rng.normal(size=(9, 40))
    expected = 40 * stats.binom.pmf(np.arange(10), 9, 0.5)
    widths = {}
    for name, scores in (("alike", alike), ("tossed", tossed)):
        found = metrics.positive_donors(scores, null="sign_flips", n_samples=4000)
        np.testing.assert_allclose(found.expected, expected)
        n = (scores > 0).sum(axis=0)
        np.testing.assert_array_equal(found.n_genes, [(n == k).sum() for k in range(10)])
        widths[name] = found.high - found.low
    assert widths["alike"][4] == 40
    coins = metrics.positive_donors(tossed, null="binomial", n_samples=4000)
    np.testing.assert_allclose(coins.high - coins.low, widths["tossed"], atol=4)
    by_hand = stats.binom.ppf([0.025, 0.975], 40, stats.binom.pmf(4, 9, 0.5))
    np.testing.assert_allclose([coins.low[4], coins.high[4]], by_hand, atol=1)
    part = tossed.copy()
    part[:4, :10] = np.nan  # genes of five donors
    mixed = metrics.positive_donors(part, n_samples=10)
    some = 30 * stats.binom.pmf(np.arange(10), 9, 0.5) + 10 * stats.binom.pmf(np.arange(10), 5, 0.5)
    np.testing.assert_allclose(mixed.expected, some)
    assert mixed.n_genes.sum() == 40


def test_signed_ranks_equal_scipy() -> None:
    values = np.random.default_rng(0).normal(0.2, 1, 15)
    for alternative in ("two-sided", "greater", "less"):
        assert metrics.signed_rank_p(values, alternative=alternative) == pytest.approx(
            stats.wilcoxon(values, alternative=alternative).pvalue
        )
    assert metrics.signed_rank_p(np.zeros(4)) == 1
    assert np.isnan(metrics.signed_rank_p([]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.top_genes(np.ones(3)), r"\(donors, genes\) matrix"),
        (lambda: metrics.top_genes(np.ones((2, 3)), n_genes=[4]), "ascending numbers up to the 3 genes"),
        (lambda: metrics.top_genes(np.ones((2, 3)), n_genes=[2, 1]), "ascending numbers"),
        (lambda: metrics.top_genes(np.ones((2, 3)), statistic="max"), "`statistic` must be one of"),
        (lambda: metrics.positive_donors(np.ones((0, 3))), r"\(donors, genes\) matrix"),
        (lambda: metrics.positive_donors(np.ones((2, 3)), null="t"), "`null` must be one of"),
        (lambda: metrics.signed_rank_p([np.nan, 1.0]), "finite values"),
    ],
)
def test_bad_arguments(call, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call()

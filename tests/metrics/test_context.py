from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from stpred import InputError, genes, metrics
from stpred._core.targets import transform
from stpred.metrics import _poisson


def gamma_poisson(*, n: int, mean: np.ndarray, shape: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(shape, 1 / shape, size=(n, len(mean))) * mean)


@pytest.mark.parametrize("target", ["log1p_cp10k", "counts"])
def test_library_size_baseline_leaves_the_gene_out(target: str) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(2, 2, size=(50, 1)) * rng.uniform(0.1, 3, size=9))
    counts[7] = 0  # an empty spot
    counts[:, 4] = 0
    expected = []
    for g in range(9):
        others = counts.sum(1) - counts[:, g]
        library = np.maximum(counts.sum(1), 1)
        own = np.log1p(counts[:, g] / library * 1e4) if target == "log1p_cp10k" else counts[:, g]
        expected.append(np.nan if g == 4 else np.corrcoef(own, others)[0, 1])
    for given in (counts, sparse.csr_matrix(counts), sparse.csr_array(counts)):
        np.testing.assert_allclose(metrics.library_size_baseline(given, target=target), expected, rtol=1e-5)
    np.testing.assert_allclose(
        metrics.library_size_baseline(counts, target=target, genes=[8, 2]), [expected[8], expected[2]], rtol=1e-5
    )
    with pytest.raises(InputError, match="`target` must be one of"):
        metrics.library_size_baseline(counts, target="relative")
    with pytest.raises(InputError, match=r"\(n, genes\) matrix, got shape \(3,\)"):
        metrics.library_size_baseline(np.ones(3))


@pytest.mark.realdata
def test_library_size_baseline_on_her2st(real_data) -> None:
    # Genes measured in all four sections; the 250 with the highest total over them.
    tables = {
        s: pd.read_csv(real_data / f"her2st/{s}.counts.tsv.gz", sep="\t", index_col=0) for s in ("C2", "C3", "C4", "C5")
    }
    shared = sorted(set.intersection(*(set(t.columns) for t in tables.values())))
    total = sum(t[shared].to_numpy().sum(0) for t in tables.values())
    top = np.argsort(-total, kind="stable")[:250]
    published = {"C2": (0.127, 0.775), "C3": (0.123, 0.757), "C4": (0.092, 0.759), "C5": (0.184, 0.741)}
    for section, (log, raw) in published.items():
        counts = sparse.csr_matrix(tables[section][shared].to_numpy())
        assert metrics.library_size_baseline(counts, genes=top).mean() == pytest.approx(log, abs=6e-4)
        assert metrics.library_size_baseline(counts, target="counts", genes=top).mean() == pytest.approx(raw, abs=6e-4)


def test_neighbour_baseline_equals_a_loop(grid) -> None:
    values = np.random.default_rng(0).poisson(2.0, size=(63, 4)).astype(np.float32)
    values[:, 3] = 1
    windows = grid["all"].tolil()
    windows[5] = 0  # a location without neighbours is left out, whether or not it is its own
    windows[6] = 0
    windows[6, 6] = 1
    windows = windows.tocsr()
    kept, around = [], []
    for i in range(63):
        others = [j for j in windows[i].indices if j != i]
        if others:
            kept.append(i)
            around.append(values[others].mean(axis=0))
    assert len(kept) == 61
    expected = [stats.pearsonr(values[kept, g], np.array(around)[:, g]).statistic for g in range(3)]
    for given in (values, sparse.csr_matrix(values)):
        found = metrics.neighbour_baseline(given, windows)
        np.testing.assert_allclose(found[:3], expected, atol=1e-6)
        assert np.isnan(found[3])
    # The location itself in its window or not: the same.
    np.testing.assert_allclose(metrics.neighbour_baseline(values, windows - sparse.diags(windows.diagonal())), found)


def test_neighbour_baseline_of_lonely_and_wrong_locations(grid) -> None:
    values = np.random.default_rng(0).normal(size=(63, 2))
    assert np.isnan(metrics.neighbour_baseline(values, sparse.identity(63, format="csr"))).all()
    with pytest.raises(InputError, match="one row for each of the 63 locations, got 35"):
        metrics.neighbour_baseline(values, grid["whole"])
    values[40, 1] = np.nan
    assert np.isnan(metrics.neighbour_baseline(values, grid["all"])).tolist() == [False, True]


def test_reliability_agrees_with_rmax_on_raw_counts() -> None:
    mean = np.repeat([0.5, 2.0, 20.0], 60)
    counts = gamma_poisson(n=1500, mean=mean, shape=2.0)
    found = metrics.reliability(counts, target="counts")
    expected = np.sqrt(mean / (mean + 2.0))  # the rate varies by mean^2 / 2
    for value in np.unique(mean):
        here = mean == value
        assert found[here].mean() == pytest.approx(expected[here].mean(), abs=0.02)
        assert found[here].mean() == pytest.approx(genes.rmax(counts[:, here]).mean(), abs=0.01)
        assert np.abs(found - genes.rmax(counts))[here].max() < 0.12


def test_reliability_on_the_log_scale_is_near_the_best_prediction() -> None:
    rng = np.random.default_rng(0)
    rates = 3000 * rng.dirichlet(np.full(120, 0.5)) * rng.gamma(2, 0.5, size=(800, 120))
    repeats = np.array(
        [transform(c, c.sum(axis=1), target="log1p_cp10k") for c in (rng.poisson(rates) for _ in range(40))],
        dtype=np.float64,
    )
    best = metrics.pearson(repeats[:-1].mean(axis=0), repeats[-1])
    found = metrics.reliability(rng.poisson(rates))
    there = rates.mean(axis=0) > 1
    assert np.abs((found - best)[there]).mean() < 0.03
    raw = metrics.reliability(rng.poisson(rates), target="counts")
    assert (raw - found)[there].mean() > 0.02  # rmax would be too high a ceiling here


def test_reliability_of_noise_and_of_almost_nothing() -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.full((400, 50), 3.0))
    noise = metrics.reliability(counts, target="counts")
    assert (noise == 0).mean() > 0.3  # clipped: half of the estimates fall below 0
    assert noise.mean() < 0.2
    counts[:, 0] = 0
    counts[:, 1] = 0
    counts[5, 1] = 1  # cannot be in both halves
    counts[9] = 0
    for target in ("counts", "log1p_cp10k"):
        found = metrics.reliability(sparse.csr_matrix(counts), target=target)
        assert np.isnan(found[:2]).all()
        assert np.isfinite(found[2:]).all()
        np.testing.assert_array_equal(metrics.reliability(counts.astype(np.float32), target=target), found)
        np.testing.assert_array_equal(metrics.reliability(counts, target=target, genes=[7, 3]), found[[7, 3]])
        assert not np.array_equal(metrics.reliability(counts, target=target, seed=1)[2:], found[2:])
    assert np.isnan(metrics.reliability(np.zeros((4, 2), dtype=int))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"counts": np.full((3, 2), 0.5)}, "not whole numbers"),
        ({"counts": np.full((3, 2), np.nan)}, "NaN"),
        ({"counts": np.ones(3)}, r"\(n, genes\) matrix"),
        ({"counts": np.ones((3, 2)), "target": "relative"}, "`target` must be one of"),
        ({"counts": np.ones((3, 2)), "n_splits": 0}, "`n_splits` must be a positive whole number"),
    ],
)
def test_reliability_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.reliability(**arguments)


def test_rmax_is_that_of_genes_and_the_analytic_value() -> None:
    mean = np.repeat([0.5, 2.0, 20.0], 100)
    counts = gamma_poisson(n=2000, mean=mean, shape=1.5)
    found = metrics.rmax_test(sparse.csr_matrix(counts))
    np.testing.assert_allclose(found.rmax, genes.rmax(counts), atol=1e-7)
    np.testing.assert_array_equal(metrics.rmax_test(counts).p_value, found.p_value)
    for value in np.unique(mean):
        analytic = np.sqrt(1 - value / (value + value**2 / 1.5))
        assert found.rmax[mean == value].mean() == pytest.approx(analytic, abs=0.01)
    assert (found.p_value < 1e-6).all()
    assert (found.rmax > found.null_q95).all()


def test_rmax_below_poisson_is_zero_and_only_absent_genes_are_nan() -> None:
    counts = np.zeros((100, 5), dtype=int)
    counts[:, 1] = 1  # no variance at all
    counts[0, 2] = 1  # one count
    counts[:50, 3] = 1  # less than Poisson
    counts[0, 4] = 60  # all in one place
    found = metrics.rmax_test(counts)
    for values in (found.rmax, found.null_mean, found.null_q95, found.p_value):
        assert np.isnan(values).tolist() == [True, False, False, False, False]
        assert ((values[1:] >= 0) & (values[1:] <= 1)).all()
    np.testing.assert_array_equal(found.rmax[1:4], 0.0)
    assert (found.p_value[1:4] >= 0.5).all()
    assert found.p_value[4] < 1e-12


def test_null_of_rmax_averages_what_is_known_at_180_spots() -> None:
    for mean in (0.3, 1.0, 10.0):
        counts = np.random.default_rng(0).poisson(mean, size=(180, 3000))
        found = metrics.rmax_test(counts)
        assert found.null_mean.mean() == pytest.approx(0.12, abs=0.006)
        assert found.null_mean.mean() == pytest.approx(found.rmax.mean(), abs=0.01)
        assert found.null_q95.mean() == pytest.approx(np.quantile(found.rmax, 0.95), abs=0.02)


@pytest.mark.parametrize("n", [180, 2000])
@pytest.mark.parametrize("mean", [0.02, 0.1, 1.0, 10.0])
def test_dispersion_test_is_calibrated(n: int, mean: float) -> None:
    rng = np.random.default_rng(5)
    found = np.concatenate([metrics.rmax_test(rng.poisson(mean, size=(n, 1000))).p_value for _ in range(6)])
    found = np.where(np.isnan(found), 1.0, found)
    rejected = (found <= 0.05).mean()
    # 180 x 0.02 are three or four counts: too few outcomes to come near 5 %.
    low = 0.015 if n * mean < 10 else 0.038
    assert low < rejected < 0.06
    assert (found <= 0.01).mean() < 0.016


@pytest.mark.parametrize(("n", "total"), [(6, 4), (30, 12), (180, 60), (180, 180)])
def test_exact_chances_equal_simulated_ones(n: int, total: int) -> None:
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(total, np.full(n, 1 / n), size=40_000)
    pairs = (drawn * (drawn - 1) // 2).sum(axis=1)
    ((t, chances),) = list(_poisson._exact(np.array([total]), n=n))
    assert t == total
    assert chances.sum() == pytest.approx(1, abs=1e-12)
    support = np.arange(len(chances))
    assert chances @ support == pytest.approx(total * (total - 1) / 2 / n, rel=1e-9)
    seen = np.bincount(pairs, minlength=len(chances))[: len(chances)] / len(pairs)
    assert np.abs(seen - chances).max() < 0.011
    _, sd, shape = _poisson._moments(np.array([float(total)]), n=n)
    spread = chances @ np.square(support - chances @ support)
    skew = chances @ (support - chances @ support) ** 3 / spread**1.5
    assert sd[0] == pytest.approx(np.sqrt(spread), rel=1e-6)
    assert 2 / np.sqrt(shape[0]) == pytest.approx(skew, rel=1e-6)


def test_exact_and_approximate_chances_meet() -> None:
    n, total = 2000, 630.0
    pairs = np.arange(60.0, 160.0, 5.0)
    exact = _poisson.null(pairs, np.full(20, total), n=n)
    assert np.abs(exact[0] - _poisson._upper_tail(pairs, np.full(20, total), n=n)).max() < 0.003
    mean, q95 = _poisson._ceilings(np.array([total]), n=n)
    assert exact[1][0] == pytest.approx(mean[0], abs=0.002)
    assert exact[2][0] == pytest.approx(q95[0], abs=0.01)


def test_dispersion_of_many_counts_is_chi_square() -> None:
    counts = np.random.default_rng(0).negative_binomial(400, 400 / 500, size=(180, 200))
    found = metrics.rmax_test(counts)
    index = 179 * counts.var(axis=0, ddof=1) / counts.mean(axis=0)
    np.testing.assert_allclose(found.p_value, stats.chi2.sf(index, 179), rtol=0.02, atol=1e-4)


@pytest.mark.parametrize(
    ("counts", "message"),
    [(np.ones((1, 3)), "two or more locations"), (np.full((3, 2), 1.5), "not whole"), (np.ones(4), "matrix")],
)
def test_rmax_test_refuses(counts: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        metrics.rmax_test(counts)

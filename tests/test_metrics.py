from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from stpred import metrics
from stpred._core.checks import InputError


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    observed = rng.poisson(rng.gamma(2, 2, size=(40, 1)) * rng.uniform(0.1, 3, size=12)).astype(float)
    return 0.5 * observed + rng.normal(size=observed.shape), observed


@pytest.mark.parametrize(
    ("name", "reference"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)], ids=["pearson", "spearman"]
)
def test_correlations_match_scipy_loops(pair, name, reference) -> None:
    predicted, observed = pair  # counts: many ties
    expected = [reference(predicted[:, g], observed[:, g]).statistic for g in range(observed.shape[1])]
    np.testing.assert_allclose(getattr(metrics, name)(predicted, observed), expected, rtol=1e-12)


def test_errors_match_loops(pair) -> None:
    predicted, observed = pair
    for g in range(observed.shape[1]):
        p, o = predicted[:, g], observed[:, g]
        assert metrics.rmse(predicted, observed)[g] == pytest.approx(np.sqrt(((p - o) ** 2).sum() / len(o)))
        assert metrics.mae(predicted, observed)[g] == pytest.approx(
            sum(abs(p[i] - o[i]) for i in range(len(o))) / len(o)
        )
        assert metrics.r2(predicted, observed)[g] == pytest.approx(1 - ((p - o) ** 2).sum() / (len(o) * o.var()))


@pytest.mark.parametrize("name", ["pearson", "spearman", "r2", "rmse", "mae"])
def test_sparse_wide_and_row_order(pair, name) -> None:
    score = getattr(metrics, name)
    predicted, observed = (np.tile(m, 60) for m in pair)  # 720 genes: more than one block
    expected = score(predicted, observed)
    np.testing.assert_allclose(score(predicted, sparse.csr_matrix(observed)), expected)
    np.testing.assert_allclose(expected, np.tile(score(*pair), 60))
    order = np.random.default_rng(1).permutation(len(observed))
    np.testing.assert_allclose(score(predicted[order], observed[order]), expected, rtol=1e-10)


def test_pearson_ignores_shift_and_scale(pair) -> None:
    predicted, observed = pair
    expected = metrics.pearson(predicted, observed)
    np.testing.assert_allclose(metrics.pearson(1e6 + 3 * predicted, observed - 7), expected, atol=1e-9)
    np.testing.assert_allclose(metrics.pearson(-predicted, observed), -expected)
    np.testing.assert_allclose(metrics.spearman(np.exp(predicted), observed), metrics.spearman(predicted, observed))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_constant_columns_are_nan(dtype) -> None:
    observed = np.random.default_rng(0).normal(size=(999, 1))
    constant = np.full((999, 1), 7.3).astype(dtype)
    for name in ("pearson", "spearman"):
        assert np.isnan(getattr(metrics, name)(constant, observed)).all()
        assert np.isnan(getattr(metrics, name)(observed, constant)).all()
    assert np.isnan(metrics.r2(observed, constant)).all()


def test_rounding_noise_counts_as_constant_but_small_signals_do_not() -> None:
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(200, 1))
    noise = np.float32(3.7) + rng.choice([-1, 0, 1], size=(200, 1)) * np.spacing(np.float32(3.7))
    assert np.isnan(metrics.pearson(noise.astype(np.float32), observed)).all()
    assert metrics.pearson(1 + 1e-9 * observed, observed)[0] == pytest.approx(1, abs=1e-6)
    assert metrics.pearson(1e-30 * observed, observed)[0] == pytest.approx(1)


def test_undefined_inputs_are_nan() -> None:
    a = np.arange(6.0).reshape(3, 2)
    b = a.copy()
    b[1, 1] = np.nan
    for name in ("pearson", "spearman"):
        assert np.isnan(getattr(metrics, name)(b, a)).tolist() == [False, True]
        assert np.isnan(getattr(metrics, name)(a[:1], a[:1])).all()
        assert np.isnan(getattr(metrics, name)(a[:0], a[:0])).all()
    b[1, 1] = np.inf
    assert np.isnan(metrics.pearson(b, a)[1])


def test_shapes_must_agree() -> None:
    with pytest.raises(InputError, match=r"matrices of one shape, got \(3, 2\) and \(2, 3\)"):
        metrics.pearson(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"\(n, genes\)"):
        metrics.rmse(np.zeros(3), np.zeros(3))


def test_summarise_states_its_nan_rule() -> None:
    scores = [0.4, np.nan, 0.2, -0.3]
    assert metrics.summarise(scores) == {
        "mean": pytest.approx(0.1), "median": pytest.approx(0.2), "n": 3, "n_nan": 1,
    }  # fmt: skip
    assert metrics.summarise(scores, nan="zero")["mean"] == pytest.approx(0.3 / 4)
    assert metrics.summarise(scores, nan="zero")["median"] == pytest.approx(0.1)
    assert np.isnan(metrics.summarise([np.nan])["mean"])
    with pytest.raises(InputError, match=r"`nan` must be one of \['drop', 'zero'\], got 'keep'"):
        metrics.summarise(scores, nan="keep")  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["log1p_cp10k", "counts"])
def test_library_size_baseline_leaves_the_gene_out(target) -> None:
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

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import sparse, stats

from stpred import InputError, metrics

NAMES = ["pearson", "spearman", "r2", "rmse", "mae", "auroc"]


def _auroc(predicted: np.ndarray, observed: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    low, high = np.percentile(observed, [25, 75])
    if not low < high:
        return np.nan
    kept = (observed >= high) | (observed <= low)
    return roc_auc_score(observed[kept] >= high, predicted[kept])


def _r2(predicted: np.ndarray, observed: np.ndarray) -> float:
    from sklearn.metrics import r2_score

    return r2_score(observed, predicted) if np.ptp(observed) else np.nan


def _error(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    import sklearn.metrics

    return getattr(sklearn.metrics, name)


REFERENCE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "pearson": lambda p, o: stats.pearsonr(p, o).statistic,
    "spearman": lambda p, o: stats.spearmanr(p, o).statistic,
    "r2": _r2,
    "rmse": lambda p, o: _error("root_mean_squared_error")(o, p),
    "mae": lambda p, o: _error("mean_absolute_error")(o, p),
    "auroc": _auroc,
}


def _case(name: str, *, n: int = 60, genes: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    observed = rng.normal(size=(n, genes))
    predicted = observed * rng.uniform(-1, 1, size=genes) + rng.normal(size=(n, genes))
    if name == "shifted":
        return 1e5 + predicted, observed - 1e6
    if name == "tied":
        return np.round(predicted), np.round(observed)
    if name == "counts":
        return np.exp(predicted), rng.poisson(np.exp(observed - 1))
    if name == "sparse":
        return predicted * (rng.random((n, genes)) < 0.2), observed * (rng.random((n, genes)) < 0.1)
    if name == "constant":
        predicted[:, ::3] = 0.1
        observed[:, ::5] = -2.7
    if name == "nan":
        predicted[4, ::3] = np.nan
        observed[7, ::5] = np.nan
    if name == "odd_n":
        return predicted[:-1], observed[:-1]
    return predicted, observed


@pytest.mark.filterwarnings("ignore:An input array is constant")
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("case", ["random", "shifted", "tied", "counts", "sparse", "constant", "nan", "odd_n"])
@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_scipy_and_sklearn(name: str, case: str, dtype: type) -> None:
    predicted, observed = (m.astype(dtype) for m in _case(case))
    expected = [
        np.nan if np.isnan(p).any() or np.isnan(o).any() else REFERENCE[name](p, o)
        for p, o in zip(predicted.T.astype(float), observed.T.astype(float), strict=True)
    ]
    score = getattr(metrics, name)
    np.testing.assert_allclose(score(predicted, observed), expected, rtol=1e-9, atol=1e-9)
    for kind in (sparse.csr_matrix, sparse.csc_matrix, sparse.coo_array):
        np.testing.assert_allclose(score(kind(predicted), kind(observed)), expected, rtol=1e-9, atol=1e-9)


def test_errors_match_loops(pair) -> None:
    predicted, observed = pair
    for g in range(observed.shape[1]):
        p, o = predicted[:, g], observed[:, g]
        assert metrics.rmse(predicted, observed)[g] == pytest.approx(np.sqrt(((p - o) ** 2).sum() / len(o)))
        assert metrics.mae(predicted, observed)[g] == pytest.approx(
            sum(abs(p[i] - o[i]) for i in range(len(o))) / len(o)
        )
        assert metrics.r2(predicted, observed)[g] == pytest.approx(1 - ((p - o) ** 2).sum() / (len(o) * o.var()))


@pytest.mark.parametrize("name", NAMES)
def test_sparse_wide_and_row_order(pair, name: str) -> None:
    score = getattr(metrics, name)
    predicted, observed = (np.tile(m, 60) for m in pair)  # 720 genes: more than one block
    expected = score(predicted, observed)
    np.testing.assert_allclose(score(predicted, sparse.csr_matrix(observed)), expected)
    np.testing.assert_allclose(expected, np.tile(score(*pair), 60))
    order = np.random.default_rng(1).permutation(len(observed))
    np.testing.assert_allclose(score(predicted[order], observed[order]), expected, rtol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_threads_change_nothing(name: str, monkeypatch) -> None:
    from stpred.metrics import _per_gene

    predicted, observed = _case("tied", genes=90)
    score = getattr(metrics, name)
    expected = score(predicted, observed)
    monkeypatch.setattr(_per_gene, "_WORTH_THREADS", 0)
    monkeypatch.setattr(_per_gene, "_CELLS", 600)  # nine blocks
    monkeypatch.setattr(_per_gene, "n_threads", lambda most: 4)
    np.testing.assert_allclose(score(predicted, observed), expected, rtol=1e-12)


def test_a_wrong_block_raises_from_its_thread(monkeypatch) -> None:
    from stpred.metrics import _per_gene

    monkeypatch.setattr(_per_gene, "_WORTH_THREADS", 0)
    monkeypatch.setattr(_per_gene, "n_threads", lambda most: 2)

    def work(genes: slice) -> None:
        if genes.start:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _per_gene.over_blocks(work, n_rows=1, n_genes=2000)


def test_pearson_ignores_shift_and_scale(pair) -> None:
    predicted, observed = pair
    expected = metrics.pearson(predicted, observed)
    np.testing.assert_allclose(metrics.pearson(1e6 + 3 * predicted, observed - 7), expected, atol=1e-9)
    np.testing.assert_allclose(metrics.pearson(-predicted, observed), -expected)
    np.testing.assert_allclose(metrics.pearson(1e-200 * predicted, 1e200 * observed), expected)
    np.testing.assert_allclose(metrics.spearman(np.exp(predicted), observed), metrics.spearman(predicted, observed))
    np.testing.assert_allclose(metrics.auroc(np.exp(predicted), observed), metrics.auroc(predicted, observed))
    np.testing.assert_allclose(metrics.auroc(-predicted, observed), 1 - metrics.auroc(predicted, observed))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64, np.bool_])
def test_constant_columns_are_nan(dtype: type) -> None:
    observed = np.random.default_rng(0).normal(size=(999, 1))
    constant = np.full((999, 1), 7.3).astype(dtype)
    for name in ("pearson", "spearman"):
        assert np.isnan(getattr(metrics, name)(constant, observed)).all()
        assert np.isnan(getattr(metrics, name)(observed, constant)).all()
    assert np.isnan(metrics.r2(observed, constant)).all()
    assert np.isnan(metrics.auroc(observed, constant)).all()
    assert metrics.auroc(constant, observed)[0] == 0.5


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
    for name in NAMES:
        score = getattr(metrics, name)
        assert np.isnan(score(b, a)).tolist() == [False, True]
        assert np.isnan(score(a, b)).tolist() == [False, True]
        assert np.isnan(score(a[:0], a[:0])).all()
        assert score(a[:, :0], a[:, :0]).shape == (0,)
    for name in ("pearson", "spearman", "r2", "auroc"):
        assert np.isnan(getattr(metrics, name)(a[:1], a[:1])).all()
    b[1, 1] = np.inf
    assert np.isnan(metrics.pearson(b, a)[1])


@pytest.mark.parametrize("name", NAMES)
def test_shapes_must_agree(name: str) -> None:
    with pytest.raises(InputError, match=r"matrices of one shape, got \(3, 2\) and \(2, 3\)"):
        getattr(metrics, name)(np.zeros((3, 2)), np.zeros((2, 3)))
    with pytest.raises(InputError, match=r"\(n, genes\)"):
        getattr(metrics, name)(np.zeros(3), np.zeros(3))


def test_inputs_are_left_as_they_were(pair, grid) -> None:
    predicted, observed = np.tile(pair[0], (2, 1))[:63], np.tile(pair[1], (2, 1))[:63]
    windows = grid["all"]
    before = [m.copy() for m in (predicted, observed, windows)]
    for name in NAMES:
        getattr(metrics, name)(predicted, observed)
    metrics.ssim(predicted, observed, windows)
    metrics.neighbour_baseline(observed, windows)
    metrics.partial_pearson(predicted, observed, observed)
    np.testing.assert_array_equal(predicted, before[0])
    np.testing.assert_array_equal(observed, before[1])
    assert (windows != before[2]).nnz == 0


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("data_range", [None, 3.0])
def test_ssim_equals_skimage_on_a_full_grid(grid, data_range: float | None, offset: float) -> None:
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    observed = offset + rng.gamma(2, size=(63, 5))
    predicted = observed + rng.normal(size=(63, 5))
    predicted[:, 3] = 1.5  # a constant map is defined
    expected = [
        structural_similarity(
            o.reshape(7, 9),
            p.reshape(7, 9),
            win_size=3,
            use_sample_covariance=True,
            data_range=np.ptp(o) if data_range is None else data_range,
        )
        for p, o in zip(predicted.T, observed.T, strict=True)
    ]
    np.testing.assert_allclose(
        metrics.ssim(predicted, observed, grid["whole"], data_range=data_range), expected, atol=1e-7
    )
    found = metrics.ssim(sparse.csr_matrix(predicted), observed, grid["whole"].astype(bool), data_range=data_range)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_ssim_of_rings_equals_the_formula() -> None:
    rng = np.random.default_rng(1)
    members = (rng.random((20, 15)) < 0.3).astype(float)
    members[:, :2] = 1
    p, o = rng.normal(size=15), rng.normal(size=15)
    c1, c2 = (0.01 * np.ptp(o)) ** 2, (0.03 * np.ptp(o)) ** 2
    each = []
    for row in members.astype(bool):
        cov = np.cov(p[row], o[row])
        a, b = p[row].mean(), o[row].mean()
        each.append((2 * a * b + c1) * (2 * cov[0, 1] + c2) / ((a**2 + b**2 + c1) * (cov[0, 0] + cov[1, 1] + c2)))
    found = metrics.ssim(p[:, None], o[:, None], sparse.csr_array(members))
    assert found[0] == pytest.approx(np.mean(each), abs=1e-10)
    assert metrics.ssim(o[:, None], o[:, None], sparse.csr_array(members))[0] == pytest.approx(1)
    both = metrics.ssim(np.c_[p, p], np.c_[o, o], sparse.csr_array(members), data_range=[np.ptp(o), 0.0])
    assert both[0] == pytest.approx(found[0])
    assert np.isnan(both[1])


def test_ssim_is_nan_where_it_has_nothing_to_say(grid) -> None:
    rng = np.random.default_rng(0)
    predicted, observed = rng.normal(size=(2, 63, 4))
    observed[:, 1] = 4.0
    predicted[0, 2] = np.nan  # the corner, in one window only
    observed[62, 3] = np.nan
    found = metrics.ssim(predicted, observed, grid["whole"])
    assert np.isnan(found).tolist() == [False, True, True, True]
    assert np.isnan(metrics.ssim(predicted, observed, grid["whole"], data_range=2.0))[1]
    assert np.isnan(metrics.ssim(predicted, observed, sparse.csr_matrix((0, 63)))).all()


def test_smooth_is_the_mean_of_members(grid) -> None:
    values = np.random.default_rng(0).poisson(1.0, size=(63, 3)).astype(np.float32)
    expected = np.array([values[row.astype(bool)].mean(axis=0) for row in grid["all"].toarray()])
    for given in (values, sparse.csr_matrix(values)):
        np.testing.assert_allclose(metrics.smooth(given, grid["all"]), expected, rtol=1e-6)
    values[0, 0] = np.nan
    spoilt = np.isnan(metrics.smooth(values, grid["all"]))
    assert np.flatnonzero(spoilt[:, 0]).tolist() == [0, 1, 9, 10]
    assert not spoilt[:, 1:].any()
    assert metrics.smooth(values, grid["whole"]).shape == (35, 3)


@pytest.mark.parametrize(
    ("windows", "message"),
    [
        (np.ones((2, 63)), "sparse"),
        (sparse.csr_matrix((2, 60)), r"\(windows, 63\) matrix"),
        (sparse.csr_matrix(np.full((2, 63), 0.5)), "1 for the members"),
        (sparse.csr_matrix(np.eye(63)), "2 or more members, one has 1"),
    ],
)
def test_wrong_windows_are_refused(windows, message: str) -> None:
    values = np.random.default_rng(0).normal(size=(63, 2))
    with pytest.raises(InputError, match=message):
        metrics.ssim(values, values, windows)


@pytest.mark.parametrize("data_range", [0, -1.0, [1.0, 2.0, 3.0], [1.0, -1.0], [1.0, np.nan], "wide"])
def test_wrong_ranges_are_refused(grid, data_range) -> None:
    values = np.random.default_rng(0).normal(size=(63, 2))
    with pytest.raises(InputError, match="`data_range` must be a positive number"):
        metrics.ssim(values, values, grid["all"], data_range=data_range)


def test_partial_pearson_equals_formula_and_residuals(pair) -> None:
    predicted, observed = pair
    size = np.log(observed.sum(axis=1) + 1)
    found = metrics.partial_pearson(predicted, sparse.csr_matrix(observed), size)
    for g in range(observed.shape[1]):
        p, o = predicted[:, g], observed[:, g]
        r = np.corrcoef([p, o, size])
        formula = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
        left = [v - np.polyval(np.polyfit(size, v, 1), size) for v in (p, o)]
        assert found[g] == pytest.approx(formula, abs=1e-10)
        assert found[g] == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-10)
    own = np.tile(size[:, None], observed.shape[1])
    np.testing.assert_allclose(metrics.partial_pearson(predicted, observed, own), found, atol=1e-12)
    np.testing.assert_allclose(
        metrics.partial_pearson(predicted + 5 * own, observed - own, sparse.csc_matrix(own)), found, atol=1e-9
    )


def test_partial_pearson_of_a_covariate_that_is_all_or_nothing(pair) -> None:
    predicted, observed = pair
    plain = metrics.pearson(predicted, observed)
    np.testing.assert_allclose(metrics.partial_pearson(predicted, observed, np.ones(40)), plain)
    size = np.log1p(observed.sum(axis=1))
    copies = (7 + 3 * size)[:, None] * np.ones(12)
    for dtype in (np.float32, np.float64):
        assert np.isnan(metrics.partial_pearson(copies.astype(dtype), observed, size)).all()
        assert np.isnan(metrics.partial_pearson(predicted, (1e4 + copies).astype(dtype), size)).all()
    size[3] = np.nan
    assert np.isnan(metrics.partial_pearson(predicted, observed, size)).all()
    with pytest.raises(InputError, match=r"`given` must have shape \(40,\) or \(40, 12\)"):
        metrics.partial_pearson(predicted, observed, np.ones((40, 2)))

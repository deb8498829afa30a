"""Blocks of features, weights of locations and reduced rank in models of closed form."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge as SklearnKernelRidge
from sklearn.linear_model import Ridge as SklearnRidge

from stpred import InputError, training
from stpred.models import Batch, Ridge
from stpred.models.parts.closed_form import columns_of, kernel_ridge
from stpred.models.ridge import _decompose, _solve

N_GENES = 12


def cohort(*, n: int = 70, seed: int = 0, noise: float = 1.0, blocks: tuple[int, ...] = (4, 200)) -> list[Batch]:
    """Return slides of three donors whose genes depend on the first block alone; the others are wide and empty."""
    rng = np.random.default_rng(seed)
    coef = rng.normal(size=(blocks[0], N_GENES))
    out = []
    for k in range(3):
        x = rng.normal(size=(n, sum(blocks))).astype(np.float32)
        y = x[:, : blocks[0]] @ coef + noise * rng.normal(size=(n, N_GENES))
        xy = np.stack(np.meshgrid(np.arange(10), np.arange(n // 10)), axis=-1).reshape(-1, 2) * 100.0
        totals = rng.integers(500, 5000, n).astype(float)
        out.append(Batch.of(x, coords_um=xy, slide=f"s{k}", y=y.astype(np.float32), totals=totals, blocks=blocks))
    return out


def score(config: Ridge.Config, batches: list[Batch]) -> tuple[float, dict]:
    model, chosen = training.fit(config.model_class, config, batches[:2], groups=["a", "b"], typical=False)
    guess, truth = model.predict(batches[2])[0], batches[2].y
    return float(np.mean([np.corrcoef(guess[:, g], truth[:, g])[0, 1] for g in range(N_GENES)])), chosen


def test_a_wide_empty_block_does_not_drown_a_narrow_one() -> None:
    batches = cohort(blocks=(10, 60, 60, 60), noise=3.0)
    width, _ = score(Ridge.Config(block_weights="width"), batches)
    equal, _ = score(Ridge.Config(block_weights="equal"), batches)
    found, chosen = score(Ridge.Config(), batches)
    assert found > equal + 0.02 > width + 0.1
    assert chosen["block_weights"][0] > 0.8
    assert chosen["block_weight_scores"]["chosen"] > chosen["block_weight_scores"]["equal"]


def test_nothing_is_invented_from_empty_blocks() -> None:
    batches = cohort()
    shuffled = [replace(b, y=np.random.default_rng(9).permutation(b.y)) for b in batches]
    assert abs(score(Ridge.Config(rank="auto", location_weights="depth"), shuffled)[0]) < 0.1


def test_one_block_is_as_it_was() -> None:
    batches = [replace(b, blocks=(204,)) for b in cohort()]
    plain, _ = training.fit(Ridge, Ridge.Config(), [replace(b, blocks=None) for b in batches], groups=list("abc"))
    same, chosen = training.fit(Ridge, Ridge.Config(), batches, groups=list("abc"))
    assert plain.id == same.id
    assert "block_weights" not in chosen


def test_equal_blocks_do_not_depend_on_their_width() -> None:
    batches = cohort(blocks=(4, 6))
    x = [np.concatenate([b.features, b.features[:, :4]], axis=1) for b in batches]
    twice = [
        replace(b, features=f[:, [0, 1, 2, 3, 10, 11, 12, 13, 4, 5, 6, 7, 8, 9]], blocks=(8, 6))
        for b, f in zip(batches, x, strict=True)
    ]
    config = Ridge.Config(block_weights="equal", penalty=1.0)
    one, _ = training.fit(Ridge, config, batches, groups=list("abc"))
    other, _ = training.fit(Ridge, config, twice, groups=list("abc"))
    np.testing.assert_allclose(one.predict(batches[0])[0], other.predict(twice[0])[0], atol=1e-4)


def test_one_donor_weighs_blocks_alike() -> None:
    batches = cohort()
    _, chosen = training.fit(Ridge, Ridge.Config(), batches, groups=["a"] * 3)
    assert chosen["block_weights"] == [0.5, 0.5]
    assert "one donor" in chosen["block_weights_chosen_by"]


def test_columns_of_blocks_and_rings() -> None:
    found = columns_of((2, 3), 5, 2)
    assert [(c.start, c.stop) for c in found] == [(0, 2), (2, 5), (5, 7), (7, 10)]


def test_weighted_ridge_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 3))
    w = rng.uniform(0.2, 3, 50)
    coef, _, intercept = _solve(_decompose(x, y, None, w), len(x), penalty=0.3)
    want = SklearnRidge(alpha=0.3 * 50).fit(x, y, sample_weight=w)
    np.testing.assert_allclose(x @ coef + intercept, want.predict(x), rtol=1e-6)


def test_kernel_form_equals_ridge_and_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(50, 8)), rng.normal(size=(50, 3)), rng.uniform(0.2, 3, 50)
    alpha, intercept = kernel_ridge(x @ x.T, y, w, 0.3)
    coef, _, at = _solve(_decompose(x, y, None, w), len(x), penalty=0.3)
    new = rng.normal(size=(5, 8))
    np.testing.assert_allclose(new @ x.T @ alpha + intercept, new @ coef + at, rtol=1e-6)
    ones = np.ones(50)
    centred = x - x.mean(0)
    want = SklearnKernelRidge(alpha=0.3 * 50).fit(centred, y - y.mean(0)).predict(new - x.mean(0)) + y.mean(0)
    alpha, intercept = kernel_ridge(x @ x.T, y, ones, 0.3)
    np.testing.assert_allclose(new @ x.T @ alpha + intercept, want, rtol=1e-6)


def test_reduced_rank_equals_projecting_on_the_fitted_values() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(40, 6)), rng.normal(size=(40, 9))
    full, _, at = _solve(_decompose(x, y, None), len(x), penalty=0.2)
    fitted = x @ full + at - y.mean(0)
    _, _, vt = np.linalg.svd(fitted, full_matrices=False)
    want = fitted @ vt[:2].T @ vt[:2] + y.mean(0)
    coef, directions, at = _solve(_decompose(x, y, None), len(x), penalty=0.2, n_directions=2)
    np.testing.assert_allclose(x @ coef @ directions + at, want, atol=1e-8)
    for n_genes in (3, 30):  # more and fewer genes than features
        z = rng.normal(size=(40, n_genes))
        full, _, _ = _solve(_decompose(x, z, None), len(x), penalty=0.2)
        coef, directions, _ = _solve(_decompose(x, z, None), len(x), penalty=0.2, n_directions=n_genes)
        np.testing.assert_allclose(coef @ directions, full, atol=1e-8)


def test_reduced_rank_shares_noise_between_genes_that_go_together() -> None:
    rng = np.random.default_rng(3)
    loadings = rng.normal(size=(1, N_GENES))
    batches = []
    for b in cohort(noise=0.0, blocks=(30,)):
        one = b.features[:, :1] @ loadings + 3 * rng.normal(size=(70, N_GENES))
        batches.append(replace(b, y=one.astype(np.float32)))
    alone, _ = score(Ridge.Config(), batches)
    shared, chosen = score(Ridge.Config(rank="auto"), batches)
    assert shared > alone + 0.01
    assert chosen["rank"] in (3, 5)
    fixed, chosen = score(Ridge.Config(rank=1), batches)
    assert fixed > alone
    assert chosen["rank"] == 1


def test_depth_weighs_locations() -> None:
    rng = np.random.default_rng(5)
    batches = []
    for b in cohort(noise=0.0, blocks=(30,)):
        totals = np.where(rng.random(70) < 0.6, 100.0, 10_000.0)
        noise = np.where(totals < 1000, 8.0, 0.5)[:, None] * rng.normal(size=b.y.shape)
        batches.append(replace(b, y=(b.y + noise).astype(np.float32), totals=totals))
    deep = batches[2].take(np.flatnonzero(batches[2].totals > 1000))
    held = [*batches[:2], deep]
    assert score(Ridge.Config(location_weights="depth"), held)[0] > score(Ridge.Config(), held)[0] + 0.01
    with pytest.raises(InputError, match="library sizes"):
        score(Ridge.Config(location_weights="depth"), [replace(b, totals=None) for b in batches])


@pytest.mark.parametrize(
    "wrong", [{"block_weights": "much"}, {"location_weights": "totals"}, {"rank": 0}, {"rank": "some"}, {"rank": 1.5}]
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Ridge.Config(**wrong)
    with pytest.raises(InputError, match=next(iter(wrong))):
        Ridge.Config.parse(wrong)

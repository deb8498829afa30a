"""Kernel ridge regression, exact and on landmarks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge as Sklearn
from sklearn.metrics.pairwise import rbf_kernel

import stpred as st
from stpred import InputError, training
from stpred.models import Batch, KernelRidge, Ridge
from stpred.models.parts.closed_form import TOTAL_VARIANCE


def bent(*, n: int = 120, seed: int = 0, n_slides: int = 3) -> list[Batch]:
    """Return slides whose genes bend with the features: no line follows them."""
    rng = np.random.default_rng(seed)
    to = np.random.default_rng(1).normal(size=(3, 8))
    out = []
    for k in range(n_slides):
        x = rng.normal(size=(n, 5)).astype(np.float32)
        y = np.stack([np.square(x[:, 0]), np.abs(x[:, 1]), x[:, 2]], axis=1) @ to + 0.5 * rng.normal(size=(n, 8))
        out.append(Batch.of(x, slide=f"s{k}", y=y.astype(np.float32), totals=rng.integers(500, 5000, n).astype(float)))
    return out


def score(config: KernelRidge.Config | Ridge.Config, batches: list[Batch]) -> float:
    donors = [f"d{i}" for i in range(len(batches) - 1)]
    model, _ = training.fit(config.model_class, config, batches[:-1], groups=donors, typical=False)
    guess, truth = model.predict(batches[-1])[0], batches[-1].y
    return float(np.mean([np.corrcoef(guess[:, g], truth[:, g])[0, 1] for g in range(truth.shape[1])]))


def test_it_follows_what_is_not_linear_and_invents_nothing() -> None:
    batches = bent()
    assert score(KernelRidge.Config(), batches) > score(Ridge.Config(), batches) + 0.2
    shuffled = [replace(b, y=np.random.default_rng(3).permutation(b.y)) for b in batches]
    assert abs(score(KernelRidge.Config(), shuffled)) < 0.12


def test_it_equals_scikit_learn() -> None:
    b = bent(n_slides=1)[0]
    config = KernelRidge.Config(
        penalty=0.5, length_scale=1.0, linear=0.3, rank=None, location_weights=None, block_weights="width"
    )
    model, _ = training.fit(KernelRidge, config, [b], groups=["a"])
    x = (b.features - b.features.mean(0)) / b.features.std(0)
    x = x * np.sqrt(TOTAL_VARIANCE / x.shape[1])
    gram = 0.7 * TOTAL_VARIANCE * rbf_kernel(x, gamma=float(model.gamma)) + 0.3 * x @ x.T
    centre = np.eye(len(x)) - 1 / len(x)
    found = Sklearn(alpha=0.5 * len(x), kernel="precomputed").fit(centre @ gram @ centre, b.y - b.y.mean(0))
    want = centre @ gram @ centre @ found.dual_coef_ + b.y.mean(0)
    np.testing.assert_allclose(model.predict(b)[0], want, atol=2e-3)


def test_all_landmarks_are_the_exact_solution_and_some_come_near() -> None:
    batches = bent()
    options = {"penalty": 0.5, "length_scale": 1.0}
    for rank in (None, 3):
        exact, _ = training.fit(KernelRidge, KernelRidge.Config(rank=rank, **options), batches, groups=list("abc"))
        few = KernelRidge.Config(rank=rank, n_landmarks=150, **options)
        model, chosen = training.fit(KernelRidge, few, batches, groups=list("abc"))
        assert model.landmarks.shape[0] == chosen["n_landmarks"] == 150
        a, b = exact.predict(batches[0])[0], model.predict(batches[0])[0]
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98
        again, _ = training.fit(KernelRidge, few, batches, groups=list("abc"))
        assert again.id == model.id


def test_nystroem_on_all_points_equals_the_exact_solution() -> None:
    from stpred.models.kernel_ridge import _nystroem
    from stpred.models.parts.closed_form import kernel_ridge

    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(60, 4)), rng.normal(size=(60, 5)), rng.uniform(0.3, 2, 60)
    kernel = rbf_kernel(x)
    for rank in (None, 2):
        parts = lambda: ((kernel[i], i) for i in (slice(0, 25), slice(25, 60)))  # noqa: E731
        coef, at = _nystroem(kernel, parts, y, w, 0.1, rank=rank)
        alpha, intercept = kernel_ridge(kernel.copy(), y, w, 0.1, rank=rank)
        np.testing.assert_allclose(kernel @ coef + at, kernel @ alpha + intercept, atol=1e-4)


def test_rank_is_that_of_the_predictions() -> None:
    batches = bent()
    model, _ = training.fit(KernelRidge, KernelRidge.Config(rank=2), batches, groups=list("abc"))
    values = model.predict(batches[0])[0].astype(float)
    assert np.linalg.matrix_rank(values - values.mean(0), tol=1e-3) == 2


def test_one_donor_is_cross_validated_in_closed_form() -> None:
    model, chosen = training.fit(KernelRidge, KernelRidge.Config(), bent(), groups=["a"] * 3)
    assert chosen["penalty_chosen_by"] == "generalised cross-validation"
    assert chosen["rank"] is None
    assert np.isfinite(model.predict(bent()[0])[0]).all()


def test_a_saved_model_is_the_same(tmp_path: Path) -> None:
    slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    model = st.tl.train(slides, KernelRidge.Config(context_um=(120, 220)), shapes_key="spots")
    again = st.models.load(st.models.save(model, tmp_path / "m"))
    assert again.id == model.id
    a, b = (st.tl.predict(slides["donor0"], m, shapes_key="spots", inplace=False) for m in (model, again))
    np.testing.assert_array_equal(a.X, b.X)
    assert model.record.training["n_landmarks"] == len(model.landmarks)


@pytest.mark.parametrize(
    "wrong",
    [{"linear": 1.0}, {"penalties": ()}, {"length_scales": (0.0,)}, {"n_landmarks": 10**6}, {"n_components": 0}],
)
def test_wrong_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        KernelRidge.Config(**wrong)

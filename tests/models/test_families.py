from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from stpred import InputError, training
from stpred.data import with_needs
from stpred.models import Batch, Intensity, Mean, Ridge, registry
from stpred.models.ood import TrainingDistribution, ood_scores
from stpred.models.ridge import _gcv


def batch(slide: str, *, n: int = 60, f: int = 7, g: int = 4, seed: int = 0, shift: float = 0.0) -> Batch:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, f)) + shift).astype(np.float32)
    y = (x @ np.linspace(-1, 1, f * g).reshape(f, g) + 0.3 * rng.normal(size=(n, g))).astype(np.float32)
    xy = np.stack(np.meshgrid(np.arange(10), np.arange(n // 10)), axis=-1).reshape(-1, 2) * 100.0
    return Batch(slide, x, np.arange(n), np.arange(n), xy, y=y)


@pytest.mark.parametrize("n", [60, 20])
@pytest.mark.parametrize("f", [7, 40])
def test_ridge_equals_scikit_learn(n: int, f: int) -> None:
    b = batch("a", n=n, f=f)
    model, _ = training.fit(Ridge, Ridge.Config(penalty=0.2), [b], groups=["a"])
    x = StandardScaler().fit_transform(b.features.astype(float))
    want = SklearnRidge(alpha=0.2 * n).fit(x, b.y.astype(float)).predict(x)
    np.testing.assert_allclose(model.predict(b)[0], want, rtol=1e-4, atol=1e-4)


def test_components_equal_pca_then_ridge() -> None:
    b = batch("a")
    model, _ = training.fit(Ridge, Ridge.Config(penalty=0.2, n_components=3), [b], groups=["a"])
    x = StandardScaler().fit_transform(b.features.astype(float))
    z = PCA(3).fit_transform(x)
    want = SklearnRidge(alpha=0.2 * 60).fit(z, b.y.astype(float)).predict(z)
    np.testing.assert_allclose(model.predict(b)[0], want, rtol=1e-4, atol=1e-4)


def test_gcv_equals_the_slow_formula() -> None:
    b = batch("a")
    x, y = b.features.astype(float), b.y.astype(float)
    x, y_scaled = x - x.mean(0), (y - y.mean(0)) / y.std(0)
    penalties = (0.01, 0.3, 5.0)
    slow = []
    for p in penalties:
        hat = x @ np.linalg.solve(x.T @ x + p * len(x) * np.eye(x.shape[1]), x.T) + 1 / len(x)
        residual = y_scaled - hat @ y_scaled
        slow.append((residual**2).mean() / (1 - np.trace(hat) / len(x)) ** 2)
    np.testing.assert_allclose(_gcv(x, y, penalties=penalties, rank=None), slow, rtol=1e-6)


def test_penalty_is_chosen_by_leaving_groups_out() -> None:
    batches = [batch(s, seed=i) for i, s in enumerate("abc")]
    model, facts = training.fit(Ridge, Ridge.Config(), batches, groups=list("abc"))
    assert facts["penalty_chosen_by"] == "leaving groups out"
    # With pure noise the strongest shrinkage can only help; with signal it cannot be best.
    assert facts["penalty"] < 10
    _, single = training.fit(Ridge, Ridge.Config(), batches[:1], groups=["a"])
    assert single["penalty_chosen_by"] == "generalised cross-validation"
    assert model.predict(batches[0])[0].dtype == np.float32


def test_context_is_the_neighbours_mean_without_the_location_itself() -> None:
    config = Ridge.Config(context_um=120.0, penalty=0.1)
    needs = Ridge(config, n_features=7, n_genes=4).needs
    b = with_needs(batch("a"), needs)
    model, _ = training.fit(Ridge, config, [b], groups=["a"])
    x = b.features.astype(float)
    scaled = (x - x.mean(0)) / x.std(0)
    distance = np.linalg.norm(b.coords_um[:, None] - b.coords_um[None], axis=2)
    around = np.array([scaled[(d <= 120) & (d > 0)].mean(0) for d in distance])
    design = np.concatenate([scaled, around], axis=1)
    centred, y = design - design.mean(0), b.y.astype(float)
    coef = np.linalg.solve(centred.T @ centred + 0.1 * 60 * np.eye(14), centred.T @ (y - y.mean(0)))
    np.testing.assert_allclose(model.predict(b)[0], centred @ coef + y.mean(0), rtol=1e-3, atol=1e-3)


def test_slide_standardisation_removes_a_slides_shift() -> None:
    train, same = batch("a"), batch("b", seed=5)
    shifted = batch("b", seed=5)
    shifted.features[:] = shifted.features * 3 + 10
    for how, moved in (("slide", False), ("train", True)):
        model, _ = training.fit(Ridge, Ridge.Config(standardize=how, penalty=0.1), [train], groups=["a"])
        difference = np.abs(model.predict(same)[0] - model.predict(shifted)[0]).max()
        assert (difference > 1) == moved


def test_rows_do_not_depend_on_one_another() -> None:
    config = Ridge.Config(context_um=120.0)
    b = with_needs(batch("a"), Ridge(config, n_features=7, n_genes=4).needs)
    model, _ = training.fit(Ridge, config, [b], groups=["a"])
    from dataclasses import replace

    rows = np.array([41, 3, 17])
    part = replace(b, targets=rows, links=b.links.take(rows), coords_um=b.coords_um[rows])
    np.testing.assert_allclose(model.predict(part)[0], model.predict(b)[0][rows], rtol=1e-5, atol=1e-5)


def test_intensity_equals_least_squares_on_dummies() -> None:
    b = batch("a", f=3)
    model, _ = training.fit(Intensity, Intensity.Config(), [b], groups=["a"])
    columns = []
    for c in range(3):
        edges = np.quantile(b.features[:, c], [0.2, 0.4, 0.6, 0.8])
        bins = np.array([(v >= edges.astype(np.float32)).sum() for v in b.features[:, c]])
        columns += [bins == k for k in range(1, 5)]  # the first bin is the reference, so that the rank is full
    design = np.column_stack(columns).astype(float)
    want = LinearRegression().fit(design, b.y.astype(float)).predict(design)
    np.testing.assert_allclose(model.predict(b)[0], want, rtol=1e-4, atol=1e-4)


def test_mean_is_the_mean() -> None:
    a, b = batch("a"), batch("b", seed=1, n=30)
    model, _ = training.fit(Mean, Mean.Config(), [a, b], groups=["a", "b"])
    want = np.concatenate([a.y, b.y]).astype(float).mean(0)
    np.testing.assert_allclose(model.predict(a)[0], np.tile(want, (60, 1)), rtol=1e-5)


def score(typical: TrainingDistribution, features: np.ndarray) -> np.ndarray:
    return ood_scores(typical.relative(typical.distance(features)))


def test_typical_tiles_know_the_strange_from_the_usual() -> None:
    slides = [batch(s, n=200, f=30, seed=i).features for i, s in enumerate("abc")]
    typical = TrainingDistribution(30)
    typical.fit(slides)
    usual = batch("d", n=200, f=30, seed=9).features
    assert (score(typical, usual) == 0).mean() > 0.9
    assert (score(typical, usual + 5) > 0).all()
    along, across = usual.copy(), usual.copy()
    along[:, 0] += 30
    assert (score(typical, along) > 0).all()
    found = score(typical, usual + np.linspace(0, 5, 200, dtype=np.float32)[:, None])
    assert np.corrcoef(found, np.arange(200))[0, 1] > 0.8
    np.testing.assert_array_equal(score(typical, across[:1]), score(typical, across)[:1])


def test_a_narrow_encoder_beside_a_wide_one_is_not_drowned() -> None:
    def slide(seed: int, shift: float = 0.0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        common = rng.normal(size=(200, 8)) @ np.random.default_rng(90).normal(size=(8, 250))
        wide = common / 4 + rng.normal(size=(200, 250))
        return np.concatenate([wide, rng.normal(size=(200, 5)) + shift], axis=1).astype(np.float32)

    joint, weighted, plain = (TrainingDistribution(255) for _ in range(3))
    joint.fit([slide(s) for s in range(4)])
    weighted.fit([slide(s) for s in range(4)], blocks=(250, 5))
    plain.fit([slide(s) for s in range(4)], blocks=(255,))
    for typical in (joint, weighted):
        assert (score(typical, slide(9)) == 0).mean() > 0.9
    assert (score(joint, slide(9, shift=2.5)) > 0).mean() < 0.5
    assert (score(weighted, slide(9, shift=2.5)) > 0).mean() > 0.9
    assert all(np.array_equal(a, b) for a, b in zip(joint.buffers(), plain.buffers(), strict=True))
    weighted.extend([slide(5)], share=0.2, blocks=(250, 5))
    assert (score(weighted, slide(9)) == 0).mean() > 0.9
    assert (score(weighted, slide(9, shift=2.5)) > 0).mean() > 0.8


def test_held_out_scores_leave_the_whole_group_out() -> None:
    batches = [batch(s, seed=i) for i, s in enumerate("abcd")]
    held = training.held_out_scores(Ridge, Ridge.Config(penalty=0.1), batches, groups=["p", "p", "q", "q"])
    assert held.pearson.shape == (4, 4)
    assert held.columns()["cv_pearson"].min() > 0.7
    folds = list(training.leave_groups_out({"a": "p", "b": "p", "c": "q"}))
    assert folds == [("p", ["c"], ["a", "b"]), ("q", ["a", "b"], ["c"])]


def test_nothing_is_found_in_shuffled_expression() -> None:
    rng = np.random.default_rng(0)
    batches = [batch(s, n=200, f=7, g=40, seed=i) for i, s in enumerate("abc")]
    for b in batches:
        b.y[:] = rng.permutation(b.y)
    held = training.held_out_scores(Ridge, Ridge.Config(), batches, groups=list("abc"))
    assert abs(np.nanmedian(held.columns()["cv_pearson"])) < 0.05


def test_seed_leaves_global_random_state_alone() -> None:
    import torch

    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    training.fit(Mean, Mean.Config(), [batch("a")], groups=["a"], seed=11)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"standardize": "sldie"}, r"`standardize` must be one of \['train', 'slide'\], got 'sldie'"),
        ({"penalty": 0}, "`penalty` must be a positive number, got 0"),
        ({"context_um": -5}, "`context_um` must be a positive number of micrometres, got -5"),
        ({"n_components": 0}, "`n_components` must be a positive whole number"),
        ({"penalties": ()}, "at least one"),
    ],
)
def test_bad_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Ridge.Config(**settings)


def test_unknown_family_says_what_exists() -> None:
    with pytest.raises(InputError, match=r"No model family named 'rigde'; available: .*'mean', 'miso', .*'ridge'"):
        registry.resolve("rigde")
    assert registry.resolve(Ridge).model_class is Ridge
    assert registry.resolve(Ridge.Config(penalty=1.0)).penalty == 1.0


def test_trusted_needs_more_than_luck() -> None:
    few = training.HeldOut(np.array([[0.15, 0.6, np.nan]]), np.zeros((1, 3)), np.array([40]))
    many = training.HeldOut(np.array([[0.15, 0.05, np.nan]]), np.zeros((1, 3)), np.array([4000]))
    assert few.columns()["trusted"].tolist() == [False, True, False]
    assert many.columns()["trusted"].tolist() == [True, False, False]


@pytest.mark.parametrize("through", ["cells", "parts"])
def test_an_ensemble_tells_targets_from_those_of_training_as_its_members_do(through: str) -> None:
    """Of families that look at many things in each location, the scores are of the locations."""
    from stpred.links import Links
    from stpred.models import Batch, Ensemble, SCellST, Student

    rng = np.random.default_rng(0)
    member = (SCellST if through == "cells" else Student).Config(hidden=(4,))
    model = Ensemble(Ensemble.Config(member, 2), n_features=5, n_genes=3)
    features = rng.normal(size=(40, 5)).astype(np.float32)
    features[:4] += 50
    inside = Links(np.arange(0, 41, 4), np.arange(40))
    batch = Batch("a", features, np.arange(0, 40, 4), np.arange(40), np.zeros((10, 2)), **{through: inside})
    model.typical.fit([features[4:]])
    score = model.ood_distance(batch)
    assert score.shape == (10,)
    assert score[0] > 2
    assert (score[1:] < 1.5).all()

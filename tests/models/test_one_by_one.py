"""Slides of cohorts that do not fit into memory are taken one after the other, to the same result."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import stpred as st
from stpred import testing, training
from stpred._core.disk.on_disk import FileRows
from stpred._core.lazy import Lazily
from stpred.data import _regions
from stpred.data._feature_cache import Entry
from stpred.models import MLP, Batch, KernelRidge, Ridge
from stpred.models.ood import TrainingDistribution
from stpred.models.parts import cross_products
from stpred.models.parts.cross_products import CrossProducts, dealt, total
from stpred.models.parts.sample import Scaling


def cohort(n_slides: int = 4, *, n_genes: int = 6, blocks: tuple[int, ...] | None = None) -> list[Batch]:
    weights = np.random.default_rng(9).normal(size=(8, n_genes))
    found = []
    for i in range(n_slides):
        rng = np.random.default_rng(i)
        x = (rng.normal(size=(60 + 7 * i, 8)) * np.arange(1, 9) + 3 + i).astype(np.float16)
        y = np.maximum(x @ weights / 10 + rng.normal(size=(len(x), n_genes)), 0).astype(np.float32)
        xy = np.stack([np.arange(len(x)) % 8, np.arange(len(x)) // 8], axis=1) * 100.0
        near = st.links.radius(xy, xy, radius_um=150)
        found.append(
            Batch.of(x, slide=f"s{i}", y=y, coords_um=xy, neighbors=near, totals=rng.uniform(50, 500, len(x)),
                     scale="log1p_cp10k", blocks=blocks)
        )  # fmt: skip
    return found


def both(monkeypatch: pytest.MonkeyPatch, family: Any, config: Any, batches: list[Batch], groups: list[str]) -> Any:
    at_once = training.fit_and_score(family, config, batches, groups=groups)
    monkeypatch.setattr(cross_products, "MAX_IN_MEMORY", 0)
    sparse = [replace(b, y=csr_matrix(b.y)) for b in batches]
    return at_once, training.fit_and_score(family, config, sparse, groups=groups)


GROUPS = ["A", "B", "C", "A"]


@pytest.mark.parametrize("groups", [GROUPS, ["A"] * 4], ids=["donors", "one donor"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"context_um": 150.0, "standardize": "train"}, {"location_weights": "depth", "rank": "auto"},
     {"n_components": 4, "block_weights": "chosen"}, {"penalty": 0.3, "rank": 2}],
    ids=str,
)  # fmt: skip
def test_ridge(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], groups: list[str]) -> None:
    config = Ridge.Config(**settings)
    blocks = (3, 5) if "block_weights" in settings else None
    a, b = both(monkeypatch, Ridge, config, cohort(blocks=blocks), groups)
    np.testing.assert_allclose(a.model.weights, b.model.weights, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(a.model.intercept, b.model.intercept, rtol=1e-4)
    assert a.chosen.keys() == b.chosen.keys()
    assert a.chosen["penalty"] == b.chosen["penalty"]
    if not (config.location_weights and len(set(groups)) == 1):  # genes are scaled by weighted variances there
        for p, score in a.chosen["penalty_scores"].items():
            assert b.chosen["penalty_scores"][p] == pytest.approx(score, abs=2e-5)
    held_out = training.held_out_scores(Ridge, config, cohort(blocks=blocks), groups=GROUPS)
    assert np.isfinite(held_out.pearson).all()


def test_other_families(monkeypatch: pytest.MonkeyPatch) -> None:
    config = KernelRidge.Config(n_landmarks=40, rank=None)
    a, b = both(monkeypatch, KernelRidge, config, cohort(), GROUPS)
    np.testing.assert_allclose(a.model.coef, b.model.coef, rtol=1e-4, atol=1e-6)
    monkeypatch.undo()
    a, b = both(monkeypatch, MLP, MLP.Config(hidden=(4,), epochs=1, standardize="train"), cohort(), GROUPS)
    np.testing.assert_allclose(a.model.feature_mean, b.model.feature_mean, rtol=1e-5)
    np.testing.assert_allclose(a.model.feature_std, b.model.feature_std, rtol=1e-5)
    np.testing.assert_allclose(a.model.layers[0].weight.detach(), b.model.layers[0].weight.detach(), atol=1e-4)


@pytest.mark.parametrize("blocks", [None, (3, 5)])
@pytest.mark.parametrize("groups", [GROUPS, ["A"] * 4, None], ids=["donors", "one donor", "slides"])
def test_what_is_typical(groups: list[str] | None, blocks: tuple[int, ...] | None) -> None:
    slides = [np.asarray(b.features, np.float32) for b in cohort()]
    found = []
    for given in (slides, Lazily(slides.__getitem__, 4)):
        typical = TrainingDistribution(8)
        limit = typical.fit(given, groups, blocks=blocks)
        found.append((limit, typical.distance(slides[1]), float(typical.limit)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-4)
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-3)
    assert found[0][2] == pytest.approx(found[1][2], rel=1e-4)


def test_many_donors_are_held_out_in_few_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    batches, groups = cohort(9), [f"d{i}" for i in range(9)]
    assert len(training.held_out_scores(Ridge, Ridge.Config(), batches, groups=groups).pearson) == 9
    monkeypatch.setattr(cross_products, "MAX_IN_MEMORY", 0)
    fits, fit = [], Ridge.fit

    def counted(self: Ridge, batches: list[Batch], *, groups: list[str]) -> dict[str, Any]:
        fits.append(len(batches))
        return fit(self, batches, groups=groups)

    monkeypatch.setattr(Ridge, "fit", counted)
    scores = training.held_out_scores(Ridge, Ridge.Config(), batches, groups=groups)
    assert len(scores.pearson) == 9
    assert len(fits) == 5
    assert sorted(len(f) for f in dealt(groups)) == [1, 2, 2, 2, 2]
    assert sorted(i for f in dealt(["b", "a", "b", "c"], n_folds=2) for i in f) == [0, 1, 2, 3]
    assert dealt(["b", "a", "b", "c"], n_folds=2) == [[1, 3], [0, 2]]


def test_sums_of_products_equal_the_slow_ones() -> None:
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(50, 4)) + 2, rng.normal(size=(50, 3)) - 1, rng.uniform(0.1, 2, 50)
    parts = []
    for rows in (slice(0, 20), slice(20, 50)):
        parts.append(CrossProducts.zeros(4, 3))
        parts[-1].add(x[rows], y[rows], w[rows])
    sums = total(parts)
    cx, cy = np.average(x, axis=0, weights=w), np.average(y, axis=0, weights=w)
    xx, xy, yy = sums.centred()
    np.testing.assert_allclose(xx, ((x - cx) * w[:, None]).T @ (x - cx))
    np.testing.assert_allclose(xy, ((x - cx) * w[:, None]).T @ (y - cy), atol=1e-12)
    np.testing.assert_allclose(yy, (w[:, None] * (y - cy) ** 2).sum(axis=0))
    assert sums.n == 50


def test_scaling_of_parts() -> None:
    x = np.random.default_rng(0).normal(5, 2, size=(9000, 3)).astype(np.float16)
    x[:, 2] = 1
    whole, parts = Scaling.of(x), Scaling.of_parts([x[:10], x[10:5000], x[5000:]])
    np.testing.assert_allclose(whole.mean, parts.mean, rtol=1e-6)
    np.testing.assert_allclose(whole.std, parts.std, rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "config"),
    [(Ridge, Ridge.Config(penalty=0.1)), (MLP, MLP.Config(hidden=(4,), epochs=1, batch_size=256))],
    ids=["ridge", "mlp"],
)
def test_memory_does_not_grow_with_the_number_of_slides(
    family: Any, config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cross_products, "MAX_IN_MEMORY", 0)
    rng = np.random.default_rng(0)
    batches = []
    for i in range(12):
        np.save(tmp_path / f"{i}.npy", rng.normal(size=(600, 100)).astype(np.float16))
        on_disk = FileRows(tmp_path / f"{i}.npy", np.load(tmp_path / f"{i}.npy", mmap_mode="r"))
        batch = Batch.of(np.zeros((600, 1)), slide=f"s{i}", y=rng.normal(size=(600, 3)).astype(np.float32))
        batches.append(replace(batch, features=on_disk))
    training.fit_and_score(family, config, cohort(2), groups=["a", "b"])  # imports what is imported late
    peaks = []
    for given in (batches[:4], batches):
        tracemalloc.start()
        training.fit_and_score(family, config, given, groups=[f"d{i % 4}" for i in range(len(given))])
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 12 * 600 * 100 * 4  # all features in single precision


DEEP = {"width": 8, "n_phi": 2, "n_rho": 2, "epochs": 1, "batch_size": 32}


@pytest.mark.parametrize(
    ("family", "settings"),
    [("ridge", {}), ("mlp", {"hidden": (8,), "epochs": 1}), ("deepspot", DEEP),
     ("miso", {"width": 8, "inner": 4, "n_heads": 2, "n_neighbors": 6, "epochs": 1})],
)  # fmt: skip
def test_features_that_stay_on_disk_teach_the_same(
    family: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slides = testing.small_cohort(2)
    encoder = [testing.MeanColour(n_patches=None), "colour"]
    config = st.models.registry.family(family).Config(**settings)
    how: dict[str, Any] = {"shapes_key": "spots", "encoder": encoder, "intervals": False}
    with st.settings.override(cache_dir=tmp_path):
        on_disk = st.tl.train(slides, config, **how)
        sizes: list[int] = []
        monkeypatch.setattr(Entry, "on_disk", lambda self: sizes.append(1) or self.read())
        mapped = st.tl.train(slides, config, **how)
        assert sizes
        assert on_disk.id == mapped.id
        monkeypatch.undo()
        monkeypatch.setattr(_regions, "MAX_COHORT", 0)
        monkeypatch.setattr(_regions, "MAX_FILLED", 1.0)
        sparse = st.tl.train(slides, config, **how)
    one = testing.small_slide(seed=7)
    a, b = (np.asarray(st.tl.predict(one, m, shapes_key="spots", inplace=False).X) for m in (on_disk, sparse))
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)

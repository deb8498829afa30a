"""Ridge on fewer combinations of genes: what is stored, and that it stays the same model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stpred import models, training
from stpred.models import Ridge
from stpred.models.batch import Batch


def _batches(n_genes: int = 40, n_features: int = 30) -> list[Batch]:
    rng = np.random.default_rng(0)
    true = rng.normal(size=(n_features, 3)) @ rng.normal(size=(3, n_genes))
    found = []
    for name in "abc":
        x = rng.normal(size=(80, n_features)).astype(np.float32)
        y = (x @ true + rng.normal(size=(80, n_genes)) * 3).astype(np.float32)
        found.append(Batch.of(x, slide=name, y=y, scale="log1p_cp10k"))
    return found


@pytest.mark.parametrize("rank", [3, 60, "auto"])
def test_stored_as_factors_and_read_back(rank: int | str, tmp_path: Path) -> None:
    batches = _batches()
    model, chosen = training.fit(Ridge, Ridge.Config(rank=rank), batches, groups=list("abc"))
    model.record.genes = [f"g{i}" for i in range(40)]
    assert model.config.rank == chosen["rank"] != "auto"
    if isinstance(chosen["rank"], int):
        assert model.coef.shape == (30, chosen["rank"])
    read = models.load(models.save(model, tmp_path / "m"))
    assert read.id == model.id
    np.testing.assert_array_equal(read.predict(batches[0])[0], model.predict(batches[0])[0])


def test_factors_predict_what_the_whole_weights_do() -> None:
    batches = _batches()
    model, _ = training.fit(Ridge, Ridge.Config(rank=3, penalty=0.1), batches, groups=list("abc"))
    values, _ = model.predict(batches[0])
    whole = model.design(batches[0]) @ model.weights.numpy().astype(np.float64) + model.intercept.numpy()
    np.testing.assert_allclose(values, whole, atol=1e-4)
    assert np.linalg.matrix_rank(values - values.mean(0), tol=1e-3) == 3
    every, _ = training.fit(Ridge, Ridge.Config(penalty=0.1), batches, groups=list("abc"))
    full, _ = training.fit(Ridge, Ridge.Config(rank=60, penalty=0.1), batches, groups=list("abc"))
    np.testing.assert_allclose(full.predict(batches[1])[0], every.predict(batches[1])[0], atol=1e-4)


def test_weights_of_another_rank_become_each_genes_own() -> None:
    model, _ = training.fit(Ridge, Ridge.Config(rank=3), _batches(), groups=list("abc"))
    weights = np.random.default_rng(1).normal(size=(30, 40))
    model.set_weights(weights, np.zeros(40))
    assert model.config == replace(Ridge.Config(), rank=None)
    np.testing.assert_allclose(model.weights, weights, atol=1e-6)

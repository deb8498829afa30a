"""Retrieval: the mean of the nearest measured locations, in a space that is learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import stpred as st
from stpred import InputError, metrics, training
from stpred.models import Retrieval
from stpred.models.batch import Batch
from stpred.training import Run

CONFIG = Retrieval.Config(width=16, k=5, epochs=25, batch_size=64, n_reference=150, lr=3e-3)


def slide(name: str, *, n: int = 120, seed: int = 0, shuffled: bool = False) -> Batch:
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(99).normal(size=(6, 8))
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = (3 + x @ weights + 0.3 * rng.normal(size=(n, 8))).astype(np.float32)
    return Batch.of(x, y=rng.permutation(y) if shuffled else y, scale="log1p_cp10k", slide=name)


def fitted(batches: list[Batch], **settings: object) -> Retrieval:
    config = replace(CONFIG, **settings)  # type: ignore[arg-type]
    groups = [b.slide for b in batches]
    return training.fit(Retrieval, config, batches, groups=groups, seed=0, typical=False, run=Run(device="cpu"))[0]


def test_a_prediction_is_the_mean_of_the_nearest_and_equals_the_loop() -> None:
    model = fitted([slide("a"), slide("b", seed=1)], standardize="none")
    new = slide("c", n=40, seed=2)
    found, spread = model.predict(new)
    assert spread is None
    assert int(model.kept.sum()) == 150
    with torch.no_grad():
        keys = model.expression(model.reference).numpy()
        query = model.image(torch.from_numpy(new.features)).numpy()
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    for i, q in enumerate(query / np.linalg.norm(query, axis=1, keepdims=True)):
        nearest = np.argsort(-(keys @ q))[:5]
        expected = model.reference.numpy()[nearest].mean(axis=0) * model.gene_std.numpy() + model.gene_mean.numpy()
        np.testing.assert_allclose(found[i], np.maximum(expected, 0), rtol=1e-4, atol=1e-4)
    order = np.random.default_rng(0).permutation(40)
    np.testing.assert_allclose(model.predict(new.take(order))[0], found[order], atol=1e-5)


def test_signal_is_found_and_none_is_invented() -> None:
    new = slide("c", n=200, seed=5)
    for shuffled in (False, True):
        model = fitted([slide(s, seed=i, shuffled=shuffled) for i, s in enumerate("ab")])
        r = np.median(metrics.pearson(model.predict(new)[0], new.y))
        assert (abs(r) < 0.25) if shuffled else (r > 0.7)


def test_fewer_locations_than_places_leave_the_rest_out() -> None:
    model = fitted([slide("a", n=20), slide("b", n=20, seed=1)], n_reference=400)
    assert int(model.kept.sum()) == 40
    found = model.predict(slide("c", seed=2))[0]
    assert np.isfinite(found).all()
    assert found.std(axis=0).min() > 0


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12)
    config = Retrieval.Config(width=8, k=3, epochs=2, n_reference=30)
    model = st.tl.train(slides, config, genes="all", shapes_key="spots", encoder="colour")
    st.models.save(model, tmp_path / "m")
    both = [st.tl.predict(slides["donor0"], m, shapes_key="spots", inplace=False).X for m in (model, tmp_path / "m")]
    np.testing.assert_array_equal(*both)
    assert "retrieval" in st.models.list()


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(InputError, match="loss of its own"):
        Retrieval.Config(loss="cosine")
    with pytest.raises(InputError, match="temperature"):
        Retrieval.Config(temperature=0)
    assert Retrieval.Config.published().epochs == 4

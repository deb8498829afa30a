"""Prediction of many locations in blocks, from features in a file: the same as from all of them in memory."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred._core.compute.moments import Moments
from stpred.data import _scratch
from stpred.data._readers import tiles
from stpred.inference import predictor
from stpred.models.parts.sample import Scaling

CASES = {  # family, settings, shapes that are trained on; cells have the spots, or others of themselves, around them
    "rings": (st.models.Ridge, {"context_um": (60.0, 150.0), "standardize": "slide"}, "spots"),
    "own context": (st.models.MLP, {"context_um": 20.0, "standardize": "slide", "epochs": 1}, "cells"),
    "parts and places": (st.models.DeepSpot, {"neighbors_pool": "attention", "epochs": 1}, "spots"),
    "whole slide": (st.models.MISO, {"epochs": 1}, "spots"),
}


@pytest.fixture(scope="module")
def slides():
    cohort = st.datasets.toy_cohort(2, size_um=(320, 320), n_genes=12)
    return cohort, st.datasets.toy(size_um=(320, 320), n_genes=12, donor=3)


@pytest.mark.parametrize("case", CASES)
def test_blocks_predict_what_one_batch_predicts(case, slides, monkeypatch):
    cohort, slide = slides
    family, options, region = CASES[case]
    rule, encoder = st.GeneRule("mean", n=8), st.encoders.get("colour", tile=st.TileSpec(1.0, 56))
    model = st.tl.train(cohort, family.Config(**options), shapes_key=region, encoder=encoder, genes=rule)
    wanted = st.tl.predict(slide, model, shapes_key="cells", encoder=encoder, inplace=False)
    # From here on everything is too much for memory.
    for module, name, value in (
        (tiles, "TILE_BYTES", 0), (tiles, "BLOCK_BYTES", 1), (tiles, "PIXEL_BLOCK", 100), (_scratch, "MAX_BYTES", 0),
        (_scratch, "RELEASE_BYTES", 1000), (predictor, "PIECE_VALUES", 8 * 17), (predictor, "LEAST_PIECE", 64),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    sizes, compact = [], tiles.compact
    monkeypatch.setattr(
        tiles, "compact", lambda batch, needs: sizes.append(len(batch.targets)) or compact(batch, needs)
    )
    found = st.tl.predict(slide, model, shapes_key="cells", encoder=encoder, inplace=False)
    assert len(sizes) > 1
    assert sum(sizes) == len(wanted)
    np.testing.assert_allclose(found.X, wanted.X, rtol=1e-5, atol=2e-6)  # networks round float32 by the block
    np.testing.assert_array_equal(found.obs["ood_score"], wanted.obs["ood_score"])
    if case == "rings":
        np.testing.assert_array_equal(found.X, wanted.X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_moments_of_blocks_are_those_of_all(dtype):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(9001, 5)) * rng.gamma(1, 5, 5) + 3).astype(dtype)
    x[:, 2] = 1
    rows = rng.permutation(9001)[:8800]
    found, scaling = Moments.of(x, rows), Scaling.of(x[rows])
    np.testing.assert_array_equal(found.mean, x[rows].astype(np.float64).mean(axis=0))
    np.testing.assert_array_equal(found.std, x[rows].astype(np.float64).std(axis=0))
    np.testing.assert_array_equal(scaling.mean, x[rows].mean(axis=0, dtype=np.float64).astype(np.float32))
    assert scaling.std[2] == 1
    np.testing.assert_allclose(scaling.std, np.where(found.std < 1e-8, 1, found.std), rtol=1e-6)


def test_scratch_keeps_its_values_and_says_when_there_is_no_room(tmp_path, monkeypatch):
    assert not isinstance(_scratch.empty((10, 3), np.float32, spill=True), np.memmap)
    monkeypatch.setattr(_scratch, "MAX_BYTES", 0)
    array = _scratch.empty((1000, 300), np.float32, spill=True)
    assert isinstance(array, np.memmap)
    array[:] = np.arange(300)
    _scratch.release(array)
    _scratch.release(array[3])
    np.testing.assert_array_equal(array[[5, 999]], [np.arange(300)] * 2)
    assert not isinstance(_scratch.empty((1000, 300), np.float32), np.memmap)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(st.InputError, match="has no room for 0.0012 GB of features"):
        _scratch.empty((1000, 300), np.float32, spill=True)

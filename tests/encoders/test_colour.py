"""Colour of a tile, and the models that see nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred import encoders


def test_means_and_deviations_are_those_of_numpy() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (5, 31, 31, 3), dtype=np.uint8)
    spec = st.TileSpec(0.5, 31)
    mean = tiles.mean(axis=(1, 2), dtype=np.float64)
    want = np.concatenate([mean, tiles.std(axis=(1, 2), dtype=np.float64)], axis=1)
    found = encoders.get("colour", tile=spec).encode(tiles)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-6)
    np.testing.assert_array_equal(encoders.get("intensity", tile=spec).encode(tiles), mean.astype(np.float32))
    names = encoders.get("colour").card.feature_names
    assert names == ("mean_red", "mean_green", "mean_blue", "sd_red", "sd_green", "sd_blue")


def test_an_even_tile_has_no_deviation_and_the_order_of_pixels_plays_no_part() -> None:
    colour = encoders.get("colour")
    rng = np.random.default_rng(1)
    even = np.broadcast_to(rng.integers(0, 256, (256, 1, 1, 3), dtype=np.uint8), (256, 37, 37, 3))
    assert (colour.encode(even)[:, 3:] == 0).all()
    tiles = rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    mixed = rng.permutation(tiles.reshape(3, -1, 3), axis=1).reshape(tiles.shape)
    np.testing.assert_array_equal(colour.encode(mixed), colour.encode(tiles))
    assert colour.encode(tiles[:0]).shape == (0, 6)


def test_the_family_is_ridge_on_the_encoder() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12)
    how = {"genes": st.GeneRule("mean", n=6), "shapes_key": "spots"}
    ours = st.tl.train(slides, "colour", **how)
    assert ours.record.encoder["name"] == "colour"
    assert ours.record.name == "colour"
    ridge = st.tl.train(slides, "ridge", encoder="colour", **how)
    found, want = (st.tl.predict(slides["donor0"], m, shapes_key="spots", inplace=False).X for m in (ours, ridge))
    np.testing.assert_array_equal(found, want)


def test_it_keeps_its_encoder_beside_models_of_another() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12)
    how = {"groups": "slide", "genes": st.GeneRule("mean", n=6), "shapes_key": "spots"}
    both = st.tl.cross_validate(slides, ["colour", "ridge"], encoder="intensity", **how)
    alone = st.tl.cross_validate(slides, "colour", **how)
    values = [s[s["model"] == "colour"].set_index(["slide", "gene", "metric"])["value"] for s in (both, alone)]
    assert np.isfinite(values[0].xs("pearson", level="metric")).all()
    np.testing.assert_array_equal(*values)


def test_users_models_may_have_the_name() -> None:
    slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=12)
    how = {"groups": "slide", "genes": ["EPCAM", "COL1A2"], "shapes_key": "spots"}
    scores = st.tl.cross_validate(slides, {"colour": "intensity", "own": "colour"}, **how)
    assert {"colour", "own"} <= set(scores["model"])
    own = st.tl.train(slides, "intensity", genes=["EPCAM"], shapes_key="spots", name="colour")
    st.tl.predict(slides["donor0"], own, shapes_key="spots")
    st.pp.features(slides["donor0"], "colour", shapes_key="spots")
    assert slides["donor0"].tables["spots_colour"].uns["stpred"]
    features = slides["donor0"].tables["spots_feat_colour"]
    assert features.var_names.tolist()[3:] == ["sd_red", "sd_green", "sd_blue"]
    with pytest.raises(st.InputError, match="'colour' is taken"):
        encoders.register("colour", encoders.IntensityEncoder)

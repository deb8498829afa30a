"""Errors against stated standard deviations: calibrated ones, too small ones, and those that say nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.testing import build_table
from stpred.tl._trust.error_by_std import binned, verdict_of


def test_bins_equal_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    std, error = rng.uniform(0.1, 2, 103), rng.normal(size=103)
    std[:2] = 0, np.nan  # neither says anything
    frame, calibration = binned(error, std, n_bins=5, level=0.8)
    order = np.argsort(std[2:])
    assert frame["n"].between(19, 21).all()
    for row, part in zip(frame.itertuples(), np.split(order, np.cumsum(frame["n"])[:-1]), strict=True):
        e, s = error[2:][part], std[2:][part]
        np.testing.assert_allclose([row.std, row.rmse], [np.sqrt((s**2).mean()), np.sqrt((e**2).mean())])
        assert row.coverage == pytest.approx((np.abs(e) <= norm.ppf(0.9) * s).mean())
    assert frame["n"].sum() == 101
    assert calibration["ratio"] == pytest.approx(np.sqrt((error[2:] ** 2).mean() / (std[2:] ** 2).mean()))
    assert calibration["ence"] == pytest.approx(np.abs(frame["ratio"] - 1).mean())


@pytest.mark.parametrize(("factor", "said"), [(1.0, "calibrated"), (0.5, "overconfident"), (2.0, "too cautious")])
def test_the_verdict_finds_a_known_factor(factor: float, said: str) -> None:
    rng = np.random.default_rng(1)
    true = rng.uniform(0.2, 2, 20_000)
    frame, calibration = binned(rng.normal(size=20_000) * true, factor * true, n_bins=10, level=0.9)
    assert calibration["ratio"] == pytest.approx(1 / factor, rel=0.03)
    np.testing.assert_allclose(frame["ratio"], 1 / factor, rtol=0.08)
    assert calibration["coverage"] == pytest.approx(2 * norm.cdf(norm.ppf(0.95) * factor) - 1, abs=0.01)
    assert verdict_of(calibration).startswith(said)
    assert calibration["spearman"] > 0.3


def test_deviations_of_nothing_order_nothing() -> None:
    rng = np.random.default_rng(2)
    _, calibration = binned(rng.normal(size=5000), rng.uniform(0.5, 1.5, 5000), n_bins=10, level=0.9)
    assert abs(calibration["spearman"]) < 0.05
    assert "do not tell large errors" in verdict_of(calibration)


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    """A prediction whose stated deviations are right by construction."""
    sdata = st.datasets.toy(size_um=(500, 500), n_genes=20)
    measured = sdata.tables["spots_counts"]
    counts = measured.X.toarray()
    log = np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))
    rng = np.random.default_rng(0)
    std = rng.uniform(0.1, 1.0, size=log.shape)
    sdata.tables["predicted"] = build_table(
        (log + std * rng.normal(size=log.shape)).astype(np.float32),
        shapes_key="spots",
        instances=pd.Index(measured.obs["instance_id"]),
        var=pd.DataFrame(index=measured.var_names),
        spatial_um=measured.obsm["spatial"],
        layers={"std": std.astype(np.float32)},
        provenance={"kind": "prediction", "model": "made up", "output_scale": "log1p_cp10k"},
    )
    return sdata


def test_the_layer_is_read_in_the_order_of_the_pair(slide: SpatialData) -> None:
    found = st.tl.error_by_std(slide, "predicted", "spots_counts", n_bins=5)
    assert found.attrs["stpred"]["calibration"]["ratio"] == pytest.approx(1, abs=0.1)
    assert found["std"].is_monotonic_increasing
    rows = np.random.default_rng(3).permutation(slide["predicted"].n_obs)
    shuffled = SpatialData(
        images=dict(slide.images), shapes=dict(slide.shapes),
        tables={"p": slide["predicted"][rows, ::-1].copy(), "spots_counts": slide["spots_counts"]},
    )  # fmt: skip
    again = st.tl.error_by_std(shuffled, "p", "spots_counts", n_bins=5)
    np.testing.assert_allclose(again[["std", "rmse"]], found[["std", "rmse"]], rtol=1e-5)
    some = st.tl.error_by_std(slide, "predicted", "spots_counts", genes=["EPCAM"], n_bins=3)
    assert some["n"].sum() == slide["predicted"].n_obs


def test_intervals_of_a_model_are_turned_into_deviations() -> None:
    slides = st.datasets.toy_cohort(4, size_um=(500, 500), n_genes=20)
    unseen = slides.pop("donor3")
    model = st.tl.train(slides, genes=["EPCAM", "COL1A2"], encoder="intensity", shapes_key="spots")
    st.tl.predict(unseen, model, shapes_key="spots", interval=0.9)
    table = unseen["spots_ridge"]
    found = st.tl.error_by_std(unseen, "spots_ridge", "spots_counts", genes="EPCAM", n_bins=3)
    width = table.layers["upper"][:, 0] - table.layers["lower"][:, 0]
    whole = width[table.layers["lower"][:, 0] > 0]
    if len(whole):
        assert found["std"].max() == pytest.approx(whole.max() / (2 * norm.ppf(0.95)), rel=1e-4)
    assert found.attrs["stpred"]["source"] == "intervals"
    with pytest.raises(InputError, match=r"has no layers\['std'\]"):
        st.tl.error_by_std(unseen, "spots_ridge", "spots_counts", source="std")
    with pytest.raises(InputError, match="`source` must be one of"):
        st.tl.error_by_std(unseen, "spots_ridge", "spots_counts", source="sd")


def test_bad_input(slide: SpatialData) -> None:
    with pytest.raises(InputError, match="No gene of both tables named 'NOPE'"):
        st.tl.error_by_std(slide, "predicted", "spots_counts", genes=["NOPE"])
    with pytest.raises(InputError, match="has neither layers"):
        st.tl.error_by_std(slide, "predicted", "spots_counts", source="intervals")
    with pytest.raises(InputError, match="No value has a standard deviation above 0"):
        binned(np.ones(3), np.zeros(3), n_bins=2, level=0.9)

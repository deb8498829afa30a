"""Misaligned slides are found, aligned ones are left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError, data, metrics
from stpred._core.geometry import square_bins
from stpred._core.places import Place
from stpred.inference.predictor import Predictor
from stpred.tl._robustness.alignment import _at_shifts, agreements, judged, peak, shifts_of
from stpred.tl._robustness.transforms import translate

HOW: dict[str, Any] = {"shapes_key": "spots"}


@pytest.fixture(scope="module")
def cohort() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(3, size_um=(900, 900), n_genes=30, mpp=1.0)


@pytest.fixture(scope="module")
def model(cohort: dict[str, SpatialData]) -> Any:
    train = {s: cohort[s] for s in ("donor0", "donor1")}
    return st.tl.train(train, encoder="colour", genes=st.GeneRule("mean", n=20), intervals=False, **HOW)


def moved(sdata: SpatialData, shift: tuple[float, float]) -> SpatialData:
    return translate(sdata, data.read_region(sdata, Place(shapes_key="spots")), np.array(shift))


@pytest.mark.parametrize("shift", [(0.0, 0.0), (100.0, 0.0), (-60.0, 80.0)])
def test_a_shift_of_a_slide_is_found_within_a_pitch(
    cohort: dict[str, SpatialData], model: Any, shift: tuple[float, float]
) -> None:
    slide = cohort["donor2"]
    before = slide.shapes["spots"].geometry.iloc[0]
    found = st.tl.alignment({"x": moved(slide, shift)}, model, distances_um=[50, 100], **HOW)
    assert slide.shapes["spots"].geometry.iloc[0] == before
    row = found.iloc[0]
    assert row["slide"] == "x"
    if 0.0 in shift:  # a shift askew is found where it is, but not called with so few locations and so weak a model
        assert bool(row["aligned"]) == (shift == (0.0, 0.0)), row
    assert np.hypot(row["shift_x_um"] + shift[0], row["shift_y_um"] + shift[1]) < 50, row
    assert (row["p_value"] <= 0.05) == (row["statistic"] > row["null_95"])
    tried = found.attrs["shifts"]
    assert len(tried) == 17
    assert row["score"] == pytest.approx(tried[0]["score"])
    assert row["score_shifted"] == pytest.approx(max(t["score"] for t in tried))


def test_shuffled_counts_are_called_misaligned_as_often_as_stated(cohort: dict[str, SpatialData], model: Any) -> None:
    region = data.read_region(cohort["donor2"], Place(shapes_key="spots"), measured=True)
    shifts = shifts_of([50.0, 100.0])
    at, measured, predicted, _ = _at_shifts(region, Predictor.of(model), shifts, chosen=False)
    _, block = square_bins(region.coords_um[at], 200.0)
    calls = []
    for seed in range(60):
        shuffled = measured[np.random.default_rng(seed).permutation(len(at))]
        agreement = np.stack([agreements(p, shuffled) for p in predicted])
        calls.append(judged(agreement, shifts, block, n_permutations=199, seed=1)["p_value"] <= 0.05)
    assert np.mean(calls) < 0.15


def test_the_level_holds_where_no_shift_is_better() -> None:
    """Gains that go together between neighbours, as predictions of neighbouring places do."""
    rng = np.random.default_rng(0)
    shifts = shifts_of([50.0, 100.0])
    block = np.repeat(np.arange(16), 9)
    calls = 0
    for _ in range(300):
        common = rng.normal(size=(len(shifts), 16))[:, block]
        agreement = common + rng.normal(size=(len(shifts), len(block)))
        calls += judged(agreement, shifts, block, n_permutations=99, seed=0)["p_value"] <= 0.05
    assert calls / 300 < 0.09


def test_kernels_equal_their_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 40, 6))
    assert agreements(a, b).mean() == pytest.approx(metrics.pearson(a, b).mean())
    assert agreements(np.ones((4, 2)), b[:4, :2]).tolist() == [0.0] * 4
    shifts = shifts_of([50.0, 100.0, 150.0])
    assert shifts.shape == (25, 2)
    np.testing.assert_allclose(np.unique(np.linalg.norm(shifts, axis=1).round(6)), [0, 50, 100, 150])
    for truth in ((70.0, 40.0), (-20.0, 90.0)):
        surface = -np.square(shifts - truth).sum(axis=1)
        np.testing.assert_allclose(peak(shifts, surface), truth, atol=5)
    assert peak(shifts, -np.linalg.norm(shifts, axis=1)) == (0.0, 0.0)
    # One permutation by hand.
    agreement, block = rng.normal(size=(3, 12)), np.repeat(np.arange(6), 2)
    found = judged(agreement, shifts_of([50.0])[:3], block, n_permutations=500, seed=3)
    gains = agreement[1:] - agreement[0]
    sums = np.array([[g[block == k].sum() for k in range(6)] for g in gains])
    size = np.sqrt((sums**2).sum(axis=1))
    assert found["statistic"] == pytest.approx((sums.sum(axis=1) / size).max())
    null = [(sums @ s / size).max() for s in np.random.default_rng(3).choice([-1.0, 1.0], size=(500, 6))]
    assert found["p_value"] == pytest.approx((1 + (np.array(null) >= found["statistic"]).sum()) / 501)


def test_what_cannot_be_judged_is_refused(cohort: dict[str, SpatialData], model: Any) -> None:
    slide = cohort["donor2"]
    for settings, message in (
        ({"distances_um": [0]}, "distances_um"),
        ({"distances_um": [5000]}, "are on the image after every shift"),
        ({"alpha": 2}, "alpha"),
        ({"genes": ["none"]}, "none"),
    ):
        with pytest.raises(InputError, match=message):
            st.tl.alignment(slide, model, **HOW, **settings)
    small = st.datasets.toy(size_um=(400, 400), n_genes=30, mpp=1.0)
    with pytest.raises(InputError, match="too small for this check|after every shift"):
        st.tl.alignment(small, model, distances_um=[50], **HOW)


def test_a_report_says_how_well_a_slide_is_aligned(cohort: dict[str, SpatialData], model: Any, tmp_path: Path) -> None:
    slide = moved(cohort["donor2"], (100.0, 0.0))
    st.tl.predict(slide, model, key_added="p", **HOW)
    found = st.tl.alignment(slide, model, distances_um=[50, 100], **HOW)
    how: dict[str, Any] = {"measured_key": "spots_counts", "n_maps": 1, "max_mb": 2}
    page = st.report(tmp_path / "r.html", slide, "p", alignment=found, **how).read_text()
    assert f"{found['shift_um'].item():.0f} µm, {found['gain'].item():+.3f}" in page
    assert "fit the image better after a shift: toy by about" in page
    plain = st.report(tmp_path / "plain.html", slide, "p", **how).read_text()
    assert "best shift" not in plain
    for wrong, message in ((found.assign(slide="other"), "is of slides"), (found[["slide"]], "must be a frame of")):
        with pytest.raises(InputError, match=message):
            st.report(tmp_path / "x.html", slide, "p", alignment=wrong, **how)

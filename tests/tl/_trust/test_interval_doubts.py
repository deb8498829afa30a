"""Intervals that may not hold say so, are withheld where they do not, and come back with a few measured spots."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import stpred as st
from stpred import InputError
from stpred._core import keys
from stpred.inference import intervals
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


@pytest.fixture(scope="module")
def five() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(5, size_um=(900, 900), n_genes=100)


@pytest.fixture(scope="module")
def calibrated(five: dict[str, SpatialData]) -> Model:
    slides = {s: five[s] for s in list(five)[:4]}
    return st.tl.train(
        slides, "ridge", genes="all", shapes_key="spots", groups={s: s for s in slides}, encoder="colour"
    )


@pytest.fixture
def shifted(five: dict[str, SpatialData]) -> SpatialData:
    """A donor whose genes are all measured at another level than the training donors'."""
    slide = copy_slide(five["donor4"])
    table = slide.tables["spots_counts"]
    rng = np.random.default_rng(0)
    table.X = csr_matrix(rng.poisson(table.X.toarray() * np.exp(rng.normal(0, 0.7, table.n_vars))).astype(np.float32))
    return slide


def stated(slide: SpatialData, key: str) -> dict:
    return json.loads(slide.tables[key].uns[keys.UNS])["intervals"]


def covered(slide: SpatialData, key: str, level: float) -> float:
    found = st.tl.coverage(slide, key, "spots_counts")
    return float(found.loc[found["level"] == level, "coverage"].mean())


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 30])
def test_a_few_measured_spots_bring_coverage_back(shifted: SpatialData, calibrated: Model, n: int) -> None:
    st.tl.predict(shifted, calibrated, shapes_key="spots", interval=0.9)
    before = covered(shifted, "spots_ridge", 0.9)
    ids = np.random.default_rng(1).permutation(shifted["spots"].index)
    st.tl.recalibrate(shifted, "spots_ridge", "spots_counts", instances=ids[:n])
    new = shifted.tables["spots_ridge_recalibrated"]
    shifted.tables["rest"] = new[new.obs["instance_id"].isin(ids[n:])].copy()
    assert before < 0.8
    assert 0.85 <= covered(shifted, "rest", 0.9) <= 0.95
    assert 0.4 <= covered(shifted, "rest", 0.5) <= 0.6
    assert (new.var["interval_low"] < 0).all()
    assert stated(shifted, "spots_ridge_recalibrated")["how"].startswith(f"{n} measured locations")


def test_offsets_follow_each_genes_spread_and_skew() -> None:
    rng = np.random.default_rng(0)
    scale, amount = rng.uniform(0.2, 2.0, 200), np.repeat([0.0, 1.0], 100)
    draw = lambda n: np.where(amount > 0, rng.normal(size=(n, 200)), rng.exponential(size=(n, 200)) - 1) * scale  # noqa: E731
    low, high = intervals.of_residuals(draw(40), amount)[:, 4:6].T
    fresh = draw(4000)
    inside = ((fresh >= low) & (fresh <= high)).mean(axis=0)
    assert inside[:100].mean() == pytest.approx(0.9, abs=0.03)
    assert inside[100:].mean() == pytest.approx(0.9, abs=0.03)
    assert (high / -low)[:100].mean() > 1.4


def test_a_flagged_slide_gets_its_intervals_on_request_only(shifted: SpatialData, calibrated: Model) -> None:
    model = deepcopy(calibrated)
    model.record.training["slide_limit"] = 1e-9
    st.tl.predict(shifted, model, shapes_key="spots")
    table = shifted.tables["spots_ridge"]
    assert "interval_offsets" not in table.varm
    assert "interval_low" not in table.var
    assert stated(shifted, "spots_ridge")["withheld"] is True
    assert "out of distribution" in stated(shifted, "spots_ridge")["doubts"][0]
    with pytest.raises(InputError, match=r"were withheld, since the slide is out of distribution; .*recalibrate"):
        st.tl.coverage(shifted, "spots_ridge", "spots_counts")
    with pytest.warns(UserWarning, match="its intervals are too narrow"):
        st.tl.predict(shifted, model, shapes_key="spots", interval=0.9, key_added="asked")
    assert {"lower", "upper"} <= set(shifted.tables["asked"].layers)
    assert st.tl.coverage(shifted, "asked", "spots_counts").attrs["doubts"]


def test_what_was_seen_and_how_deep_it_is_measured_are_doubts(shifted: SpatialData, calibrated: Model) -> None:
    st.tl.predict(shifted, calibrated, shapes_key="spots")
    assert st.tl.coverage(shifted, "spots_ridge", "spots_counts").attrs["doubts"] == []
    model = deepcopy(calibrated)
    model.record.intervals["n_donors"] = 1
    st.tl.predict(shifted, model, shapes_key="spots")
    assert "One donor was seen" in stated(shifted, "spots_ridge")["doubts"][0]
    model.record.intervals |= {"n_donors": 4, "donors_given": False}
    st.tl.predict(shifted, model, shapes_key="spots")
    assert "No donors were named" in stated(shifted, "spots_ridge")["doubts"][0]
    st.tl.predict(shifted, calibrated, shapes_key="spots")
    counts = shifted.tables["spots_counts"]
    rng = np.random.default_rng(0)
    counts.X = csr_matrix(rng.binomial(counts.X.toarray().astype(int), 0.2).astype(np.float32))
    (found,) = st.tl.coverage(shifted, "spots_ridge", "spots_counts").attrs["doubts"]
    assert "counts per location" in found
    assert "too narrow" in found

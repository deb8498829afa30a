from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix

import stpred as st
from stpred import InputError, metrics
from stpred._core import targets
from stpred.testing import copy_slide
from stpred.tl._trust.gamma_poisson import posterior, recalibration, shrink

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def simulated(*, depth: float, worth: float = 0.7, n: int = 400, g: int = 60) -> dict[str, np.ndarray]:
    """True CP10k of genes, a prediction that knows part of it, and counts."""
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(2, n, g))
    level = np.exp(rng.normal(3, 1, g))
    truth = level * np.exp(0.6 * (worth * known + np.sqrt(1 - worth**2) * unknown))
    predicted = 3 * level * np.exp(0.4 * known)  # of another scale and too flat
    exposure = depth * rng.uniform(0.5, 2, n)
    return {"truth": truth, "rate": predicted, "exposure": exposure, "counts": rng.poisson(truth * exposure[:, None])}


def correlations(depth: float, **more: float) -> dict[str, float]:
    s = simulated(depth=depth, **more)
    line = recalibration(s["counts"], s["exposure"], s["rate"])
    found, share = posterior(s["counts"], s["exposure"], line.expected(s["rate"]), line.excess)
    truth = np.log1p(s["truth"])
    score = {
        name: float(np.median(metrics.pearson(np.log1p(v), truth)))
        for name, v in (("measured", s["counts"] / s["exposure"][:, None]), ("predicted", s["rate"]), ("both", found))
    }
    return score | {"share": float(share.mean()), "common": line.common}


def test_poor_counts_and_prediction_are_better_together() -> None:
    found = correlations(0.05)
    assert found["both"] > found["measured"] + 0.1
    assert found["both"] > found["predicted"] + 0.03


def test_rich_counts_win_and_a_worthless_prediction_does_no_harm() -> None:
    rich = correlations(50.0)
    assert rich["share"] > 0.97
    assert rich["both"] > 0.995
    worthless = correlations(0.05, worth=0.0)
    assert abs(worthless["common"]) < 0.1
    assert worthless["both"] > worthless["measured"] - 0.02


def test_the_scale_is_recovered() -> None:
    s = simulated(depth=5.0, worth=1.0)
    line = recalibration(s["counts"], s["exposure"], s["rate"])
    np.testing.assert_allclose(line.expected(s["rate"]).mean(axis=0), s["truth"].mean(axis=0), rtol=0.1)
    flat = recalibration(s["counts"], s["exposure"], np.ones_like(s["rate"]))
    np.testing.assert_allclose(flat.expected(np.ones_like(s["rate"]))[0], flat.mean)
    assert np.isfinite(flat.excess).all()
    again = recalibration(s["counts"], s["exposure"], 7 * s["rate"])  # the scale of the prediction is of no account
    np.testing.assert_allclose(again.expected(7 * s["rate"]), line.expected(s["rate"]), rtol=1e-9)


def test_excess_variance_is_that_of_a_gamma() -> None:
    rng = np.random.default_rng(1)
    shape, exposure = 4.0, np.full(4000, 0.3)
    rate = np.full((4000, 5), 20.0)
    counts = rng.poisson(exposure[:, None] * rate * rng.gamma(shape, 1 / shape, rate.shape))
    line = recalibration(counts.astype(float), exposure, rate)
    np.testing.assert_allclose(line.excess, 1 / shape, rtol=0.15)
    even = recalibration(rng.poisson(exposure[:, None] * rate).astype(float), exposure, rate)
    assert even.excess.max() < 0.02


def test_shrinkage_takes_noise_away() -> None:
    rng = np.random.default_rng(2)
    variance = np.full(500, 1.0)
    same, centre = shrink(2 + rng.normal(size=500), variance)
    assert np.ptp(same) < 1.5
    assert centre == pytest.approx(2, abs=0.15)
    wide = 2 + 10 * rng.normal(size=500)
    np.testing.assert_allclose(shrink(wide + rng.normal(size=500), variance)[0], wide, atol=5)


def downsampled(sdata: SpatialData, share: float) -> np.ndarray:
    """Thin the counts in place; the (n, G) true log1p CP10k is returned."""
    table = sdata["spots_counts"]
    expected = targets.dense(table.layers["expected"])
    truth = np.log1p(expected / expected.sum(axis=1, keepdims=True) * 1e4)
    table.X = csr_matrix(np.random.default_rng(0).binomial(targets.dense(table.X, np.int64), share).astype(np.int32))
    return truth


def test_a_thinned_slide_gets_closer_to_the_truth(unseen: SpatialData, ridge: Model) -> None:
    truth = downsampled(unseen, 0.05)
    st.tl.predict(unseen, ridge)
    st.tl.correct(unseen, "spots_ridge", "spots_counts")
    table, raw = unseen["spots_corrected"], unseen["spots_counts"]
    truth = truth[:, raw.var_names.get_indexer(table.var_names)]
    score = {
        name: np.nanmedian(metrics.pearson(values, truth))
        for name, values in (("both", table.X), *((k, table.layers[k]) for k in ("measured", "predicted")))
    }
    assert score["both"] > score["measured"]
    assert score["both"] > score["predicted"]
    assert np.isfinite(table.X).all()
    assert table.layers["weight"].min() >= 0
    assert table.layers["weight"].max() < 1
    with pytest.raises(InputError, match="holds correction, not predictions"):
        st.tl.compare(unseen, "spots_corrected", "spots_counts")  # its own measurement is in it
    with pytest.warns(UserWarning, match="overwritten in memory"):
        st.tl.correct(unseen, "spots_ridge", "spots_counts")


def test_what_was_not_measured_is_filled_and_marked(unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    whole = unseen["spots_counts"]
    part = whole[:, 5:].copy()
    counts = part.X.tolil()
    counts[:4] = 0
    counts[:, 3] = 0
    part.X = counts.tocsr()
    del unseen.tables["spots_counts"]
    unseen.tables["spots_counts"] = part
    found = st.tl.correct(unseen, "spots_ridge", "spots_counts", inplace=False)
    assert found is not None
    assert "spots_corrected" not in unseen.tables
    empty = found.obs_names.isin(part.obs_names[:4])
    assert (found.obs["measured"].to_numpy() == ~empty).all()
    lacking = [*whole.var_names[:5], part.var_names[3]]
    assert (found.var["measured"].to_numpy() == ~found.var_names.isin(lacking)).all()
    np.testing.assert_array_equal(found[:, lacking].X, found[:, lacking].layers["predicted"])
    assert (found[:, lacking].layers["weight"] == 0).all()
    assert (found.layers["weight"][empty] == 0).all()
    assert (found.layers["measured"][empty] == 0).all()
    assert found.var["slope"].isna().sum() == 6
    facts = json.loads(found.uns["stpred"])
    assert facts["n_filled_locations"] == 4
    assert facts["kind"] == "correction"


def test_training_slides_and_other_scales_are_refused(cohort: dict[str, SpatialData], ridge: Model) -> None:
    own = copy_slide(cohort["donor0"])
    st.tl.predict(own, ridge)
    with pytest.raises(InputError, match=r"was trained on this slide \(as \['donor0'\]\)"):
        st.tl.correct(own, "spots_ridge", "spots_counts")
    st.tl.correct(own, "spots_ridge", "spots_counts", allow_training_slide=True, key_added="anyway")
    assert "anyway" in own.tables
    with pytest.raises(InputError, match="is a table that stpred did not write"):
        st.tl.correct(own, "spots_ridge", "spots_counts", allow_training_slide=True, key_added="spots_counts")
    table = own["spots_ridge"]
    table.uns["stpred"] = json.dumps(json.loads(table.uns["stpred"]) | {"output_scale": "relative"})
    with pytest.raises(InputError, match="holds predictions as 'relative'"):
        st.tl.correct(own, "spots_ridge", "spots_counts")


def test_a_slide_without_enough_counts_is_refused(unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    counts = unseen["spots_counts"].X.tolil()
    counts[10:] = 0
    unseen["spots_counts"].X = counts.tocsr()
    with pytest.raises(InputError, match="Only 10 locations of 'spots_counts' have counts"):
        st.tl.correct(unseen, "spots_ridge", "spots_counts")

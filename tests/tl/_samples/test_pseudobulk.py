from __future__ import annotations

import json
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError
from stpred._core.checks import InputWarning
from stpred._core.expression.bulk import bulk_profile
from stpred.tl._samples.pseudobulk import log1p_cpm
from stpred.tl._samples.sample_table import features

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

KEY = "spots_counts"


def test_profiles_equal_the_obvious() -> None:
    rng = np.random.default_rng(0)
    x = rng.gamma(1.0, size=(20, 4))
    np.testing.assert_allclose(np.expm1(bulk_profile(x, scale="log1p_cp10k")), np.expm1(x).mean(axis=0))
    np.testing.assert_allclose(np.expm1(bulk_profile(x, scale="cp10k")), x.mean(axis=0))
    np.testing.assert_allclose(bulk_profile(x, scale="relative"), x.mean(axis=0))
    np.testing.assert_allclose(bulk_profile(x, scale="counts"), x.sum(axis=0))
    # A gene high in a tenth of the tissue and one that is even have the same bulk if their molecules are as many.
    patchy, even = np.r_[np.full(2, 10.0), np.zeros(18)], np.full(20, 1.0)
    both = bulk_profile(np.log1p(np.stack([patchy, even], axis=1)), scale="log1p_cp10k")
    assert both[0] == pytest.approx(both[1])


def test_counts_are_summed_over_shared_genes(cohort: dict[str, SpatialData]) -> None:
    bulk = st.tl.pseudobulk(cohort, KEY)
    for slide, sdata in cohort.items():
        counts = sdata[KEY].X.toarray()
        np.testing.assert_array_equal(bulk[slide].X.ravel(), counts.sum(axis=0))
        np.testing.assert_allclose(bulk[slide].layers["mean"].ravel(), counts.mean(axis=0))
        assert bulk.obs.loc[slide, "total_counts"] == counts.sum()
        assert bulk.obs.loc[slide, "n_locations"] == len(counts)
    facts = json.loads(bulk.uns["stpred"])
    assert (facts["kind"], facts["output_scale"], facts["table"]) == ("pseudobulk", "counts", KEY)
    values, scale = log1p_cpm(bulk)
    assert scale == "log1p_cpm"
    np.testing.assert_allclose(np.expm1(values).sum(axis=1), 1e6)


def test_predictions_leave_out_what_is_out_of_distribution(unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    table = unseen["spots_ridge"]
    table.obs["in_distribution"] = np.arange(table.n_obs) >= 10
    facts = pd.DataFrame({"stage": [2, 3]}, index=["slide", "another"])
    bulk = st.tl.pseudobulk(unseen, "spots_ridge", obs=facts)
    np.testing.assert_allclose(np.expm1(bulk.X[0]), np.expm1(table.X[10:]).mean(axis=0), rtol=1e-4)
    assert bulk.X.dtype == np.float32
    assert bulk.obs.loc["slide", ["n_left_out", "stage"]].tolist() == [10, 2]
    assert "trusted" in bulk.var
    every = st.tl.pseudobulk(unseen, "spots_ridge", in_distribution_only=False)
    assert every.obs.loc["slide", "share_left_out"] == 0
    assert not np.allclose(every.X, bulk.X)
    table.layers["upper"] = table.X + 1
    assert (st.tl.pseudobulk(unseen, "spots_ridge", layer="upper").X > bulk.X).all()
    facts_of = json.loads(table.uns["stpred"])
    table.uns["stpred"] = json.dumps(facts_of | {"output_scale": "relative"})
    relative = st.tl.pseudobulk(unseen, "spots_ridge")
    np.testing.assert_allclose(relative.X[0], table.X[10:].mean(axis=0), rtol=1e-4)
    assert json.loads(relative.uns["stpred"])["comparable"] == "within genes only"


def test_bad_input_is_named(cohort: dict[str, SpatialData], unseen: SpatialData, ridge: Model) -> None:
    st.tl.predict(unseen, ridge)
    with pytest.raises(InputError, match="`obs` lacks the slides \\['donor1'"):
        st.tl.pseudobulk(cohort, KEY, obs=pd.DataFrame({"x": [1]}, index=["donor0"]))
    with pytest.raises(InputError, match="columns that the pseudo-bulk writes itself"):
        st.tl.pseudobulk(unseen, KEY, obs=pd.DataFrame({"n_locations": [1]}, index=["slide"]))
    with pytest.raises(InputError, match="names slides more than once"):
        st.tl.pseudobulk(unseen, KEY, obs=pd.DataFrame({"x": [1, 2]}, index=["slide", "slide"]))
    with pytest.raises(InputError, match="`obs` must be a DataFrame"):
        st.tl.pseudobulk(unseen, KEY, obs={"x": 1})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="No layer of table"):
        st.tl.pseudobulk(unseen, KEY, layer="none")
    unseen["spots_ridge"].obs["in_distribution"] = False
    with pytest.raises(InputError, match="All .* locations .* are out of distribution"):
        st.tl.pseudobulk(unseen, "spots_ridge")
    predicted = unseen["spots_ridge"]
    del unseen.tables["spots_ridge"], unseen.tables[KEY]
    unseen.tables[KEY] = predicted
    with pytest.raises(InputError, match="not on the same scale: that of 'a' holds measured counts, that of 'b' pred"):
        st.tl.pseudobulk({"a": cohort["donor0"], "b": unseen}, KEY)
    unseen[KEY].uns.pop("stpred")
    with pytest.raises(InputError, match="raw counts are needed"):
        st.tl.pseudobulk(unseen, KEY)


def test_comparing_slides_by_a_model_that_removes_their_differences_is_warned_of(
    cohort: dict[str, SpatialData],
) -> None:
    for standardize in ("slide", "train"):
        config = st.models.Ridge.Config(standardize=standardize)
        model = st.tl.train(cohort, config, genes=st.GeneRule("mean", n=10), encoder="colour", shapes_key="spots")
        predicted = {
            name: st.tl.predict(slide, model, shapes_key="spots", inplace=False) for name, slide in cohort.items()
        }
        slides = {}
        for name, table in predicted.items():
            slides[name] = st.testing.copy_slide(cohort[name])
            slides[name].tables["own"] = table
        bulk = st.tl.pseudobulk(slides, "own", in_distribution_only=False)
        warned = pytest.warns(InputWarning, match="standardises features within each slide")
        with warned if standardize == "slide" else nullcontext():
            features(bulk, None)

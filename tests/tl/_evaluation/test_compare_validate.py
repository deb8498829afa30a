from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import pearsonr, spearmanr

import stpred as st
from stpred import InputError

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def test_compare_equals_the_slow_loop(ridge: Model, unseen: SpatialData) -> None:
    st.tl.predict(unseen, ridge)
    # The measured table in another order, with a location that nothing was counted in.
    table = unseen.tables["spots_counts"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    shuffled = table[order].copy()
    counts = shuffled.X.toarray()
    counts[3] = 0
    shuffled.X = csr_matrix(counts)
    del unseen.tables["spots_counts"]
    unseen.tables["spots_counts"] = shuffled
    scores = st.tl.compare(unseen, "spots_ridge", "spots_counts", write=True)
    assert (scores["n_locations"] == table.n_obs - 1).all()
    assert scores["pearson"].is_monotonic_decreasing
    measured = shuffled.to_df()
    predicted = unseen.tables["spots_ridge"].to_df()
    kept = [i for i in predicted.index if measured.loc[i].sum() > 0]
    cp10k = measured.loc[kept].div(measured.loc[kept].sum(axis=1), axis=0) * 1e4
    for gene in scores.index[[0, 7, 30]]:
        truth = np.log1p(cp10k[gene])
        assert scores.loc[gene, "pearson"] == pytest.approx(pearsonr(predicted.loc[kept, gene], truth)[0], abs=1e-5)
        assert scores.loc[gene, "spearman"] == pytest.approx(spearmanr(predicted.loc[kept, gene], truth)[0], abs=1e-4)
        rest = measured.loc[kept].sum(axis=1) - measured.loc[kept, gene]
        assert scores.loc[gene, "library_size"] == pytest.approx(pearsonr(rest, truth)[0], abs=1e-5)
    var = unseen.tables["spots_ridge"].var
    assert np.allclose(var["measured_pearson"], scores.loc[var.index, "pearson"], equal_nan=True)


def test_compare_on_another_scale_and_on_trusted_genes(ridge: Model, unseen: SpatialData) -> None:
    st.tl.predict(unseen, ridge)
    raw = st.tl.compare(unseen, "spots_ridge", "spots_counts", target="counts")
    log = st.tl.compare(unseen, "spots_ridge", "spots_counts")
    assert not np.allclose(raw.loc[log.index, "pearson"], log["pearson"])
    assert raw["library_size"].median() > log["library_size"].median()
    trusted = st.tl.compare(unseen, "spots_ridge", "spots_counts", trusted_only=True)
    assert trusted["trusted"].all()
    assert len(trusted) < len(log) or log["trusted"].all()


def test_compare_refuses_what_does_not_belong_together(ridge: Model, unseen: SpatialData) -> None:
    st.tl.predict(unseen, ridge)
    with pytest.raises(InputError, match=r"annotates \['spots'\], 'cells_counts' annotates \['cells'\]"):
        st.tl.compare(unseen, "spots_ridge", "cells_counts")
    with pytest.raises(InputError, match=r"No table named 'nope' .*available: .*spots_counts"):
        st.tl.compare(unseen, "nope", "spots_counts")
    with pytest.raises(InputError, match="was not written by stpred"):
        st.tl.compare(unseen, "spots_counts", "spots_ridge")


def test_cross_validation_is_tidy_and_never_shares_a_donor(cohort: dict[str, SpatialData]) -> None:
    names = list(cohort)
    grid = [st.models.Ridge.Config(penalty=p) for p in (0.3, 1e6)]
    scores = st.tl.cross_validate(
        cohort,
        {"mean": "mean", "ridge": grid},
        groups=dict(zip(names, "pqr", strict=True)),
        genes=st.GeneRule("mean", n=20),
        shapes_key="spots",
    )
    assert list(scores.columns) == [
        "model",
        "fold",
        "slide",
        "gene",
        "metric",
        "value",
        "target",
        "trained_on",
        "donor_shared",
        "split",
        "chosen",
        "donor",
    ]
    context = {"library_size", "neighbour_average", "training_mean", "ceiling"}
    assert set(scores["model"]) == {"mean", "ridge"} | context
    assert (scores["donor"] == scores["fold"]).all()
    assert not scores["donor_shared"].any()
    assert (scores.groupby("slide")["fold"].nunique() == 1).all()
    pearson = scores[scores["metric"] == "pearson"].set_index("model")["value"]
    assert pearson["mean"].isna().all()
    assert pearson["ridge"].median() > 0.4
    assert scores[scores["model"] == "ridge"]["chosen"].str.contains("penalty=0.3").all()


def test_cross_validation_says_when_a_donor_is_shared(cohort: dict[str, SpatialData]) -> None:
    scores = st.tl.cross_validate(
        cohort, "intensity", groups="slide", genes=st.GeneRule("mean", n=5), shapes_key="spots"
    )
    assert scores["donor_shared"].all()
    with pytest.raises(InputError, match=r"at least two donors, got \['p'\]; .* groups='slide'"):
        st.tl.cross_validate(cohort, "mean", groups=dict.fromkeys(cohort, "p"), shapes_key="spots")
    with pytest.raises(InputError, match="Two models are called 'ridge'"):
        st.tl.cross_validate(cohort, ["ridge", st.models.Ridge.Config(penalty=1.0)], groups="slide", shapes_key="spots")

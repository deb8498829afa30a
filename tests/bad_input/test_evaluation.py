"""What is asked of evaluation that cannot be answered, and what can although it looks odd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred._core import tables
from stpred.testing import copy_slide

HOW: dict[str, Any] = {"shapes_key": "spots", "genes": st.GeneRule("mean", n=6)}


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)


@pytest.fixture
def slide(slides: dict[str, SpatialData]) -> SpatialData:
    return copy_slide(slides["donor0"])


def predicted(slide: SpatialData, genes: list[str], values: np.ndarray, *, rows: slice = slice(None)) -> AnnData:
    """A predicted table of some of the slide's spots."""
    import pandas as pd

    counts = slide.tables["spots_counts"][rows]
    return tables.build_table(
        values[rows].astype(np.float32),
        shapes_key="spots",
        instances=pd.Index(counts.obs["instance_id"]),
        var=pd.DataFrame(index=genes),
        spatial_um=np.asarray(counts.obsm["spatial"]),
        provenance={"kind": "prediction", "output_scale": "log1p_cp10k"},
    )


def test_other_instances_are_joined_by_id_and_counted(slide: SpatialData) -> None:
    counts = slide.tables["spots_counts"]
    genes = counts.var_names[:4].tolist()
    frame = counts.to_df()
    values = np.log1p(frame.div(frame.sum(axis=1), axis=0) * 1e4)[genes].to_numpy()
    slide.tables["p"] = predicted(slide, genes, values, rows=slice(None, None, -2))  # every second, backwards
    slide.tables["few"] = counts[:20].copy()
    found = st.tl.compare(slide, "p", "few")
    facts = found.attrs["matching"]["cell"]
    n = len(range(counts.n_obs - 1, -1, -2))
    assert (facts["n_predicted"], facts["n_measured"], facts["n_matched"]) == (n, 20, 10)
    assert (found["n_locations"] == 10).all()
    assert (found["spearman"] > 0.999).all()  # rows were joined, not lined up


def test_no_shared_gene_and_a_single_one(slide: SpatialData) -> None:
    counts = slide.tables["spots_counts"]
    rng = np.random.default_rng(0)
    values = rng.random((counts.n_obs, 2))
    slide.tables["p"] = predicted(slide, ["NOTHING", "NEITHER"], values)
    with pytest.raises(InputError, match="share no gene|no gene"):
        st.tl.compare(slide, "p", "spots_counts")
    slide.tables["q"] = predicted(slide, [counts.var_names[3], "NEITHER"], values)
    found = st.tl.compare(slide, "q", "spots_counts")
    assert found.index.tolist() == [counts.var_names[3]]
    assert np.isfinite(found["pearson"]).all()


def test_constant_predictions_have_no_correlation_but_errors(slide: SpatialData) -> None:
    counts = slide.tables["spots_counts"]
    genes = counts.var_names[:3].tolist()
    slide.tables["p"] = predicted(slide, genes, np.full((counts.n_obs, 3), 1.5))
    found = st.tl.compare(slide, "p", "spots_counts")
    for name in ("pearson", "spearman", "pearson_smoothed", "pearson_given_library_size"):
        assert found[name].isna().all(), name
    assert (found["auroc"] == 0.5).all()
    assert (found["r2"] <= 0).all()
    assert found["rmse"].notna().all()


def test_one_slide_can_be_compared_but_not_validated(slides: dict[str, SpatialData]) -> None:
    one = {"donor0": slides["donor0"]}
    with pytest.raises(InputError, match="at least two slides"):
        st.tl.cross_validate(one, "ridge", groups="slide", **HOW)
    with pytest.raises(InputError, match="at least two donors"):
        st.tl.cross_validate(one, "ridge", groups={"donor0": "a"}, **HOW)


def test_a_slide_without_counts_is_named(slides: dict[str, SpatialData]) -> None:
    bare = SpatialData(images=dict(slides["donor1"].images), shapes=dict(slides["donor1"].shapes))
    with pytest.raises(InputError, match="Slide 'bare': No measured table annotates"):
        st.tl.cross_validate({"donor0": slides["donor0"], "bare": bare}, "ridge", groups="slide", **HOW)
    with pytest.raises(InputError, match="No table named 'spots_ridge'"):
        st.tl.compare(bare, "spots_ridge", "spots_counts")


def test_p_values_on_two_slides_are_refused_with_the_reason(slides: dict[str, SpatialData]) -> None:
    two = {s: slides[s] for s in ("donor0", "donor1")}
    scores = st.tl.cross_validate(two, ["intensity", "mean"], groups="slide", **HOW)
    with pytest.raises(InputError, match="three or more of them, got 2: two leave a single degree of freedom"):
        st.metrics.fisher_t_test([0.2, 0.3])
    with pytest.raises(InputError, match="over three donors or more, `scores` has 2"):
        st.tl.rank_models(scores)
    found = st.tl.summarise(scores, groupby="gene")
    assert found["p_t"].isna().all()
    assert "single degree of freedom" in found.attrs["p_values"]
    assert st.tl.summarise(scores).loc[("log1p_cp10k", "intensity"), "mean"] == pytest.approx(
        scores[(scores["model"] == "intensity") & (scores["metric"] == "pearson")]["value"].mean()
    )


def test_pooled_scores_stand_apart(slides: dict[str, SpatialData]) -> None:
    donors = {"donor0": "A", "donor1": "A", "donor2": "B"}
    scores = st.tl.cross_validate(slides, "intensity", groups=donors, **HOW)
    pooled = scores[scores["metric"] == "pearson_pooled"]
    assert set(pooled["slide"]) == {"pooled A", "pooled B"}
    assert set(pooled["donor"]) == {"A", "B"}
    assert "pooled A" not in set(scores.loc[scores["metric"] == "pearson", "slide"])
    one = scores[(scores["slide"] == "donor2") & (scores["metric"] == "pearson") & (scores["model"] == "intensity")]
    np.testing.assert_allclose(pooled.loc[pooled["slide"] == "pooled B", "value"], one["value"])


def test_models_cannot_take_the_names_of_context(slides: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match=r"No model can be called \['library_size'\]"):
        st.tl.cross_validate(slides, {"library_size": "ridge"}, groups="slide", **HOW)

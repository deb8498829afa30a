from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import stats

import stpred as st
from stpred import InputError
from stpred.tl._downstream.feature_associations import associations

if TYPE_CHECKING:
    from spatialdata import SpatialData

FEATURE = "nuclei_number"
METHODS = {"spearman": stats.spearmanr, "pearson": stats.pearsonr}


def _balanced(counts: np.ndarray) -> np.ndarray:
    """Let all locations have the same library, which otherwise tells of the density of the tissue, through one gene."""
    counts[:, 2] = 0
    counts[:, 2] = counts.sum(axis=1).max() - counts.sum(axis=1)
    return counts


@pytest.fixture
def slide(unseen: SpatialData) -> SpatialData:
    """A slide whose gene PLANTED follows a named feature, and SHUFFLED the same values elsewhere."""
    st.pp.features(unseen, shapes_key="spots")
    feature = unseen.tables["spots_feat_morphology"][:, FEATURE].X[:, 0]
    z = (feature - feature.mean()) / feature.std()
    counts = unseen.tables["spots_counts"]
    dense = counts.X.toarray() if hasattr(counts.X, "toarray") else counts.X.copy()
    rng = np.random.default_rng(0)
    dense[:, 0] = rng.poisson(40 * np.exp(0.8 * z))
    dense[:, 1] = rng.permutation(dense[:, 0])
    counts.X = _balanced(dense)
    counts.var_names = ["PLANTED", "SHUFFLED", *counts.var_names[2:]]
    return unseen


@pytest.mark.parametrize("method", sorted(METHODS))
def test_every_pair_equals_scipy(method: str) -> None:
    rng = np.random.default_rng(0)
    values, seen = rng.integers(0, 5, (30, 4)), rng.normal(size=(30, 3))
    seen[:, 1] += values[:, 2]
    found = associations(values, seen, genes=list("abcd"), features=list("xyz"), method=method)
    for row in found.itertuples():
        r, p = METHODS[method](values[:, "abcd".index(row.gene)], seen[:, "xyz".index(row.feature)])
        assert (row.correlation, row.p) == (pytest.approx(r, abs=1e-9), pytest.approx(p, rel=1e-6))
    assert found.p_adj.to_numpy() == pytest.approx(stats.false_discovery_control(found.p))
    assert found.gene.tolist() == [g for g in "abcd" for _ in range(3)]
    assert found[found.gene == "c"].feature.iloc[0] == "y"


def test_constant_columns_are_missing_and_do_not_count() -> None:
    rng = np.random.default_rng(1)
    values, seen = rng.normal(size=(20, 2)), rng.normal(size=(20, 2))
    values[:, 1], seen[:, 0] = 0.1, 7.3
    found = associations(values, seen, genes=["a", "b"], features=["x", "y"], n_features=1)
    assert found.feature.tolist()[0] == "y"
    assert found.p.notna().tolist() == [True, False]
    assert found.p_adj[0] == pytest.approx(found.p[0])


def test_a_planted_feature_is_found_and_a_shuffled_gene_has_none(slide: SpatialData) -> None:
    found = st.tl.feature_associations(slide, "spots_counts", genes=["SHUFFLED", "PLANTED"])
    first = found.groupby("gene", sort=False).head(1).set_index("gene")
    assert first.feature["PLANTED"] == FEATURE
    assert first.correlation["PLANTED"] > 0.7
    alone = st.tl.feature_associations(slide, "spots_counts", genes=["SHUFFLED"])  # else PLANTED lends it its rank
    assert alone.p_adj.min() > 0.05
    assert set(found.feature) == set(slide.tables["spots_feat_morphology"].var_names)


def test_features_are_computed_where_none_are_stored(slide: SpatialData) -> None:
    stored = st.tl.feature_associations(slide, "spots_counts", genes="PLANTED")
    named = st.tl.feature_associations(slide, "spots_counts", genes="PLANTED", features="spots_feat_morphology")
    del slide.tables["spots_feat_morphology"]
    fresh = st.tl.feature_associations(slide, "spots_counts", genes="PLANTED")
    for other in (named, fresh):
        assert other.feature.tolist() == stored.feature.tolist()
        np.testing.assert_allclose(other.correlation, stored.correlation, atol=1e-6)


def test_inside_classes_what_tells_them_apart_is_gone(slide: SpatialData) -> None:
    counts, seen = slide.tables["spots_counts"], slide.tables["spots_feat_morphology"]
    feature = seen[:, FEATURE].X[:, 0]
    high = feature > np.median(feature)
    counts.obs["class"] = np.where(high, "high", "low")
    counts.X[:, 1] = np.random.default_rng(3).poisson(np.where(high, 90, 30))  # follows the class alone
    counts.X = _balanced(counts.X)
    whole = st.tl.feature_associations(slide, "spots_counts", genes="SHUFFLED")
    inside = st.tl.feature_associations(slide, "spots_counts", genes="SHUFFLED", groupby="class")
    assert whole.set_index("feature").correlation[FEATURE] > 0.5
    assert inside[inside.feature == FEATURE].correlation.abs().max() < 0.4
    assert set(inside.group) == {"high", "low"}


def test_predicted_tables_and_trust(slide: SpatialData, ridge: Any) -> None:
    st.tl.predict(slide, ridge, shapes_key="spots")
    table = slide.tables["spots_ridge"]
    table.var["trusted"] = [True] + [False] * (table.n_vars - 1)
    found = st.tl.feature_associations(slide, "spots_ridge", n_features=2)
    assert found.gene.tolist() == [table.var_names[0]] * 2
    assert len(st.tl.feature_associations(slide, "spots_ridge", n_features=2, trusted_only=False)) == 2 * table.n_vars


@pytest.mark.parametrize(
    ("table", "options", "said"),
    [
        ("nowhere", {}, "No table named 'nowhere'"),
        ("spots_counts", {"genes": ["NOPE"]}, "No genes \\['NOPE'\\] .*'PLANTED'"),
        (
            "spots_counts",
            {"features": "morfology"},
            "neither a table of 'spots' .*'spots_counts'.* nor an encoder: .*'morphology'",
        ),
        ("spots_counts", {"features": "cells_counts"}, "annotates \\['cells'\\], not 'spots'"),
        ("spots_counts", {"method": "kendall"}, "'spearman', 'pearson'"),
        ("spots_counts", {"groupby": "class"}, "No column of obs .*'class'"),
        ("spots_counts", {"n_features": 0}, "`n_features`"),
    ],
)
def test_bad_input(slide: SpatialData, table: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        st.tl.feature_associations(slide, table, **options)


def test_too_few_or_other_locations(slide: SpatialData) -> None:
    counts = slide.tables["spots_counts"]
    counts.obs["class"] = [f"c{i // 3}" for i in range(counts.n_obs)]
    with pytest.raises(InputError, match="under 5 locations .* in any group"):
        st.tl.feature_associations(slide, "spots_counts", groupby="class")
    slide.tables["spots_feat_morphology"].obs["instance_id"] = np.arange(counts.n_obs) + 10**6
    with pytest.raises(InputError, match="share no location"):
        st.tl.feature_associations(slide, "spots_counts", features="spots_feat_morphology")

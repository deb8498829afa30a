from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import rankdata

import stpred as st
from stpred import InputError
from stpred.testing import build_table
from stpred.tl._downstream.differential_rank import rank_difference

if TYPE_CHECKING:
    from spatialdata import SpatialData

KEY = "spots_counts"


def slow(values: np.ndarray, risk: np.ndarray, n: int) -> np.ndarray:
    order = sorted(range(len(risk)), key=lambda i: risk[i])
    out = []
    for g in range(values.shape[1]):
        rank = rankdata(values[:, g]) / len(values)
        out.append(np.mean([rank[i] for i in order[-n:]]) - np.mean([rank[i] for i in order[:n]]))
    return np.array(out)


def test_kernel_equals_the_obvious_loop_and_is_bounded() -> None:
    rng = np.random.default_rng(0)
    values, risk = rng.poisson(1.0, (60, 30)), rng.normal(size=60)
    np.testing.assert_allclose(rank_difference(values, risk, n_top=10), slow(values, risk, 10), atol=1e-12)
    # Only ranks count, and turning risk round turns the sign.
    np.testing.assert_allclose(rank_difference(np.exp(values), risk, n_top=10), rank_difference(values, risk, n_top=10))
    np.testing.assert_allclose(
        rank_difference(values, -risk, n_top=10), -rank_difference(values, risk, n_top=10), atol=1e-12
    )
    perfect = rank_difference(risk[:, None], risk, n_top=30)
    assert perfect[0] == pytest.approx(0.5)  # halves: mean ranks 0.75 and 0.25
    assert rank_difference(risk[:, None], risk, n_top=1)[0] == pytest.approx(1 - 1 / 60)


def test_equal_risks_share_places_whatever_the_order_of_rows() -> None:
    rng = np.random.default_rng(1)
    values, risk = rng.normal(size=(40, 5)), rng.integers(0, 3, 40).astype(float)
    mixed = rng.permutation(40)
    np.testing.assert_allclose(
        rank_difference(values, risk, n_top=10), rank_difference(values[mixed], risk[mixed], n_top=10), atol=1e-12
    )
    assert np.abs(rank_difference(np.ones((40, 2)), risk, n_top=10)).max() < 1e-12


def test_donors_are_drawn_with_all_their_slides(cohort: dict[str, SpatialData]) -> None:
    each = st.tl.differential_rank(cohort, KEY, "n_cells", n_top=15, n_bootstrap=300)
    donors = {"donor0": "a", "donor1": "b", "donor2": "c"}
    pd.testing.assert_frame_equal(
        each, st.tl.differential_rank(cohort, KEY, "n_cells", n_top=15, n_bootstrap=300, groups=donors)
    )
    # A section twice adds no donor, so the interval is as wide as before, about another weighting of the donors.
    twice = cohort | {"again": cohort["donor0"]}
    naive = st.tl.differential_rank(twice, KEY, "n_cells", n_top=15, n_bootstrap=300)
    honest = st.tl.differential_rank(twice, KEY, "n_cells", n_top=15, n_bootstrap=300, groups=donors | {"again": "a"})
    pd.testing.assert_series_equal(naive["score"], honest["score"])
    assert (honest["high"] - honest["low"]).mean() > (naive["high"] - naive["low"]).mean()
    one = st.tl.differential_rank(cohort, KEY, "n_cells", n_top=15, groups=dict.fromkeys(cohort, "a"))
    assert one["low"].isna().all()
    with pytest.raises(InputError, match=r"`groups` lacks \['donor1', 'donor2'\]; it has \['donor0'\]"):
        st.tl.differential_rank(cohort, KEY, "n_cells", n_top=15, groups={"donor0": "a"})


def test_a_gene_that_follows_risk_is_found_and_shuffled_risk_finds_nothing(cohort: dict[str, SpatialData]) -> None:
    gene = 5
    risk = {s: o[KEY].layers["expected"][:, gene] for s, o in cohort.items()}
    risk = {s: np.asarray(r.toarray() if hasattr(r, "toarray") else r).ravel() for s, r in risk.items()}
    found = st.tl.differential_rank(cohort, KEY, risk, n_top=15, n_bootstrap=500)
    name = cohort["donor0"][KEY].var_names[gene]
    row = found.set_index("gene").loc[name]
    assert row["score"] > 0.3
    assert row["low"] > 0.1
    assert row["n_slides"] == 3
    assert found["score"].is_monotonic_decreasing
    rng = np.random.default_rng(0)
    nothing = st.tl.differential_rank(cohort, KEY, {s: rng.permutation(r) for s, r in risk.items()}, n_top=15)
    assert nothing["score"].abs().max() < 0.3
    assert nothing["score"].abs().mean() < 0.08


def test_sequencing_depth_is_no_risk_gene(cohort: dict[str, SpatialData]) -> None:
    depth = {s: np.asarray(o[KEY].X.sum(axis=1)).ravel() for s, o in cohort.items()}
    found = st.tl.differential_rank(cohort, KEY, depth, n_top=15, n_bootstrap=100)
    assert abs(found["score"].mean()) < 0.2  # raw ranks would all follow the amount of RNA


def test_a_series_is_joined_and_an_obs_column_is_found(unseen: SpatialData) -> None:
    table = unseen[KEY]
    risk = pd.Series(np.arange(table.n_obs, dtype=float), index=table.obs_names)
    table.obs["risk"] = risk
    one = st.tl.differential_rank(unseen, KEY, "risk", n_top=10)
    other = st.tl.differential_rank({"slide": unseen}, KEY, {"slide": risk.iloc[::-1]}, n_top=10)
    pd.testing.assert_frame_equal(one, other)
    pd.testing.assert_frame_equal(one, st.tl.differential_rank(unseen, KEY, risk.to_numpy(), n_top=10))
    assert one[["low", "high"]].isna().all(axis=None)


def test_locations_out_of_distribution_are_left_out(unseen: SpatialData) -> None:
    table = unseen[KEY]
    table.obs["in_distribution"] = np.arange(table.n_obs) >= 20
    table.obs["risk"] = np.arange(table.n_obs, dtype=float)
    found = st.tl.differential_rank(unseen, KEY, "risk", n_top=5)
    assert found.attrs["n_locations"] == {"slide": table.n_obs - 20}
    found = st.tl.differential_rank(unseen, KEY, "risk", n_top=5, in_distribution_only=False)
    assert found.attrs["n_locations"] == {"slide": table.n_obs}


def test_bad_input_is_named(cohort: dict[str, SpatialData], unseen: SpatialData) -> None:
    table = unseen[KEY]
    table.obs["flat"], table.obs["words"] = 1.0, "high"
    right = np.arange(table.n_obs, dtype=float)
    for risk, n, said in (
        ("none", 5, "No column of obs"),
        ("flat", 5, "the same in all"),
        ("words", 5, "must be numbers"),
        (right[:3], 5, r"got shape \(3,\) for"),
        (right, 500, "needs 1000"),
        (right, 0, "`n_top` must be a positive whole number"),
        ({"other": right}, 5, "No slide named 'slide'"),
        (pd.Series(right), 5, "does not name the rows"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.differential_rank(unseen, KEY, risk, n_top=n)
    with pytest.raises(InputError, match="must be a column of obs or a mapping"):
        st.tl.differential_rank(cohort, KEY, right)
    with pytest.raises(InputError, match="`level` must be between 0 and 1"):
        st.tl.differential_rank(unseen, KEY, right, level=95)
    with pytest.raises(InputError, match="`slides` must be a mapping"):
        st.tl.differential_rank([unseen], KEY, right)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`slides` is empty"):
        st.tl.differential_rank({}, KEY, right)
    with pytest.raises(InputError, match="No table of 'donor0' named 'x'"):
        st.tl.differential_rank(cohort, "x", right)
    renamed = table.copy()
    renamed.var_names = [f"other{i}" for i in range(renamed.n_vars)]
    del unseen.tables[KEY]
    unseen.tables[KEY] = renamed
    with pytest.raises(InputError, match="shares no gene"):
        st.tl.differential_rank({"a": cohort["donor0"], "b": unseen}, KEY, "array_row")


def as_prediction(slide: SpatialData, values: np.ndarray, scale: str, trained_on: str) -> None:
    table = slide.tables[KEY]
    slide.tables["spots_told"] = build_table(
        values,
        shapes_key="spots",
        instances=pd.Index(table.obs["instance_id"]),
        var=table.var[[]],
        spatial_um=table.obsm["spatial"],
        provenance={"kind": "prediction", "output_scale": scale, "training": {"target": trained_on}},
    )


def test_a_perfect_prediction_scores_as_its_measurement_on_either_scale(unseen: SpatialData) -> None:
    # How much RNA a spot caught follows the risk: on raw counts all genes do, and both sides say so alike.
    table = unseen.tables[KEY]
    rng = np.random.default_rng(0)
    risk = rng.normal(size=table.n_obs)
    counts = rng.poisson(rng.gamma(2.0, 2.0, table.n_vars) * np.exp(1.5 * risk)[:, None]).astype(np.float32)
    counts[:, 0] += 1
    table.X = csr_matrix(counts)
    as_prediction(unseen, counts, "relative", "counts")
    how = {"risk": risk, "n_top": 10}
    both = [st.tl.differential_rank(unseen, k, scale="counts", **how) for k in (KEY, "spots_told")]
    pd.testing.assert_frame_equal(*both)
    assert both[0]["score"].mean() > 0.5
    free = st.tl.differential_rank(unseen, KEY, **how)
    assert abs(free["score"].mean()) < 0.2
    assert free.attrs["scale"] == "log1p_cp10k"
    with pytest.raises(InputError, match=r"predictions of a model of 'counts', which cannot .* pass scale='counts'"):
        st.tl.differential_rank(unseen, "spots_told", **how)
    as_prediction(unseen, np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4), "log1p_cp10k", "log1p_cp10k")
    pd.testing.assert_frame_equal(st.tl.differential_rank(unseen, "spots_told", **how), free)
    with pytest.raises(InputError, match=r"cannot be compared as 'counts'; pass scale='log1p_cp10k' for both"):
        st.tl.differential_rank(unseen, "spots_told", scale="counts", **how)
    with pytest.raises(InputError, match="`scale` must be one of"):
        st.tl.differential_rank(unseen, KEY, scale="raw", **how)

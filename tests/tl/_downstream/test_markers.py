from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from spatialdata import SpatialData
from spatialdata.models import TableModel

import stpred as st
from stpred import InputError
from stpred.testing import build_table


def _slide(values: np.ndarray, groups: list[str] | np.ndarray, **provenance: str) -> SpatialData:
    """A slide that is one table, predicted if a provenance is given."""
    n, g = values.shape
    table = build_table(
        values,
        shapes_key="spots",
        instances=pd.RangeIndex(n),
        var=pd.DataFrame(index=[f"G{i}" for i in range(g)]),
        spatial_um=np.zeros((n, 2)),
        provenance=provenance or None,
    )
    table.obs["group"] = pd.Categorical(groups)
    slide = SpatialData()
    slide.tables["t"] = table
    return slide


def _counts(seed: int = 0, *, fold: float = 4.0) -> tuple[np.ndarray, np.ndarray]:
    """Library sizes differ between groups, so unnormalised counts would make every gene a marker; G0..G4 are of b."""
    rng = np.random.default_rng(seed)
    groups = np.array(["a"] * 60 + ["b"] * 60)
    rate = np.full((120, 200), 5.0)
    rate[60:, :5] *= fold
    return rng.poisson(rate * np.where(groups == "a", 1.0, 3.0)[:, None]).astype(np.float32), groups


@pytest.mark.parametrize("method", ["wilcoxon", "t-test"])
def test_raised_genes_are_found_whatever_the_library_size(method: str) -> None:
    slide = _slide(*_counts())
    before = slide.tables["t"].X.copy()
    found = st.tl.markers(slide, "t", "group", n_genes=5, method=method)
    assert set(found[found.group == "b"].gene) == {f"G{i}" for i in range(5)}
    # Per 10 000, the five genes take 4 / (200 + 15) * 200 of what they took: not exactly fourfold.
    raised = found[found.group == "b"].log2_fold_change
    assert raised.to_numpy() == pytest.approx(np.log2(4 * 200 / 215), abs=0.12)
    np.testing.assert_array_equal(slide.tables["t"].X, before)
    everything = st.tl.markers(slide, "t", "group", n_genes=None, method=method)
    rest = everything[(everything.group == "b") & ~everything.gene.isin([f"G{i}" for i in range(5)])]
    assert (rest.p_adj < 0.05).mean() < 0.35  # their shares are a little lower, since the five took theirs


def test_shuffled_groups_have_no_markers() -> None:
    counts, groups = _counts()
    shuffled = np.random.default_rng(1).permutation(groups)
    found = st.tl.markers(_slide(counts, shuffled), "t", "group", n_genes=None)
    assert found.p_adj.min() > 0.05
    assert 0.02 < (found.p < 0.05).mean() < 0.09


def test_values_equal_scipy_on_a_predicted_table() -> None:
    rng = np.random.default_rng(2)
    values = rng.integers(0, 4, (40, 6)).astype(np.float32)  # ties
    groups = np.repeat(["a", "b", "c"], [12, 14, 14])
    found = st.tl.markers(_slide(values, groups, output_scale="log1p_cp10k"), "t", "group", n_genes=None)
    for row in found.itertuples():
        column = values[:, int(row.gene[1:])]
        inside = groups == row.group
        assert row.p == pytest.approx(
            stats.mannwhitneyu(column[inside], column[~inside], use_continuity=False, method="asymptotic").pvalue,
            rel=1e-4,
        )
        amounts = np.expm1(column)
        assert row.log2_fold_change == pytest.approx(
            np.log2((amounts[inside].mean() + 0.01) / (amounts[~inside].mean() + 0.01)), rel=1e-5
        )
    for _, part in found.groupby("group"):
        assert part.p_adj.to_numpy() == pytest.approx(stats.false_discovery_control(part.p), rel=1e-6)
        assert part.score.is_monotonic_decreasing


def test_relative_values_have_no_fold_change_and_trust_is_respected() -> None:
    counts, groups = _counts()
    slide = _slide(counts - 3.0, groups, output_scale="relative")
    slide.tables["t"].var["trusted"] = [False] * 2 + [True] * 198
    slide.tables["t"].var["cv_pearson"] = 0.5
    found = st.tl.markers(slide, "t", "group", n_genes=3)
    assert found.log2_fold_change.isna().all()
    assert not found.gene.isin(["G0", "G1"]).any()
    assert found.trusted.all()
    assert len(found.attrs["stpred"]["genes"]) == 198
    assert st.tl.markers(slide, "t", "group", n_genes=None, trusted_only=False).gene.nunique() == 200
    slide.tables["t"].var["trusted"] = False
    with pytest.raises(InputError, match="None of the 200 genes .* trusted_only=False"):
        st.tl.markers(slide, "t", "group")


def test_small_and_missing_groups() -> None:
    counts, groups = _counts()
    named = pd.Series(groups, dtype=object)
    named[:3], named[5] = "tiny", None
    slide = _slide(counts, named.to_numpy())
    TableModel.validate(slide.tables["t"])
    found = st.tl.markers(slide, "t", "group", n_genes=1)
    assert found.group.tolist() == ["a", "b"]
    assert found.attrs["stpred"]["sizes"] == {"a": 56, "b": 60, "tiny": 3}


def test_bad_input() -> None:
    counts, groups = _counts()
    slide = _slide(counts, groups)
    table = slide.tables["t"]
    table.obs["one"], table.obs["depth"] = "a", np.linspace(0, 1, 120)
    for arguments, options, said in (
        (("nowhere", "group"), {}, "No table named 'nowhere'.*'t'"),
        (("t", "cluster"), {}, "No column of obs of table 't' named 'cluster'.*'group'"),
        (("t", "depth"), {}, "no grouping: 120"),
        (("t", "one"), {}, "one group"),
        (("t", "group"), {"min_in_group": 100}, "No group .* has 100"),
        (("t", "group"), {"n_genes": 0}, "`n_genes`"),
        (("t", "group"), {"method": "logreg"}, "'wilcoxon', 't-test'"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.markers(slide, *arguments, **options)
    table.X[0, 0] = np.nan
    with pytest.raises(InputError, match="NaN"):
        st.tl.markers(slide, "t", "group")

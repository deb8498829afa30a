from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData

import stpred as st
from stpred._core.tables import changed_values, read_provenance
from stpred.testing import build_table, refused

GENES = ["CCL19", "CCR7", "CXCL12", "CXCR4", "VIM"]


@pytest.fixture
def table() -> AnnData:
    rng = np.random.default_rng(0)
    return build_table(
        rng.random((30, 5)).astype(np.float32),
        shapes_key="cells",
        instances=pd.Index(np.arange(30)),
        var=pd.DataFrame(
            {"trusted": [True, True, False, True, False], "cv_pearson": [0.5, 0.4, 0.0, 0.3, -0.1]}, GENES
        ),
        spatial_um=rng.random((30, 2)),
        obs={"in_distribution": np.arange(30) % 3 > 0},
        layers={"std": np.ones((30, 5), np.float32)},
        provenance={"kind": "prediction", "output_scale": "log1p_cp10k", "model": "made"},
    )


def test_trusted_genes_and_their_provenance_are_kept(table: AnnData, recwarn: Any) -> None:
    before = table.copy()
    found = st.tl.trusted(table)
    assert list(found.var_names) == ["CCL19", "CCR7", "CXCR4"]
    np.testing.assert_array_equal(found.X, table[:, [0, 1, 3]].X)
    assert found.layers["std"].shape == (30, 3)
    assert not found.is_view
    found.X[:] = 0
    np.testing.assert_array_equal(table.X, before.X)
    stated = read_provenance(found)
    assert stated["model"] == "made"
    assert stated["trusted"] == {"genes_left_out": 2, "locations_left_out": 0}
    assert changed_values(found, stated, what="table") is not None  # changes are still found out
    assert changed_values(st.tl.trusted(table), stated, what="table") is None
    few = st.tl.trusted(SpatialData(tables={"t": table}), "t", in_distribution_only=True)
    assert few.n_obs == 20
    assert few.obs["in_distribution"].all()
    assert json.loads(few.uns["stpred"])["trusted"]["locations_left_out"] == 10


def test_what_cannot_be_cut_is_refused(table: AnnData) -> None:
    sdata = SpatialData(tables={"t": table})
    with refused("`table_key`", "['t']"):
        st.tl.trusted(sdata)
    with refused("a table was given"):
        st.tl.trusted(table, "t")
    with refused("not written by stpred"):
        st.tl.trusted(AnnData(np.ones((2, 2))))
    none = table.copy()
    none.var["trusted"] = False
    with refused("None of the 5 genes"):
        st.tl.trusted(none)
    away = table.copy()
    away.obs["in_distribution"] = False
    with refused("None of the 30 locations"):
        st.tl.trusted(away, in_distribution_only=True)
    del none.var["trusted"]
    with refused("which genes are trusted"):
        st.tl.trusted(none)
    with refused("which genes are trusted"):
        st.tl.check_pairs(none, [("CCL19", "CCR7")])


def test_pairs_on_untrusted_genes_are_named(table: AnnData) -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 pairs rest on .*CXCL12-CXCR4"):
        found = st.tl.check_pairs(table, [("ccl19", "CCR7"), ("CXCL12", "CXCR4")])
    assert found["trusted"].tolist() == [True, False]
    assert found["cv_pearson"].tolist() == [0.4, 0.0]
    index = pd.MultiIndex.from_tuples([("CXCL12", "CXCR4"), ("CCL19", "CCR7")], names=["source", "target"])
    p = pd.DataFrame([[0.01, np.nan], [0.9, 0.02]], index=index)
    with pytest.warns(UserWarning, match="1 of 2 pairs that were found"):
        found = st.tl.check_pairs(table, {"pvalues": p})
    assert found["n_found"].tolist() == [1, 1]
    found = st.tl.check_pairs(table, {"pvalues": p}, level=0.001)  # nothing found, nothing to warn of
    assert found["n_found"].tolist() == [0, 0]
    frame = pd.DataFrame({"ligand": ["CCL19"], "receptor": ["CCR7"]})
    assert st.tl.check_pairs(table, frame)["source_trusted"].all()
    for wrong, part in (
        ([("CCL19", "ABC")], "no gene"),
        (["CCL19"], "pairs of two genes"),
        ({"means": p}, "'pvalues'"),
        (frame[["ligand"]], "'source' and 'target'"),
    ):
        with refused(part):
            st.tl.check_pairs(table, wrong)

from __future__ import annotations

import numpy as np
import pytest
from anndata import AnnData

import stpred as st
from stpred.testing import refused


@pytest.fixture(scope="module")
def reference() -> AnnData:
    return st.datasets.toy_reference(n_types=4, n_genes=120, n_cells=150, n_markers=10)


def markers(reference: AnnData, *kinds: str) -> list[str]:
    return list(reference.var_names[reference.var["marks"].isin(kinds)])


def test_types_without_their_markers_are_indistinct(reference: AnnData) -> None:
    every = st.tl.check_reference(reference, reference.var_names, "cell_type")
    assert (every["recall"] > 0.95).all()
    assert (every["indistinct_with"] == "").all()
    assert (every["unknown_if_absent"] > 0.9).all()
    assert "tells its 4 classes apart" in every.attrs["stpred"]["summary"]
    two = reference[reference.obs["cell_type"].isin(["type2", "type3"])].copy()
    two.obs["cell_type"] = np.random.default_rng(0).permutation(two.obs["cell_type"].astype(str))
    both = reference.copy()
    both.obs["cell_type"] = both.obs["cell_type"].astype(str)
    both.obs.loc[two.obs_names, "cell_type"] = two.obs["cell_type"]
    found = st.tl.check_reference(both, markers(reference, "type0", "type1", "type2"), "cell_type")
    assert found.loc["type2", "indistinct_with"] == "type3"
    assert found.loc["type3", "confused_with"] == "type2"
    assert found.loc[["type0", "type1"], "recall"].min() > 0.95
    assert "cannot tell apart: ['type2', 'type3']" in found.attrs["stpred"]["summary"]
    rows = np.array([list(r.values()) for r in found.attrs["stpred"]["confusion"].values()])
    np.testing.assert_allclose(rows.sum(axis=1), 1)


def test_fewer_counts_tell_less_apart(reference: AnnData) -> None:
    genes = markers(reference, "type0", "type1", "type2", "type3")
    recall = [st.tl.check_reference(reference, genes, "cell_type", depth=d)["recall"].mean() for d in (400, 20, 3)]
    assert recall[0] > recall[1] > recall[2] > 0.25
    again = st.tl.check_reference(reference, genes, "cell_type", depth=20)["recall"].mean()
    assert again == recall[1]


def test_shuffled_labels_tell_nothing_apart(reference: AnnData) -> None:
    other = reference.copy()
    other.obs["cell_type"] = np.random.default_rng(0).permutation(other.obs["cell_type"].astype(str))
    found = st.tl.check_reference(other, other.var_names, "cell_type")
    assert "tells none of its 4 classes apart" in found.attrs["stpred"]["summary"]
    assert found["recall"].mean() < 0.35
    assert found["unknown_if_absent"].max() < 0.2


def test_a_table_gives_genes_and_depth(reference: AnnData) -> None:
    table = reference[:50, :60].copy()
    table.var["trusted"] = np.arange(60) < 30
    found = st.tl.check_reference(reference, table, "cell_type")
    assert found.attrs["stpred"]["genes"] == list(reference.var_names[:30])
    assert found.attrs["stpred"]["depth"] == np.median(np.asarray(table.X[:, :30].sum(axis=1)))


def test_bad_input_is_refused(reference: AnnData) -> None:
    with refused("list of genes or a table"):
        st.tl.check_reference(reference, "GENE1", "cell_type")
    with refused("share 1 of 2 genes"):
        st.tl.check_reference(reference, ["GENE1", "nothing"], "cell_type")
    with refused("no column obs['kind']"):
        st.tl.check_reference(reference, ["GENE1", "GENE2"], "kind")
    with refused("between 0.5 and 1"):
        st.tl.check_reference(reference, ["GENE1", "GENE2"], "cell_type", min_accuracy=0.2)
    with refused("`depth`"):
        st.tl.check_reference(reference, ["GENE1", "GENE2"], "cell_type", depth=-1)

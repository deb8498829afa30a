from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import spatialdata as sd
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.testing import build_table


@pytest.fixture(scope="module")
def tissue() -> Any:
    return st.datasets.make_tissue(size_um=(400, 400), n_genes=30)


@pytest.fixture
def slide(tissue: Any) -> SpatialData:
    return st.datasets.toy(tissue=tissue)


def markers_of(table: Any, n: int = 3) -> dict[str, list[str]]:
    marks = table.var["marks"]
    return {t: list(table.var_names[marks == t][:n]) for t in dict.fromkeys(marks) if t}


def predicted(slide: SpatialData, values: np.ndarray, scale: str) -> None:
    table = slide.tables["cells_counts"]
    slide.tables["cells_model"] = build_table(
        values,
        shapes_key="cells",
        instances=pd.Index(table.obs["instance_id"]),
        var=pd.DataFrame(index=table.var_names),
        spatial_um=table.obsm["spatial"],
        provenance={"kind": "prediction", "output_scale": scale},
    )


def log1p_cp10k(counts: np.ndarray) -> np.ndarray:
    return np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)


def test_scores_equal_the_slow_loop_and_find_the_types(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    before, markers = table.X.copy(), markers_of(table)
    np.random.seed(5)  # noqa: NPY002
    expected_draw = np.random.RandomState(5).random()
    assert st.tl.score_cell_types(slide, "cells_counts", markers) is None
    assert np.random.random() == expected_draw  # noqa: NPY002
    assert (table.X != before).nnz == 0
    assert table.X.dtype == before.dtype
    scaled = log1p_cp10k(before.toarray())
    scaled = (scaled - scaled.mean(axis=0)) / scaled.std(axis=0, ddof=1)
    truth = {}
    for name, genes in markers.items():
        mine = table.var_names.isin(genes)
        # With so few genes all others are controls.
        truth[name] = scaled[:, mine].mean(axis=1) - scaled[:, ~mine].mean(axis=1)
        assert np.allclose(table.obs[f"score_{name}"], truth[name], atol=1e-4)
    best = pd.DataFrame(truth).idxmax(axis=1).to_numpy()
    assert (table.obs["cell_type"].astype(str).to_numpy() == best).all()
    assert (table.obs["cell_type"].astype(str) == table.obs["type"].astype(str)).mean() > 0.97


def test_shuffled_expression_names_cells_by_chance(tissue: Any) -> None:
    slide = st.datasets.toy(tissue=tissue, shuffled=True)
    table = slide.tables["cells_counts"]
    st.tl.score_cell_types(slide, "cells_counts", markers_of(table))
    assert (table.obs["cell_type"].astype(str) == table.obs["type"].astype(str)).mean() < 0.4


def test_values_that_are_log_normalised_are_not_normalised_twice(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    markers = markers_of(table)
    st.tl.score_cell_types(slide, "cells_counts", markers)
    predicted(slide, log1p_cp10k(table.X.toarray()), "log1p_cp10k")
    st.tl.score_cell_types(slide, "cells_model", markers)
    columns = [f"score_{t}" for t in markers]
    assert np.allclose(slide.tables["cells_model"].obs[columns], table.obs[columns], atol=1e-4)
    facts = json.loads(slide.tables["cells_model"].uns["stpred"])
    assert facts["output_scale"] == facts["cell_types"]["values"] == "log1p_cp10k"
    predicted_with_counts = slide.tables.pop("cells_model")
    predicted(slide, table.X.toarray().astype(np.float32) * 1.5, "counts")  # predicted counts need not be whole
    st.tl.score_cell_types(slide, "cells_model", markers)
    assert np.allclose(slide.tables["cells_model"].obs[columns], predicted_with_counts.obs[columns], atol=1e-4)


def test_a_relative_prediction_is_scored_as_it_is(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    log, markers = log1p_cp10k(table.X.toarray()), markers_of(table)
    predicted(slide, log, "log1p_cp10k")
    st.tl.score_cell_types(slide, "cells_model", markers)
    first = slide.tables.pop("cells_model").obs["cell_type"]
    # Another unit and offset for each gene, with negative values: only the scaling of genes can undo it.
    rng = np.random.default_rng(0)
    predicted(slide, (log * rng.uniform(0.1, 9, 30) - rng.uniform(0, 5, 30)).astype(np.float32), "relative")
    st.tl.score_cell_types(slide, "cells_model", markers)
    assert (slide.tables["cells_model"].obs["cell_type"] == first).all()


def test_the_order_of_cells_does_not_matter_and_a_copy_leaves_the_object_alone(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    order = np.random.default_rng(0).permutation(table.n_obs)
    first = st.tl.score_cell_types(slide, "cells_counts", markers_of(table), inplace=False)
    assert "cell_type" not in table.obs
    assert "stpred_cell_types" not in table.uns
    del slide.tables["cells_counts"]
    slide.tables["cells_counts"] = table[order].copy()
    again = st.tl.score_cell_types(slide, "cells_counts", markers_of(table), inplace=False)
    assert (again.obs["cell_type"] == first.obs["cell_type"].iloc[order]).all()
    assert np.allclose(again.obs["score_tumour"], first.obs["score_tumour"].iloc[order], atol=1e-4)


def test_controls_of_a_large_panel_are_of_similar_expression() -> None:
    slide = st.datasets.toy(size_um=(320, 320), n_genes=400)
    table = slide.tables["cells_counts"]
    found = [
        st.tl.score_cell_types(slide, "cells_counts", markers_of(table, 5), ctrl_size=10, seed=s, inplace=False)
        for s in (0, 0, 1)
    ]
    assert (found[0].obs["score_tumour"] == found[1].obs["score_tumour"]).all()
    assert not np.allclose(found[0].obs["score_tumour"], found[2].obs["score_tumour"])
    for one in found:
        assert (one.obs["cell_type"].astype(str) == one.obs["type"].astype(str)).mean() > 0.7
    top = table.var_names[np.asarray(table.X.mean(axis=0)).argmax()]
    lone = st.tl.score_cell_types(slide, "cells_counts", {"a": [top], "b": ["CD3E"]}, inplace=False)
    assert lone.obs["score_a"].std() > 0


def test_marker_tables_and_storage_work_afterwards(slide: SpatialData, tmp_path: Path) -> None:
    table = slide.tables["cells_counts"]
    predicted(slide, log1p_cp10k(table.X.toarray()), "log1p_cp10k")
    markers = markers_of(table, 2) | {"B/T cell": ["MS4A1", "CD3E"]}
    st.tl.score_cell_types(slide, "cells_model", markers)
    model = slide.tables["cells_model"]
    assert "score_B_T_cell" in model.obs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sc.tl.rank_genes_groups(model, "cell_type", method="t-test_overestim_var")
        slide.write(tmp_path / "slide.zarr")
    frame = sc.get.rank_genes_groups_df(model, group="epithelial")
    epithelial = table.var_names[table.var["marks"] == "epithelial"]
    assert set(frame["names"][: len(epithelial)]) == set(epithelial)
    again = sd.read_zarr(tmp_path / "slide.zarr").tables["cells_model"]
    assert again.obs["cell_type"].astype(str).tolist() == model.obs["cell_type"].astype(str).tolist()
    facts = json.loads(again.uns["stpred"])["cell_types"]
    assert facts["scores"]["B/T cell"] == "score_B_T_cell"
    assert facts["used"]["B/T cell"] == ["MS4A1", "CD3E"]


def test_missing_markers_are_listed_and_a_type_without_any_is_refused(slide: SpatialData) -> None:
    markers = {"a": ["EPCAM", "NOPE1"], "b": ["CD3E", "NOPE2", "NOPE1"]}
    with pytest.warns(UserWarning, match=r"2 marker genes are not in table 'cells_counts' .*\['NOPE1', 'NOPE2'\]"):
        st.tl.score_cell_types(slide, "cells_counts", markers)
    facts = json.loads(slide.tables["cells_counts"].uns["stpred_cell_types"])
    assert facts["missing"] == {"a": ["NOPE1"], "b": ["NOPE2", "NOPE1"]}
    assert facts["used"] == {"a": ["EPCAM"], "b": ["CD3E"]}
    assert "stpred" not in slide.tables["cells_counts"].uns  # it is still a measured table
    with pytest.raises(InputError, match=r"no marker of \['b', 'c'\].*leave these types out"):
        st.tl.score_cell_types(slide, "cells_counts", {"a": ["EPCAM"], "b": ["NOPE"], "c": []})
    with pytest.raises(InputError, match="differ only by upper and lower case"):
        st.tl.score_cell_types(slide, "cells_counts", {"a": ["Epcam"]})
    every = list(slide.tables["cells_counts"].var_names)
    with pytest.raises(InputError, match="Every gene of table 'cells_counts' is a marker of 'all'"):
        st.tl.score_cell_types(slide, "cells_counts", {"all": every})


def test_unclear_cells_are_unassigned(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    counts = table.X.toarray()
    counts[7] = 0
    table.X = csr_matrix(counts)
    markers = markers_of(table)
    st.tl.score_cell_types(slide, "cells_counts", markers, min_margin=1.0, key_added="kind")
    scores = np.sort(table.obs[[f"score_{t}" for t in markers]].to_numpy(), axis=1)
    clear = scores[:, -1] - scores[:, -2] > 1.0
    clear[7] = False
    assert ((table.obs["kind"] != "unassigned").to_numpy() == clear).all()
    assert 0.2 < clear.mean() < 1.0
    st.tl.score_cell_types(slide, "cells_counts", {"tumour": markers["tumour"]})
    positive = (table.obs["score_tumour"] > 0).to_numpy(copy=True)
    positive[7] = False
    assert ((table.obs["cell_type"] == "tumour").to_numpy() == positive).all()


def test_markers_are_read_from_files_and_frames(slide: SpatialData, tmp_path: Path) -> None:
    from stpred.tl._cells.score_cell_types import read_markers

    truth = {"a": ["EPCAM", "KRT8"], "b": ["CD3E"]}
    long = pd.DataFrame(
        {"group": ["a", "a", "b", "a"], "scores": [3.0, 2.0, 1.0, 0.0], "gene": ["EPCAM", "KRT8", "CD3E", "KRT8"]}
    )
    long.to_csv(tmp_path / "m.csv", index=False)
    (tmp_path / "m.gmt").write_text("a\thttp://x\tEPCAM\tKRT8\nb\t\tCD3E\n")
    wide = pd.DataFrame({"a": ["EPCAM", "KRT8"], "b": ["CD3E", None]})
    for markers in (truth, long, long.astype({"group": "category"}), tmp_path / "m.csv", str(tmp_path / "m.gmt"), wide):
        assert read_markers(markers) == truth
    st.tl.score_cell_types(slide, "cells_counts", tmp_path / "m.csv")
    assert "score_b" in slide.tables["cells_counts"].obs
    (tmp_path / "bad.gmt").write_text("a\tEPCAM\n")
    for wrong, said in (
        (tmp_path / "bad.gmt", "'bad.gmt' is no GMT file: line 1"),
        (tmp_path / "nope.csv", "There is no file of markers"),
        (long[["gene"]], "has a column 'gene' of genes, but none of types"),
        (long[["scores"]], "must have a column of types"),
        ({"a": "EPCAM"}, "The markers of 'a' must be a list of genes, got 'EPCAM'"),
        (["EPCAM"], "must be a mapping of types to genes, .* got list"),
        ({}, "`markers` is empty"),
        ({"unassigned": ["EPCAM"]}, "A type cannot be called 'unassigned'"),
    ):
        with pytest.raises(InputError, match=said):
            read_markers(wrong)


def test_bad_arguments_are_named(slide: SpatialData) -> None:
    markers = {"a": ["EPCAM"], "b": ["CD3E"]}
    with pytest.raises(InputError, match="No table named 'nope'"):
        st.tl.score_cell_types(slide, "nope", markers)
    with pytest.raises(InputError, match="No layer named 'nope'"):
        st.tl.score_cell_types(slide, "cells_counts", markers, layer="nope")
    with pytest.raises(InputError, match="`ctrl_size` must be a positive whole number"):
        st.tl.score_cell_types(slide, "cells_counts", markers, ctrl_size=0)
    with pytest.raises(InputError, match=r"columns of the scores would not be unique .*'score_a_b', 'score_a_b'"):
        st.tl.score_cell_types(slide, "cells_counts", {"a/b": ["EPCAM"], "a b": ["CD3E"]})
    predicted(slide, np.full((slide.tables["cells_counts"].n_obs, 30), np.nan, np.float32), "log1p_cp10k")
    with pytest.raises(InputError, match=r"values of table 'cells_model' hold \d+ NaN"):
        st.tl.score_cell_types(slide, "cells_model", markers)
    st.tl.score_cell_types(slide, "cells_counts", markers, layer="expected")
    assert json.loads(slide.tables["cells_counts"].uns["stpred_cell_types"])["layer"] == "expected"


def test_predicted_cells_are_normalised_and_only_trusted_genes_may_count(slide: SpatialData) -> None:
    table = slide.tables["cells_counts"]
    markers = markers_of(table)
    values = log1p_cp10k(table.X.toarray())
    predicted(slide, values, "log1p_cp10k")
    whole = st.tl.score_cell_types(slide, "cells_model", markers, inplace=False).obs
    # A model that is unsure of a cell says less of every gene: normalised, the cell's scores do not notice.
    rng = np.random.default_rng(0)
    faint = np.where(rng.random((len(values), 1)) < 0.3, rng.uniform(0.05, 0.5, (len(values), 1)), 1.0)
    predicted(slide, np.log1p(np.expm1(values) * faint).astype(np.float32), "log1p_cp10k")
    found = st.tl.score_cell_types(slide, "cells_model", markers, inplace=False).obs
    columns = [c for c in whole if c.startswith("score_")]
    np.testing.assert_allclose(found[columns], whole[columns], atol=2e-3)
    as_told = st.tl.score_cell_types(slide, "cells_model", markers, normalize=False, inplace=False)
    assert np.abs(as_told.obs[columns] - whole[columns]).to_numpy().max() > 0.1
    assert json.loads(as_told.uns["stpred"])["cell_types"]["normalized"] is False
    # Relative values have a sum too, but where some are negative there is none.
    predicted(slide, np.expm1(values) * faint, "relative")
    relative = st.tl.score_cell_types(slide, "cells_model", markers, inplace=False)
    assert json.loads(relative.uns["stpred"])["cell_types"]["normalized"] is True
    predicted(slide, values - 1, "relative")
    negative = st.tl.score_cell_types(slide, "cells_model", markers, inplace=False)
    assert json.loads(negative.uns["stpred"])["cell_types"]["normalized"] is False
    some = slide.tables["cells_model"]
    some.var["trusted"] = [g not in {m[0] for m in markers.values()} for g in some.var_names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kept = st.tl.score_cell_types(slide, "cells_model", markers, trusted_only=True, inplace=False)
    used = json.loads(kept.uns["stpred"])["cell_types"]["used"]
    assert used == {name: genes[1:] for name, genes in markers.items()}
    some.var["trusted"] = False
    with pytest.raises(InputError, match=r"None of the 30 genes .* is trusted"):
        st.tl.score_cell_types(slide, "cells_model", markers, trusted_only=True)

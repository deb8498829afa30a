"""Counts that are none, genes that do not match, tables that annotate something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.models import Model

Change = Callable[[AnnData], Any]


@pytest.fixture
def with_table(rebuild: Any, trained: Model) -> Callable[..., SpatialData]:
    """Returns slide ``a`` with changed counts, and with predictions if asked for."""

    def build(change: Change, *, predicted: bool = False) -> SpatialData:
        sdata = rebuild()
        if predicted:
            st.tl.predict(sdata, trained, shapes_key="spots")
        table = sdata.tables["spots_counts"].copy()
        change(table)
        del sdata.tables["spots_counts"]
        sdata.tables["spots_counts"] = table
        return sdata

    return build


def value_at(value: float) -> Change:
    def change(table: AnnData) -> None:
        counts = table.X.toarray().astype(float)
        counts[0, 0] = value
        table.X = sparse.csr_matrix(counts)

    return change


def named(rename: Callable[[list[str]], list[str]]) -> Change:
    def change(table: AnnData) -> None:
        table.var_names = rename(list(table.var_names))

    return change


def zero(rows: Any = slice(None), columns: Any = slice(None)) -> Change:
    def change(table: AnnData) -> None:
        counts = table.X.toarray()
        counts[rows, columns] = 0
        table.X = sparse.csr_matrix(counts)

    return change


def as_text(table: AnnData) -> None:
    table.X = np.full(table.shape, "a", dtype=object)


def no_values(table: AnnData) -> None:
    table.X = None


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (value_at(np.nan), ("1 NaN or infinite",)),
        (value_at(np.inf), ("1 NaN or infinite",)),
        (value_at(-3), ("1 negative", "down to -3", "scaled?")),
        (value_at(0.5), ("1 values that are not whole numbers", "0.5", "normalised?")),
        (as_text, ("not numbers",)),
        (no_values, ("has no X",)),
    ],
)
def test_counts_that_are_none(
    change: Change, parts: tuple[str, ...], with_table: Any, refused: Any, cohort: dict[str, SpatialData]
) -> None:
    sdata = with_table(change)
    pair = {"a": sdata, "b": cohort["b"]}
    with refused("counts of table 'spots_counts' of slide 'a'", *parts, sdata=sdata):
        st.tl.train(pair, "intensity", shapes_key="spots")
    with refused("counts of table 'spots_counts' of slide 'a'", *parts, sdata=sdata):
        st.tl.cross_validate(pair, "intensity", groups="slide", shapes_key="spots")
    with refused("counts of table 'spots_counts'", *parts, sdata=sdata):
        st.pp.select_genes(sdata, shapes_key="spots")
    sdata = with_table(change, predicted=True)
    with refused("counts of table 'spots_counts'", *parts, sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts", write=True)


OTHER_NAMES: dict[str, tuple[Callable[[list[str]], list[str]], tuple[str, ...]]] = {
    "panel": (lambda names: [f"X{i}" for i in range(len(names))], ("['X0', 'X1', 'X2']",)),
    "mouse": (lambda names: [n.capitalize() for n in names], ("'Epcam'", "human and mouse symbols")),
    "ensembl": (
        lambda names: [f"ENSG{i:011d}" for i in range(len(names))],
        ("'ENSG00000000000'", "look like Ensembl ids", "like symbols"),
    ),
}


@pytest.mark.parametrize("kind", OTHER_NAMES)
def test_gene_names_that_do_not_match(kind: str, with_table: Any, refused: Any, cohort: dict[str, SpatialData]) -> None:
    rename, parts = OTHER_NAMES[kind]
    sdata = with_table(named(rename))
    with refused("'a' and 'b' share no gene names", "'EPCAM'", *parts, sdata=sdata):
        st.tl.train({"a": sdata, "b": cohort["b"]}, "intensity", shapes_key="spots")
    with refused("'b' and 'a' share no gene names", "'EPCAM'", *parts, sdata=sdata):
        st.pp.select_genes({"b": cohort["b"], "a": sdata}, shapes_key="spots")
    sdata = with_table(named(rename), predicted=True)
    with refused("Tables 'spots_tiny' and 'spots_counts' share no gene", "'EPCAM'", *parts, sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts", write=True)


def test_repeated_gene_names(with_table: Any, refused: Any) -> None:
    twice = named(lambda names: ["EPCAM", "EPCAM", *names[2:]])
    sdata = with_table(twice)
    for call in (
        lambda: st.tl.train(sdata, "intensity", shapes_key="spots"),
        lambda: st.pp.select_genes(sdata, shapes_key="spots"),
    ):
        with refused("table 'spots_counts'", "not unique", "['EPCAM']", "var_names_make_unique()", sdata=sdata):
            call()
    sdata = with_table(twice, predicted=True)
    with refused("Gene names of table 'spots_counts' are not unique", "['EPCAM']", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts")


def test_listed_genes_that_are_missing(rebuild: Any, refused: Any) -> None:
    sdata = rebuild()

    def train(genes: Any) -> None:
        st.tl.train(sdata, "intensity", genes=genes, shapes_key="spots")

    with refused("2 of the 3 listed genes", "['NOPE', 'NADA']", "'ACTB'", sdata=sdata):
        train(["EPCAM", "NOPE", "NADA"])
    with refused("['Epcam']", "human and mouse symbols", sdata=sdata):
        train(["Epcam"])
    with refused("['ENSG00000119888']", "look like Ensembl ids", sdata=sdata):
        train(["ENSG00000119888"])
    with refused("distinct", "['EPCAM']", sdata=sdata):
        train(["EPCAM", "EPCAM"])
    with refused("not empty", sdata=sdata):
        train([])
    with refused("['hgv']", "nor is it a gene rule", "'mean', 'hvg', 'svg', 'rmax'", sdata=sdata):
        train("hgv")
    with refused("`genes` must be a stpred.GeneRule", "'hvg'", "got 5", sdata=sdata):
        train(5)
    with refused("`genes` has unknown fields ['metod']", "'method'", sdata=sdata):
        train({"metod": "mean"})
    with refused("`GeneRule.method` must be one of", "'rmax'", "'hgv'"):
        st.GeneRule("hgv")
    for n in (0, -1, 1.5, "ten", True, float("nan")):
        with refused("`GeneRule.n` must be a positive whole number or None", repr(n)):
            st.GeneRule("mean", n=n)


def test_genes_that_a_model_does_not_know(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild()
    for genes, parts in (
        (["EPCAM", "NOPE"], ("does not predict ['NOPE']", "['EPCAM', 'COL1A2']")),
        ([], ("`genes` is empty", "['EPCAM', 'COL1A2']")),
        (3, ("`genes` must be a list of symbols", "got 3")),
    ):
        with refused(*parts, sdata=sdata):
            st.tl.predict(sdata, trained, shapes_key="spots", genes=genes)


def test_empty_spots_are_left_out_and_counted(
    with_table: Any, cohort: dict[str, SpatialData], caplog: pytest.LogCaptureFixture
) -> None:
    n = cohort["a"].tables["spots_counts"].n_obs
    sdata = with_table(zero(rows=slice(2)), predicted=True)
    with caplog.at_level("INFO", logger="stpred"):
        model = st.tl.train({"a": sdata, "b": cohort["b"]}, "intensity", genes=["EPCAM"], shapes_key="spots")
    assert model.record.training["slides"]["a"]["n_locations"] == n - 2
    assert "Slide 'a': 2 locations of 'spots' without any count are skipped" in caplog.text
    scores = st.tl.compare(sdata, "spots_tiny", "spots_counts")
    assert (scores["n_locations"] == n - 2).all()
    assert np.isfinite(scores["pearson"]).all()


def test_nothing_but_empty_spots(with_table: Any, refused: Any) -> None:
    sdata = with_table(zero(), predicted=True)
    with refused("no usable location in 'spots'", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots")
    with refused("Table 'spots_counts' has no location with counts", "'spots_tiny'", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts")


@pytest.mark.parametrize("method", ["mean", "hvg", "svg", "rmax", "all"])
def test_rules_never_choose_genes_without_counts(method: str, with_table: Any) -> None:
    sdata = with_table(zero(columns=[0, 3]))
    gone = sdata.tables["spots_counts"].var_names[[0, 3]]
    chosen = st.pp.select_genes(sdata, st.GeneRule(method, min_total=0), shapes_key="spots")
    assert len(chosen) > 0
    assert not set(gone) & set(chosen.index)


def test_genes_without_counts_compare_as_nan(with_table: Any) -> None:
    sdata = with_table(zero(columns=[0]), predicted=True)
    assert sdata.tables["spots_counts"].var_names[0] == "EPCAM"
    scores = st.tl.compare(sdata, "spots_tiny", "spots_counts", write=True)
    assert np.isnan(scores.loc["EPCAM", ["pearson", "spearman", "r2"]].astype(float)).all()
    assert np.isfinite(scores.loc["COL1A2", "pearson"])
    assert np.isnan(sdata.tables["spots_tiny"].var.loc["EPCAM", "measured_pearson"])


def drop_annotation(table: AnnData) -> None:
    table.uns.pop("spatialdata_attrs")


def test_table_without_annotation(with_table: Any, refused: Any) -> None:
    sdata = with_table(drop_annotation, predicted=True)
    for table_key in (None, "spots_counts"):
        with refused("Table 'spots_counts' annotates no element", "spatialdata_attrs", "'spots'", sdata=sdata):
            st.tl.train(sdata, "intensity", shapes_key="spots", table_key=table_key)
    with refused("'spots_tiny' annotates ['spots']", "'spots_counts' annotates no element", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts")


def test_table_of_another_region(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild()
    st.tl.predict(sdata, trained, shapes_key="spots")
    with refused("Table 'cells_counts' annotates ['cells'], not 'spots'", "'spots_counts'", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots", table_key="cells_counts")
    with refused("'spots_tiny' annotates ['spots']", "'cells_counts' annotates ['cells']", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "cells_counts")
    sdata = rebuild(tables={"cells_counts": sdata.tables["cells_counts"].copy()})
    with refused("No measured table annotates shapes 'spots'", "'cells_counts': ['cells']", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots")


def test_tables_that_could_both_be_meant(rebuild: Any, refused: Any) -> None:
    counts = rebuild().tables["spots_counts"]
    sdata = rebuild(tables={"first": counts.copy(), "second": counts.copy()})
    with refused("Several tables annotate 'spots'", "['first', 'second']", "`table_key`", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots")


def test_tables_that_cannot_be_compared(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild()
    st.tl.predict(sdata, trained, shapes_key="spots")
    known = "'spots_counts', 'cells_counts', 'spots_tiny'"
    for keys, parts in (
        (("x", "spots_counts"), ("No table named 'x'", "`predicted_key`", known)),
        (("spots_tiny", "y"), ("No table named 'y'", "`measured_key`", known)),
        (("spots_counts", "spots_tiny"), ("'spots_counts' was not written by stpred",)),
        (("spots_tiny", "spots_tiny"), ("counts of table 'spots_tiny'", "not whole numbers")),
    ):
        with refused(*parts, sdata=sdata):
            st.tl.compare(sdata, *keys)
    with refused("`target` must be one of ['log1p_cp10k', 'counts', 'log_share']", "'log2'", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts", target="log2")


def test_instances_that_are_others(with_table: Any, refused: Any) -> None:
    def other_ids(table: AnnData) -> None:
        table.obs["instance_id"] = [f"other{i}" for i in range(table.n_obs)]

    sdata = with_table(other_ids, predicted=True)
    with refused("No instance of table 'spots_counts'", "'other0'", "shapes 'spots'", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots")
    with refused("share no instance of 'spots'", "'other0'", sdata=sdata):
        st.tl.compare(sdata, "spots_tiny", "spots_counts")


def test_errors_are_value_errors() -> None:
    assert issubclass(InputError, ValueError)

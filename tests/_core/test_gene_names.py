from __future__ import annotations

import pytest

from stpred import InputError
from stpred._core.expression.gene_names import shared_genes


def test_shared_genes_by_symbol_and_by_id() -> None:
    names = {"a": ["C", "A", "B"], "b": ["B", "X", "C"]}
    shared, columns = shared_genes(names)
    assert shared == ["B", "C"]
    assert {s: [names[s][i] for i in c] for s, c in columns.items()} == {"a": ["B", "C"], "b": ["B", "C"]}
    ids = {"a": ["E3", "E1", "E2"], "b": ["E2", "E9", "E1"]}  # E1 is called A on one slide and C on the other
    shared, columns = shared_genes(names, ids=ids)
    assert shared == ["A", "B"]
    assert {s: [ids[s][i] for i in c] for s, c in columns.items()} == {"a": ["E1", "E2"], "b": ["E1", "E2"]}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({}, "No slide was given"),
        ({"a": ["A", "B", "A"]}, r"1 gene names occur more than once in 'a': \['A'\]; .*var_names_make_unique"),
        (
            {"a": ["EPCAM", "CD3E"], "b": ["ENSG00000119888", "ENSG00000198851"]},
            r"'a' and 'b' share no gene names: \['EPCAM', 'CD3E'\] against \['ENSG00000119888', .*second look like Ens",
        ),
        ({"a": ["EPCAM"], "b": ["Epcam"]}, "only by upper and lower case, as human and mouse symbols do"),
        ({"a": ["ENSMUSG00000045394.8"], "b": ["ENSMUSG00000045394"]}, "only by the version after the dot"),
        ({"a": ["A"], "b": ["B"]}, r"share no gene names: \['A'\] against \['B'\]\.$"),
        ({"a": ["A", "B"], "b": ["B", "C"], "c": ["C", "A"]}, r"No gene is on all of \['a', 'b', 'c'\]"),
    ],
)
def test_shared_genes_says_why_not(names, message) -> None:
    with pytest.raises(InputError, match=message):
        shared_genes(names)


def test_ids_must_fit_the_names() -> None:
    with pytest.raises(InputError, match="one gene id for each name"):
        shared_genes({"a": ["A", "B"]}, ids={"a": ["E1"]})
    with pytest.raises(InputError, match=r"gene ids occur more than once in 'a': \['E1'\]"):
        shared_genes({"a": ["A", "B"]}, ids={"a": ["E1", "E1"]})
    with pytest.raises(InputError, match=r"1 gene names occur more than once in 'a': \['A'\]"):
        shared_genes({"a": ["A", "A"]}, ids={"a": ["E1", "E2"]})

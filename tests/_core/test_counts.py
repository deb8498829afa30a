from __future__ import annotations

import logging

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from stpred._core.checks import InputError
from stpred._core.counts import check_counts, counts_report, duplicates, looks_like_ensembl, unique_symbols


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "1 NaN or infinite"),
        (-2.0, r"1 negative values \(down to -2\)"),
        (1.5, r"1 values that are not whole numbers \(such as 1.5\)"),
    ],
)
def test_bad_counts_say_what_is_wrong(make, value: float, message: str) -> None:
    X = np.array([[0, 1.0, 3], [2, 0, 0]])
    check_counts(make(X))
    X[1, 1] = value
    with pytest.raises(InputError, match=f"The counts of 'spots' hold {message}"):
        check_counts(make(X), what="counts of 'spots'")


def test_integer_and_empty_counts_pass_and_text_does_not() -> None:
    check_counts(np.arange(4).reshape(2, 2))
    check_counts(sparse.csr_matrix((3, 0)))
    with pytest.raises(InputError, match="not numbers"):
        check_counts(np.array([["a"]]))


def test_ensembl_ids_are_told_from_symbols() -> None:
    assert looks_like_ensembl(["ENSG00000243485", "ENSMUSG00000064339.1", "EPCAM"])
    assert not looks_like_ensembl(["EPCAM", "ENSA", "ENSG00000243485"])
    assert not looks_like_ensembl([])


def test_repeated_symbols_get_free_suffixes_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    names = ["A", "B", "A", "A-1", "A"]
    assert duplicates(names) == ["A"]
    with caplog.at_level(logging.INFO, logger="stpred"):
        assert list(unique_symbols(names)) == ["A", "B", "A-2", "A-1", "A-3"]
    assert "'A'" in caplog.text
    assert list(unique_symbols(["x", "y"])) == ["x", "y"]


def test_empty_instances_and_zero_genes_are_reported() -> None:
    table = AnnData(sparse.csr_matrix([[1.0, 0, 0], [0, 0, 0], [2, 0, 4]]))
    table.obs_names, table.var_names = list("abc"), list("xyz")
    assert counts_report(table) == {"empty_instances": ["b"], "zero_genes": ["y"]}

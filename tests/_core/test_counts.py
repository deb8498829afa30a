from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from stpred import InputError, metrics
from stpred._core import targets
from stpred._core.expression.counts import (
    check_counts,
    check_sparse,
    counts_report,
    duplicates,
    looks_like_ensembl,
    unique_symbols,
)


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


def broken(kind: str, form: str) -> Any:
    """A sparse matrix of 6 x 4 with one fault, as SciPy's constructors let pass."""
    X = sparse.random(6, 4, density=0.6, format=form, random_state=0, dtype=np.float64)
    X.data[:] = 1
    inner = X.shape[1] if form == "csr" else X.shape[0]
    if kind == "beyond":
        X.indices[-1] = inner
    elif kind == "far":
        X.indices[0] = 10**8
    elif kind == "negative":
        X.indices[0] = -1
    elif kind == "falling":
        X.indptr[1:3] = X.indptr[2], X.indptr[1] - 1
    elif kind == "short":
        X.indptr = X.indptr[:-1]
    elif kind == "too long":
        X.indptr[-1] += 5
    return X


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("kind", ["beyond", "far", "negative", "falling", "short", "too long"])
def test_broken_sparse_matrices_are_refused_before_scipy_uses_them(kind: str, form: str) -> None:
    X = broken(kind, form)
    for check in (check_counts, check_sparse, targets.dense):
        with pytest.raises(InputError, match="broken sparse matrix of"):
            check(X)
    with pytest.raises(InputError, match="`predicted` are a broken"):
        metrics.pearson(X, np.ones((6, 4)))


def test_whole_sparse_matrices_pass_unchanged() -> None:
    for form in ("csr", "csc", "coo", "lil", "dok"):
        X = sparse.random(6, 4, density=0.6, random_state=0).asformat(form)
        check_sparse(X)
    X = sparse.csr_matrix(np.eye(3))
    X.indices = X.indices.astype(np.int64)  # another width is no fault, and stays
    check_sparse(X)
    assert X.indices.dtype == np.int64
    check_sparse(sparse.csr_matrix((0, 3)))
    X = sparse.coo_matrix(np.eye(3))
    X.coords = (X.coords[0], X.coords[1] + 1)
    with pytest.raises(InputError, match="coordinates leave"):
        check_sparse(X)


def test_numbers_that_are_no_counts() -> None:
    with pytest.raises(InputError, match="2147483647 or more"):
        check_counts(np.array([1.0, 2.0**31]))
    with pytest.raises(InputError, match="not numbers"):
        check_counts(np.array([1 + 2j]))
    check_counts(np.array([2**31 - 2]))

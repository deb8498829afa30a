"""Checks of measured counts: what they hold, and how their genes are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stpred")

MAX_COUNT = 2**31 - 1
"""Counts of one gene in one place are below this; it is what stands for nothing, and more are bytes misread."""

_PART = 2**22
"""Values that are checked at a time."""

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")


def stored(X: Any) -> np.ndarray:
    """Return the explicit values of a dense or sparse matrix, without densifying."""
    return X.data if hasattr(X, "tocsr") else np.asarray(X).ravel(order="K")


def check_sparse(X: Any, *, what: str = "values") -> None:
    """Refuse a sparse matrix whose indices leave it: SciPy's compiled code reads and writes there and ends the process.

    Nothing is done for dense arrays, and nothing is changed.

    Raises
    ------
    InputError
        One sentence that names `what` and the trouble.
    """
    if not hasattr(X, "format"):
        return
    from scipy import sparse

    if not sparse.issparse(X) or X.ndim != 2:
        return
    trouble = None
    if X.format in ("csr", "csc"):
        trouble = _broken(X.indptr, X.indices, X.data, X.shape if X.format == "csr" else X.shape[::-1])
    elif X.format == "coo" and not (_within(X.row, X.shape[0]) and _within(X.col, X.shape[1])):
        trouble = "its coordinates leave it"
    if trouble is not None:
        raise InputError(
            f"The {what} are a broken sparse matrix of {X.shape}: {trouble}; make it anew from its source."
        )


def _broken(indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, shape: tuple[int, int]) -> str | None:
    """Say what is wrong with a compressed matrix of outer by inner entries, or None."""
    if any(np.ndim(part) != 1 for part in (indptr, indices, data)):
        return "its parts are no one-dimensional arrays"
    if indptr.dtype.kind not in "iu" or len(indptr) != shape[0] + 1:
        return f"its indptr has {len(indptr)} entries of {indptr.dtype}, not {shape[0] + 1} whole numbers"
    if indptr[0] != 0 or indptr[-1] > min(len(indices), len(data)) or (indptr[1:] < indptr[:-1]).any():
        return f"its indptr does not divide the {len(data)} values"
    return None if _within(indices[: indptr[-1]], shape[1]) else f"its indices leave the range of 0 to {shape[1] - 1}"


def _within(index: np.ndarray, n: int) -> bool:
    return index.dtype.kind in "iu" and (index.size == 0 or bool(index.min() >= 0 and index.max() < n))


def check_matrices(table: AnnData, *, what: str) -> None:
    """Refuse a table of which ``X`` or a layer is a broken sparse matrix, before rows or columns are cut from it."""
    check_sparse(table.X, what=what)
    for name in table.layers:
        if name is not None:
            check_sparse(table.layers[name], what=f"{what} in the layer {name!r}")


def check_counts(X: Any, *, what: str = "counts") -> None:
    """Refuse NaN, negative, non-integer and absurdly large values, and sparse matrices that are broken.

    Raises
    ------
    InputError
        One sentence that names `what` and the first kind of trouble.
    """
    if X is None:
        raise InputError(f"The {what} are missing: the table has no X.")
    check_sparse(X, what=what)
    values = stored(X)
    if values.size == 0:
        return
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InputError(f"The {what} are not numbers but {values.dtype}.")
    parts = [values[k : k + _PART] for k in range(0, len(values), _PART)]  # what is made of all of them is as large

    def number(found: Callable[[np.ndarray], np.ndarray]) -> int:
        return sum(int(found(part).sum()) for part in parts)

    if values.dtype.kind == "f" and (n := number(lambda v: ~np.isfinite(v))):
        raise InputError(f"The {what} hold {n} NaN or infinite values; raw counts are needed.")
    if (lowest := values.min()) < 0:
        raise InputError(
            f"The {what} hold {number(lambda v: v < 0)} negative values (down to {lowest:.4g}); raw counts are needed "
            "(are they scaled?)."
        )
    if (highest := values.max()) >= MAX_COUNT:
        raise InputError(f"The {what} hold values of {MAX_COUNT} or more (up to {highest:.4g}), which are no counts.")
    if values.dtype.kind == "f" and (n := number(_odd)):
        first = next(part[_odd(part)][0] for part in parts if _odd(part).any())
        raise InputError(
            f"The {what} hold {n} values that are not whole numbers (such as {first:.4g}); "
            "raw counts are needed (are they normalised?)."
        )


def _odd(values: np.ndarray) -> np.ndarray:
    return np.asarray(values != np.round(values))


def looks_like_ensembl(names: Iterable[str], *, share: float = 0.5) -> bool:
    """Tell whether most names are Ensembl gene ids (``ENSG...``, ``ENSMUSG...``) where symbols are expected."""
    names = list(names)
    hits = sum(bool(_ENSEMBL.match(str(n))) for n in names)
    return bool(names) and hits > share * len(names)


def duplicates(names: Iterable[str]) -> list[str]:
    """Return the names that occur more than once, in order."""
    seen: dict[str, int] = {}
    for name in names:
        seen[str(name)] = seen.get(str(name), 0) + 1
    return [name for name, n in seen.items() if n > 1]


def unique_symbols(names: Sequence[str], *, what: str = "table") -> np.ndarray:
    """Make gene symbols unique with the suffixes ``-1``, ``-2``, ...; which ones is logged."""
    repeated = duplicates(names)
    if not repeated:
        return np.asarray([str(n) for n in names], dtype=object)
    logger.info("%s: %d gene symbols occur more than once and got suffixes: %s", what, len(repeated), listing(repeated))
    taken, result, count = {str(n) for n in names}, [], dict.fromkeys(repeated, 0)
    seen: set[str] = set()
    for name in map(str, names):
        unique = name
        while unique in seen or (unique != name and unique in taken):
            count[name] += 1
            unique = f"{name}-{count[name]}"
        seen.add(unique)
        result.append(unique)
    return np.asarray(result, dtype=object)


def counts_report(table: AnnData) -> dict[str, list[str]]:
    """Return what is worth knowing of a table of counts: ``empty_instances`` and ``zero_genes`` by name.

    Both stay in a table that is read; a caller that cannot use them says so with these names.
    """
    X = table.X
    per_row = np.asarray(X.sum(axis=1)).ravel()
    per_gene = np.asarray(X.sum(axis=0)).ravel()
    return {
        "empty_instances": [str(n) for n in table.obs_names[per_row == 0]],
        "zero_genes": [str(n) for n in table.var_names[per_gene == 0]],
    }


def are_counts(values: Any) -> bool:
    """Whether values are raw counts."""
    try:
        check_counts(values)
    except InputError:
        return False
    return True

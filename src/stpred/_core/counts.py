"""Checks of measured counts: what they hold, and how their genes are named."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger("stpred")

MAX_COUNT = 2**31 - 1
"""Counts of one gene in one place are below this; it is what stands for nothing, and more are bytes misread."""

_ENSEMBL = re.compile(r"^ENS[A-Z]*G\d{6,}(\.\d+)?$")


def stored(X: Any) -> np.ndarray:
    """Return the explicit values of a dense or sparse matrix, without densifying."""
    return X.data if hasattr(X, "tocsr") else np.asarray(X).ravel()


def check_sparse(X: Any, *, what: str = "matrix") -> None:
    """Refuse a sparse matrix whose indices leave it: SciPy's compiled code reads and writes there and ends the process.

    Nothing is done for dense arrays.

    Raises
    ------
    InputError
        One sentence that names `what` and the trouble.
    """
    check = getattr(X, "check_format", None)
    if check is None:
        if (
            getattr(X, "format", None) == "coo"
            and X.nnz
            and any(i.min() < 0 or i.max() >= n for i, n in zip(X.coords, X.shape, strict=True))
        ):
            raise InputError(f"The {what} are a broken sparse matrix: coordinates leave its shape of {X.shape}.")
        return
    try:
        check(full_check=True)
    except (ValueError, TypeError, IndexError) as error:  # of index arrays that are no index arrays
        raise InputError(f"The {what} are a broken sparse matrix ({error}); make it anew from its source.") from error


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
    finite = np.isfinite(values)
    if not finite.all():
        raise InputError(f"The {what} hold {int((~finite).sum())} NaN or infinite values; raw counts are needed.")
    if (lowest := values.min()) < 0:
        raise InputError(
            f"The {what} hold {int((values < 0).sum())} negative values (down to {lowest:.4g}); raw counts are "
            "needed (are they scaled?)."
        )
    if (highest := values.max()) >= MAX_COUNT:
        raise InputError(f"The {what} hold values of {MAX_COUNT} or more (up to {highest:.4g}), which are no counts.")
    if not np.issubdtype(values.dtype, np.integer):
        odd = values != np.round(values)
        if odd.any():
            raise InputError(
                f"The {what} hold {int(odd.sum())} values that are not whole numbers (such as {values[odd][0]:.4g}); "
                "raw counts are needed (are they normalised?)."
            )


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

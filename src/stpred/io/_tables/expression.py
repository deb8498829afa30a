"""Which matrix of an AnnData holds the raw counts, and which column the gene symbols."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, key_in, listing, warn
from stpred._core.expression.counts import are_counts, check_counts, check_sparse, looks_like_ensembl, stored

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger("stpred")

SYMBOL_COLUMNS = (
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "gene_names",
    "symbol",
    "symbols",
    "Symbol",
    "SYMBOL",
    "gene_short_name",
    "_index",
)
"""Columns of ``var`` that hold symbols, as CELLxGENE, scanpy, HEST and R packages write them."""

_RAW = "raw"


def choose_counts(adata: AnnData, *, layer: str | None, what: str) -> AnnData:
    """Return an AnnData whose ``X`` are the raw counts, with ``obs``, ``var`` and the positions of `adata`.

    Parameters
    ----------
    adata
        As it was given.
    layer
        The layer to take, or ``"raw"`` for ``adata.raw`` where no layer has this name. None takes ``X``, or where it
        holds no raw counts the only other matrix that does, with a warning.
    what
        The region, for messages.

    Raises
    ------
    InputError
        If no matrix, or several different ones beside ``X``, hold raw counts.
    """
    if layer is not None:
        if layer == _RAW and _RAW not in adata.layers and adata.raw is not None:
            return _with(adata, _RAW)
        return _with(adata, key_in(layer, adata.layers, what="layer", name="layer"))
    try:
        check_counts(adata.X, what=f"counts of {what!r}")
        if _any(adata.X) or not _others(adata):
            return _with(adata, None)
        problem = f"The counts of {what!r} are all zero"
    except InputError as error:
        problem = str(error).rstrip(".")
    others = _others(adata)
    if not others:
        held = f"{listing(k for k in adata.layers if k is not None)}"
        raise InputError(f"{problem}; neither .raw nor a layer of {held} holds raw counts.")
    different = [k for k in others[1:] if not _same(adata, others[0], k)]
    if different:
        raise InputError(
            f"{problem}; several others hold raw counts, {listing(others)}, so name one as layer= ('raw' is adata.raw)."
        )
    place = ".raw" if others[0] == _RAW and _RAW not in adata.layers else f"the layer {others[0]!r}"
    warn(f"{problem}; the raw counts are taken from {place}.")
    return _with(adata, others[0])


def symbol_column(var: pd.DataFrame) -> str | None:
    """Return the column of symbols where the names of the genes are Ensembl ids or numbers, else None."""
    names = [str(n) for n in var.index]
    if not (looks_like_ensembl(names) or all(n.isdigit() for n in names)):
        return None
    for column in SYMBOL_COLUMNS:
        if column not in var or var[column].ndim != 1:
            continue
        values = var[column].dropna().astype(str)
        useful = len(values) >= len(var) / 2 and not looks_like_ensembl(values)
        if useful and not all(v.isdigit() for v in values):
            return column
    return None


def _others(adata: AnnData) -> list[str]:
    """Return the names of layers, and ``"raw"``, that hold raw counts which are not all zero."""
    found = [k for k in adata.layers if k is not None and are_counts(adata.layers[k]) and _any(adata.layers[k])]
    if adata.raw is not None and _RAW not in adata.layers and are_counts(adata.raw.X) and _any(adata.raw.X):
        found.append(_RAW)
    return found


def _any(X: Any) -> bool:
    return bool(np.any(stored(X)))


def _matrix(adata: AnnData, name: str | None) -> tuple[Any, pd.DataFrame]:
    if name is None:
        return adata.X, adata.var
    if name in adata.layers:
        return adata.layers[name], adata.var
    return adata.raw.X, adata.raw.var


def _same(adata: AnnData, first: str, second: str) -> bool:
    """Tell whether two matrices agree on the genes that both have."""
    from scipy import sparse

    (a, genes), (b, others) = _matrix(adata, first), _matrix(adata, second)
    shared = genes.index.intersection(others.index)
    if not genes.index.is_unique or not others.index.is_unique or shared.empty:
        return False
    a, b = sparse.csc_matrix(a), sparse.csc_matrix(b)
    return (a[:, genes.index.get_indexer(shared)] != b[:, others.index.get_indexer(shared)]).nnz == 0


def _with(adata: AnnData, name: str | None) -> AnnData:
    """Return a lean AnnData around one matrix; `raw` may have more genes, of which `var` may know more."""
    from anndata import AnnData

    X, var = _matrix(adata, name)
    if X is None:
        raise InputError("The counts are missing: the AnnData has no X.")
    check_sparse(X, what="counts")
    if var is not adata.var and len(var.columns) < len(adata.var.columns) and var.index.isin(adata.var_names).all():
        var = adata.var.loc[var.index]
    obsm = {k: v for k, v in adata.obsm.items() if k == "spatial"}
    return AnnData(X, obs=adata.obs.copy(), var=var.copy(), obsm=obsm)

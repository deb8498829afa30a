"""A single-cell reference and a table of locations, read onto their shared genes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, listing
from stpred._core.elements import lost_provenance
from stpred._core.expression.counts import are_counts, check_counts, duplicates, looks_like_ensembl
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import LIBRARY, Library

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

logger = logging.getLogger("stpred")

LOG = "log1p_cp10k"
MIN_GENES = 2
"""Shared genes below which there is nothing to compare: the counts of one gene are all of the library."""


@dataclass(frozen=True)
class Locations:
    """A table's values of its shared genes.

    Attributes
    ----------
    values
        (n, G) raw counts (sparse or dense) where `measured`, else predictions, float64 log1p CP10k over the table's
        own library.
    measured
        Whether `values` are raw counts.
    depth
        Counts of the shared genes that a location typically has: of counts the median, of predictions that of the
        model's training tables; None where it is not known.
    pearson
        (G,) ``cv_pearson`` of predictions: correlation with the truth on held-out slides; None where it is not known.
    """

    values: Any
    measured: bool
    depth: float | None
    pearson: NDArray[np.float64] | None = None

    def of_genes(self, columns: NDArray[np.int64]) -> Locations:
        """Return the values of some genes; the library is over these from here on."""
        share = 1.0
        if self.depth is not None and not self.measured:
            amounts = np.expm1(self.values).clip(min=0).mean(axis=0)
            share = float(amounts[columns].sum() / max(amounts.sum(), 1e-12))
        values = self.values[:, columns]
        depth = None if self.depth is None else self.depth * share
        if self.measured:
            depth = float(np.median(targets.totals(values)))
        return replace(
            self, values=values, depth=depth, pearson=None if self.pearson is None else self.pearson[columns]
        )

    def log_values(self) -> NDArray[np.float64]:
        """Return (n, G) log1p CP10k over the shared genes."""
        return log_over(self.values) if self.measured else relog(self.values)


@dataclass(frozen=True)
class Reference:
    """Raw counts of single cells and their classes.

    Attributes
    ----------
    counts
        (n, G) csr matrix.
    codes
        (n,) position of each cell's class in `names`.
    names
        (K,) classes.
    genes
        (G,) genes, as the other side calls them.
    """

    counts: Any
    codes: NDArray[np.int64]
    names: list[str]
    genes: list[str]

    def of_genes(self, columns: NDArray[np.int64]) -> Reference:
        """Return counts of some genes; cells without any of them are left out."""
        counts = self.counts[:, columns]
        rows = np.flatnonzero(targets.totals(counts) > 0)
        return replace(
            self, counts=counts[rows], codes=self.codes[rows], genes=[self.genes[i] for i in columns.tolist()]
        )

    def informative(self, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the positions of the `n` genes of which classes explain the most variance, in order; of fewer all."""
        if len(self.genes) <= n:
            return np.arange(len(self.genes))
        some = self.draw(200, rng)
        values = targets.sparse_transform(some.counts, targets.totals(some.counts), target=LOG)
        _, std = targets.moments([values])
        means = np.stack([np.asarray(values[some.codes == k].mean(axis=0)).ravel() for k in range(len(self.names))])
        spread = means.var(axis=0) / np.maximum(std**2, 1e-9)
        return np.sort(np.argsort(-spread, kind="stable")[:n])

    def cells(self, rows: NDArray[Any]) -> Reference:
        """Return some of the cells."""
        return replace(self, counts=self.counts[rows], codes=self.codes[rows])

    def draw(self, n: int, rng: np.random.Generator) -> Reference:
        """Return at most `n` cells of each class."""
        order = rng.permutation(len(self.codes))
        rank = np.empty(len(order), dtype=np.int64)
        for k in range(len(self.names)):
            mine = order[self.codes[order] == k]
            rank[mine] = np.arange(len(mine))
        return self.cells(np.flatnonzero(rank < n))

    def halves(self, rng: np.random.Generator) -> tuple[Reference, Reference]:
        """Return two halves with the cells of each class divided evenly."""
        order = rng.permutation(len(self.codes))
        side = np.zeros(len(order), dtype=bool)
        for k in range(len(self.names)):
            mine = order[self.codes[order] == k]
            side[mine[::2]] = True
        return self.cells(np.flatnonzero(side)), self.cells(np.flatnonzero(~side))


def log_over(counts: Any) -> NDArray[np.float64]:
    """Return (n, G) dense log1p CP10k of counts, with the library over these genes."""
    return targets.transform(counts, targets.totals(counts), target=LOG).astype(np.float64)


def relog(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log1p CP10k over the given genes from log1p CP10k over more of them; rows of nothing stay zero."""
    amounts = np.expm1(values).clip(min=0)
    total = amounts.sum(axis=1, keepdims=True)
    return np.log1p(amounts * np.divide(targets.CP10K, total, out=np.zeros_like(total), where=total > 0))


def match_genes(
    reference: Any, genes: Sequence[str], *, ids: Sequence[str] | None = None, what: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions of shared genes among `genes` and in the reference.

    The reference must be an AnnData. Genes are matched by symbol; a reference that names genes by Ensembl ids is
    matched by the ids of the other side, without versions.
    """
    from anndata import AnnData

    if not isinstance(reference, AnnData):
        raise InputError(
            f"`reference` must be an AnnData of raw counts of single cells, got {type(reference).__name__}; read a "
            "file with anndata.read_h5ad first."
        )
    names = [str(g) for g in reference.var_names]
    theirs = [str(g) for g in genes]
    if looks_like_ensembl(names) and ids is not None and not looks_like_ensembl(theirs):
        names, theirs = [n.split(".")[0] for n in names], [str(i).split(".")[0] for i in ids]
        logger.info("The reference names genes by Ensembl ids; they are matched with var['gene_id'] of the %s.", what)
    for side, where in ((names, "the reference"), (theirs, f"the {what}")):
        if repeated := duplicates(side):
            raise InputError(f"Gene names of {where} are not unique: {listing(repeated)}; make them unique first.")
    place = {g: i for i, g in enumerate(names)}
    ours = np.array([i for i, g in enumerate(theirs) if g in place], dtype=np.int64)
    if len(ours) < MIN_GENES:
        hint = mismatch(theirs, names)
        raise InputError(
            f"The reference and the {what} share {len(ours)} of {len(theirs)} genes, and {MIN_GENES} are needed: "
            f"{listing(names[:3])} against {listing(theirs[:3])}{'; ' + hint if hint else ''}."
        )
    return ours, np.array([place[theirs[i]] for i in ours], dtype=np.int64)


def reference_counts(reference: AnnData, *, layer: str | None) -> Any:
    """Return the raw counts of a reference."""
    if layer is None:
        return reference.X
    if layer not in reference.layers:
        raise InputError(f"The reference has no layer {layer!r}; available: {listing(reference.layers)}.")
    return reference.layers[layer]


def read_reference(
    reference: Any,
    columns: NDArray[np.int64] | None,
    *,
    genes: Sequence[str],
    groupby: str,
    layer: str | None,
    min_in_group: int,
) -> Reference:
    """Return counts of some columns with the classes of the cells; small classes and cells without counts are left out.

    Parameters
    ----------
    reference
        AnnData of raw counts.
    columns
        (G,) positions of genes; None takes all.
    genes
        (G,) what they are called.
    groupby, layer, min_in_group
        As of :func:`stpred.tl.annotate_cells`.
    """
    from scipy.sparse import csr_matrix

    X = reference_counts(reference, layer=layer)
    if groupby not in reference.obs:
        raise InputError(
            f"The reference has no column obs[{groupby!r}] of classes; available: {listing(reference.obs)}."
        )
    counts = csr_matrix(X if columns is None else X[:, columns])
    where = "counts of the reference" + ("" if layer is None else f" (layer {layer!r})")
    try:
        check_counts(counts, what=where)
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; name the layer that holds raw counts with `layer`.") from error
    column = reference.obs[groupby]
    if column.dtype.kind == "f" or column.nunique() > max(len(column) // 2, 2):
        raise InputError(
            f"obs[{groupby!r}] of the reference is no grouping: {column.nunique()} different values in {len(column)} "
            "cells; name a column of classes."
        )
    labels = np.where(column.isna(), "", column.astype(str)).astype(str)
    used = (labels != "") & (targets.totals(counts) > 0)
    found, n = np.unique(labels[used], return_counts=True)
    names = [str(name) for name, size in zip(found, n, strict=True) if size >= min_in_group]
    if small := [str(name) for name, size in zip(found, n, strict=True) if size < min_in_group]:
        logger.warning(
            "Classes of the reference with under %d cells that have counts of these genes are left out: %s.",
            *(min_in_group, listing(small)),
        )
    if len(names) < 2:
        raise InputError(
            f"obs[{groupby!r}] of the reference has {len(names)} class(es) of {min_in_group} cells with counts of the "
            f"{len(genes)} shared genes, and two are needed: {dict(zip(found.tolist(), n.tolist(), strict=True))}."
        )
    rows = np.flatnonzero(used & np.isin(labels, names))
    return Reference(counts[rows], np.searchsorted(names, labels[rows]), names, [str(g) for g in genes])


def read_locations(table: AnnData, columns: NDArray[np.int64], *, what: str) -> Locations:
    """Return the values of some genes of a table, as raw counts or as predictions on log1p CP10k.

    Values without that scale are refused with what leads to it.
    """
    if lost := lost_provenance(table):
        raise InputError(f"The scale of the {what} is not known: {lost}.")
    genes = [str(g) for g in table.var_names[columns]]
    if table.X is None:
        raise InputError(f"The {what} has no values in X.")
    X = table.X[:, columns]
    provenance = tables.read_prediction(table, what=what) if keys.UNS in table.uns else {}
    scale = provenance.get("output_scale")
    if scale is None or (scale == "counts" and provenance.get("kind") != "prediction"):
        if not are_counts(X):
            raise InputError(
                f"The scale of the {what} is not known: stpred did not predict it, and its values are no raw counts; "
                "put raw counts into X."
            )
        return Locations(X, measured=True, depth=float(np.median(targets.totals(X))))
    values = targets.dense(X)
    if not np.isfinite(values).all():
        raise InputError(f"The {what} holds {int((~np.isfinite(values)).sum())} NaN or infinite values.")
    library = Library.parse(provenance.get(LIBRARY))
    depth = library.median_size * library.share_of(genes) if library is not None else None
    pearson = table.var["cv_pearson"].to_numpy(dtype=np.float64)[columns] if "cv_pearson" in table.var else None
    if scale == LOG:
        return Locations(values, measured=False, depth=depth, pearson=pearson)
    if scale == "counts":
        amounts = values.clip(min=0)
        if provenance.get("per") is None:
            depth = float(np.median(amounts.sum(axis=1)))
        return Locations(relog(np.log1p(amounts)), measured=False, depth=depth, pearson=pearson)
    if scale == targets.LOG_SHARE:
        help_ = "turn it into log1p CP10k at known library sizes with stpred.tl.to_log1p_cp10k"
    else:
        help_ = (
            "its unit differs from gene to gene; bring it to log1p CP10k by measured locations of the slide "
            "(stpred.tl.recalibrate with target='log1p_cp10k'), or predict with a model of another scale"
        )
    raise InputError(f"The {what} is on the scale {scale!r}, on which a reference has no values: {help_}.")


def at_depth(counts: Any, depths: Iterable[float] | float, *, rng: np.random.Generator) -> Any:
    """Return csr counts thinned to at most a total of `depths` per cell; shallower cells stay as they are."""
    from scipy.sparse import csr_matrix

    thinned = csr_matrix(counts, copy=True)
    total = targets.totals(thinned)
    wanted = np.broadcast_to(np.asarray(depths, dtype=np.float64), total.shape)
    share = np.minimum(np.divide(wanted, total, out=np.ones_like(total), where=total > 0), 1.0)
    n = np.round(thinned.data).astype(np.int64)
    thinned.data = rng.binomial(n, np.repeat(share, np.diff(thinned.indptr))).astype(np.float64)
    thinned.eliminate_zeros()
    return thinned


def pseudo_cells(
    reference: Reference, depth: float | None, *, rng: np.random.Generator, max_per_class: int = 1000
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return (m, G) log1p CP10k of reference cells at a depth, and their classes.

    The mean of log1p CP10k depends on the depth. Deeper cells are thinned; of shallower ones as many of a class are
    summed as come near it (fewer where a class would be left with under four sums).
    """
    from scipy.sparse import csr_matrix

    cells = reference.draw(max_per_class, rng)
    if depth is None or depth <= 0:
        return log_over(cells.counts), cells.codes
    number = depth / max(float(np.median(targets.totals(cells.counts))), 1.0)
    if number < 1.5:
        counts = at_depth(cells.counts, depth, rng=rng)
        kept = targets.totals(counts) > 0
        return log_over(counts[kept]), cells.codes[kept]
    cells = reference.draw(int(max_per_class * max(1.0, min(number, 20.0))), rng)
    codes, members = [], []
    n_sums = 0
    for k in range(len(cells.names)):
        mine = rng.permutation(np.flatnonzero(cells.codes == k))
        sums = max(min(len(mine), 4), len(mine) // round(number), 1)
        members.append((mine, n_sums + np.arange(len(mine)) % sums))
        codes.append(np.full(sums, k))
        n_sums += sums
    rows, into = (np.concatenate([m[i] for m in members]) for i in (0, 1))
    gather = csr_matrix((np.ones(len(rows)), (into, rows)), shape=(n_sums, len(cells.codes)))
    return log_over(gather @ cells.counts), np.concatenate(codes)


def profiles(values: NDArray[np.float64], codes: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return the (K, G) mean of each class."""
    return np.stack([values[codes == k].mean(axis=0) for k in range(n_classes)])

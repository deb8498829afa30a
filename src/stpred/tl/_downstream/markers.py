from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, key_in, listing, one_of, whole
from stpred._core.elements import lost_provenance, need_sdata, table_in_frame, table_regions
from stpred._core.expression.counts import are_counts, duplicates

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

METHODS = ("wilcoxon", "t-test")

LOG = "log1p_cp10k"
"""The scale on which genes are compared."""

PSEUDOCOUNT = 0.01
"""Counts per 10 000 that are added before a fold change is taken: one of nothing over nothing is 0, not infinite."""

_MAX_GROUPS = 100


def markers(
    sdata: SpatialData,
    table_key: str,
    groupby: str,
    *,
    n_genes: int | None = 10,
    method: str = "wilcoxon",
    trusted_only: bool = True,
    min_in_group: int = 5,
    coordinate_system: str | None = None,
) -> pd.DataFrame:
    """Find the genes that are higher in each group of locations than in all others.

    Measured counts are normalised (log1p CP10k) on a copy first, predictions are taken on their own scale, and each
    group is compared with the rest by :func:`scanpy.tl.rank_genes_groups`.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted or measured table; a table of features or activities does as well.
    groupby
        Column of its ``obs`` with the groups, such as clusters, cell types or regions.
    n_genes
        Genes per group, those of highest score; None: all.
    method
        ``"wilcoxon"`` (rank sum with tie correction) or ``"t-test"`` (Welch).
    trusted_only
        Look only at genes that ``var["trusted"]`` vouches for, where the table has such a column.
    min_in_group
        Groups with fewer locations get no markers (the log says which); they stay part of the rest.
    coordinate_system
        Of a table that annotates regions of several slides: the frame of the slide whose rows are taken. None takes all
        rows.

    Returns
    -------
    DataFrame with a row per group and gene, each group's by falling score; the object is left alone. Columns:

    - ``group``, ``gene``;
    - ``score``: z of the rank sum, or t;
    - ``log2_fold_change``: log2 of mean counts per 10 000 in the group over those in the rest (0.01 added to both); NaN
      where the table's scale is relative or unknown;
    - ``difference``: of the means on the compared scale;
    - ``p``, ``p_adj``: two-sided, and adjusted by Benjamini and Hochberg over the genes compared in that group;
    - ``trusted``, ``cv_pearson``: of the gene in ``var``, missing where the table does not say.

    ``attrs["stpred"]`` holds the compared genes (``"genes"``), the scale and the sizes of the groups.

    Raises
    ------
    InputError
        If table or column do not exist, the column is no grouping, fewer than two groups have locations, no group is
        large enough, no gene is trusted, or values are missing.

    Notes
    -----
    Neighbouring locations resemble each other, predicted ones even more, and clusters are often made from the very
    genes that are then tested. So ``p`` is much too small to be taken as evidence; it is of use for ranking.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=40)
    >>> cells = slide.tables["cells_counts"]
    >>> cells.obs["side"] = ["left" if x < 300 else "right" for x in cells.obsm["spatial"][:, 0]]
    >>> found = st.tl.markers(slide, "cells_counts", "side", n_genes=3)
    >>> found.groupby("group").size().to_dict()
    {'left': 3, 'right': 3}
    """
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    one_of(method, METHODS, name="method")
    n_genes = None if n_genes is None else whole(n_genes, name="n_genes", unset=True)
    min_in_group = whole(min_in_group, name="min_in_group")
    table, what = table_in_frame(sdata, table_key, coordinate_system=coordinate_system), f"table {table_key!r}"
    groups = groups_of(table, groupby, what=what)
    genes = chosen_genes(table, what=what, trusted_only=trusted_only)
    values, scale, filled = compared_values(table, what=what)
    used = (groups != "") & filled
    groups, values = groups[used], values[np.ix_(used, genes)]
    sizes = pd.Series(groups).value_counts().sort_index()
    tested = _large_groups(sizes, min_in_group, what=f"obs[{groupby!r}] of {what}")
    var = table.var.iloc[genes]
    ranked = _ranked(values, groups, tested, list(var.index), method=method)
    parts = []
    for group in tested:
        order = var.index.get_indexer(ranked["names"][group])
        inside = groups == group
        frame = pd.DataFrame({
            "group": group,
            "gene": var.index[order].astype(str),
            "score": np.asarray(ranked["scores"][group], dtype=np.float64),
            "log2_fold_change": _fold_change(values, inside, scale=scale)[order],
            "difference": (values[inside].mean(axis=0) - values[~inside].mean(axis=0))[order],
            "p": np.asarray(ranked["pvals"][group], dtype=np.float64),
            "p_adj": np.asarray(ranked["pvals_adj"][group], dtype=np.float64),
        })  # fmt: skip
        for column, missing in (("trusted", pd.NA), ("cv_pearson", np.nan)):
            frame[column] = var[column].to_numpy()[order] if column in var else missing
        parts.append(frame.head(n_genes) if n_genes is not None else frame)
    found = pd.concat(parts, ignore_index=True)
    found.attrs[keys.UNS] = {
        "kind": "markers",
        "table": table_key,
        "by": groupby,
        "method": method,
        "scale": scale,
        "genes": [str(g) for g in var.index],
        "regions": table_regions(table),
        "sizes": {str(k): int(v) for k, v in sizes.items()},
        "versions": tables.package_versions(),
    }
    return found


def _large_groups(sizes: pd.Series, min_in_group: int, *, what: str) -> list[str]:
    """Return the groups that are large enough to be tested against the rest."""
    if len(sizes) < 2:
        raise InputError(f"{what} has one group ({listing(sizes.index)}), so there is no rest.")
    large = [g for g in sizes.index if sizes[g] >= min_in_group and sizes.sum() - sizes[g] >= 2]
    if not large or min_in_group < 2:
        raise InputError(
            f"No group of {what} has {min_in_group} locations, or the rest has not 2: {sizes.to_dict()}; lower "
            "`min_in_group` (2 at least) or join groups."
        )
    if len(large) < len(sizes):
        small = sizes[sizes < min_in_group].to_dict()
        logger.info("Groups of %s with under %d locations get no markers: %s.", what, min_in_group, small)
    return large


def _ranked(
    values: NDArray[np.float64], groups: NDArray[Any], tested: list[str], genes: list[str], *, method: str
) -> dict[str, Any]:
    """Return scanpy's ranking of the genes in each tested group."""
    import scanpy as sc
    from anndata import AnnData

    obs = pd.DataFrame({"group": pd.Categorical(groups)}, index=[str(i) for i in range(len(groups))])
    work = AnnData(values, obs=obs)
    work.var_names = genes
    corrected: dict[str, Any] = {"tie_correct": True} if method == "wilcoxon" else {}
    with np.errstate(divide="ignore", invalid="ignore"):  # of scanpy's own fold changes, which are not used
        sc.tl.rank_genes_groups(work, "group", groups=tested, method=method, use_raw=False, **corrected)
    return work.uns["rank_genes_groups"]


def groups_of(table: AnnData, groupby: str, *, what: str) -> NDArray[Any]:
    """Return the (n,) group of each location as text, "" where it has none."""
    key_in(groupby, table.obs.columns, what=f"column of obs of {what}", name="groupby")
    column = table.obs[groupby]
    if pd.api.types.is_float_dtype(column) or column.nunique() > _MAX_GROUPS:
        raise InputError(
            f"obs[{groupby!r}] of {what} is no grouping: {column.nunique()} different values, such as "
            f"{listing(column.dropna().unique()[:3])}; name a column of classes."
        )
    return np.where(column.isna(), "", column.astype(str)).astype(object)


def chosen_genes(table: AnnData, *, what: str, trusted_only: bool) -> NDArray[np.int64]:
    """Return the positions of genes to look at; names that occur twice are refused."""
    if repeated := duplicates(table.var_names):
        raise InputError(f"Gene names of {what} are not unique: {listing(repeated)}.")
    if not trusted_only or "trusted" not in table.var:
        return np.arange(table.n_vars)
    trusted = np.flatnonzero(table.var["trusted"].fillna(value=False).to_numpy(dtype=bool))
    if len(trusted) == 0:
        raise InputError(f"None of the {table.n_vars} genes of {what} is trusted; pass trusted_only=False to see all.")
    return trusted


def compared_values(table: AnnData, *, what: str) -> tuple[NDArray[np.float64], str, NDArray[np.bool_]]:
    """Return (n, G) values as genes are compared on, the name of their scale, and (n,) which locations hold any.

    Counts become log1p CP10k, with the library over all genes of the table; other values stay as they are.
    """
    values = targets.dense(table.X) if table.X is not None else None
    if values is None or not np.isfinite(values).all():
        raise InputError(f"The values of {what} are missing or hold NaN or infinite ones.")
    filled = np.ones(len(values), dtype=bool)
    if lost := lost_provenance(table):
        raise InputError(f"The scale of {what} is not known: {lost}.")
    facts = tables.read_prediction(table, what=what) if keys.UNS in table.uns else {}
    scale = facts.get("output_scale", "unknown")
    if not facts and are_counts(table.X):
        scale = "counts"
    if scale == "counts" and facts.get("per") is not None:  # amounts per 10 000 counts already
        return np.log1p(values), LOG, filled
    if scale == "counts":
        library = targets.totals(table.X)
        filled = library > 0
        if not filled.any():
            raise InputError(f"No location of {what} has a count.")
        # Predicted counts may fall a little below zero, where no logarithm is.
        return targets.transform(values.clip(min=0), library, target=LOG).astype(np.float64), LOG, filled
    return values, str(scale), filled


def _fold_change(values: NDArray[np.float64], inside: NDArray[np.bool_], *, scale: str) -> NDArray[np.float64]:
    """Return log2 of mean amounts inside over outside; the mean is of amounts, not of their logarithms."""
    if scale != LOG:
        return np.full(values.shape[1], np.nan)
    amounts = np.expm1(values).clip(min=0)
    return np.log2((amounts[inside].mean(axis=0) + PSEUDOCOUNT) / (amounts[~inside].mean(axis=0) + PSEUDOCOUNT))

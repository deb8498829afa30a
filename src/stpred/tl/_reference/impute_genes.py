from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, distinct, key_in, listing, one_of, warn, whole
from stpred._core.elements import key_in_frame, need_sdata, table_in_frame, table_instances, table_regions
from stpred._core.expression.counts import check_counts
from stpred._core.expression.library import LIBRARY, Library
from stpred._core.targets import CP10K
from stpred.tl._downstream.markers import chosen_genes
from stpred.tl._reference.imputation import METHODS, Cells, impute
from stpred.tl._reference.imputed_scores import Problem, gene_frame, read_measured
from stpred.tl._reference.reading import (
    LOG,
    MIN_GENES,
    Locations,
    log_over,
    match_genes,
    read_locations,
    reference_counts,
    relog,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

_MAX_CELLS = 10_000
"""Cells of the reference that are used at most."""

_MIN_SHARE = 0.01
"""Share of the reference's cells that express a gene which is imputed unasked."""


def impute_genes(
    sdata: SpatialData,
    table_key: str,
    reference: AnnData,
    *,
    genes: Iterable[str] | None = None,
    method: str = "ridge",
    measured_key: str | None = None,
    layer: str | None = None,
    trusted_only: bool = True,
    n_genes: int = 500,
    n_folds: int = 10,
    n_neighbors: int = 50,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    seed: int = 0,
    inplace: bool = True,
) -> AnnData | None:
    """Impute genes that a table lacks from those that it has, as they go together in single cells, and score it.

    Nothing is added that the given genes do not hold. How much that is for genes of this table is measured by hiding
    its own genes in turn and imputing them.

    Parameters
    ----------
    sdata
        Object with the table.
    table_key
        Predicted table (log1p CP10k or counts), or raw counts of a panel.
    reference
        Raw counts of single cells; no classes are needed.
    genes
        Genes of the reference that the table lacks; None takes the `n_genes` that the reference's own held-out cells
        show to be the most predictable.
    method
        ``"ridge"``: a linear map between genes, with the penalty that does best on held-out cells. ``"knn"``: the mean
        of the `n_neighbors` cells that are nearest in the standardised given genes.
    measured_key
        Table of raw counts at the same locations (or some of them), against which hidden genes are scored, and imputed
        ones that it has.
    layer
        Layer of the reference with the raw counts; None takes ``X``.
    trusted_only
        Impute from genes that ``var["trusted"]`` vouches for alone, where the table has such a column; the others are
        hidden.
    n_genes
        Number of genes where `genes` is None.
    n_folds
        Parts of the given genes that are hidden in turn.
    n_neighbors
        Of ``"knn"``.
    key_added
        Name of the new table; None makes ``{table_key}_imputed``.
    coordinate_system
        The slide's micrometre frame; of a table that annotates regions of several slides, the rows of the one there.
    seed
        Of folds and halves, and of cells where the reference has more than 10 000.
    inplace
        With False the table is returned and the object is not changed.

    Returns
    -------
    None, or the table: the genes of the table and the imputed ones, ``X`` float32 log1p CP10k over the table's own
    library (imputed genes at the level of the reference), and in ``var``

    - ``imputed``: whether the gene was;
    - ``reference_pearson``: correlation among held-out cells of the reference, imputed from the same genes, 0 where it
      is not beyond chance: such a gene has its mean everywhere;
    - ``hidden_pearson``: of the table's own genes, correlation of the hidden gene's imputation with the table's values:
      of predictions, which genes share, this is high also where both are wrong;
    - ``measured_pearson``: with `measured_key`, or a table of counts: correlation of the imputation with the
      measurement, of hidden and of imputed genes;
    - ``expected_pearson``: of imputed genes, what is to be expected with the truth: ``measured_pearson``, or else the
      median over the hidden genes of the most similar ``reference_pearson`` of their ``measured_pearson``, or else of
      ``hidden_pearson`` times ``cv_pearson``; NaN where neither is there;
    - ``trusted``: of imputed genes, that ``measured_pearson``, or the lower quartile of these hidden genes (10 at
      least), is above 0.1. Otherwise it is False.

    Everything else is as in the table, but for layers and intervals. ``uns["stpred"]`` holds under ``"imputed"`` the
    method, the genes it rests on and the median scores.

    Raises
    ------
    InputError
        If the reference holds no raw counts, shares fewer than two genes with the table or lacks a gene, or if the
        table has one of the genes or is on another scale.

    References
    ----------
    Abdelaal et al. 2020 (SpaGE): nearest single cells on shared genes, validated by leaving genes out. Li et al. 2022:
    such a validation of sixteen methods.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=60)
    >>> reference, slide = slides["donor0"].tables["cells_counts"], slides["donor1"]
    >>> slide.tables["panel"] = slide.tables["cells_counts"][:, :40].copy()
    >>> st.tl.impute_genes(slide, "panel", reference)
    >>> var = slide.tables["panel_imputed"].var
    >>> int(var["imputed"].sum()), bool(var["measured_pearson"].median() > 0.3)
    (20, True)
    """
    one_of(method, METHODS, name="method")
    n_folds, n_neighbors = whole(n_folds, name="n_folds"), whole(n_neighbors, name="n_neighbors")
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    rng = np.random.default_rng(seed)
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    wanted = None if genes is None else [str(g) for g in distinct(genes, name="genes")]
    problem = _read(
        table,
        reference,
        wanted,
        what=f"table {table_key!r}",
        layer=layer,
        trusted_only=trusted_only,
        n_genes=whole(n_genes, name="n_genes"),
        rng=rng,
    )
    how: dict[str, Any] = {"method": method, "n_neighbors": n_neighbors}
    hidden, hidden_reference = _hide(problem, n_folds=n_folds, rng=rng, **how)
    g, h = len(problem.given), len(problem.tested)
    final = impute(Cells(problem.cells[:, :g], problem.cells[:, g + h :], problem.held), problem.locations, **how)
    measured = None
    if measured_key is not None:
        measured = read_measured(sdata, table_key, measured_key, table, coordinate_system=coordinate_system)
    var = gene_frame(problem, final, hidden, hidden_reference, measured, reference)
    values = _level(final.values, problem.level)
    result = _build(problem, values, var, method=method, measured_key=measured_key, seed=seed)
    _say(var, what=f"table {table_key!r}")
    if not inplace:
        return result
    usual = key_in_frame(sdata, table_key, f"{table_key}_imputed", coordinate_system=coordinate_system)
    tables.put_table(sdata, usual if key_added is None else key_added, result)
    return None


def _read(
    table: AnnData,
    reference: Any,
    wanted: list[str] | None,
    *,
    what: str,
    layer: str | None,
    trusted_only: bool,
    n_genes: int,
    rng: np.random.Generator,
) -> Problem:
    """Return genes, cells and locations on one scale."""
    from scipy.sparse import csr_matrix

    every = chosen_genes(table, what=what, trusted_only=False)
    ids = table.var["gene_id"].astype(str).to_numpy() if "gene_id" in table.var else None
    shared, columns = match_genes(reference, table.var_names, ids=ids, what=what)
    chosen = np.isin(shared, chosen_genes(table, what=what, trusted_only=trusted_only))
    if chosen.sum() < MIN_GENES:
        raise InputError(
            f"The reference has {int(chosen.sum())} of the trusted genes of {what}, and {MIN_GENES} are needed; pass "
            "trusted_only=False to impute from all."
        )
    counts = csr_matrix(reference_counts(reference, layer=layer))
    try:
        check_counts(counts, what="counts of the reference")
    except InputError as error:
        raise InputError(f"{str(error).rstrip('.')}; name the layer that holds raw counts with `layer`.") from error
    rows = np.flatnonzero(targets.totals(counts[:, columns[chosen]]) > 0)
    if len(rows) < 20:
        raise InputError(f"{len(rows)} cells of the reference have counts of the shared genes, and 20 are needed.")
    if len(rows) > _MAX_CELLS:
        rows = np.sort(rng.choice(rows, _MAX_CELLS, replace=False))
    counts = counts[rows]
    names = [str(n) for n in reference.var_names]
    new = _new_genes(names, set(columns.tolist()), wanted, counts, table=table, what=what, n_genes=n_genes)
    order = np.concatenate([columns[chosen], columns[~chosen], new]).astype(np.int64)
    library = targets.totals(counts[:, columns[chosen]])
    whole_table = read_locations(table, every, what=what)
    given = Locations(whole_table.values[:, shared[chosen]], whole_table.measured, whole_table.depth)
    if whole_table.measured:
        values = log_over(whole_table.values)
    else:
        values = whole_table.values
    level = float(np.median(np.expm1(values[:, shared[chosen]]).clip(min=0).sum(axis=1))) / CP10K
    provenance = tables.read_provenance(table, what=what) if keys.UNS in table.uns else {}
    if whole_table.measured:
        provenance |= {LIBRARY: Library.of([(list(table.var_names), csr_matrix(table.X))]).packed()}
    return Problem(
        table=table,
        given=shared[chosen],
        tested=shared[~chosen],
        new=[names[i] for i in new],
        cells=targets.transform(counts[:, order], library, target=LOG).astype(np.float64),
        held=rng.permutation(len(rows)) % 2 == 0,
        locations=given.log_values(),
        values=values,
        level=level,
        provenance=provenance,
        measured=whole_table.measured,
    )


def _new_genes(
    names: list[str],
    shared: set[int],
    wanted: list[str] | None,
    counts: Any,
    *,
    table: AnnData,
    what: str,
    n_genes: int,
) -> NDArray[np.int64]:
    """Return positions in the reference of the genes to be imputed."""
    if wanted is None:
        expressed = np.asarray((counts > 0).mean(axis=0)).ravel()
        able = np.array(
            [i for i in range(len(names)) if i not in shared and expressed[i] >= _MIN_SHARE], dtype=np.int64
        )
        if len(able) == 0:
            raise InputError(f"The reference has no gene that is expressed and that {what} lacks.")
        if len(able) > n_genes:
            # What varies most beyond its counting noise can be predicted best.
            mean = np.asarray(counts[:, able].mean(axis=0)).ravel()
            square = np.asarray(counts[:, able].multiply(counts[:, able]).mean(axis=0)).ravel()
            excess = (square - mean**2) / np.maximum(mean, 1e-12)
            able = np.sort(able[np.argsort(-excess, kind="stable")[:n_genes]])
        return able
    place = {n: i for i, n in enumerate(names)}
    if missing := [g for g in wanted if g not in place]:
        raise InputError(f"The reference has no gene {listing(missing)}.")
    taken = {str(n) for n in table.var_names}
    if there := [g for g in wanted if g in taken or place[g] in shared]:
        raise InputError(f"The {what} has {listing(there)} already; leave them out of `genes`.")
    return np.array([place[g] for g in wanted], dtype=np.int64)


def _hide(
    problem: Problem, *, n_folds: int, rng: np.random.Generator, **how: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (m, G + H) imputations of genes that the table has, each without itself, and (G + H,) reference scores."""
    g, h = len(problem.given), len(problem.tested)
    values, scores = np.empty((len(problem.locations), g + h)), np.zeros(g + h)
    part, amounts = rng.permutation(g) % min(n_folds, g), np.expm1(problem.cells)
    for k in range(part.max() + 1):
        out = part == k
        if not (~out).any():
            continue
        # Hidden genes leave the library, too: the rest is brought to one total again.
        total = amounts[:, :g][:, ~out].sum(axis=1, keepdims=True)
        cells = np.log1p(amounts[:, :g] * np.divide(CP10K, total, out=np.zeros_like(total), where=total > 0))
        found = impute(Cells(cells[:, ~out], cells[:, out], problem.held), relog(problem.locations[:, ~out]), **how)
        values[:, :g][:, out], scores[:g][out] = found.values, found.pearson
    if h:
        found = impute(Cells(problem.cells[:, :g], problem.cells[:, g : g + h], problem.held), problem.locations, **how)
        values[:, g:], scores[g:] = found.values, found.pearson
    return values, scores


def _level(values: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Return log1p CP10k over the table's own library."""
    return np.log1p(np.expm1(values).clip(min=0) * level)


def _build(
    problem: Problem, values: NDArray[np.float64], var: Any, *, method: str, measured_key: str | None, seed: int
) -> AnnData:
    """Return the table of the given and the imputed genes."""
    import pandas as pd

    table = problem.table
    region = table_regions(table)[0]
    rows, ids = table_instances(table, region)
    kept = {c: table.obs[c].to_numpy() for c in (keys.OOD_SCORE, keys.IN_DISTRIBUTION) if c in table.obs}
    spatial = table.obsm.get(keys.SPATIAL)
    median = {
        name: None
        if np.isnan(v := np.nanmedian(var[name]) if var[name].notna().any() else np.nan)
        else round(float(v), 4)
        for name in ("reference_pearson", "hidden_pearson", "measured_pearson")
    }
    provenance = {k: v for k, v in problem.provenance.items() if k not in ("intervals", "cell_types")}
    provenance |= {
        "kind": "prediction",
        "output_scale": LOG,
        "imputed": {
            "method": method,
            "given": [str(g) for g in table.var_names[problem.given]],
            "measured_key": measured_key,
            "n_cells": len(problem.cells),
            "seed": seed,
            "median": median,
        },
    }
    provenance.pop("per", None)
    return tables.build_table(
        np.concatenate([problem.values, values], axis=1).astype(np.float32)[rows],
        shapes_key=region,
        instances=pd.Index(ids),
        var=var,
        spatial_um=np.zeros((len(rows), 2)) if spatial is None else np.asarray(spatial, dtype=np.float64)[rows],
        obs={k: v[rows] for k, v in kept.items()},
        provenance=provenance,
    )


def _say(var: Any, *, what: str) -> None:
    """Say what the imputation is worth; warn where little of it is to be trusted."""
    new = var["imputed"].to_numpy(dtype=bool)
    n_trusted = int(var["trusted"].to_numpy(dtype=bool)[new].sum())
    own, measured = var["hidden_pearson"].median(), var.loc[~new, "measured_pearson"].median()
    text = f"Genes of {what} that were hidden are imputed with a median Pearson correlation of {own:.2f} with the table"
    if np.isfinite(measured):
        text += f" and {measured:.2f} with the measurement"
    else:
        text += ", which says nothing of the truth where predictions share their errors (pass `measured_key`)"
    text += f"; {n_trusted} of {int(new.sum())} imputed genes are trusted."
    if n_trusted < new.sum() / 2:
        warn(text)
    else:
        logger.info("%s", text)

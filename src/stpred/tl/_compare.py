from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core import targets
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import table_instances, table_regions
from stpred._core.tables import read_provenance
from stpred.genes import looks_like_ensembl

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def compare(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    target: str | None = None,
    trusted_only: bool = False,
    write: bool = False,
) -> pd.DataFrame:
    """Compare a predicted with a measured table of the same region, gene by gene.

    Parameters
    ----------
    sdata
        Object that holds both tables.
    predicted_key
        Table that :func:`stpred.tl.predict` wrote.
    measured_key
        Table of raw counts that annotates the same shapes; instances are matched by their id.
    target
        Scale on which the measurement is taken, ``"log1p_cp10k"`` or ``"counts"``; None takes the prediction's own.
    trusted_only
        Compare only genes that the model marks as ``trusted``.
    write
        Also write the scores into ``var`` of the predicted table as ``measured_pearson`` and ``measured_spearman``.

    Returns
    -------
    DataFrame indexed by gene, best Pearson first: ``pearson``, ``spearman``, ``r2`` and ``rmse`` (float64; NaN where
    either side has no
    variance), ``library_size`` (Pearson of the measurement with a location's total of all other genes: what knowing
    nothing but the
    amount of RNA gives), ``mean_count``, ``n_locations``, and ``cv_pearson`` and ``trusted`` as the model states them.
    Raw-count scores are never to be read without ``library_size`` beside them.

    Raises
    ------
    InputError
        If the tables annotate different shapes or share no instance or gene.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=1)
    >>> st.tl.predict(slide, st.tl.train(st.datasets.toy_cohort(2), genes=["EPCAM", "COL1A2"]), shapes_key="spots")
    >>> st.tl.compare(slide, "spots_ridge", "spots_counts").columns[:2].tolist()
    ['pearson', 'spearman']
    """
    for name, key in (("predicted_key", predicted_key), ("measured_key", measured_key)):
        key_in(key, sdata.tables, what="table", name=name)
    predicted, measured = sdata.tables[predicted_key], sdata.tables[measured_key]
    facts = read_provenance(predicted, what=f"table {predicted_key!r}")
    if facts.get("kind") != "prediction":
        raise InputError(
            f"Table {predicted_key!r} holds {facts.get('kind')}, not predictions; pass the predicted table first."
        )
    target = facts["output_scale"] if target is None else target
    shared = [r for r in table_regions(predicted) if r in table_regions(measured)]
    if not shared:
        raise InputError(
            f"Table {predicted_key!r} annotates {listing(table_regions(predicted))}, {measured_key!r} annotates "
            f"{listing(table_regions(measured))}: predict on the measured shapes to compare them."
        )
    rows, measured_rows = _matched(predicted, measured, shared[0], names=(predicted_key, measured_key))
    genes = _shared_genes(predicted, measured, names=(predicted_key, measured_key))
    if trusted_only:
        genes = genes[predicted.var.loc[genes, "trusted"].to_numpy(dtype=bool)]
        if len(genes) == 0:
            raise InputError(f"Table {predicted_key!r} marks none of the measured genes as trusted.")
    everything = measured.X[measured_rows]
    targets.check_counts(everything, what=f"table {measured_key!r}")
    columns = measured.var_names.get_indexer(genes)
    totals = targets.totals(everything)
    kept = totals > 0  # a location without any count says nothing of its expression
    counts, totals = everything[kept], totals[kept]
    truth = targets.transform(counts[:, columns], totals, target=target)
    guess = targets.dense(predicted.X[rows[kept]][:, predicted.var_names.get_indexer(genes)])
    result = pd.DataFrame(
        {
            "pearson": metrics.pearson(guess, truth),
            "spearman": metrics.spearman(guess, truth),
            "r2": metrics.r2(guess, truth),
            "rmse": metrics.rmse(guess, truth),
            "library_size": metrics.library_size_baseline(counts, target=target, genes=columns),
            "mean_count": np.asarray(counts[:, columns].mean(axis=0)).ravel(),
            "n_locations": int(kept.sum()),
            **{c: predicted.var.loc[genes, c].to_numpy() for c in ("cv_pearson", "trusted") if c in predicted.var},
        },
        index=pd.Index(genes, name="gene"),
    )
    if write:
        for column in ("pearson", "spearman"):
            predicted.var[f"measured_{column}"] = result[column].reindex(predicted.var_names).to_numpy()
    return result.sort_values("pearson", ascending=False, kind="stable")


def _matched(
    predicted: AnnData, measured: AnnData, region: str, *, names: tuple[str, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of both tables that annotate the same instances."""
    rows, ids = table_instances(predicted, region)
    measured_rows, measured_ids = table_instances(measured, region)
    position = measured_ids.get_indexer(ids)
    if (position < 0).all():
        raise InputError(
            f"Tables {names[0]!r} and {names[1]!r} share no instance of {region!r}: ids {listing(ids[:3])} against "
            f"{listing(measured_ids[:3])}."
        )
    known = position >= 0
    return rows[known], measured_rows[position[known]]


def _shared_genes(predicted: AnnData, measured: AnnData, *, names: tuple[str, str]) -> pd.Index:
    """Return the predicted genes that were measured, in the model's order."""
    if not measured.var_names.is_unique:
        repeated = measured.var_names[measured.var_names.duplicated()].unique()
        raise InputError(f"Gene names of table {names[1]!r} are not unique: {listing(repeated)}.")
    genes = predicted.var_names[predicted.var_names.isin(measured.var_names)]
    if len(genes) == 0:
        ensembl = " (one side has Ensembl ids, the other symbols)" * (
            looks_like_ensembl(predicted.var_names) != looks_like_ensembl(measured.var_names)
        )
        raise InputError(
            f"Tables {names[0]!r} and {names[1]!r} share no gene{ensembl}: {listing(predicted.var_names[:3])} against "
            f"{listing(measured.var_names[:3])}."
        )
    return genes

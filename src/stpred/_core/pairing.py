"""Bringing a predicted and a measured table of the same shapes together: same instances, same genes, same scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import targets
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred._core.counts import check_counts
from stpred._core.elements import need_sdata, regions_told, table_instances, table_regions
from stpred._core.gene_names import mismatch
from stpred._core.tables import read_provenance

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Pair:
    """Predicted beside measured values.

    Attributes
    ----------
    shapes_key, instances
        Region and (n,) ids of the locations that both tables have and that were measured with at least one count.
    genes
        (G,) shared symbols, in the model's order.
    predicted, observed
        (n, G) float32 values on the same scale.
    counts, columns
        (n, all genes) raw counts and the positions of `genes` in them.
    target
        The scale.
    """

    shapes_key: str
    instances: pd.Index
    genes: pd.Index
    predicted: NDArray[np.float32]
    observed: NDArray[np.float32]
    counts: Any
    columns: NDArray[np.int64]
    target: str


def pair(sdata: SpatialData, predicted_key: str, measured_key: str, *, target: str | None = None) -> Pair:
    """Match instances by id and genes by symbol; `target` None takes the prediction's own scale."""
    need_sdata(sdata)
    for name, key in (("predicted_key", predicted_key), ("measured_key", measured_key)):
        key_in(key, sdata.tables, what="table", name=name)
    predicted, measured = sdata.tables[predicted_key], sdata.tables[measured_key]
    facts = read_provenance(predicted, what=f"table {predicted_key!r}")
    if facts.get("kind") != "prediction":
        raise InputError(f"Table {predicted_key!r} holds {facts.get('kind')}, not predictions.")
    target = facts["output_scale"] if target is None else one_of(target, targets.TARGETS, name="target")
    shared = [r for r in table_regions(predicted) if r in table_regions(measured)]
    if not shared:
        raise InputError(
            f"Table {predicted_key!r} annotates {regions_told(table_regions(predicted))}, {measured_key!r} annotates "
            f"{regions_told(table_regions(measured))}: predict on the measured shapes to compare them."
        )
    names = (predicted_key, measured_key)
    rows, measured_rows, instances = _instances(predicted, measured, shared[0], names=names)
    genes = _genes(predicted, measured, names=names)
    check_counts(measured.X, what=f"counts of table {measured_key!r}")
    counts: Any = measured.X[measured_rows]
    totals = targets.totals(counts)
    kept = totals > 0  # a location without any count says nothing of its expression
    if not kept.any():
        raise InputError(f"Table {measured_key!r} has no location with counts among those of {predicted_key!r}.")
    columns = measured.var_names.get_indexer(genes)
    guess = predicted.X[rows[kept]][:, predicted.var_names.get_indexer(genes)]
    return Pair(
        shapes_key=shared[0],
        instances=instances[kept],
        genes=genes,
        predicted=targets.dense(guess, dtype=np.float32),
        observed=targets.transform(counts[kept][:, columns], totals[kept], target=target),
        counts=counts[kept],
        columns=columns,
        target=target,
    )


def _instances(
    predicted: AnnData, measured: AnnData, region: str, *, names: tuple[str, str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], pd.Index]:
    """Return rows of both tables that annotate the same instances, and the instances."""
    rows, ids = table_instances(predicted, region)
    measured_rows, measured_ids = table_instances(measured, region)
    position = measured_ids.get_indexer(ids)
    known = position >= 0
    if not known.any():
        raise InputError(
            f"Tables {names[0]!r} and {names[1]!r} share no instance of {region!r}: ids {listing(ids[:3])} against "
            f"{listing(measured_ids[:3])}."
        )
    return rows[known], measured_rows[position[known]], ids[known]


def _genes(predicted: AnnData, measured: AnnData, *, names: tuple[str, str]) -> pd.Index:
    """Return the predicted genes that were measured, in the model's order."""
    if not measured.var_names.is_unique:
        repeated = measured.var_names[measured.var_names.duplicated()].unique()
        raise InputError(f"Gene names of table {names[1]!r} are not unique: {listing(repeated)}.")
    genes = predicted.var_names[predicted.var_names.isin(measured.var_names)]
    if len(genes) == 0:
        hint = mismatch(list(predicted.var_names), list(measured.var_names))
        raise InputError(
            f"Tables {names[0]!r} and {names[1]!r} share no gene: {listing(predicted.var_names[:3])} against "
            f"{listing(measured.var_names[:3])}{'; ' + hint if hint else ''}."
        )
    return genes

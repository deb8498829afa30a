from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core.checks import InputError
from stpred._core.pairing import pair

if TYPE_CHECKING:
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
    either side has no variance), ``library_size`` (Pearson of the measurement with a location's total of all other
    genes: what knowing nothing but the amount of RNA gives), ``mean_count``, ``n_locations``, and ``cv_pearson`` and
    ``trusted`` as the model states them. Raw-count scores are never to be read without ``library_size`` beside them.

    Raises
    ------
    InputError
        If the tables annotate different shapes or share no instance or gene.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=1)
    >>> cohort = st.datasets.toy_cohort(2)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> st.tl.compare(slide, "spots_ridge", "spots_counts").columns[:2].tolist()
    ['pearson', 'spearman']
    """
    both = pair(sdata, predicted_key, measured_key, target=target)
    predicted = sdata.tables[predicted_key]
    result = pd.DataFrame(
        {
            "pearson": metrics.pearson(both.predicted, both.observed),
            "spearman": metrics.spearman(both.predicted, both.observed),
            "r2": metrics.r2(both.predicted, both.observed),
            "rmse": metrics.rmse(both.predicted, both.observed),
            "library_size": metrics.library_size_baseline(both.counts, target=both.target, genes=both.columns),
            "mean_count": np.asarray(both.counts[:, both.columns].mean(axis=0)).ravel(),
            "n_locations": len(both.instances),
            **{c: predicted.var.loc[both.genes, c].to_numpy() for c in ("cv_pearson", "trusted") if c in predicted.var},
        },
        index=pd.Index(both.genes, name="gene"),
    )
    if write:
        for column in ("pearson", "spearman"):
            predicted.var[f"measured_{column}"] = result[column].reindex(predicted.var_names).to_numpy()
    if trusted_only:
        if not result["trusted"].any():
            raise InputError(f"Table {predicted_key!r} marks none of the measured genes as trusted.")
        result = result[result["trusted"]]
    return result.sort_values("pearson", ascending=False, kind="stable")

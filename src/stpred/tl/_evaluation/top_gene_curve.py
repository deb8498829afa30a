from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred.tl._evaluation.summarise import of_metric, of_scale


def top_gene_curve(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    target: str | None = None,
    order: Sequence[str] | Literal["rule", "score"] = "rule",
    n_genes: Sequence[int] | None = None,
    statistic: Literal["median", "mean"] = "median",
    level: float = 0.95,
    n_bootstrap: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Score each model's first N genes as N grows, with bootstrap bands over donors (DeepSpot's curves).

    Settings are chosen by the area under this curve with ``stpred.Splits(criterion="top_genes")``.

    Parameters
    ----------
    scores
        Tidy frame of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`,
        :func:`stpred.tl.withheld_sections` or :func:`stpred.tl.withheld_spots`.
    metric, target
        As in :func:`stpred.tl.rank_models`; of ``"rmse"`` and ``"mae"`` there is no such curve.
    order
        Which genes are the first: ``"rule"``, in the order that the gene rule gave them (the mean position over the
        folds, where these chose anew); a list of genes; or ``"score"``, each model's best first, which is higher by
        chance alone and lets models be compared on different genes.
    n_genes
        Numbers of genes; None: 100, 150, 200, 250, 300, 400, 500, 1000, 2000, 3000, 5000 as far as there are so many,
        and their number.
    statistic
        Over the first genes.
    level, n_bootstrap, seed
        Of the bands: donors are drawn with replacement.

    Returns
    -------
    DataFrame with one row per model and number of genes: ``model``, ``n_genes``, ``value``, ``low``, ``high`` (missing
    with a single donor), and ``area``, ``area_low``, ``area_high``, the area under the model's curve divided by its
    width, the same in all of its rows. Missing correlations count as 0;
    genes that were not chosen in a donor's fold do not.

    Raises
    ------
    InputError
        If the metric is an error, a listed gene is not there, or `n_genes` goes beyond what there is.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["ridge"], groups="slide", genes="all", shapes_key="spots")
    >>> st.tl.top_gene_curve(scores, n_genes=[5, 10, 20])["n_genes"].tolist()
    [5, 10, 20]
    """
    if metric in keys.ERRORS:
        raise InputError(f"`metric`: of {metric!r} less is better, so there is no curve of the first genes.")
    part = of_scale(of_metric(scores, metric), target)
    part = part[~part["model"].isin(keys.CONTEXT)]
    if part.empty:
        raise InputError(f"`scores` has no {metric!r} of a model.")
    if keys.zero_is_nothing(metric):
        part = part.assign(value=part["value"].fillna(0.0))  # a gene that a fold did not choose is not missing
    named = _order(part, order)
    rows = []
    for model, own in part.groupby("model", sort=False, observed=True):
        per_slide = own.groupby(["donor", "slide", "gene"], observed=True)["value"].mean()
        wide = per_slide.groupby(level=["donor", "gene"]).mean().unstack("gene")
        wide = wide.reindex(columns=[g for g in named if g in wide.columns])
        found = metrics.top_genes(
            wide.to_numpy(dtype=np.float64), n_genes=n_genes, statistic=statistic, ranked=order != "score",
            level=level, n_samples=n_bootstrap, seed=seed,
        )  # fmt: skip
        curve = {k: getattr(found, k) for k in ("n_genes", "value", "low", "high", "area", "area_low", "area_high")}
        rows.append(pd.DataFrame(curve).assign(model=model))
    result = pd.concat(rows, ignore_index=True)
    return result[["model", *[c for c in result if c != "model"]]]


def _order(part: pd.DataFrame, order: Sequence[str] | str) -> list[str]:
    """Return the genes, first ones first."""
    if isinstance(order, str):
        if order not in ("rule", "score"):
            raise InputError(f"`order` must be 'rule', 'score' or a list of genes, got {order!r}.")
        position = part.groupby(["model", "slide", "fold"], sort=False, observed=True).cumcount()
        return [str(g) for g in position.groupby(part["gene"], sort=False).mean().sort_values(kind="stable").index]
    genes = [str(g) for g in order]
    if unknown := [g for g in dict.fromkeys(genes) if g not in set(part["gene"])]:
        raise InputError(f"`order` names genes {listing(unknown)} that `scores` does not have.")
    return list(dict.fromkeys(genes))

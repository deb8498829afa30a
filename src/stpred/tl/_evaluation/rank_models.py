from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, fraction_of, listing, one_of
from stpred.metrics import ModelComparison
from stpred.tl._evaluation.summarise import of_metric, of_scale


def rank_models(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    target: str | None = None,
    models: Sequence[str] | None = None,
    over: Literal["donor", "slide"] = "donor",
    nan: Literal["drop", "zero"] = "zero",
    level: float = 0.95,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> ModelComparison:
    """Test which models differ, on the same held-out donors: mean ranks, paired tests, intervals of their differences.

    Parameters
    ----------
    scores
        Tidy frame of several models on the same slides: of :func:`stpred.tl.cross_validate`,
        :func:`stpred.tl.validate`, :func:`stpred.tl.withheld_sections` or :func:`stpred.tl.withheld_spots`.
    metric
        Of the frame's metrics; the lowest of ``"rmse"`` and ``"mae"`` ranks first, the highest of others.
    target
        Scale that is scored on; None where the frame has one only.
    models
        Which to compare; None takes all that predict, without the rows of context.
    over
        What models are compared over: the mean over genes of each ``"donor"`` or of each ``"slide"``. Slides of one
        donor are no independent observations, and p-values over them are too small.
    nan
        Missing correlations count as ``"zero"``, so that no model gains by predicting a constant, or are excluded
        (``"drop"``). Other metrics have no such zero: a model without them cannot be compared.
    level
        Confidence level of the critical difference and of the intervals.
    n_bootstrap, seed
        Of the intervals of the models' differences: donors are drawn with all their slides, the same for both models
        (a paired bootstrap). With fewer than about ten donors they are too short.

    Returns
    -------
    :class:`stpred.metrics.ModelComparison`: ``ranks`` and ``pairs`` (DataFrames; the latter with ``difference``,
    ``low`` and ``high``), ``friedman_p``, ``cd``, ``groups``. It prints as these tables, and
    :func:`stpred.pl.critical_difference` draws it.

    Raises
    ------
    InputError
        If there are fewer than three donors (or slides), or two models.

    References
    ----------
    Demšar, Statistical comparisons of classifiers over multiple data sets, J. Mach. Learn. Res. 7 (2006).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["intensity", "ridge"], groups="slide", shapes_key="spots")
    >>> st.tl.rank_models(scores).ranks.index.tolist()
    ['ridge', 'intensity']
    """
    one_of(over, ("donor", "slide"), name="over")
    one_of(nan, ("drop", "zero"), name="nan")
    level = fraction_of(level, name="level")
    part = of_scale(of_metric(scores, metric), target)
    available = [str(m) for m in part["model"].unique()]
    chosen = [m for m in available if m not in keys.CONTEXT] if models is None else [str(m) for m in models]
    if unknown := [m for m in chosen if m not in available]:
        raise InputError(f"`scores` has no {metric} of the models {listing(unknown)}; it has {listing(available)}.")
    if nan == "zero" and keys.zero_is_nothing(metric):
        part = part.assign(value=part["value"].fillna(0.0))
    if absent := [m for m in chosen if part.loc[part["model"] == m, "value"].isna().all()]:
        raise InputError(f"Models {listing(absent)} have no {metric}; leave them out with `models`.")
    # Slides first: a donor of many slides is the mean of their means, whatever their numbers of genes.
    per_slide = part.groupby(["model", *dict.fromkeys([over, "slide"])], observed=True)["value"].mean()
    wide = per_slide.groupby(level=[0, 1]).mean().unstack(0)
    donors = part.groupby(over, observed=True)["donor"].first().reindex(wide.index)
    if len(wide) < 3:
        raise InputError(
            f"Models are compared over three {over}s or more, `scores` has {len(wide)}: no test could tell them apart."
        )
    return metrics.compare_models(
        np.asarray(wide[chosen], dtype=np.float64),
        chosen,
        alpha=round(1 - level, 12),
        higher_is_better=metric not in keys.ERRORS,
        groups=donors.astype(str).to_numpy(),
        n_bootstrap=n_bootstrap,
        seed=seed,
    )

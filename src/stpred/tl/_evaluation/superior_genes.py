from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core.checks import InputError, fraction_of, listing, one_of
from stpred.tl._evaluation.summarise import of_metric, of_scale

if TYPE_CHECKING:
    from collections.abc import Mapping

METRICS = ("pearson", "spearman")


def superior_genes(
    scores: pd.DataFrame,
    first: str,
    second: str,
    *,
    n_locations: Mapping[str, int] | None = None,
    metric: str = "pearson",
    target: str | None = None,
    level: float = 0.95,
) -> pd.DataFrame:
    """Test, for each gene of each slide, whether one model predicts it better than another (MISO's test).

    One-tailed, on Fisher's z of both models' correlations with the same measurement
    (:func:`stpred.metrics.correlation_difference_test`). Repeated splits are combined as twice the median of their
    p-values. It asks about these slides; whether a model is better on other donors is :func:`stpred.tl.rank_models`'
    question.

    Parameters
    ----------
    scores
        Frame of :func:`stpred.tl.cross_validate` or :func:`stpred.tl.validate` with both models.
    first, second
        Names of the model that may be better, and of the other.
    n_locations
        Locations of each slide; None takes ``scores.attrs["n_locations"]``, which both functions write (concatenating
        frames loses it).
    metric
        ``"pearson"`` or ``"spearman"``.
    target
        Scale that is scored on; None where the frame has one only.
    level
        One minus the false discovery rate over the genes of a slide at which ``superior`` is True.

    Returns
    -------
    DataFrame with a row per slide and gene that both models predict: ``slide``, ``gene``, ``first``, ``second``
    (correlations, averaged over repeats), ``z`` (averaged), ``p_value``, ``p_adjusted`` (Benjamini-Hochberg over the
    slide's genes) and ``superior``. Nearby locations resemble each other, so that there are fewer independent ones than
    locations: p-values are optimistic in this respect, and cautious in that the models' agreement is not used.

    Raises
    ------
    InputError
        If the frame lacks a model, a slide's number of locations, or has several scales and none is chosen.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["intensity", "ridge"], groups="slide", shapes_key="spots")
    >>> found = st.tl.superior_genes(scores, "ridge", "intensity")
    >>> bool(found["superior"].mean() > 0.5)
    True
    """
    one_of(metric, METRICS, name="metric")
    level = fraction_of(level, name="level")
    part = of_scale(of_metric(scores, metric), target)
    if first == second:
        raise InputError(f"Two different models are compared, got {first!r} twice.")
    available = [str(m) for m in part["model"].unique()]
    if unknown := [m for m in (first, second) if m not in available]:
        raise InputError(f"`scores` has no {metric} of the models {listing(unknown)}; it has {listing(available)}.")
    keys = ["slide", "gene", *(["repeat"] if "repeat" in part else []), "fold"]
    sides = [
        part[part["model"] == m].set_index(keys)["value"].rename(n) for m, n in ((first, "first"), (second, "second"))
    ]
    both = pd.concat(sides, axis=1, join="inner").reset_index()
    sizes = _sizes(both, scores, n_locations)
    both["z"], both["p_value"] = metrics.correlation_difference_test(both["first"], both["second"], sizes)
    rows = both.groupby(["slide", "gene"], sort=False, observed=True)
    found = rows[["first", "second", "z"]].mean()
    found["p_value"] = rows["p_value"].agg(lambda p: metrics.median_p(p) if len(p) > 1 else p.iloc[0])
    found = found.reset_index()
    found["p_adjusted"] = found.groupby("slide", sort=False)["p_value"].transform(
        lambda p: metrics.benjamini_hochberg(np.asarray(p, dtype=np.float64))
    )
    return found.assign(superior=found["p_adjusted"] <= round(1 - level, 12))


def _sizes(both: pd.DataFrame, scores: pd.DataFrame, given: Mapping[str, int] | None) -> pd.Series:
    """Return the number of locations of each row's slide."""
    known = dict(scores.attrs.get("n_locations", {}) if given is None else given)
    if missing := [s for s in both["slide"].unique() if s not in known]:
        raise InputError(
            f"The numbers of locations of slides {listing(missing)} are not known; pass `n_locations`, a mapping of "
            "slides to numbers."
        )
    return both["slide"].map(known)

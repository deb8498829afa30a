from __future__ import annotations

import logging
import math
from typing import Any, Literal

import numpy as np
import pandas as pd

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, fraction_of, listing, one_of, whole
from stpred.metrics.summary import mean_of_defined

logger = logging.getLogger("stpred")

MIN_DONORS = 3

_GIVEN = "pearson_given_library_size"
_UNKNOWN = "consistent is not determined"
_NEEDED = ("model", "slide", "donor", "gene", "metric", "value", "target")


def summarise(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    groupby: Literal["model", "gene"] = "model",
    nan: Literal["drop", "zero"] = "drop",
    level: float = 0.95,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> pd.DataFrame:
    """Average the scores of a cross-validation, with an explicit rule for missing ones, with their uncertainty.

    Parameters
    ----------
    scores
        Tidy frame of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`,
        :func:`stpred.tl.withheld_sections` or :func:`stpred.tl.withheld_spots`. Runs with other splits or seeds may be
        concatenated with a column ``repeat``; their p-values are combined as twice the median.
    metric
        Of the frame's metrics, such as ``"pearson"``, ``"spearman"`` or ``"r2"``.
    groupby
        ``"model"``: a row per scale and model. ``"gene"``: a row per scale, model and gene.
    nan
        ``"drop"`` leaves missing scores out, ``"zero"`` counts them as 0, as several published tables do.
    level
        One minus the family-wise error at which a gene counts as predicted consistently.
    n_bootstrap, seed
        Of the intervals.

    Returns
    -------
    DataFrame. By model, indexed by ``target`` and ``model``: ``mean`` (first over genes, then over slides), ``low`` and
    ``high`` (95 % bootstrap interval of it, drawing donors with all their slides; missing with a single donor),
    ``mean_over_slides_first`` (first over slides, then over genes: what it differs by is missing scores alone),
    ``sd_genes``, ``sd_slides``, ``median_gene``, ``n_genes``, ``n_slides``, ``n_donors``, ``n_missing``; and, where
    `metric` is ``"pearson"``, ``given_library_size``: ``mean`` of what is left when the log of a location's total is
    taken out (missing for what has no such score), by which models are best compared on other donors.

    By gene, indexed by ``target``, ``model`` and ``gene``, best first: ``mean`` over slides, ``low``, ``high``,
    ``n_slides``, ``n_missing``, and for correlations ``p_t`` (one-tailed t-test of Fisher's z over donors, each by the
    mean of its slides; missing with fewer than three donors, as ``attrs["p_values"]`` says), ``n_positive`` and
    ``n_donors`` (with a positive mean, of how many), ``p_sign``, ``p_holm`` (binomial, corrected by Holm over genes)
    and ``consistent`` (True, False, or missing for all genes where the donors are too few for any gene to pass; then
    ``attrs["consistent"]`` and a log message say how many are needed).

    Raises
    ------
    InputError
        If columns are missing, or the frame has no such metric.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications: t-test of Fisher's z. He et al., ST-Net, Nat. Biomed. Eng. 4 (2020): genes predicted
    consistently. Meinshausen et al., J. Am. Stat. Assoc. 104 (2009): twice the median of p-values.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["ridge"], groups="slide", shapes_key="spots")
    >>> st.tl.summarise(scores).columns[:3].tolist()
    ['mean', 'low', 'high']
    """
    one_of(groupby, ("model", "gene"), name="groupby")
    one_of(nan, ("drop", "zero"), name="nan")
    n_bootstrap = whole(n_bootstrap, name="n_bootstrap")
    level = fraction_of(level, name="level")
    part = of_metric(scores, metric)
    if nan == "zero" and not keys.zero_is_nothing(metric):
        raise InputError(f"`nan='zero'` is of correlations; a missing {metric} is no {metric} of 0, use 'drop'.")
    less = metric in keys.ERRORS
    draws: dict[str, Any] = {"n": n_bootstrap, "seed": seed}
    found: list[pd.DataFrame] = []
    reasons: set[str] = set()
    unknown: dict[str, list[str]] = {}
    for (target, model), rows in part.groupby(["target", "model"], sort=False, observed=True):
        repeats = [r for _, r in rows.groupby("repeat", sort=False, dropna=False)] if "repeat" in rows else [rows]
        wide, donors, missing = _values(repeats, nan=nan)
        if groupby == "model":
            frame = pd.DataFrame([_of_model(wide, donors, missing, **draws)])
            if metric == "pearson":
                frame["given_library_size"] = _given_library_size(scores, target, model, nan=nan)
        else:
            frame = _of_genes(wide, donors, missing, **draws)
            if metric.startswith(("pearson", "spearman")):
                frame = frame.join(
                    _tests(repeats, str(model), alpha=round(1 - level, 12), reasons=reasons, unknown=unknown)
                )
            frame = frame.sort_values("mean", ascending=less, kind="stable").reset_index(names="gene")
        found.append(frame.assign(target=target, model=model))
    index = ["target", "model"] if groupby == "model" else ["target", "model", "gene"]
    result = pd.concat(found).set_index(index)
    if groupby == "model":
        return result.sort_values(["target", "mean"], ascending=[True, less], kind="stable")
    undetermined = [f"{_UNKNOWN} for {', '.join(names)}: {why}" for why, names in sorted(unknown.items())]
    for name, sentences in (("p_values", sorted(reasons)), ("consistent", undetermined)):
        if sentences:
            result.attrs[name] = "; ".join(sentences)
    for sentence in undetermined:
        logger.warning("%s", sentence)
    return result


def of_metric(scores: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of a tidy frame, after checking that it is one."""
    if not isinstance(scores, pd.DataFrame) or (missing := [c for c in _NEEDED if c not in scores]):
        lacking = listing(missing) if isinstance(scores, pd.DataFrame) else "everything"
        raise InputError(f"`scores` must be the frame of stpred.tl.cross_validate; it lacks {lacking}.")
    if scores.empty:
        raise InputError("`scores` is empty: no gene was compared.")
    part = scores[scores["metric"] == metric]
    if part.empty:
        raise InputError(f"`metric` must be one of {listing(sorted(scores['metric'].unique()))}, got {metric!r}.")
    return part


def of_scale(part: pd.DataFrame, target: str | None) -> pd.DataFrame:
    """Return the rows of one scale; where there are several, one has to be chosen."""
    scales = [str(t) for t in part["target"].unique()]
    if target is None and len(scales) > 1:
        raise InputError(f"`scores` has the scales {listing(scales)}; choose one with `target`.")
    return part[part["target"] == (scales[0] if target is None else one_of(target, scales, name="target"))]


def as_matrix(repeats: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.Series]:
    """Return scores as slides x genes, averaged over repeats, and the donor of each slide."""
    rows = pd.concat(repeats)
    wide = rows.pivot_table(
        index="slide", columns="gene", values="value", aggfunc="mean", dropna=False, sort=False, observed=True
    )
    donors = pd.Series(rows["donor"].to_numpy(), index=rows["slide"].to_numpy()).groupby(level=0).first()
    return wide, donors.reindex(wide.index)


def _values(repeats: list[pd.DataFrame], *, nan: str) -> tuple[pd.DataFrame, pd.Series, np.ndarray]:
    """Return scores as slides x genes, the donor of each slide, and where a score is missing."""
    wide, donors = as_matrix(repeats)
    there = as_matrix([pd.concat(repeats).assign(value=1.0)])[0].reindex_like(wide).notna().to_numpy()
    values = wide.to_numpy(dtype=np.float64)
    missing = there & np.isnan(values)  # a gene that a fold did not choose was not requested, and is not missing
    wide = pd.DataFrame(np.where(missing, 0.0, values) if nan == "zero" else values, wide.index, wide.columns)
    return wide, donors, missing


def _given_library_size(scores: pd.DataFrame, target: Any, model: Any, *, nan: str) -> float:
    """Return a model's mean Pearson given the library size, first over genes; NaN where there is none."""
    rows = scores[(scores["metric"] == _GIVEN) & (scores["target"] == target) & (scores["model"] == model)]
    return float("nan") if rows.empty else metrics.average(_values([rows], nan=nan)[0])["mean"]


def _of_model(wide: pd.DataFrame, donors: pd.Series, missing: np.ndarray, *, n: int, seed: int) -> dict[str, float]:
    values = wide.to_numpy(dtype=np.float64)
    genes_first, slides_first = (metrics.average(values, order=order) for order in ("genes", "slides"))  # type: ignore[arg-type]
    per_slide = mean_of_defined(values, axis=1)
    low, high = _interval(per_slide, donors, n=n, seed=seed)
    return {
        "mean": genes_first["mean"],
        "low": float(low),
        "high": float(high),
        "mean_over_slides_first": slides_first["mean"],
        "sd_genes": slides_first["sd"],
        "sd_slides": genes_first["sd"],
        "median_gene": metrics.summarise(mean_of_defined(values, axis=0))["median"],
        "n_genes": wide.shape[1],
        "n_slides": wide.shape[0],
        "n_donors": donors.nunique(),
        "n_missing": int(missing.sum()),
    }


def _of_genes(wide: pd.DataFrame, donors: pd.Series, missing: np.ndarray, *, n: int, seed: int) -> pd.DataFrame:
    values = wide.to_numpy(dtype=np.float64)
    low, high = _interval(values, donors, n=n, seed=seed)
    n_slides = np.isfinite(values).sum(axis=0)
    columns = {"mean": mean_of_defined(values, axis=0), "low": low, "high": high, "n_slides": n_slides}
    return pd.DataFrame(columns | {"n_missing": missing.sum(axis=0)}, index=wide.columns)


def _interval(values: np.ndarray, donors: pd.Series, *, n: int, seed: int) -> tuple[Any, Any]:
    """Return the ends of the interval over donors; NaN where there is one only."""
    if donors.nunique() < 2:
        return (np.full(values.shape[1:], np.nan)[()],) * 2
    return metrics.bootstrap_ci(values, groups=donors.astype(str).to_numpy(), n_samples=n, seed=seed)


def _tests(
    repeats: list[pd.DataFrame], model: str, *, alpha: float, reasons: set[str], unknown: dict[str, list[str]]
) -> pd.DataFrame:
    """Return the tests of each gene over donors; missing, with the reason kept, where there are too few.

    `reasons` takes why there are no p-values, `unknown` why ``consistent`` is missing, with the models it is so of.
    """
    wide, donors = as_matrix(repeats)
    per_donor = wide.groupby(donors.to_numpy()).mean()
    found = metrics.consistent_genes(per_donor.to_numpy(), alpha=alpha)
    p = np.full(wide.shape[1], np.nan)
    each = []
    for rows in repeats:
        one, whose = as_matrix([rows])
        one = one.groupby(whose.to_numpy()).mean().reindex(columns=wide.columns)
        if one.notna().sum().max() >= MIN_DONORS:
            each.append(metrics.fisher_t_test(one.to_numpy())[1])
    if len(per_donor) < MIN_DONORS:
        reasons.add(f"no p_t: {len(per_donor)} donors leave a single degree of freedom or none")
    elif each:
        p = metrics.median_p(np.stack(each)) if len(each) > 1 else each[0]
    # Even a gene that is positive in every donor must stay below alpha, after Holm's correction over the genes.
    n_donors, n_genes = int(found.n_donors.max(initial=0)), int((found.n_donors > 0).sum())
    consistent = pd.array(found.consistent, dtype="boolean")
    if n_genes == 0:  # a model without any defined score, such as a constant
        consistent[:] = pd.NA
    elif 0.5**n_donors * n_genes > alpha:
        consistent[:] = pd.NA
        why = (
            f"of {n_genes} genes over {n_donors} donors none could pass the sign test at {alpha:g}, "
            f"whatever its scores; {math.ceil(math.log2(n_genes / alpha))} donors or more can tell"
        )
        unknown.setdefault(why, []).append(model)
    return pd.DataFrame(
        {
            "p_t": p,
            "n_positive": found.n_positive,
            "n_donors": found.n_donors,
            "p_sign": found.p_value,
            "p_holm": found.p_holm,
            "consistent": consistent,
        },
        index=wide.columns,
    )

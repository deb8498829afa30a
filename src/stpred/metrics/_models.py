"""Several models on the same folds: whether they differ, and which from which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, listing, one_of
from stpred._core.expression.counts import duplicates
from stpred.metrics._bootstrap import bootstrap_ci
from stpred.metrics._p_values import holm

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, repr=False)
class ModelComparison:
    """Ranks of models over blocks (folds, slides or donors), and what tells them apart.

    It prints as two tables, of the models and of the pairs.

    Attributes
    ----------
    ranks
        One row per model, best first: ``mean_rank`` (1 = best in every block), ``mean``, ``sd`` and ``median`` of the
        values.
    pairs
        One row per pair, the better mean rank first: ``first``, ``second``, ``difference`` (mean of first minus
        second), ``low`` and ``high`` (its percentile bootstrap interval, of paired blocks), ``wilcoxon_p``,
        ``wilcoxon_holm``, ``t_p``, ``t_holm`` (two-sided, paired, corrected over the pairs),
        and ``nemenyi`` (whether the mean ranks are further apart than `cd`).
    friedman_statistic, friedman_p
        Test of Friedman that all models are alike.
    cd
        Critical difference of mean ranks, of Nemenyi.
    groups
        Largest sets of models whose mean ranks are within `cd` of each other: the bars of a critical-difference
        diagram.
    n_blocks
        Number of blocks.
    alpha
        Level of `cd`, and one minus that of the intervals.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import compare_models
    >>> values = np.array([[0.1, 0.3], [0.2, 0.5], [0.1, 0.2], [0.3, 0.4]])
    >>> compare_models(values, ["mean", "ridge"]).ranks.index.tolist()
    ['ridge', 'mean']
    """

    ranks: pd.DataFrame
    pairs: pd.DataFrame
    friedman_statistic: float
    friedman_p: float
    cd: float
    groups: tuple[tuple[str, ...], ...]
    n_blocks: int
    alpha: float

    def __repr__(self) -> str:
        ranks, pairs = (f.to_string(float_format="{:.3g}".format, index=i) for f, i in self._tables())
        return f"{self._summary()}\n\n{ranks}\n\n{pairs}"

    def _repr_html_(self) -> str:
        ranks, pairs = (f.to_html(float_format="{:.3g}".format, index=i) for f, i in self._tables())
        return f"<p>{self._summary()}</p>{ranks}{pairs}"

    def _tables(self) -> tuple[tuple[pd.DataFrame, bool], tuple[pd.DataFrame, bool]]:
        return (self.ranks, True), (self.pairs, False)

    def _summary(self) -> str:
        return (
            f"{len(self.ranks)} models over {self.n_blocks} blocks: Friedman p = {self.friedman_p:.3g}; mean ranks "
            f"differ where they are more than {self.cd:.3g} apart (Nemenyi, {self.alpha:g})"
        )


def compare_models(
    values: ArrayLike,
    names: Sequence[str],
    *,
    alpha: float = 0.05,
    higher_is_better: bool = True,
    groups: ArrayLike | None = None,
    n_bootstrap: int = 10_000,
    seed: int = 0,
) -> ModelComparison:
    """Compare models scored on the same blocks: Friedman test, mean ranks with critical difference, paired tests.

    Parameters
    ----------
    values
        (blocks, models) scores, one for each. Blocks should be independent, such as donors; folds that share training
        slides are less than that, and p-values are then too small.
    names
        Names of the models.
    alpha
        Level of the critical difference.
    higher_is_better
        False for errors, of which the lowest ranks first.
    groups
        (blocks,) donor of each block: the bootstrap draws donors with all their blocks, the same draws for both models
        of a pair. None draws blocks.
    n_bootstrap, seed
        Of the intervals of differences; see :func:`stpred.metrics.bootstrap_ci`.

    Returns
    -------
    A :class:`ModelComparison`.

    Raises
    ------
    InputError
        With fewer than three blocks or two models, or a missing value.

    Notes
    -----
    Few blocks cannot tell models apart, whatever their scores: the two-sided signed-rank test of n blocks has no
    p-value below ``2 / 2^n``, a quarter for three.

    References
    ----------
    Demšar, Statistical comparisons of classifiers over multiple data sets, Journal of Machine Learning Research 7
    (2006).

    Examples
    --------
    >>> from stpred.metrics import compare_models
    >>> values = [[0.3, 0.2, 0.1], [0.5, 0.3, 0.3], [0.4, 0.2, 0.1], [0.6, 0.1, 0.2]]
    >>> found = compare_models(values, ["a", "b", "c"])
    >>> found.ranks["mean_rank"].to_dict()
    {'a': 1.0, 'b': 2.375, 'c': 2.625}
    >>> round(found.cd, 2), found.groups
    (1.66, (('a', 'b', 'c'),))
    """
    import pandas as pd
    from scipy.stats import rankdata

    scores, labels = _checked(values, names, alpha=alpha)
    n_blocks, k = scores.shape
    ranked = rankdata(-scores if higher_is_better else scores, axis=1)
    mean_rank = ranked.mean(axis=0)
    statistic, p_value = _friedman(ranked)
    cd = _critical_difference(k, n_blocks=n_blocks, alpha=alpha)
    order = np.argsort(mean_rank, kind="stable")
    ranks = pd.DataFrame(
        {
            "mean_rank": mean_rank,
            "mean": scores.mean(axis=0),
            "sd": scores.std(axis=0, ddof=1),
            "median": np.median(scores, axis=0),
        },
        index=pd.Index(labels, name="model"),
    ).iloc[order]
    rows = []
    chosen = list(combinations(order, 2))
    differences = np.stack([scores[:, i] - scores[:, j] for i, j in chosen], axis=1)
    low, high = _intervals(differences, groups, level=1 - alpha, n=n_bootstrap, seed=seed)
    for k, (i, j) in enumerate(chosen):
        wilcoxon_p, t_p = paired_p(differences[:, k])
        rows.append(
            {
                "first": labels[i],
                "second": labels[j],
                "difference": differences[:, k].mean(),
                "low": low[k],
                "high": high[k],
                "wilcoxon_p": wilcoxon_p,
                "wilcoxon_holm": np.nan,
                "t_p": t_p,
                "t_holm": np.nan,
                "nemenyi": mean_rank[j] - mean_rank[i] > cd,
            }
        )
    pairs = pd.DataFrame(rows)
    for test in ("wilcoxon", "t"):
        pairs[f"{test}_holm"] = holm(pairs[f"{test}_p"])
    groups = tuple(tuple(labels[order[i]] for i in g) for g in _bars(mean_rank[order], cd=cd))
    return ModelComparison(
        ranks,
        pairs=pairs,
        friedman_statistic=statistic,
        friedman_p=p_value,
        cd=cd,
        groups=groups,
        n_blocks=n_blocks,
        alpha=alpha,
    )


def _checked(values: ArrayLike, names: Sequence[str], *, alpha: float) -> tuple[NDArray[np.float64], list[str]]:
    scores = np.asarray(values, dtype=np.float64)
    labels = [str(n) for n in names]
    if scores.ndim != 2 or scores.shape[1] != len(labels):
        raise InputError(f"`values` must be a (blocks, {len(labels)}) matrix, one column a name, got {scores.shape}.")
    if repeated := duplicates(labels):
        raise InputError(f"`names` must differ, repeated are {listing(repeated)}.")
    if len(labels) < 2:
        raise InputError(f"A comparison needs two or more models, got {len(labels)}.")
    if len(scores) < 3:
        raise InputError(
            f"A comparison of models needs three or more blocks (folds, slides or donors), got {len(scores)}: ranks of "
            "fewer cannot differ from chance."
        )
    if (holes := ~np.isfinite(scores)).any():
        raise InputError(
            f"Every model needs a finite score in every block; {int(holes.any(axis=1).sum())} of {len(scores)} blocks "
            f"lack one, of {listing(np.asarray(labels)[holes.any(axis=0)])}."
        )
    if not 0 < alpha < 1:
        raise InputError(f"`alpha` must lie between 0 and 1, got {alpha!r}.")
    return scores, labels


def _friedman(ranked: NDArray[np.float64]) -> tuple[float, float]:
    """Return statistic and p-value, corrected for ties; SciPy's refuses two models."""
    from scipy.special import chdtrc

    n, k = ranked.shape
    between = n * np.square(ranked.mean(axis=0) - (k + 1) / 2).sum()
    within = np.square(ranked - (k + 1) / 2).sum() / (n * (k - 1))
    if within == 0:  # every model equal in every block
        return 0.0, 1.0
    statistic = float(between / within)
    return statistic, float(chdtrc(k - 1, statistic))


def _critical_difference(k: int, *, n_blocks: int, alpha: float) -> float:
    from scipy.stats import studentized_range

    quantile = studentized_range.ppf(1 - alpha, k, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(k * (k + 1) / (6 * n_blocks)))


def _intervals(
    differences: NDArray[np.float64], groups: ArrayLike | None, *, level: float, n: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (pairs,) ends of the bootstrap intervals; NaN where all blocks are of one donor."""
    if groups is not None and len(set(np.asarray(groups).astype(str).tolist())) < 2:
        return (np.full(differences.shape[1], np.nan),) * 2
    return bootstrap_ci(differences, groups=groups, n_samples=n, level=level, seed=seed)


def paired_p(
    difference: NDArray[np.float64], *, alternative: Literal["two-sided", "greater", "less"] = "two-sided"
) -> tuple[float, float]:
    """Return p-values of the signed-rank test and the t-test of (n,) paired differences; 1 where nothing differs."""
    from scipy.stats import ttest_1samp, wilcoxon

    if not difference.any():
        return 1.0, 1.0
    # Differences that are equal but for rounding are ties of the signed ranks.
    signed = np.round(difference, 12 - int(np.ceil(np.log10(np.abs(difference).max()))))
    with np.errstate(divide="ignore"):
        alike = {"two-sided": 0.0, "greater": float(signed[0] < 0), "less": float(signed[0] > 0)}[alternative]
        t_p = alike if np.ptp(signed) == 0 else float(ttest_1samp(difference, 0.0, alternative=alternative).pvalue)
    return float(wilcoxon(signed, alternative=alternative).pvalue), t_p


def signed_rank_p(
    difference: ArrayLike, *, alternative: Literal["two-sided", "greater", "less"] = "two-sided"
) -> float:
    """P-value of Wilcoxon's signed-rank test that paired differences are symmetric about 0.

    Parameters
    ----------
    difference
        (n,) differences. Such as are equal but for rounding are ties.
    alternative
        ``"greater"``: the differences tend to be above 0.

    Returns
    -------
    The p-value; 1 where nothing differs, NaN of no differences.

    Raises
    ------
    InputError
        If `difference` is not one row of finite values.

    References
    ----------
    Wilcoxon, Individual comparisons by ranking methods, Biometrics Bulletin 1 (1945).

    Examples
    --------
    >>> from stpred.metrics import signed_rank_p
    >>> signed_rank_p([0.1, 0.2, 0.3, 0.4, 0.5])
    0.0625
    """
    values = np.asarray(difference, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise InputError(f"`difference` must be (n,) finite values, got shape {values.shape}.")
    one_of(alternative, ("two-sided", "greater", "less"), name="alternative")
    return paired_p(values, alternative=alternative)[0] if len(values) else float("nan")


def _bars(mean_rank: NDArray[np.float64], *, cd: float) -> list[range]:
    """Return the largest runs of two or more sorted mean ranks that span no more than the critical difference."""
    runs: list[range] = []
    for i, low in enumerate(mean_rank):
        stop = int(np.searchsorted(mean_rank, low + cd, side="right"))
        if stop - i >= 2 and (not runs or stop > runs[-1].stop):
            runs.append(range(i, stop))
    return runs

"""What the first N genes score as N grows, and in how many donors genes are predicted at all."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, fraction_of, one_of, whole

TOP_GENES = (100, 150, 200, 250, 300, 400, 500, 1000, 2000, 3000, 5000)
"""Numbers of genes over which DeepSpot's publication draws its curves."""

_DRAWS = 256
"""Bootstrap samples in memory at a time."""


@dataclass(frozen=True)
class TopGenes:
    """Scores of the first N genes.

    Attributes
    ----------
    n_genes
        (N,) numbers of genes.
    value, low, high
        (N,) median (or mean) score of the first so many genes, and the ends of its interval over donors; NaN with a
        single donor.
    area, area_low, area_high
        Area under the curve divided by its width: the mean score over numbers of genes.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import top_genes
    >>> top_genes(np.array([[0.5, 0.1], [0.3, 0.2]]), n_genes=[1, 2]).value.round(2)
    array([0.4 , 0.28])
    """

    n_genes: NDArray[np.int64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    area: float
    area_low: float
    area_high: float


def top_genes(
    scores: ArrayLike,
    *,
    n_genes: Sequence[int] | None = None,
    statistic: Literal["median", "mean"] = "median",
    ranked: bool = True,
    level: float = 0.95,
    n_samples: int = 1000,
    seed: int = 0,
) -> TopGenes:
    """Score the first N genes as N grows, with bootstrap intervals over donors.

    Parameters
    ----------
    scores
        (D, G) score of each gene in each donor, genes in the order of the rule that chose them. Missing ones are left
        out of a gene's mean over donors; where they should count, as where settings are chosen by this curve
        (:class:`stpred.Splits`), give 0.
    n_genes
        Numbers of genes; None: those of DeepSpot's publication up to G (up to 5 000), and G.
    statistic
        Over the first genes, each averaged over donors.
    ranked
        False sorts genes by their mean score over the donors (of every bootstrap sample anew) instead: the first N are
        then the best N, which is higher by chance alone.
    level, n_samples, seed
        Of the intervals: percentiles over samples of donors.

    Returns
    -------
    A :class:`TopGenes`.

    Raises
    ------
    InputError
        If `scores` is no (donors, genes) matrix, or `n_genes` are not ascending numbers of genes that there are.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567.

    Examples
    --------
    >>> from stpred.metrics import top_genes
    >>> found = top_genes([[0.5, 0.3, 0.1], [0.7, 0.3, 0.3]], n_genes=[1, 2, 3])
    >>> found.value.round(2), round(found.area, 3)
    (array([0.6 , 0.45, 0.3 ]), 0.45)
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"`scores` must be a (donors, genes) matrix, got shape {values.shape}.")
    one_of(statistic, ("median", "mean"), name="statistic")
    level = fraction_of(level, name="level")
    firsts = _numbers(n_genes, values.shape[1])
    n_donors = len(values)
    finite = (~np.isnan(values)).astype(np.float64)
    values = np.nan_to_num(values)

    def means(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return each gene's mean over weighted donors; NaN where it has no score in them."""
        total = weights @ finite
        return weights @ values / np.where(total > 0, total, np.nan)

    own = _curve(means(np.ones((1, n_donors))), firsts, statistic=statistic, ranked=ranked)
    nothing = np.full(len(firsts), np.nan)
    low, high, area_low, area_high = nothing, nothing.copy(), np.nan, np.nan
    if n_donors > 1:
        rng = np.random.default_rng(seed)
        n_samples = whole(n_samples, name="n_samples")
        weights = rng.multinomial(n_donors, np.full(n_donors, 1 / n_donors), size=n_samples).astype(np.float64)
        parts = [
            _curve(means(weights[i : i + _DRAWS]), firsts, statistic=statistic, ranked=ranked)
            for i in range(0, n_samples, _DRAWS)
        ]
        drawn = np.concatenate(parts)
        tails = ((1 - level) / 2, (1 + level) / 2)
        low, high = np.nanquantile(drawn, tails, axis=0)
        area_low, area_high = np.nanquantile(area_under(drawn, firsts), tails)
    area = float(area_under(own, firsts)[0])
    return TopGenes(np.asarray(firsts), own[0], low, high, area, float(area_low), float(area_high))


def first_genes(n: int) -> list[int]:
    """Return the numbers of first genes of `n` that are averaged over."""
    return [k for k in TOP_GENES if k < n] + [min(n, TOP_GENES[-1])]


def area_under(values: NDArray[np.float64], firsts: Sequence[int]) -> NDArray[np.float64]:
    """Return the mean height of (S, N) curves over their numbers of genes, by trapezoids."""
    if len(firsts) == 1:
        return values[:, 0]
    return np.asarray(np.trapezoid(values, firsts, axis=1) / (firsts[-1] - firsts[0]))


def _numbers(given: Sequence[int] | None, n: int) -> list[int]:
    if given is None:
        return first_genes(n)
    found = [whole(k, name="n_genes") for k in given]
    if not found or sorted(set(found)) != found or found[-1] > n:
        raise InputError(f"`n_genes` must be ascending numbers up to the {n} genes that there are, got {given!r}.")
    return found


def _curve(
    per_gene: NDArray[np.float64], firsts: Sequence[int], *, statistic: str, ranked: bool
) -> NDArray[np.float64]:
    """Return the (S, N) median or mean of the first genes of (S, G) scores."""
    if not ranked:
        per_gene = -np.sort(-per_gene, axis=1)
    reduce = np.nanmedian if statistic == "median" else np.nanmean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # first genes of which none has a score
        return np.stack([reduce(per_gene[:, :k], axis=1) for k in firsts], axis=1)


@dataclass(frozen=True)
class PositiveDonors:
    """In how many donors genes have a positive correlation, beside what chance gives; all (D + 1,), for 0 to D donors.

    Attributes
    ----------
    n_genes
        Number of genes that are positive in so many donors.
    expected
        Number by chance.
    low, high
        Ends of the interval of that number.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import positive_donors
    >>> positive_donors(np.array([[0.1, -0.2], [0.3, 0.1], [0.2, -0.1]]), null="binomial").n_genes
    array([0, 1, 0, 1])
    """

    n_genes: NDArray[np.int64]
    expected: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def positive_donors(
    scores: ArrayLike,
    *,
    null: Literal["binomial", "sign_flips"] = "sign_flips",
    level: float = 0.95,
    n_samples: int = 2000,
    seed: int = 0,
) -> PositiveDonors:
    """Count the genes that are predicted with a positive correlation in 0, 1, ... D donors, and by chance.

    Parameters
    ----------
    scores
        (D, G) correlation of each gene in each donor; missing ones are no donors of that gene.
    null
        ``"binomial"``: every gene of every donor is a coin toss of its own. ``"sign_flips"``: all genes of a donor
        change sign together, which keeps that genes resemble each other: as many are expected, but with far wider
        limits.
    level, n_samples, seed
        Of the limits, from random draws.

    Returns
    -------
    A :class:`PositiveDonors`.

    Raises
    ------
    InputError
        If `scores` is no (donors, genes) matrix, the null is unknown, or `level` is not between 0 and 1.

    References
    ----------
    He et al., Integrating spatial gene expression and breast tumour morphology via deep learning, Nature Biomedical
    Engineering 4 (2020).

    Examples
    --------
    >>> from stpred.metrics import positive_donors
    >>> found = positive_donors([[0.2, 0.1], [0.3, -0.1], [0.1, 0.4]])
    >>> found.n_genes, found.expected
    (array([0, 0, 1, 1]), array([0.25, 0.75, 0.75, 0.25]))
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise InputError(f"`scores` must be a (donors, genes) matrix, got shape {values.shape}.")
    one_of(null, ("binomial", "sign_flips"), name="null")
    level = fraction_of(level, name="level")
    n_samples = whole(n_samples, name="n_samples")
    from scipy.stats import binom

    n_donors = len(values)
    known = ~np.isnan(values)
    signs = np.sign(np.nan_to_num(values)).astype(np.int8)
    numbers = np.arange(n_donors + 1)
    each, n_of_each = np.unique(known.sum(axis=0), return_counts=True)
    expected = sum(n * binom.pmf(numbers, d, 0.5) for d, n in zip(each, n_of_each, strict=True))
    rng = np.random.default_rng(seed)
    drawn = np.empty((n_samples, n_donors + 1), dtype=np.int64)
    for i in range(n_samples):
        if null == "binomial":
            positive = rng.binomial(each.repeat(n_of_each), 0.5)
        else:
            positive = (signs * rng.choice(np.array([-1, 1], dtype=np.int8), (n_donors, 1)) > 0).sum(axis=0)
        drawn[i] = np.bincount(positive, minlength=n_donors + 1)
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2), axis=0)
    found = np.bincount((signs > 0).sum(axis=0), minlength=n_donors + 1)
    return PositiveDonors(found, np.asarray(expected, dtype=np.float64), low, high)

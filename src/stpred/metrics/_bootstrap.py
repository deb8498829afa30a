"""Intervals of means over slides or donors, drawn with replacement."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, whole

_CELLS = 4_000_000  # values of a block of replicates


def bootstrap_ci(
    values: ArrayLike, *, groups: ArrayLike | None = None, n_samples: int = 10_000, level: float = 0.95, seed: int = 0
) -> tuple[Any, Any]:
    """Percentile bootstrap interval of the mean over slides, or over donors.

    Parameters
    ----------
    values
        (S,) or (S, G) scores of S slides.
    groups
        (S,) donor of each slide: donors are drawn, each with all of its slides. None draws slides.
    n_samples
        Number of bootstrap samples.
    level
        Coverage of the interval.
    seed
        Seed of the draws, which are the same for all genes.

    Returns
    -------
    The low and the high end, each a float or (G,). Slides where a gene has no score (NaN) are excluded from its means,
    and samples without any of its scores out of its quantiles; genes without scores are NaN.

    Raises
    ------
    InputError
        If `values` has other shapes than (S,) or (S, G), there are fewer than two slides or donors, or `level` is
        not between 0 and 1.

    Notes
    -----
    With fewer than about ten slides or donors such intervals are too short, for the sample's own spread is too small by
    ``sqrt((S - 1) / S)`` and its tails are not resolved.

    References
    ----------
    Efron and Tibshirani, An Introduction to the Bootstrap, Chapman & Hall (1993).

    Examples
    --------
    >>> from stpred.metrics import bootstrap_ci
    >>> [round(float(end), 1) for end in bootstrap_ci([0.1, 0.2, 0.3, 0.4, 0.5])]
    [0.2, 0.4]
    """
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim not in (1, 2):
        raise InputError(f"`values` must have shape (slides,) or (slides, genes), got {scores.shape}.")
    if not 0 < level < 1:
        raise InputError(f"`level` must lie between 0 and 1, got {level!r}.")
    n_samples = whole(n_samples, name="n_samples")
    labels = np.arange(len(scores)) if groups is None else labels_of(groups, n=len(scores), name="groups")
    n_units = int(labels.max()) + 1 if labels.size else 0
    if n_units < 2:
        kind = "slides" if groups is None else "donors"
        raise InputError(f"A bootstrap needs two or more {kind} to draw from, got {n_units}.")
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n_units, np.full(n_units, 1 / n_units), size=n_samples).astype(np.int32)
    columns = scores.reshape(len(scores), -1)
    finite = ~np.isnan(columns)
    # Sums and numbers of scores by unit: a drawn unit brings all of its slides.
    sums, numbers = (np.zeros((n_units, columns.shape[1])) for _ in range(2))
    np.add.at(sums, labels, np.where(finite, columns, 0.0))
    np.add.at(numbers, labels, finite)
    ends = np.empty((2, columns.shape[1]))
    size = max(1, _CELLS // n_samples)
    for start in range(0, columns.shape[1], size):
        genes = slice(start, start + size)
        ends[:, genes] = _quantiles(drawn, sums[:, genes], numbers[:, genes], level=level)
    low, high = ends.reshape(2, *scores.shape[1:])
    return low[()], high[()]


def labels_of(groups: ArrayLike, *, n: int, name: str) -> NDArray[np.int64]:
    """Return labels as whole numbers from 0."""
    given = np.asarray(groups)
    if given.shape != (n,):
        raise InputError(f"`{name}` must have one label for each of the {n} rows, got shape {given.shape}.")
    return np.unique(given.astype(str), return_inverse=True)[1].astype(np.int64)


def _quantiles(
    drawn: NDArray[np.int32], sums: NDArray[np.float64], numbers: NDArray[np.float64], *, level: float
) -> NDArray[np.float64]:
    """Return the (2, g) ends of an interval of the mean over drawn units."""
    weights = drawn.astype(np.float64)
    with np.errstate(invalid="ignore"):
        total, number = weights @ sums, weights @ numbers
        means = total / np.where(number > 0, number, np.nan)
    tails = ((1 - level) / 2, (1 + level) / 2)
    if not np.isnan(means).any():
        return np.quantile(means, tails, axis=0)
    ends = np.full((2, means.shape[1]), np.nan)
    for g in np.flatnonzero(~np.isnan(means).all(axis=0)):
        column = means[:, g]
        ends[:, g] = np.quantile(column[~np.isnan(column)], tails)
    return ends

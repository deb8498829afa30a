"""Cross-validation over few samples: folds that share no donor, and scores that are not biased by folds.

Models of different folds differ in their offset, and a fold whose training samples lack a class expects less of it. So
two samples are compared only where the same model predicted both; over all folds, a model that knows nothing would
score below chance.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError

Pairs = tuple[NDArray[np.float64], NDArray[np.float64]]
"""(S, S) how far a pair is in the right order (0, 0.5 or 1, and 0 where it cannot be compared), and whether it can."""


def folds(strata: ArrayLike, groups: ArrayLike, *, n: int, seed: int) -> NDArray[np.int64]:
    """Return (S,) the fold of each sample; groups are never split, strata are spread as evenly as this allows.

    Raises
    ------
    InputError
        If there are fewer groups than folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    y, of = np.asarray(strata), np.asarray(groups)
    if (number := len(np.unique(of))) < n:
        raise InputError(f"{n} folds need at least as many groups (donors), got {number}.")
    kinds, sizes = np.unique(y, return_counts=True)
    if sizes.max() < n:
        found = dict(zip(kinds.tolist(), sizes.tolist(), strict=True))
        raise InputError(f"{n} folds need at least as many samples of one class, got {found}.")
    result = np.empty(len(y), dtype=np.int64)
    made = StratifiedGroupKFold(n_splits=n, shuffle=True, random_state=seed).split(np.zeros(len(y)), y, of)
    for fold, (_, test) in enumerate(made):
        result[test] = fold
    return result


def survival_pairs(time: ArrayLike, event: ArrayLike, risk: ArrayLike, fold: ArrayLike) -> Pairs:
    """Return Harrell's pairs: who had the event earlier should have the higher risk."""
    t, died, score, of = (np.asarray(v) for v in (time, event, risk, fold))
    died = died.astype(bool)
    earlier = (t[:, None] < t) | ((t[:, None] == t) & ~died)
    return _ordered(score, died[:, None] & earlier & (of[:, None] == of))


def class_pairs(positive: ArrayLike, score: ArrayLike, fold: ArrayLike) -> Pairs:
    """Return the pairs of the area under the ROC curve: a positive should score higher than a negative."""
    y, of = np.asarray(positive, dtype=bool), np.asarray(fold)
    return _ordered(np.asarray(score), y[:, None] & ~y & (of[:, None] == of))


def _ordered(score: NDArray[Any], comparable: NDArray[np.bool_]) -> Pairs:
    right = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    return right * comparable, comparable.astype(np.float64)


def share_of_pairs(pairs: Pairs, times: NDArray[Any] | None = None) -> float:
    """Return the share of pairs in the right order, each sample counted (S,) `times`; NaN without a pair."""
    right, comparable = pairs
    w = np.ones(len(right)) if times is None else np.asarray(times, dtype=np.float64)
    number = w @ comparable @ w
    return float(w @ right @ w / number) if number > 0 else float("nan")


def resampled(groups: ArrayLike, *, n: int, seed: int) -> NDArray[np.int64]:
    """Return (n, S) how often each sample is there when groups are drawn with replacement."""
    _, of = np.unique(np.asarray(groups), return_inverse=True)
    number = int(of.max()) + 1
    return np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=n)[:, of]


def interval(values: ArrayLike, *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of draws; those that are NaN have no say."""
    low, high = np.nanquantile(np.asarray(values, dtype=np.float64), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)

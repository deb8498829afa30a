"""What Poisson counts of one rate alone would show: the null distribution of dispersion, given a gene's total.

Given its total T, a gene without any structure has its T counts thrown into n locations at random. All that matters of
the outcome is the number C of pairs of counts that share a location, ``sum(x * (x - 1)) / 2``: the index of dispersion
is ``n (2 C + T) / T - T``, and Rmax squared is one minus ``n - 1`` over it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_PAIRS = 320  # the last entry of an exact distribution stands for this many pairs and more
_LATTICE = 10  # exact up to this many steps of the dispersion to its standard deviation
_NODES = 400


def rmax_of_pairs(pairs: NDArray[np.float64], total: NDArray[np.float64], *, n: int) -> NDArray[np.float64]:
    """Return ``sqrt(1 - mean / variance)``, 0 where the variance is below the mean."""
    with np.errstate(divide="ignore", invalid="ignore"):
        dispersion = n * (2 * pairs + total) / total - total
        return np.sqrt(np.clip(1 - (n - 1) / dispersion, 0.0, None))


def null(
    pairs: NDArray[np.float64], total: NDArray[np.float64], *, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Compare the shared pairs of genes with those of counts thrown at random.

    The distribution is computed exactly where few pairs are expected, for there the index of dispersion takes few
    values and is far from chi-square; elsewhere from its first three moments, which have closed forms.

    Parameters
    ----------
    pairs, total
        (G,) numbers of pairs C and total counts T, at least 1.
    n
        Number of locations, at least 2.

    Returns
    -------
    p_value
        (G,) chance of more pairs plus half the chance of as many.
    mean, q95
        (G,) mean and 95 % quantile of Rmax under the null.
    """
    p_value, mean, q95 = (np.empty(len(total)) for _ in range(3))
    exact = total <= min(n, np.ceil(_LATTICE * np.sqrt(2 * n)))
    support = np.arange(_PAIRS + 1.0)
    for t, chances in _exact(np.unique(total[exact]).astype(np.int64), n=n):
        here = np.flatnonzero(total == t)
        above = np.cumsum(chances[::-1])[::-1]  # from the small end, which keeps the digits of small chances
        above[:-1] -= chances[:-1] / 2
        p_value[here] = np.minimum(above[np.minimum(pairs[here], _PAIRS).astype(np.int64)], 1.0)
        ceiling = rmax_of_pairs(support, np.full(_PAIRS + 1, float(t)), n=n)
        mean[here] = chances @ ceiling
        q95[here] = ceiling[np.searchsorted(np.cumsum(chances), 0.95 * chances.sum())]
    rest = ~exact
    p_value[rest] = _upper_tail(pairs[rest], total[rest], n=n)
    distinct, which = np.unique(total[rest], return_inverse=True)
    for into, values in zip((mean, q95), _ceilings(distinct, n=n), strict=True):
        into[rest] = values[which]
    return p_value, mean, q95


def _exact(totals: NDArray[np.int64], *, n: int) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield each of the sorted totals with the chances of 0, 1, ... shared pairs.

    The chances are coefficients of the n-th power of ``sum_k z^k q^(k(k-1)/2) / k!``, and powers of a series follow a
    recurrence in the power of z. All of its terms are positive up to a total of n, so that nothing cancels.
    """
    if not totals.size:
        return
    most = next(k for k in range(1, _PAIRS) if k * (k - 1) // 2 > _PAIRS)
    earlier = [np.eye(1, _PAIRS + 1)[0]]  # of totals t - 1, t - 2, ...
    wanted = set(totals.tolist())
    for t in range(1, int(totals[-1]) + 1):
        chances = np.zeros(_PAIRS + 1)
        weight = 1.0
        for k in range(1, min(t, most) + 1):
            weight *= (t - k + 1) / (n * k)
            shift = min(k * (k - 1) // 2, _PAIRS)
            before = earlier[k - 1] * (weight * (k * (n + 1) - t) / t)
            chances[shift:] += before[: _PAIRS + 1 - shift]
            chances[-1] += before[_PAIRS + 1 - shift :].sum()
        earlier = [chances, *earlier[: most - 1]]
        if t in wanted:
            yield t, chances


def _moments(
    total: NDArray[np.float64], *, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation of the pairs, and the shape of the gamma distribution of their skewness."""
    p = 1 / n  # that two counts share a location; two such pairs are independent, the three of a triangle are not
    candidates = total * (total - 1) / 2
    variance = candidates * p * (1 - p)
    third = variance * (1 - 2 * p) + 2 * candidates * (total - 2) * p**2 * (1 - p)
    return candidates * p, np.sqrt(variance), 4 * variance**3 / np.square(third)


def _upper_tail(pairs: NDArray[np.float64], total: NDArray[np.float64], *, n: int) -> NDArray[np.float64]:
    """Return the mid-p chance of more pairs, from a gamma distribution."""
    from scipy.special import gammaincc

    mean, sd, shape = _moments(total, n=n)
    away = (pairs - mean) / sd  # pairs are whole numbers, and the middle of a step is its mid-p
    return gammaincc(shape, np.clip(shape + np.sqrt(shape) * away, 0.0, None))


def _ceilings(total: NDArray[np.float64], *, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and 95 % quantile of Rmax, from quantiles of a gamma distribution (as Wilson and Hilferty)."""
    from scipy.special import ndtri

    mean, sd, shape = (x[:, None] for x in _moments(total, n=n))

    def at(z: NDArray[np.float64]) -> NDArray[np.float64]:
        gamma = shape * np.clip(1 - 1 / (9 * shape) + z / (3 * np.sqrt(shape)), 0.0, None) ** 3
        return rmax_of_pairs(mean + sd * (gamma - shape) / np.sqrt(shape), total[:, None], n=n)

    return at(ndtri((np.arange(_NODES) + 0.5) / _NODES)).mean(axis=1), at(ndtri(np.array([0.95])))[:, 0]

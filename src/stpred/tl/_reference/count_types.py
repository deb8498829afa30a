"""Classes of raw counts: negative-binomial likelihood of each class's shares of the shared genes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import targets
from stpred.tl._reference.reading import Reference

_ROWS = 4096
"""Locations whose likelihoods are computed at once."""

_PSEUDO = 0.5
"""Counts that are added to each class, spread over the genes as they are in all classes together."""

_ROUNDS = 30
_MIN_DISPERSION = 1e-3


@dataclass(frozen=True)
class CountClasses:
    """Shares of counts of each class.

    Attributes
    ----------
    shares
        (K, G) part of the counts, rows sum to 1.
    dispersion
        (G,) of the negative binomial: variance = mean + dispersion * mean**2, pooled within the classes.
    prior
        (K,) share of each class among the locations.
    """

    shares: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    prior: NDArray[np.float64]

    @classmethod
    def of(cls, reference: Reference) -> CountClasses:
        """Take them from the cells of a reference; every class counts alike."""
        n = len(reference.names)
        member = (reference.codes[None] == np.arange(n)[:, None]).astype(np.float64)
        sums = np.asarray(member @ reference.counts)
        usual = (sums / sums.sum(axis=1, keepdims=True)).mean(axis=0)
        usual = (usual + 1e-6 / len(usual)) / (1 + 1e-6)
        shares = sums + _PSEUDO * usual
        shares /= shares.sum(axis=1, keepdims=True)
        excess, square = np.zeros(shares.shape[1]), np.zeros(shares.shape[1])
        for rows in _chunks(len(reference.codes)):
            counts = targets.dense(reference.counts[rows])
            mean = counts.sum(axis=1, keepdims=True) * shares[reference.codes[rows]]
            excess += ((counts - mean) ** 2 - mean).sum(axis=0)
            square += (mean**2).sum(axis=0)
        dispersion = np.maximum(excess / np.maximum(square, 1e-12), _MIN_DISPERSION)
        return cls(shares, np.minimum(dispersion, 10.0), np.full(n, 1 / n))

    def log_likelihood(self, counts: Any) -> NDArray[np.float64]:
        """Return (n, K) log likelihoods given each location's total, but for what is the same for all classes."""
        out = np.empty((counts.shape[0], len(self.shares)))
        r = 1 / self.dispersion
        for rows in _chunks(counts.shape[0]):
            part = targets.dense(counts[rows])
            total = part.sum(axis=1, keepdims=True)
            for k, share in enumerate(self.shares):
                mean = total * share + 1e-12
                out[rows, k] = (part * np.log(mean / (r + mean)) - r * np.log1p(mean / r)).sum(axis=1)
        return out

    def distance(self, counts: Any, codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (n,) mean squared residuals from the given class, each in units of its variance."""
        out = np.empty(counts.shape[0])
        for rows in _chunks(counts.shape[0]):
            part = targets.dense(counts[rows])
            mean = part.sum(axis=1, keepdims=True) * self.shares[codes[rows]] + 1e-12
            out[rows] = ((part - mean) ** 2 / (mean + self.dispersion * mean**2)).mean(axis=1)
        return out

    def with_prior_of(self, likelihood: NDArray[np.float64]) -> CountClasses:
        """Return them with the composition of the locations, from (n, K) log likelihoods."""
        prior = self.prior
        for _ in range(_ROUNDS):
            prior = (_posterior(likelihood, prior).sum(axis=0) + 1) / (len(likelihood) + len(prior))
        return replace(self, prior=prior)

    def centred_on(self, counts: Any) -> CountClasses:
        """Return them with a factor of each gene, such that the classes of the locations have the table's mean shares.

        The factors and the composition are found in turn, from equal classes.
        """
        sums = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
        observed = (sums + _PSEUDO * self.shares.mean(axis=0)) / (sums.sum() + _PSEUDO)
        totals = targets.totals(counts)
        found, part = self, self.prior
        for _ in range(_ROUNDS // 3):
            shares = self.shares * (observed / (part @ self.shares))
            found = replace(self, shares=shares / shares.sum(axis=1, keepdims=True))
            likelihood = found.log_likelihood(counts)
            # Cells of much RNA make up more of the table's mean.
            part = totals @ _posterior(likelihood, found.with_prior_of(likelihood).prior) / totals.sum()
        return found

    def without(self, k: int) -> CountClasses:
        """Return them without one class."""
        rest = np.delete(np.arange(len(self.shares)), k)
        return replace(self, shares=self.shares[rest], prior=self.prior[rest] / self.prior[rest].sum())


def posterior(classes: CountClasses, counts: Any) -> NDArray[np.float64]:
    """Return (n, K) probabilities of the classes."""
    return _posterior(classes.log_likelihood(counts), classes.prior)


def _posterior(likelihood: NDArray[np.float64], prior: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import softmax

    return np.asarray(softmax(likelihood + np.log(prior), axis=1))


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + _ROWS, n)) for start in range(0, n, _ROWS)]

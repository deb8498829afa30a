"""Weights of several models' predictions, by the correlation of their sum with what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEPS = 30
"""Steps of the greedy selection: weights are multiples of one thirtieth."""

MIN_WEIGHT = 0.05
"""Weight below which a candidate is left out."""

MIN_GAIN = 5e-4
"""Gain of the mean correlation over the best candidate alone that several are worth."""


@dataclass(frozen=True)
class Part:
    """Held-out locations of one slide.

    Attributes
    ----------
    fold, slide
        Number of the fold, and the slide's name.
    values
        (K, n, G) predictions of each candidate, standardised by its predictions on its training slides.
    truth
        (n, G) what is scored against.
    """

    fold: int
    slide: str
    values: NDArray[np.float64]
    truth: NDArray[np.float64]


@dataclass(frozen=True)
class Correlations:
    """What the correlation of any weighted sum of candidates with a slide's measurement follows from.

    Attributes
    ----------
    fold
        Of the slide.
    within
        (G, K, K) covariances of the candidates.
    across
        (G, K) their covariances with the measurement, over its deviation; 0 where it does not vary.
    """

    fold: int
    within: NDArray[np.float64]
    across: NDArray[np.float64]

    @classmethod
    def of(cls, part: Part) -> Correlations:
        values = part.values - part.values.mean(axis=1, keepdims=True)
        truth = part.truth - part.truth.mean(axis=0)
        size = np.sqrt(np.square(truth).sum(axis=0))
        truth = np.divide(truth, size, out=np.zeros_like(truth), where=size > 1e-12)
        return cls(part.fold, np.einsum("kng,lng->gkl", values, values), np.einsum("kng,ng->gk", values, truth))

    def mean(self, weights: NDArray[np.float64]) -> float:
        """Return the mean correlation over genes, 0 where either side does not vary."""
        variance = np.einsum("gkl,k,l->g", self.within, weights, weights)
        found = self.across @ weights
        return float(np.divide(found, np.sqrt(variance), out=np.zeros_like(found), where=variance > 1e-20).mean())


def score(tables: Sequence[Correlations], weights: NDArray[np.float64]) -> float:
    """Return the mean correlation of a weighted sum over genes and held-out slides."""
    return float(np.mean([t.mean(weights) for t in tables])) if tables else float("nan")


def choose_weights(tables: Sequence[Correlations], k: int, *, stacked: bool = True) -> NDArray[np.float64]:
    """Return (k,) weights, adding up to 1, of greedy selection with replacement; the best alone if that is as good."""
    if not tables:
        return np.eye(k)[0]
    alone = [score(tables, row) for row in np.eye(k)]
    best = np.eye(k)[int(np.argmax(alone))]
    if not stacked:
        return best
    counts, found, reached = np.zeros(k), best, max(alone)
    for _ in range(STEPS):
        step = int(np.argmax([score(tables, counts + row) for row in np.eye(k)]))
        counts[step] += 1
        if (now := score(tables, counts)) > reached:
            found, reached = counts / counts.sum(), now
    found = np.where(found < MIN_WEIGHT, 0.0, found)
    found /= found.sum()
    return found if score(tables, found) > max(alone) + MIN_GAIN else best

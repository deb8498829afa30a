"""Counts with an expectation from elsewhere: bringing it to their scale, and the rate given both."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_RATE = 0.05
"""Share of a gene's mean below which no expected rate falls, where a straight line would go below zero."""


@dataclass(frozen=True)
class Recalibration:
    """Expected CP10k of G genes given a predicted rate, and the variation of the truth about it.

    Attributes
    ----------
    slope, intercept, mean
        (G,) of the line, and the gene's measured CP10k on the slide.
    excess
        (G,) variance about the line as a share of its square.
    common
        Slope that genes have in common, as a share of the one at which predictions are proportional to the truth.
    """

    slope: NDArray[np.float64]
    intercept: NDArray[np.float64]
    mean: NDArray[np.float64]
    excess: NDArray[np.float64]
    common: float

    def expected(self, rate: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the (n, G) expected CP10k of (n, G) predicted ones."""
        return np.maximum(self.intercept + self.slope * rate, MIN_RATE * self.mean)


def recalibration(
    counts: NDArray[np.float64], exposure: NDArray[np.float64], rate: NDArray[np.float64]
) -> Recalibration:
    """Fit each gene's line by least squares weighted by exposure, and the variance that Poisson noise leaves over.

    `counts` (n, G) hold at least one of each gene, `exposure` (n,) are library sizes over 10 000, `rate` (n, G) is
    predicted CP10k.
    """
    weight = exposure / exposure.sum()
    mean, at = counts.sum(axis=0) / exposure.sum(), weight @ rate
    centred, observed = rate - at, counts / exposure[:, None]
    spread = weight @ centred**2
    varied = spread > 1e-12 * np.maximum(at, 1e-12) ** 2
    safe = np.where(varied, spread, 1.0)
    slope = np.where(varied, (weight[:, None] * centred * observed).sum(axis=0) / safe, 0.0)
    residual = observed - mean - slope * centred
    error = ((weight[:, None] * centred * residual) ** 2).sum(axis=0) / safe**2  # holds for unequal variances, too
    ratio = np.where(at > 0, mean / np.where(at > 0, at, 1.0), 1.0)
    shrunk, common = shrink(slope / ratio, np.where(varied, error / ratio**2, np.inf))
    slope = np.where(varied, np.maximum(shrunk, 0) * ratio, 0.0)
    line = Recalibration(slope, mean - slope * at, mean, np.zeros_like(mean), common)
    expected = exposure[:, None] * line.expected(rate)
    # Weights are those of least variance for Poisson counts: places where next to nothing is expected have little say.
    weighted = expected / (1 + 2 * expected)
    information = (weighted * expected**2).sum(axis=0)
    excess = (weighted * ((counts - expected) ** 2 - expected)).sum(axis=0) / information
    excess = np.maximum(shrink(excess, 1 / information)[0], 0)
    return Recalibration(slope, line.intercept, mean, excess, common)


def shrink(values: NDArray[np.float64], variance: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Shrink (G,) estimates with given sampling variances towards their mean (DerSimonian-Laird), and return both."""
    finite = np.isfinite(variance)
    # A gene that varies by nothing is precise, but not infinitely.
    floor = variance[finite & (variance > 0)].min(initial=np.inf)
    variance = np.where(finite, np.maximum(variance, floor if np.isfinite(floor) else 1.0), np.inf)
    precision = np.where(finite, 1.0 / variance, 0.0)
    if precision.sum() == 0:
        return values, float(np.mean(values))
    centre = float(precision @ values / precision.sum())
    scale = precision.sum() - precision @ precision / precision.sum()
    between = 0.0
    if scale > 0:
        free = (precision > 0).sum() - 1
        between = max(0.0, float((precision @ (values - centre) ** 2 - free) / scale))
    trust = between * precision / (1 + between * precision)
    if between > 0:  # of genes that differ, the mean is that of genes and not of the most precise ones
        centre = float(trust @ values / trust.sum())
    return centre + trust * (values - centre), centre


def posterior(
    counts: NDArray[np.float64],
    exposure: NDArray[np.float64],
    expected: NDArray[np.float64],
    excess: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (n, G) CP10k given counts and what was expected, and the measurement's share in it.

    The rate is gamma with mean `expected` and variance `excess` times its square; given it, counts are Poisson.
    """
    information = exposure[:, None] * expected * excess
    share = information / (1 + information)
    return share * (counts / exposure[:, None]) + (1 - share) * expected, share

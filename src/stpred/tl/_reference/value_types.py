"""Classes of predicted values: class profiles on the table's own centre and spread, and correlated errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_ROUNDS = 12
_TOWARDS_DIAGONAL = 0.5
"""Share by which the covariance of the errors is drawn towards its diagonal."""

_MIN_VARIANCE = 0.05
"""Share of a gene's variance that is always taken for error."""

_COMMON_SLOPE = 0.2
"""Weight of the genes' common slope in that of each, in units of the mean gene's information."""


_TYPICAL, _TRIMMED = 0.75, 3
"""Share of the locations that classes are fitted on, and how often it is chosen anew."""

_N_DRAWS = 4000
"""Simulated errors that a limit of distances is read from."""


_N_NULL = 19
"""Fits of classes whose genes are exchanged; what they explain is nothing."""

_NULL_ROWS, _NULL_ROUNDS = 2000, 8


@dataclass(frozen=True)
class ValueClasses:
    """Where the classes of a reference are among the values of a table.

    Values of class k are ``mean + slope * (profiles[k] - centre)`` plus errors that are correlated between genes.

    Attributes
    ----------
    means
        (K, G) values that a location of each class has.
    covariance
        (G, G) of the errors, as it is.
    prior
        (K,) share of each class among the locations.
    slope
        (G,) how far the classes are apart in the table, relative to the reference.
    explained
        Share of the values' variance, mean over genes, that the classes account for.
    """

    means: NDArray[np.float64]
    covariance: NDArray[np.float64]
    prior: NDArray[np.float64]
    slope: NDArray[np.float64]
    explained: float

    @property
    def variance(self) -> NDArray[np.float64]:
        """(G,) of the errors."""
        return np.diag(self.covariance)

    def log_likelihood(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, K) log likelihoods, but for what is the same for all classes."""
        g = self.means.shape[1]
        matrix = (1 - _TOWARDS_DIAGONAL) * self.covariance + _TOWARDS_DIAGONAL * np.diag(self.variance)
        solved = np.linalg.solve(matrix + 1e-9 * np.eye(g) * max(self.variance.max(), 1e-9), self.means.T)  # (G, K)
        return np.asarray(values @ solved - 0.5 * np.einsum("kg,gk->k", self.means, solved))

    def posterior(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (n, K) probabilities of the classes."""
        from scipy.special import softmax

        return np.asarray(softmax(self.log_likelihood(values) + np.log(self.prior), axis=1))

    def distance(self, values: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return (n,) mean squared residuals from the given class, each in units of its variance."""
        return np.asarray(((values - self.means[codes]) ** 2 / self.variance).mean(axis=1))

    def limit(self, distances: ArrayLike, *, level: float, rng: np.random.Generator) -> float:
        """Return what a share `level` of locations with such errors exceeds, at the median of the `distances`."""
        root, vectors = np.linalg.eigh(self.covariance)
        drawn = rng.standard_normal((_N_DRAWS, len(root))) @ (vectors * np.sqrt(root.clip(min=0))).T
        drawn = (drawn**2 / self.variance).mean(axis=1)
        return float(np.quantile(drawn, 1 - level) / np.median(drawn) * np.median(np.asarray(distances)))


def fit_values(
    values: NDArray[np.float64], profiles: NDArray[np.float64], *, centred: bool, n_rounds: int = _ROUNDS
) -> ValueClasses:
    """Find centre, spread and errors of a table by expectation maximisation, from classes of equal size.

    Predictions are drawn towards the mean, each gene by its own amount, and their errors are shared by many genes;
    neither is in the reference. So each gene has a slope between 0 and 1 (drawn towards that of all genes), and the
    errors a full covariance (drawn towards its diagonal).

    Parameters
    ----------
    values
        (n, G) log1p CP10k of the locations.
    profiles
        (K, G) log1p CP10k of the classes.
    centred
        Whether the composition's mean profile is put at the table's mean; otherwise the mean of the classes stays where
        it is in the reference.
    n_rounds
        Of expectation and maximisation.
    """
    n, k = len(values), len(profiles)
    mean = values.mean(axis=0) if centred else profiles.mean(axis=0)
    away = values - mean
    square = (away**2).mean(axis=0)
    prior = np.full(k, 1 / k)
    deviation = profiles - prior @ profiles
    spread = np.sqrt((deviation**2).mean(axis=0))
    slope = np.full(values.shape[1], min(1.0, 0.8 * float(np.median(np.sqrt(square) / np.maximum(spread, 1e-9)))))
    least = _MIN_VARIANCE * square + 1e-9
    found = ValueClasses(mean + slope * deviation, np.diag(0.5 * square + 1e-9), prior, slope, 0.0)
    for _ in range(n_rounds):
        chance = found.posterior(values)
        prior = (chance.sum(axis=0) + 1) / (n + k)
        deviation = profiles - (prior if centred else 1 / k * np.ones(k)) @ profiles
        expected = chance @ deviation
        shared = (away * expected).sum(axis=0)
        information = (chance @ deviation**2).sum(axis=0)
        common = float(np.clip(shared.sum() / max(information.sum(), 1e-12), 0, 1))
        weight = _COMMON_SLOPE * max(float(information.mean()), 1e-12)
        slope = np.clip((shared + weight * common) / (information + weight), 0, 1)
        means = mean + slope * deviation
        residual = values - chance @ means
        covariance = residual.T @ residual / n
        variance = square - (2 * slope * shared - slope**2 * information) / n
        lift = np.maximum(np.maximum(variance, least) - np.diag(covariance), 0)
        explained = float(np.mean((slope**2 * information / n) / np.maximum(square, 1e-12)))
        found = ValueClasses(means, covariance + np.diag(lift), prior, slope, explained)
    return found


def fit_typical(values: NDArray[np.float64], profiles: NDArray[np.float64], *, centred: bool) -> ValueClasses:
    """Fit the classes on the locations that are nearest to them, so that types that the reference lacks have no part.

    Where a quarter of the locations is of another type, its distance from the classes would be taken for their errors,
    and it would never be found far away.

    Parameters
    ----------
    values, profiles, centred
        As of :func:`fit_values`.
    """
    found = fit_values(values, profiles, centred=centred, n_rounds=_ROUNDS // 2)
    for _ in range(_TRIMMED):
        distance = found.distance(values, found.posterior(values).argmax(axis=1))
        near = values[distance <= np.quantile(distance, _TYPICAL)]
        found = fit_values(near, profiles, centred=centred, n_rounds=_ROUNDS // 2)
    return found


def reliability(
    classes: ValueClasses,
    values: NDArray[np.float64],
    codes: NDArray[np.int64],
    *,
    cells: tuple[NDArray[np.float64], NDArray[np.int64]],
    pearson: NDArray[np.float64],
) -> float:
    """Estimate, cautiously, how far assigned classes agree with the truth beyond chance, 0 to 1.

    What the assigned classes say of a gene goes with its prediction to a degree that is seen, and the prediction with
    the truth as on held-out slides. The product is what the classes say of the truth if they know no more of it than
    the prediction does; the true classes say of it what they do in the reference. The quotient is Cohen's kappa or,
    where the prediction has errors that the classes leave out, less.

    Parameters
    ----------
    classes, values, codes
        The fit, (n, G) predictions and (n,) assigned classes.
    cells
        (m, G) values of reference cells at the depth that `pearson` was measured at, and their classes.
    pearson
        (G,) correlation of predictions with the truth; NaN counts as 0.
    """
    typical = np.stack([cells[0][cells[1] == k].mean(axis=0) for k in range(len(classes.means))])
    between = classes.prior @ (typical - classes.prior @ typical) ** 2
    within = ((cells[0] - typical[cells[1]]) ** 2).mean(axis=0)
    of_truth = np.sqrt(between / np.maximum(between + within, 1e-12))
    away, found = values - values.mean(axis=0), classes.means[codes]
    found = found - found.mean(axis=0)
    size = np.sqrt((away**2).sum(axis=0) * (found**2).sum(axis=0))
    of_values = (away * found).sum(axis=0) / np.maximum(size, 1e-12)
    said = (of_values * np.nan_to_num(pearson) * of_truth).sum()
    return float(np.clip(said / max(float((of_truth**2).sum()), 1e-12), 0, 1))


def explained_by_classes(
    values: NDArray[np.float64], typical: NDArray[np.float64], *, centred: bool, rng: np.random.Generator
) -> tuple[float, float]:
    """Return what the classes explain of the values, and what they could if the reference had nothing to do with them.

    The latter is three standard deviations above the mean of classes whose genes are exchanged, and their maximum at
    least.
    """
    values = values[:_NULL_ROWS]
    found = [
        fit_values(values, typical[:, order], centred=centred, n_rounds=_NULL_ROUNDS).explained
        for order in (np.arange(values.shape[1]), *(rng.permutation(values.shape[1]) for _ in range(_N_NULL)))
    ]
    exchanged = np.array(found[1:])
    return found[0], float(max(exchanged.max(), exchanged.mean() + 3 * exchanged.std()))


def unknown_if_absent(
    values: NDArray[np.float64],
    best: NDArray[np.int64],
    typical: NDArray[np.float64],
    *,
    centred: bool,
    level: float,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """Return (K,) shares of the locations of each class that are unknown once the reference lacks it, or NaN."""
    shares = np.full(len(typical), np.nan)
    for k in np.unique(best):
        if len(typical) < 3:
            break
        classes = fit_typical(values, np.delete(typical, k, axis=0), centred=centred)
        distance = classes.distance(values, classes.posterior(values).argmax(axis=1))
        shares[k] = (distance[best == k] > classes.limit(distance, level=level, rng=rng)).mean()
    return shares

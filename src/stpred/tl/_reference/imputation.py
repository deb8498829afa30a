"""From some genes to others through single cells: ridge regression between genes, or the nearest cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METHODS = ("ridge", "knn")
_PENALTIES = tuple(float(10.0**p) for p in range(-3, 3))
"""Ridge penalties that are tried, in units of the number of cells."""

_COMPONENTS = 20
"""Principal components of the given genes in which cells are near each other."""

CHANCE = 2.33
"""Standard errors (one-sided p of 0.01) that a correlation among held-out cells must be above zero."""


@dataclass(frozen=True)
class Cells:
    """Values of single cells: (n, G) given genes and (n, T) genes to be imputed; `held` marks half of the cells."""

    given: NDArray[np.float64]
    wanted: NDArray[np.float64]
    held: NDArray[np.bool_]


@dataclass(frozen=True)
class Imputed:
    """(m, T) values of the locations, and (T,) Pearson correlations among held-out cells; 0 where nothing is known."""

    values: NDArray[np.float64]
    pearson: NDArray[np.float64]


def impute(cells: Cells, locations: NDArray[np.float64], *, method: str, n_neighbors: int = 50) -> Imputed:
    """Impute the wanted genes of locations from their given ones.

    Deviations from the mean are carried over, so that a difference of level between the two sides does not matter; the
    result has the cells' mean. A gene that held-out cells do not show to be predictable gets its mean everywhere.

    Parameters
    ----------
    cells
        Of the reference.
    locations
        (m, G) values of the given genes.
    method
        ``"ridge"``: one linear map, the penalty chosen on the held-out cells. ``"knn"``: mean of the cells whose
        standardised genes are nearest.
    n_neighbors
        Of the latter.
    """
    fit = ~cells.held
    if method == "ridge":
        half = _ridge_paths(cells.given[fit], cells.wanted[fit], cells.given[cells.held])
        scores = np.stack([correlations(guess, cells.wanted[cells.held]) for guess in half])
        best = int(np.nan_to_num(scores).mean(axis=1).argmax())
        pearson = scores[best]
        values = _ridge_paths(cells.given, cells.wanted, locations, penalties=_PENALTIES[best : best + 1])[0]
    else:
        pearson = correlations(
            _nearest(cells.given[fit], cells.wanted[fit], cells.given[cells.held], n_neighbors),
            cells.wanted[cells.held],
        )
        values = _nearest(cells.given, cells.wanted, locations, n_neighbors)
    known = np.nan_to_num(pearson) > CHANCE / np.sqrt(max(int(cells.held.sum()), 1))
    mean = cells.wanted.mean(axis=0)
    return Imputed(np.where(known, values, mean), np.where(known, pearson, 0.0))


def correlations(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (T,) Pearson correlations of columns; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    size = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    small = size <= 1e-9 * max(len(a), 1)
    return np.asarray(np.where(small, 0.0, (a * b).sum(axis=0) / np.where(small, 1.0, size)))


def _ridge_paths(
    given: NDArray[np.float64],
    wanted: NDArray[np.float64],
    new: NDArray[np.float64],
    *,
    penalties: tuple[float, ...] = _PENALTIES,
) -> list[NDArray[np.float64]]:
    """Return predictions for `new`, centred on itself, for each penalty; genes are standardised by the cells."""
    mean, std = given.mean(axis=0), given.std(axis=0)
    std = np.where(std < 1e-8, np.inf, std)
    x, y = (given - mean) / std, wanted - wanted.mean(axis=0)
    root, vectors = np.linalg.eigh(x.T @ x / len(x))
    right = vectors.T @ (x.T @ y / len(x))
    away = (new - new.mean(axis=0)) / std @ vectors
    return [away @ (right / (root + p)[:, None]) + wanted.mean(axis=0) for p in penalties]


def _nearest(
    given: NDArray[np.float64], wanted: NDArray[np.float64], new: NDArray[np.float64], n_neighbors: int
) -> NDArray[np.float64]:
    """Return the mean of the nearest cells, each side standardised by itself."""
    from scipy.spatial import cKDTree

    x, z = _standard(given), _standard(new)
    _, vectors = np.linalg.eigh(x.T @ x / len(x))
    axes = vectors[:, ::-1][:, :_COMPONENTS]
    rows = cKDTree(x @ axes).query(z @ axes, k=min(n_neighbors, len(x)))[1].reshape(len(z), -1)
    out = np.empty((len(z), wanted.shape[1]))
    for start in range(0, len(z), 1024):
        out[start : start + 1024] = wanted[rows[start : start + 1024]].mean(axis=1)
    return out


def _standard(values: NDArray[np.float64]) -> NDArray[np.float64]:
    std = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(std < 1e-8, np.inf, std))

"""How well a reference tells its own classes apart with some genes at some depth: cells that were held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core import targets
from stpred.tl._reference.count_types import CountClasses
from stpred.tl._reference.reading import Reference, at_depth

MIN_ACCURACY = 0.8
"""Accuracy between two classes below which they are said to be indistinct."""

_MIN_RELATED = 0.6
"""Mean accuracy between two classes (chance: 0.5) below which a reference says nothing with its genes."""

MAX_CELLS = 500
"""Cells of each class that are held out at most."""

MIN_CELLS = 20
"""Held-out cells of a class below which all classes together set the limit of its distances."""


@dataclass(frozen=True)
class Separation:
    """What becomes of held-out cells of each class.

    Attributes
    ----------
    names
        (K,) classes.
    n_cells
        (K,) held-out cells.
    confusion
        (K, K) share of the cells of each class (rows) that is taken for each class.
    pairwise
        (K, K) accuracy between two classes alone, each weighing the same; 1 on the diagonal.
    limit
        (K,) distance that the stated share of a class's own cells exceeds.
    unknown
        (K,) share of each class's cells beyond the limit of the class that they are taken for.
    unknown_if_absent
        (K,) the same share, if the class were missing in the reference.
    """

    names: Sequence[str]
    n_cells: NDArray[np.int64]
    confusion: NDArray[np.float64]
    pairwise: NDArray[np.float64]
    limit: NDArray[np.float64]
    unknown: NDArray[np.float64]
    unknown_if_absent: NDArray[np.float64]

    @property
    def recall(self) -> NDArray[np.float64]:
        """(K,) share of each class that is taken for it."""
        return np.diag(self.confusion)

    @property
    def precision(self) -> NDArray[np.float64]:
        """(K,) share of what is taken for a class that is of it, of classes of equal size."""
        taken = self.confusion.sum(axis=0)
        return np.divide(self.recall, taken, out=np.full(len(taken), np.nan), where=taken > 0)

    @property
    def related(self) -> bool:
        """Whether the genes tell classes apart at all."""
        off = ~np.eye(len(self.names), dtype=bool)
        return float(self.pairwise[off].mean()) >= _MIN_RELATED

    def indistinct(self, min_accuracy: float) -> list[list[str]]:
        """Return the sets of classes that are linked by pairs with a lower accuracy."""
        from scipy.sparse.csgraph import connected_components

        n, label = connected_components(self.pairwise < min_accuracy, directed=False)
        sets = [[name for name, other in zip(self.names, label, strict=True) if other == k] for k in range(n)]
        return [s for s in sets if len(s) > 1]


def separate(reference: Reference, *, depths: ArrayLike | None, level: float, rng: np.random.Generator) -> Separation:
    """Assign held-out cells of a reference, by each half the other's cells.

    Parameters
    ----------
    reference
        Counts and classes.
    depths
        Totals of the locations, of which each held-out cell is thinned to one that is drawn; None leaves them as deep
        as they are.
    level
        Share of a class's own cells that may be taken for unknown.
    rng
        Of halves, depths and thinning.
    """
    n = len(reference.names)
    truth, likelihoods, distances, absent = [], [], [], []
    halves = reference.halves(rng)
    for fitted, held in (halves, halves[::-1]):
        classes = CountClasses.of(fitted)
        cells = held.draw(MAX_CELLS, rng)
        counts: Any = cells.counts
        if depths is not None:
            totals = np.asarray(depths, dtype=np.float64)
            counts = at_depth(counts, rng.choice(totals[totals > 0], len(cells.codes)), rng=rng)
        kept = targets.totals(counts) > 0
        counts, codes = counts[kept], cells.codes[kept]
        found = classes.log_likelihood(counts)
        truth.append(codes)
        likelihoods.append(found)
        distances.append(classes.distance(counts, found.argmax(axis=1)))
        absent.append(_if_absent(classes, counts, codes, found))
    codes, likelihood, distance = np.concatenate(truth), np.concatenate(likelihoods), np.concatenate(distances)
    taken = likelihood.argmax(axis=1)
    confusion = np.stack([np.bincount(taken[codes == k], minlength=n) / max((codes == k).sum(), 1) for k in range(n)])
    limit = limits(distance, taken, codes == taken, n, level=level)
    others, away = (np.concatenate([a[i] for a in absent]) for i in (0, 1))
    return Separation(
        names=reference.names,
        n_cells=np.bincount(codes, minlength=n),
        confusion=confusion,
        pairwise=pairwise_accuracy(likelihood, codes),
        limit=limit,
        unknown=means_of(distance > limit[taken], codes, n),
        unknown_if_absent=means_of(away > limit[others.astype(np.int64)], codes, n),
    )


def _if_absent(
    classes: CountClasses, counts: Any, codes: NDArray[np.int64], likelihood: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best other class of each cell, and the distance from it."""
    rest = likelihood.copy()
    rest[np.arange(len(codes)), codes] = -np.inf
    other = rest.argmax(axis=1)
    return other, classes.distance(counts, other)


def limits(
    distance: NDArray[np.float64],
    taken: NDArray[np.int64],
    right: NDArray[np.bool_],
    n_classes: int,
    *,
    level: float,
) -> NDArray[np.float64]:
    """Return (K,) distances that a share `level` of the cells rightly taken for each class exceeds."""
    whole = float(np.quantile(distance[right], 1 - level)) if right.any() else np.inf
    found = np.full(n_classes, whole)
    for k in range(n_classes):
        mine = right & (taken == k)
        if mine.sum() >= MIN_CELLS:
            found[k] = np.quantile(distance[mine], 1 - level)
    return found


def pairwise_accuracy(likelihood: NDArray[np.float64], codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (K, K) shares of cells of either class that are more like their own than the other; 0.5 is chance."""
    n = likelihood.shape[1]
    own = likelihood[np.arange(len(codes)), codes][:, None]
    wins = (own > likelihood) + 0.5 * (own == likelihood)
    share = np.stack([wins[codes == k].mean(axis=0) if (codes == k).any() else np.full(n, 0.5) for k in range(n)])
    found = (share + share.T) / 2
    np.fill_diagonal(found, 1.0)
    return found


def means_of(values: NDArray[np.bool_], codes: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Return (n,) means by class, NaN of a class without any."""
    return np.array([values[codes == k].mean() if (codes == k).any() else np.nan for k in range(n)])

"""Do two fields on the same locations go together? Statistics, and a null that leaves each as smooth as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stpred._core.targets import standardised

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Draw: TypeAlias = Callable[[], NDArray[np.int64]]
"""Gives (N,) which location's value each location takes under a null."""


def cross_statistics(
    fields: NDArray[np.float64], average: csr_matrix, pairs: NDArray[np.int64], *, draw: Draw, n: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (P,) statistics of pairs of (N, U) fields and the (n, P) values under the null.

    `average` are the (N, N) weights with which a location averages its neighbourhood, `pairs` (P, 2) columns of
    `fields`, of which `draw` moves the second.
    """
    still, still_averaged = standardised(fields), standardised(average @ fields)

    def statistic(moved: NDArray[np.float64]) -> NDArray[np.float64]:
        one = still.T @ standardised(average @ moved)
        other = still_averaged.T @ standardised(moved)
        return ((one + other) / (2 * len(fields)))[pairs[:, 0], pairs[:, 1]]

    empty = (still.std(axis=0) == 0)[pairs].any(axis=1)
    observed, null = statistic(fields), np.stack([statistic(fields[draw()]) for _ in range(n)])
    return np.where(empty, np.nan, observed), np.where(empty, np.nan, null)


def shifts(xy: NDArray[np.float64], *, rng: np.random.Generator) -> Draw:
    """Return draws of the location nearest to each one after a random toroidal shift, mirrored in x, y, both or not."""
    from scipy.spatial import KDTree

    tree, low = KDTree(xy), xy.min(axis=0)
    # Half a step between locations belongs to the box on either side, or a lattice would not close round the torus.
    step = float(np.median(tree.query(xy, k=2)[0][:, 1]))
    size = np.ptp(xy, axis=0) + step

    def draw() -> NDArray[np.int64]:
        at = (xy - low) * rng.choice([-1.0, 1.0], size=2) + rng.uniform(0, size)
        wrapped = (at + step / 2) % size - step / 2
        return np.asarray(tree.query(wrapped + low)[1], dtype=np.int64)

    return draw

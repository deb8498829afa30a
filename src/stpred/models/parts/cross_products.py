"""Sums of products of columns: all that a linear model needs of training rows that do not fit into memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stpred.models.batch import Batch

MAX_IN_MEMORY = 2**29
"""Size in bytes of the columns of all training locations, in double precision, up to which they are held at once: a fit
takes about four times as much. Beyond it, slides are taken one after the other."""

N_FOLDS = 5
"""Folds of donors, at most, of fits that take slides one after the other: one of each donor's own is for few donors."""

Array = NDArray[np.float64]


def one_by_one(batches: Sequence[Batch], *, width: int | None = None) -> bool:
    """Whether slides are too many to be held at once; `width`: number of columns, if not that of the features."""
    n = sum(len(b.targets) for b in batches)
    return n * (batches[0].width if width is None else width) * 8 > MAX_IN_MEMORY


def dealt(groups: Sequence[str], *, n_folds: int = N_FOLDS) -> list[list[int]]:
    """Return the slides of each fold: donors in the order of their names are dealt out in turn."""
    names = sorted(set(groups))
    fold = {name: i % n_folds for i, name in enumerate(names)}
    return [[i for i, g in enumerate(groups) if fold[g] == k] for k in range(min(n_folds, len(names)))]


@dataclass
class CrossProducts:
    """Sums over weighted rows of columns x and targets y, about a fixed point of each.

    Attributes
    ----------
    n
        Number of rows.
    weight
        Sum of their weights.
    x, y
        (p,) and (G,) sums.
    xx, xy
        (p, p) and (p, G) sums of products.
    yy
        (G,) sums of squares.
    """

    n: int
    weight: float
    x: Array
    y: Array
    xx: Array
    xy: Array
    yy: Array

    @classmethod
    def zeros(cls, p: int, n_genes: int = 0) -> Self:
        """Return the sums over nothing."""
        x, y = np.zeros(p), np.zeros(n_genes)
        return cls(0, 0.0, x, y, np.zeros((p, p)), np.zeros((p, n_genes)), y.copy())

    def add(self, x: Array, y: Array | None = None, weights: Array | None = None) -> None:
        """Add (m, p) rows with their (m, G) targets and (m,) weights."""
        y = np.empty((len(x), 0)) if y is None else y
        wx, wy = (x, y) if weights is None else (weights[:, None] * x, weights[:, None] * y)
        self.n += len(x)
        self.weight += len(x) if weights is None else float(weights.sum())
        self.x += wx.sum(axis=0)
        self.y += wy.sum(axis=0)
        self.xx += wx.T @ x
        self.xy += wx.T @ y
        self.yy += (wy * y).sum(axis=0)

    def __add__(self, other: Self) -> Self:
        return type(self)(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def centers(self) -> tuple[Array, Array]:
        """(p,) and (G,) weighted means."""
        return self.x / self.weight, self.y / self.weight

    def centred(self) -> tuple[Array, Array, Array]:
        """Return `xx`, `xy` and `yy` about the weighted means."""
        x, y = self.centers
        return (
            self.xx - self.weight * np.outer(x, x),
            self.xy - self.weight * np.outer(x, y),
            (self.yy - self.weight * y**2).clip(0),
        )


def total(parts: Sequence[CrossProducts]) -> CrossProducts:
    """Return the sums over all parts."""
    found = parts[0]
    for part in parts[1:]:
        found = found + part
    return found


def spectrum(gram: Array) -> tuple[Array, Array]:
    """Return singular values, falling, and the (p, k) right singular vectors of columns of these cross-products."""
    values, vectors = np.linalg.eigh(gram)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
    return np.sqrt(values[keep]), vectors[:, keep]


def blocks(n: int, size: int = 4096) -> Any:
    """Yield the rows of each block."""
    return (np.arange(i, min(i + size, n)) for i in range(0, n, size))

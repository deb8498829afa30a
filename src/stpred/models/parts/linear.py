"""Families that are linear in known columns, and the ridge path from old weights to those of new data alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stpred.models.batch import Batch
from stpred.models.parts.closed_form import thin_svd

Array = NDArray[np.float64]


class Linear(Protocol):
    """A model that predicts ``design(batch) @ weights + intercept``."""

    intercept: Tensor

    @property
    def weights(self) -> Tensor:
        """(width, n_genes) weights of the columns."""
        ...

    def design(self, batch: Batch) -> Array:
        """Return the (n, width) columns."""
        ...

    def set_weights(self, weights: Array, intercept: Array) -> None:
        """Set (width, n_genes) weights and (n_genes,) intercepts."""
        ...

    def column_scale(self, blocks: Sequence[int] | None) -> Array | None:
        """Return what the (width,) columns were multiplied by when the weights were penalised; None: 1."""
        ...


def is_linear(model: object) -> bool:
    """Whether a model is :class:`Linear`; ``isinstance`` does not see buffers of a network from Python 3.12 on."""
    return all(hasattr(model, name) for name in ("intercept", "weights", "design", "set_weights", "column_scale"))


@dataclass(frozen=True)
class Step:
    """How far new data move old weights.

    Attributes
    ----------
    share
        Of the way from the kept weights to what the new data ask for: 0 none, 1 all of it. As old weights that were
        learned from m locations like the n new ones do: ``n / (n + m)``.
    penalty
        On what the new data ask for beyond the kept weights, per location.
    kept
        Share of the old weights that is gone on from: 1 all, 0 none (with a share of 1: the ridge of the new data).
    """

    share: float
    penalty: float
    kept: float = 1.0


class PathFromWeights:
    """Weights between given ones and those that new data ask for.

    ``kept * old + share * d``, where d is the ridge solution for what the kept weights leave:
    ``argmin ||y - x (kept * old + d)||^2 + n * penalty * ||d||^2``, with an intercept that is not penalised. With a
    share of 1, weights are shrunk towards the kept ones in all directions alike. A share of ``1 / (1 + c)`` is the
    solution with ``c * (||x d||^2 + n * penalty * ||d||^2)`` added: old weights that were learned from c times as many
    locations, which resist most in the directions in which locations differ most. All steps come from one decomposition
    of the centred columns.

    Parameters
    ----------
    x, y
        (m, width) columns and (m, n_genes) measurement.
    old
        (width, n_genes) given weights.
    n
        Locations that the penalty counts for; None: m. A part of the data takes the number of all of them, for how far
        weights are from others does not depend on how many locations are at hand.
    scale
        (width,) what columns were multiplied by when the old weights were penalised; None: 1. What is added to the
        weights is penalised alike.
    """

    def __init__(self, x: Array, y: Array, old: Array, *, n: int | None = None, scale: Array | None = None) -> None:
        self.old, self.n = old, len(x) if n is None else n
        self._scale = np.ones(x.shape[1]) if scale is None else scale
        self.center_x, self.center_y = x.mean(axis=0), y.mean(axis=0)
        x, y = x - self.center_x, y - self.center_y
        u, self._s, self._vt = thin_svd(x * self._scale)
        # What the columns explain of the measurement, and of the old prediction.
        self._measured, self._old = u.T @ y, u.T @ (x @ old)

    def coef(self, step: Step) -> Array:
        """Return the (width, n_genes) weights of a step."""
        if step.share == 0:
            return step.kept * self.old
        added = self._vt.T @ (self._shrink(step)[:, None] * self._left(step))
        return step.kept * self.old + self._scale[:, None] * added

    def intercept(self, coef: Array) -> Array:
        """Return the (n_genes,) intercept that goes with weights."""
        return self.center_y - self.center_x @ coef

    def predictions(self, x: Array, steps: Sequence[Step]) -> Iterator[Array]:
        """Yield the (m, n_genes) predictions of (m, width) columns by each step."""
        z = x - self.center_x
        at, old = (z * self._scale) @ self._vt.T, z @ self.old
        for step in steps:
            value = step.kept * old + self.center_y
            yield value + (at * self._shrink(step)) @ self._left(step) if step.share else value

    def _left(self, step: Step) -> Array:
        return self._measured - step.kept * self._old

    def _shrink(self, step: Step) -> Array:
        return step.share * self._s / (self._s**2 + step.penalty * self.n)

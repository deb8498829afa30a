"""A linear model's part in going on from old weights: ridge that shrinks towards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.specs import FineTuning
from stpred._core.targets import dense, standardised
from stpred.models.base import Model
from stpred.models.batch import Batch
from stpred.models.parts.linear import PathFromWeights, Step
from stpred.training._tuning.networks import copied
from stpred.training._tuning.parts import Part, Trial

OLD = Step(share=0.0, penalty=1.0)
PENALTIES = tuple(float(p) for p in np.round(np.logspace(3, -3, 13), 6))
STEPS = (
    OLD,
    *(Step(share, p) for share in (0.1, 0.25, 0.5, 1.0) for p in PENALTIES),
    *(Step(1.0, p, kept=kept) for kept in (0.5, 0.0) for p in PENALTIES),
)
"""Candidates of a linear model: the old weights first, the ridge of the own slides alone last."""


@dataclass(frozen=True)
class LinearMethod:
    """Ridge that shrinks towards the old weights.

    Attributes
    ----------
    options, genes
        What is asked for, and which genes are learned.
    n, n_before
        Locations of the own slides, and those that the old weights were learned from.
    penalty
        That the old weights were learned with.
    """

    options: FineTuning
    genes: NDArray[np.bool_]
    n: int
    n_before: int
    penalty: float

    @property
    def steps(self) -> tuple[Step, ...]:
        """The candidates; as if the own slides had been among the old ones is the last."""
        if self.options.strength is not None:
            return (_step(self.options.strength),)
        return (*STEPS, Step(self.n / (self.n + self.n_before), self.penalty))

    @property
    def usual(self) -> int:
        """The candidate that others are compared with."""
        return len(self.steps) - 1

    @property
    def given(self) -> int | None:
        """The candidate, where the user gave it."""
        return None if self.options.strength is None else 0

    def trial(self, model: Any, part: Part) -> Trial:
        """Score every candidate on a held-out part."""
        genes = self.genes
        path, x = self._path(model, part.train, n=self.n), [model.design(b) for b in part.test]

        def predict(c: int) -> list[NDArray[Any]]:
            out = []
            for columns in x:
                values = np.full((len(columns), len(genes)), np.nan)
                values[:, genes] = next(path.predictions(columns, [self.steps[c]]))
                out.append(values)
            return out

        scores, agreement = [], []
        for b, columns in zip(part.test, x, strict=True):
            truth = dense(b.scored)[:, genes]
            found = [(metrics.pearson(v, truth), _agreement(v, truth)) for v in path.predictions(columns, self.steps)]
            scores.append([f[0] for f in found])
            agreement.append(np.stack([f[1] for f in found]))
        pearson = np.asarray(scores, dtype=np.float32).swapaxes(0, 1)

        def spearman(c: int) -> NDArray[Any]:
            return np.stack(
                [
                    metrics.spearman(mean[:, genes], dense(b.scored)[:, genes])
                    for b, mean in zip(part.test, predict(c), strict=True)
                ]
            )

        quality = np.nan_to_num(pearson).mean(axis=(1, 2), dtype=np.float64)
        each = np.concatenate(agreement, axis=1) if part.block else None
        return Trial(part, pearson, quality, predict, spearman, each)

    def final(self, model: Any, batches: Sequence[Batch], chosen: int, *, seed: int) -> tuple[Model, dict[str, Any]]:
        """Return a copy with the weights of a candidate on all slides."""
        new: Any = copied(model)
        path, step = self._path(model, batches), self.steps[chosen]
        coef = path.coef(step)
        weights, intercept = (t.cpu().numpy().astype(np.float64) for t in (model.weights, model.intercept))
        weights[:, self.genes], intercept[self.genes] = coef, path.intercept(coef)
        new.set_weights(weights, intercept)
        moved = "weights" if step.share else "intercept"
        return new, {
            "moved": moved,
            **({"share": step.share, "penalty": step.penalty} if step.share else {"share": 0.0}),
            "kept": step.kept,
        }

    def _path(self, model: Any, batches: Sequence[Batch], *, n: int | None = None) -> PathFromWeights:
        x = np.concatenate([model.design(b) for b in batches])
        y = np.concatenate([dense(b.y)[:, self.genes] for b in batches])
        old = model.weights.cpu().numpy().astype(np.float64)[:, self.genes]
        return PathFromWeights(x, y, old, n=n, scale=model.column_scale(batches[0].blocks))


def _step(strength: float) -> Step:
    """Return the step that shrinks towards the old weights by a given penalty."""
    return OLD if np.isinf(strength) else Step(1.0, strength)


def _agreement(values: NDArray[Any], truth: NDArray[Any]) -> NDArray[np.float64]:
    """Return (n,) products of standardised values, mean over genes; their mean is the mean correlation."""
    return (standardised(values) * standardised(truth)).mean(axis=1)

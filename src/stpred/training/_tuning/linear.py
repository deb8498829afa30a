"""A linear model's part in going on from old weights: ridge that shrinks towards them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.specs import FineTuning
from stpred._core.targets import dense
from stpred.models.base import Model
from stpred.models.batch import Batch
from stpred.models.parts.linear import PathFromWeights, Step
from stpred.training._tuning.networks import copied
from stpred.training._tuning.parts import Part, Trial

STEPS = (
    Step(np.inf, 1.0),
    *(Step(float(p), k) for k in (1.0, 0.75, 0.5, 0.25, 0.0) for p in np.round(np.logspace(4, -3, 15), 6)),
)
"""Candidates of a linear model: the old weights first, the ridge of the own slides alone among the last."""


@dataclass(frozen=True)
class LinearMethod:
    """Ridge that shrinks towards the old weights."""

    options: FineTuning
    genes: NDArray[np.bool_]
    n: int

    @property
    def steps(self) -> tuple[Step, ...]:
        """The candidates."""
        return STEPS if self.options.strength is None else (Step(self.options.strength, 1.0),)

    @property
    def given(self) -> int | None:
        """The candidate, where the user gave it."""
        return None if self.options.strength is None else 0

    def trial(self, model: Any, part: Part, genes: NDArray[np.bool_]) -> Trial:
        """Score every candidate on a held-out part."""
        path, x = self._path(model, part.train, n=self.n), [model.design(b) for b in part.test]

        def predict(c: int) -> list[NDArray[Any]]:
            out = []
            for columns in x:
                values = np.full((len(columns), len(genes)), np.nan)
                values[:, genes] = next(path.predictions(columns, [self.steps[c]]))
                out.append(values)
            return out

        scores = [
            [metrics.pearson(mean, dense(b.scored)[:, genes]) for mean in path.predictions(columns, self.steps)]
            for b, columns in zip(part.test, x, strict=True)
        ]
        pearson = np.asarray(scores, dtype=np.float32).swapaxes(0, 1)

        def spearman(c: int) -> NDArray[Any]:
            return np.stack(
                [
                    metrics.spearman(mean[:, genes], dense(b.scored)[:, genes])
                    for b, mean in zip(part.test, predict(c), strict=True)
                ]
            )

        quality = np.nan_to_num(pearson).mean(axis=(1, 2), dtype=np.float64)
        return Trial(part, pearson, quality, predict, spearman)

    def final(self, model: Any, batches: Sequence[Batch], chosen: int, *, seed: int) -> tuple[Model, dict[str, Any]]:
        """Return a copy with the weights of a candidate on all slides."""
        new: Any = copied(model)
        path, step = self._path(model, batches), self.steps[chosen]
        coef = path.coef(step)
        weights, intercept = (t.cpu().numpy().astype(np.float64) for t in (model.weights, model.intercept))
        weights[:, self.genes], intercept[self.genes] = coef, path.intercept(coef)
        new.set_weights(weights, intercept)
        strength = None if np.isinf(step.penalty) else step.penalty
        return new, {
            "moved": "weights" if strength is not None else "intercept",
            "strength": strength,
            "kept": step.kept,
        }

    def _path(self, model: Any, batches: Sequence[Batch], *, n: int | None = None) -> PathFromWeights:
        x = np.concatenate([model.design(b) for b in batches])
        y = np.concatenate([dense(b.y)[:, self.genes] for b in batches])
        return PathFromWeights(x, y, model.weights.cpu().numpy().astype(np.float64)[:, self.genes], n=n)

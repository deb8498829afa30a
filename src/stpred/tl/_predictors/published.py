"""Published predictors in fine-tuning: a linear head on their outputs, on the scale of the own slides."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.targets import SCALES, TARGETS, dense
from stpred.models.batch import Batch
from stpred.models.pretrained.model import Pretrained
from stpred.tl._trust.recalibrate import shrunken_lines


def with_target(model: Pretrained, learned: NDArray[np.bool_]) -> tuple[Pretrained, NDArray[np.bool_]]:
    """Return a copy that says what its outputs are fitted to, and which of its genes are learned.

    A relative predictor keeps the learned genes alone, for the others have no scale.
    """
    if model.record.target in SCALES:
        new = copy.deepcopy(model)
        new.record.training["target"] = model.record.target
        return new, learned
    new = model.select(learned)
    new.record.target = TARGETS[0]
    new.record.training["target"] = TARGETS[0]
    return new, np.ones(int(learned.sum()), dtype=bool)


def standardise(model: Pretrained, batches: Sequence[Batch], *, relative: bool) -> None:
    """Standardise the outputs over the own slides; give relative ones each gene's line to the measurement.

    Slopes are positive and those of all own slides, the held-out ones among them, so that they change no correlation.
    """
    if model.config.head:
        return
    outputs = [model.outputs(b).astype(np.float64) for b in batches]
    joint = np.concatenate(outputs)
    center, unit = joint.mean(axis=0), joint.std(axis=0)
    unit = np.where(unit > 1e-8, unit, 1.0)
    slope, intercept = np.ones(len(unit)), center
    if relative:
        if len(joint) < 5:
            raise InputError(f"A scale for model {model.record.name!r} needs 5 measured locations; got {len(joint)}.")
        measured = [dense(b.scored) for b in batches]
        x = np.concatenate([(o - o.mean(axis=0)) / unit for o in outputs])
        y = np.concatenate([m - m.mean(axis=0) for m in measured])
        slope, intercept = shrunken_lines(x, y)[0] / unit, np.concatenate(measured).mean(axis=0)
    model.set_lines(center=center, unit=unit, slope=slope, intercept=intercept)

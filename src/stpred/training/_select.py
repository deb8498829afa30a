"""Scores on held-out donors of the training slides, and the choice between settings by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stpred._core.checks import InputError
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.ensemble import EnsembleConfig
from stpred.training._fit import Relabel, fold_curves
from stpred.training._run import Run
from stpred.training._scores import Curve, HeldOut, criterion_of, held_out


def held_out_scores(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    run: Run | None = None,
    relabel: Relabel | None = None,
    folds: Sequence[Curve] = (),
) -> HeldOut:
    """Fit with donors held out and score their slides, gene by gene; of an ensemble, its first member.

    `folds` are the curves of these very fits, where they were computed before.
    """
    run = Run() if run is None else run
    if isinstance(config, EnsembleConfig):
        family, config = config.member.model_class, config.member
    curves = list(folds) or fold_curves(family, config, batches, groups=groups, seed=seed, run=run, relabel=relabel)
    epochs = getattr(config, "epochs", None)
    return held_out(curves, criterion_of(family, config), epochs=epochs)


@dataclass(frozen=True)
class Choice:
    """Which of several settings scored best on held-out donors of the training slides.

    Attributes
    ----------
    best
        Its number.
    scores
        What each scored by the criterion, genes without variance counted as zero.
    folds
        Curves of the best one's folds.
    """

    best: int
    scores: list[float]
    folds: list[Curve] = field(default_factory=list)


def choose_config(
    options: Sequence[tuple[type[Model], BaseConfig]],
    batches: Mapping[int, Sequence[Batch]],
    *,
    groups: Sequence[str],
    criterion: str = "pearson",
    seed: int = 0,
    run: Run | None = None,
) -> Choice:
    """Choose between settings; `batches` holds, for each option, the training batches as it needs them.

    `criterion` is one of :class:`stpred.Splits`.
    """
    if len(options) == 1:
        return Choice(0, [float("nan")])
    if len(set(groups)) < 2:
        raise InputError("Choosing between settings needs at least two donors (or slides) among the training slides.")
    run = Run() if run is None else run
    scores: list[float] = []
    folds: list[list[Curve]] = []
    for i, (family, config) in enumerate(options):
        single = config.member if isinstance(config, EnsembleConfig) else config
        curves = fold_curves(single.model_class, single, batches[i], groups=groups, seed=seed, run=run, relabel=None)
        held = held_out_scores(family, config, batches[i], groups=groups, folds=curves)
        scores.append(held.quality(criterion))
        folds.append(curves)
    best = int(np.argmax(scores))
    return Choice(best, scores, folds[best])

"""Pseudo-labels: what teachers trained without a slide's counts predict for its locations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.targets import dense, standardised
from stpred.data import TooSmall
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.training._fit import fit
from stpred.training._plan import INNER_FOLDS, group_folds
from stpred.training._run import Run

Labels = dict[str, NDArray[np.float32]]
"""(n, n_genes) values of each slide's locations."""

MIN_EXPLAINED = 0.05
"""Least correlation of pseudo-labels with counts that is reckoned with per gene: labels keep some spread."""


def out_of_fold(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    run: Run | None = None,
) -> tuple[Labels, dict[str, list[str]]]:
    """Predict every slide by a teacher that was trained without its donor.

    Parameters
    ----------
    family, config
        The teacher.
    batches, groups
        Slides with counts, as the teacher needs them, and their donors.
    seed, run
        As of :func:`fit`.

    Returns
    -------
    The predictions, and for each slide those that its teacher was trained on.
    """
    slides = {b.slide: b for b in batches}
    donors = dict(zip(slides, groups, strict=True))
    if len(set(groups)) < 2:
        raise TooSmall(f"Slides of {len(set(groups))} donor leave no teacher that was trained without them.")
    labels: Labels = {}
    taught: dict[str, list[str]] = {}
    for _, train, test in group_folds(donors, n_folds=INNER_FOLDS):
        model, _ = fit(
            family, config, [slides[s] for s in train], groups=[donors[s] for s in train],
            seed=seed, typical=False, run=run,
        )  # fmt: skip
        for s in test:
            labels[s], taught[s] = model.predict(slides[s])[0], train
    return labels, taught


def averaged(labels: Sequence[Labels]) -> Labels:
    """Average teachers, each standardised per gene and slide, so that none outweighs another by its scale."""
    return {s: np.mean([standardised(of[s]) for of in labels], axis=0).astype(np.float32) for s in labels[0]}


def blended(labels: NDArray[Any], measured: NDArray[Any], fraction: float) -> NDArray[np.float64]:
    """Return standardised labels of a slide blended with a fraction of its standardised measurement."""
    labels = standardised(labels)
    return labels if fraction == 0 else standardised((1 - fraction) * labels + fraction * standardised(measured))


def on_scale(labels: Labels, measured: Mapping[str, NDArray[Any]], *, fraction: float = 0.0) -> Labels:
    """Bring standardised labels to the scale of the measurement: each gene's mean, and the spread that labels explain.

    Parameters
    ----------
    labels
        Averaged teachers.
    measured
        Training target of the same slides.
    fraction
        Of the measurement itself in the result, 0 to 1.
    """
    y = {s: dense(measured[s]) for s in labels}
    mean = np.concatenate(list(y.values())).mean(axis=0)
    number = sum(len(v) for v in y.values())
    inside = np.sqrt(sum(((v - v.mean(axis=0)) ** 2).sum(axis=0) for v in y.values()) / number)
    explained = sum((standardised(labels[s]) * standardised(v)).sum(axis=0) for s, v in y.items()) / number
    spread = inside * np.maximum(explained, MIN_EXPLAINED)
    return {s: (mean + spread * blended(labels[s], v, fraction)).astype(np.float32) for s, v in y.items()}


@dataclass(frozen=True)
class Distillation:
    """Replaces training targets (see :func:`fit_and_score`) by out-of-fold predictions of teachers.

    Parameters
    ----------
    teachers
        Each predicts slides from training slides and their donors, and says what it learned from.
    fraction
        Of the measurement in the labels.
    """

    teachers: Sequence[Callable[[list[str], list[str]], tuple[Labels, dict[str, Any]]]]
    fraction: float = 0.0

    def labels(self, slides: Sequence[str], groups: Sequence[str]) -> tuple[Labels, list[dict[str, Any]]]:
        """Return the averaged pseudo-labels of some slides, and who taught them."""
        found = [teacher(list(slides), list(groups)) for teacher in self.teachers]
        return averaged([labels for labels, _ in found]), [taught for _, taught in found]

    def __call__(self, batches: Sequence[Batch], groups: Sequence[str]) -> list[Batch]:
        labels, _ = self.labels([b.slide for b in batches], groups)
        return self.blend(batches, labels)

    def blend(self, batches: Sequence[Batch], labels: Labels) -> list[Batch]:
        """Return batches whose targets are the pseudo-labels, blended with the measurement."""
        y = on_scale(labels, {b.slide: b.y for b in batches}, fraction=self.fraction)  # type: ignore[misc]
        return [replace(b, y=y[b.slide], truth=dense(b.scored, np.float32)) for b in batches]

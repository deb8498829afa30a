"""Fitting ``"auto"``: every candidate on held-out donors, the weights of the best, and these on all slides."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.targets import dense
from stpred.data import BLOCK_FOLDS, TooSmall, blocks_of, far_from
from stpred.models.auto import Auto, AutoConfig, predicted, training_moments
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.parts.context import seen_by
from stpred.training._plan import INNER_FOLDS, group_folds
from stpred.training._scores import Curve
from stpred.training._stacking.weights import Correlations, Part, choose_weights, score

logger = logging.getLogger("stpred")

Fit = Callable[[BaseConfig, Sequence[Batch], Sequence[str]], tuple[Model, dict[str, Any]]]

MIN_SLOPE = 0.02
"""Least deviation of a gene's predictions over that of its measurement: those of no other gene are constant."""


def fit_auto(
    config: AutoConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    fit: Fit,
) -> tuple[Auto, dict[str, Any], list[Curve]]:
    """Return the fitted model, what was tried with its scores, and the scores of the held-out slides.

    `fit` fits a candidate on slides and their donors, and returns it with what it chose. The curves' weights are those
    that the other folds choose, so that a slide has no say in its own score.
    """
    config = config.for_slides([b.slide for b in batches])
    parts, held_out = _parts(config, batches, groups, fit)
    tables = [Correlations.of(p) for p in parts]
    k = len(config.members)
    scores = [score(tables, np.eye(k)[i]) for i in range(k)]
    weights = choose_weights(tables, k, stacked=config.stacked)
    kept = np.flatnonzero(weights)
    slope, intercept = _scale(parts, weights, batches)
    fitted = [_fit(fit, config.members[i], batches, groups) for i in kept]
    n_genes = next(b.y.shape[1] for b in batches if b.y is not None)
    final = replace(config, candidates=tuple(m.config for m, _ in fitted))
    model = Auto(final, n_features=batches[0].features.shape[1], n_genes=n_genes)
    model.set_members([m for m, _ in fitted], weights[kept], batches, slope=slope, intercept=intercept)
    tried = [
        {"family": m.family, "config": m.to_dict(), "pearson": _rounded(s), "weight": _rounded(w)}
        for m, s, w in zip(config.members, scores, weights, strict=True)
    ]
    for i, (_, chosen) in zip(kept, fitted, strict=True):
        tried[i]["chosen"] = {key: v for key, v in chosen.items() if key != "curve"}
    found = {
        "auto": {
            "held_out": held_out,
            "tried": tried,
            "pearson": _rounded(score(tables, weights)) if tables else None,
            "pearson_best_alone": _rounded(max(scores)) if tables else None,
        },
        "n_models": len(kept),
    }
    return model, found, _curves(parts, tables, batches, stacked=config.stacked) if held_out == "donors" else []


def _fit(fit: Fit, config: BaseConfig, batches: Sequence[Batch], groups: Sequence[str]) -> tuple[Model, dict[str, Any]]:
    """Fit a candidate on batches that serve all of them."""
    seen = [seen_by(b, config.needs) for b in batches]
    if config.needs.parts is None:
        seen = [replace(b, parts=None) for b in seen]
    model, chosen = fit(config, seen, groups)
    return model.to("cpu").eval(), chosen


def _parts(config: AutoConfig, batches: Sequence[Batch], groups: Sequence[str], fit: Fit) -> tuple[list[Part], str]:
    """Return the candidates' predictions of held-out locations, and what was held out."""
    if len(config.members) == 1:
        return [], "nothing, for there is one candidate"
    held_out = "donors" if len(set(groups)) > 1 else "blocks of the only donor's slides"
    try:
        folds = list(_donor_folds(batches, groups) if held_out == "donors" else _block_folds(batches, groups))
    except TooSmall as error:
        logger.warning("%s The first candidate is taken.", error)
        return [], "nothing, for the slides are too small for blocks"
    parts = []
    for number, (train, of, test) in enumerate(folds):
        values: dict[int, list[NDArray[np.float64]]] = {i: [] for i in range(len(test))}
        for member in config.members:
            model, _ = _fit(fit, member, train, of)
            mean, std = training_moments(model, train)
            for i, batch in enumerate(test):
                values[i].append((predicted(model, batch) - mean) / std)
        parts += [Part(number, b.slide, np.stack(values[i]), dense(b.scored)) for i, b in enumerate(test)]
    return parts, held_out


def _donor_folds(batches: Sequence[Batch], groups: Sequence[str]) -> Any:
    slides = {b.slide: b for b in batches}
    donors = dict(zip(slides, groups, strict=True))
    for _, train, test in group_folds(donors, n_folds=INNER_FOLDS):
        yield [slides[s] for s in train], [donors[s] for s in train], [slides[s] for s in test]


def _block_folds(batches: Sequence[Batch], groups: Sequence[str]) -> Any:
    blocks = [blocks_of(b.coords_um, BLOCK_FOLDS, slide=b.slide) for b in batches]
    for k in range(BLOCK_FOLDS):
        test = [np.flatnonzero(found == k) for found in blocks]
        train = [b.take(far_from(b.coords_um, rows, slide=b.slide)) for b, rows in zip(batches, test, strict=True)]
        yield train, list(groups), [b.take(rows) for b, rows in zip(batches, test, strict=True)]


def _scale(
    parts: Sequence[Part], weights: NDArray[np.float64], batches: Sequence[Batch]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each gene's slope, by least squares within held-out slides, and intercept: its training mean."""
    y = np.concatenate([dense(b.scored) for b in batches])
    deviation = y.std(axis=0)
    if not parts:  # nothing held out: the predictions' own scale is not known, that of the measurement is
        return deviation, y.mean(axis=0)
    size, found = np.zeros(y.shape[1]), np.zeros(y.shape[1])
    for part in parts:
        value = np.tensordot(weights, part.values, axes=1)
        value = value - value.mean(axis=0)
        size += np.square(value).sum(axis=0)
        found += (value * (part.truth - part.truth.mean(axis=0))).sum(axis=0)
    slope = np.divide(found, size, out=np.zeros_like(found), where=size > 1e-12)
    return np.maximum(slope, MIN_SLOPE * deviation), y.mean(axis=0)


def _curves(
    parts: Sequence[Part], tables: Sequence[Correlations], batches: Sequence[Batch], *, stacked: bool
) -> list[Curve]:
    """Return the scores of each fold's slides, with the weights and scale that the other folds choose."""
    curves = []
    for fold in sorted({p.fold for p in parts}):
        others = [p for p in parts if p.fold != fold]
        weights = choose_weights([t for t in tables if t.fold != fold], len(parts[0].values), stacked=stacked)
        names = {p.slide for p in others}
        slope, intercept = _scale(others, weights, [b for b in batches if b.slide in names])
        held = [p for p in parts if p.fold == fold]
        pairs = [(np.tensordot(weights, p.values, axes=1) * slope + intercept, p.truth) for p in held]
        pearson, spearman = (
            np.stack([of(*pair) for pair in pairs])[None].astype(np.float32)
            for of in (metrics.pearson, metrics.spearman)
        )
        error = np.array([[np.square(guess - truth).mean() for guess, truth in pairs]], dtype=np.float32)
        curves.append(Curve([p.slide for p in held], np.array([len(p.truth) for p in held]), pearson, spearman, error))
    return curves


def _rounded(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None

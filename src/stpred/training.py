"""Fitting a family on batches, and scoring it on slides it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import metrics
from stpred._core.checks import InputError
from stpred.models._base import BaseConfig, Batch, Model

logger = logging.getLogger("stpred")


def fit(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    typical: bool = True,
) -> tuple[Model, dict[str, Any]]:
    """Return a fitted model and what its fit chose.

    Parameters
    ----------
    family, config
        What to fit.
    batches
        One per training slide, with targets.
    groups
        Donor of each batch.
    seed
        For what is random; global random state is left alone.
    typical
        Also learn what training tiles look like; not needed by a model that is only scored.
    """
    import torch

    y = batches[0].y
    if y is None:
        raise InputError(f"Slide {batches[0].slide!r} came without training targets.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = family(config, n_features=batches[0].features.shape[1], n_genes=y.shape[1])
        chosen = model.fit(batches, groups=groups)
    if typical:
        model.typical.fit([b.own for b in batches])
    return model.eval(), chosen


def leave_groups_out(groups: Mapping[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield ``(fold, training slides, test slides)``, one fold per donor; a donor is never on both sides."""
    for donor in sorted(set(groups.values())):
        test = [s for s, g in groups.items() if g == donor]
        yield donor, [s for s in groups if s not in test], test


TRUSTED = 0.1
"""Mean Pearson correlation on left-out slides from which a gene counts as predictable."""

CHANCE = 2.33
"""Standard errors (one-sided p of 0.01) by which it has to differ from zero as well: few spots reach 0.1 by luck."""


@dataclass(frozen=True)
class HeldOut:
    """Per-gene scores on slides that were left out of training: (n_slides, n_genes), and (n_slides,) locations."""

    pearson: NDArray[np.float64]
    spearman: NDArray[np.float64]
    n_locations: NDArray[np.int64]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return each gene's mean over slides (NaN where it never varied) and its number of scored slides."""
        n_slides = np.isfinite(self.pearson).sum(axis=0)
        pearson = _mean(self.pearson)
        return {
            "cv_pearson": pearson,
            "cv_spearman": _mean(self.spearman),
            "n_slides": n_slides,
            "trusted": (np.nan_to_num(pearson) > TRUSTED) & (self._beyond_chance() > CHANCE),
        }

    def _beyond_chance(self) -> NDArray[np.float64]:
        """Return how many standard errors each gene's correlations (Fisher's z, slides pooled) lie above zero."""
        known = np.isfinite(self.pearson)
        weight = np.where(known, np.maximum(self.n_locations - 3, 0)[:, None], 0)
        z = np.arctanh(np.where(known, self.pearson, 0).clip(-0.999999, 0.999999))
        return (weight * z).sum(axis=0) / np.sqrt(np.maximum(weight.sum(axis=0), 1))


def held_out_scores(
    family: type[Model], config: BaseConfig, batches: Sequence[Batch], *, groups: Sequence[str], seed: int = 0
) -> HeldOut:
    """Fit with each group left out and score its slides, gene by gene."""
    by_slide = {b.slide: b for b in batches}
    pearson, spearman, n = [], [], []
    for _, train, test in leave_groups_out(dict(zip(by_slide, groups, strict=True))):
        donors = [g for s, g in zip(by_slide, groups, strict=True) if s in train]
        model, _ = fit(family, config, [by_slide[s] for s in train], groups=donors, seed=seed, typical=False)
        for s in test:
            mean, _ = model.predict(by_slide[s])
            pearson.append(metrics.pearson(mean, by_slide[s].y))
            spearman.append(metrics.spearman(mean, by_slide[s].y))
            n.append(len(mean))
    return HeldOut(np.asarray(pearson), np.asarray(spearman), np.asarray(n))


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.isfinite(values)
    return np.where(
        known.any(axis=0), np.where(known, values, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1), np.nan
    )


def choose_config(
    options: Sequence[tuple[type[Model], BaseConfig]],
    batches: Mapping[int, Sequence[Batch]],
    *,
    groups: Sequence[str],
    seed: int = 0,
) -> tuple[int, list[float]]:
    """Return which of several settings scores best on left-out groups of the *training* slides, and every score.

    `batches` holds, for each option, the training batches as that option needs them. The score is the mean Pearson
    correlation over genes and slides, genes without variance counted as zero.
    """
    if len(options) == 1:
        return 0, [float("nan")]
    if len(set(groups)) < 2:
        raise InputError("Choosing between settings needs at least two donors (or slides) among the training slides.")
    scores = []
    for i, (family, config) in enumerate(options):
        held = held_out_scores(family, config, batches[i], groups=groups, seed=seed)
        scores.append(float(np.nan_to_num(held.pearson).mean()))
    return int(np.argmax(scores)), scores

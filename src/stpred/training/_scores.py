"""Scores of held-out slides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred.metrics import top_genes
from stpred.metrics.summary import mean_of_defined
from stpred.models.base import Model

TRUSTED = 0.1
"""Mean Pearson correlation on held-out slides from which a gene counts as predictable."""

CHANCE = 2.33
"""Standard errors (one-sided p of 0.01) by which it has to differ from zero as well: few spots reach 0.1 by luck."""


@dataclass(frozen=True)
class HeldOut:
    """Per-gene scores on held-out slides: (n_slides, n_genes), and (n_slides,) locations."""

    pearson: NDArray[np.float64]
    spearman: NDArray[np.float64]
    n_locations: NDArray[np.int64]

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return each gene's mean over slides (NaN where it never varied) and its number of scored slides."""
        n_slides = np.isfinite(self.pearson).sum(axis=0)
        pearson = mean_of_defined(self.pearson, axis=0)
        return {
            "cv_pearson": pearson,
            "cv_spearman": mean_of_defined(self.spearman, axis=0),
            "n_slides": n_slides,
            "trusted": (np.nan_to_num(pearson) > TRUSTED) & (self._beyond_chance() > CHANCE),
        }

    def quality(self, criterion: str) -> float:
        """Return one number of which more is better; genes without variance count as zero.

        ``"pearson"``, ``"spearman"``: the mean over genes and slides. ``"top_genes"``: the mean, over numbers N of
        genes, of the median Pearson of the first N, each averaged over slides.
        """
        values = np.nan_to_num(self.spearman if criterion == "spearman" else self.pearson)
        if criterion != "top_genes":
            return float(values.mean())
        return top_genes(values.mean(axis=0)[None]).area

    def _beyond_chance(self) -> NDArray[np.float64]:
        """Return the z score of each gene's correlations against zero (Fisher's z, slides pooled)."""
        finite = np.isfinite(self.pearson)
        weight = np.where(finite, np.maximum(self.n_locations - 3, 0)[:, None], 0)
        z = np.arctanh(np.where(finite, self.pearson, 0).clip(-0.999999, 0.999999))
        return (weight * z).sum(axis=0) / np.sqrt(np.maximum(weight.sum(axis=0), 1))


@dataclass(frozen=True)
class Curve:
    """Scores of one fold's held-out slides after each epoch (a single one for closed forms).

    Attributes
    ----------
    slides, n_locations
        (S,) held-out slides and their numbers of locations.
    pearson, spearman
        (E, S, n_genes) float32.
    error
        (E, S) mean squared error.
    """

    slides: list[str]
    n_locations: NDArray[np.int64]
    pearson: NDArray[np.float32]
    spearman: NDArray[np.float32]
    error: NDArray[np.float32]

    def quality(self, criterion: str) -> NDArray[np.float64]:
        """Return (E,) values of which more is better: mean Pearson over genes and slides, or minus the error."""
        if criterion == "mse":
            return -self.error.mean(axis=1, dtype=np.float64)
        return np.nan_to_num(self.pearson).mean(axis=(1, 2), dtype=np.float64)


def criterion_of(family: type[Model], config: Any) -> str:
    """Return what epochs of a family are chosen by: the settings' own word, or the family's."""
    return str(getattr(config, "criterion", None) or getattr(family, "criterion", "pearson"))


def mean_pearson(curves: list[Curve]) -> list[float]:
    """Return the mean Pearson over genes and held-out slides after each epoch; a fold that stopped keeps its last."""
    longest = max(len(c.pearson) for c in curves)
    rows = [np.pad(q := c.quality("pearson"), (0, longest - len(q)), mode="edge") for c in curves]
    return [float(f"{v:.5g}") for v in np.mean(rows, axis=0)]


def best_epoch(curves: list[Curve], criterion: str) -> int:
    """Return the number of epochs (from 1) that is best on average over folds; a fold that stopped keeps its last."""
    longest = max(len(c.pearson) for c in curves)
    rows = [np.pad(q := c.quality(criterion), (0, longest - len(q)), mode="edge") for c in curves]
    return int(np.argmax(np.mean(rows, axis=0))) + 1


def held_out(curves: list[Curve], criterion: str, *, epochs: int | None) -> HeldOut:
    """Return the scores of all folds, each after as many epochs as the *other* folds find best.

    A fold's own slides have no say in when its training ends, so that the scores stay those of held-out slides.
    """
    pearson, spearman, n = [], [], []
    for i, curve in enumerate(curves):
        others = [c for j, c in enumerate(curves) if j != i]
        at = best_epoch(others, criterion) if epochs is None and others else (epochs or len(curve.pearson))
        at = min(at, len(curve.pearson)) - 1
        pearson.append(curve.pearson[at])
        spearman.append(curve.spearman[at])
        n.append(curve.n_locations)
    return HeldOut(
        np.concatenate(pearson).astype(np.float64), np.concatenate(spearman).astype(np.float64), np.concatenate(n)
    )

"""A generative model's posterior at the locations of a region, beside the counts that were measured there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import data
from stpred.inference.predictor import Predictor
from stpred.tl._robustness.transforms import random_numbers

if TYPE_CHECKING:
    from stpred._core.specs import Posterior
    from stpred.models import Model
    from stpred.models.xfuse.posterior import Draws


def read_posterior(
    model: Model,
    region: data.Region,
    genes: list[str],
    *,
    posterior: Posterior,
    device: str | None = None,
    ranked: bool = True,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Return the (n, g) posterior mean of expected counts, and the ranks of measured counts among draws.

    Ranks are 0 to 1, and all 0 unless `ranked`.
    """
    shape = len(region.coords_um), len(genes)
    mean, ranks = np.zeros(shape, dtype=np.float32), np.zeros(shape)
    counts = region.target(genes, "counts") if ranked else None
    rng = random_numbers(posterior.seed, region.slide, 1)
    for rows, found in _draws(model, region, genes, posterior=posterior, device=device):
        for some, columns, values in found.expected():
            mean[rows[some], columns] = values.mean(axis=0)
        for some, columns, values in found.counts() if counts is not None else ():
            ranks[rows[some], columns] = ranks_among(values, counts[rows[some], columns], rng)  # type: ignore[index]
    return mean, ranks


def posterior_moments(
    model: Model, region: data.Region, genes: list[str], *, posterior: Posterior, device: str | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the (n, g) posterior mean and standard deviation of expected counts."""
    mean, std = (np.zeros((len(region.coords_um), len(genes)), dtype=np.float32) for _ in range(2))
    for rows, found in _draws(model, region, genes, posterior=posterior, device=device):
        for some, columns, values in found.expected():
            mean[rows[some], columns] = values.mean(axis=0)
            std[rows[some], columns] = values.std(axis=0, dtype=np.float64)
    return mean, std


def _draws(
    model: Model, region: data.Region, genes: list[str], *, posterior: Posterior, device: str | None
) -> Iterator[tuple[NDArray[np.int64], Draws]]:
    """Yield rows of a region and draws of these genes there, at the slide's own level of every covariate."""
    # By name: the fingerprint of an image that was painted over for training is another.
    own = model.covariates.slides.get(region.slide, {})  # type: ignore[union-attr,operator]
    levels = {name: level for name, level in own.items() if level is not None} | dict(posterior.covariates or {})
    posterior = replace(posterior, covariates=levels or None)
    predictor = Predictor.of(model, genes=genes, device=device, posterior=posterior)
    for rows, batch in predictor.batches(region):
        yield rows, predictor.draw(batch).of_genes(predictor.columns)


def ranks_among(draws: NDArray[Any], observed: NDArray[Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return (n, g) ranks, 0 to 1, of observed values among (s, n, g) draws; ties are broken at random.

    This is the randomised probability integral transform, with the observed value counted among the draws: if it is
    distributed as they are, the rank is uniform, however few or coarse the values are.
    """
    less, equal = (draws < observed).sum(axis=0), (draws == observed).sum(axis=0)
    return (less + rng.random(observed.shape) * (equal + 1)) / (len(draws) + 1)


def interval_coverage(ranks: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """Return the (g,) fraction of locations whose (n, g) ranks lie in the central interval of a level."""
    return np.asarray((np.abs(2 * ranks - 1) <= level).mean(axis=0), dtype=np.float64)

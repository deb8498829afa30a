"""Minibatch samplers: locations, whole slides, or patches of images; and what members of an ensemble are drawn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import listing
from stpred._core.compute.ahead import ahead
from stpred.models.batch import Batch
from stpred.models.parts.iterative import Iterative
from stpred.models.parts.losses import RELATIVE
from stpred.models.parts.sample import gather


class Sampler(Protocol):
    """Draws the minibatches of an epoch."""

    def epoch(self, order: np.random.Generator) -> Iterator[tuple[Any, str]]:
        """Yield the samples of a pass over it, each with what to call it in a message."""


def sampler_of(model: Iterative, batches: Sequence[Batch], *, seed: int, fabric: Any) -> Sampler:
    """Return the sampler of a family."""
    if model.unit == "patches":
        from stpred.training._patches import PatchSampler

        return PatchSampler(batches, model, fabric=fabric)
    return LocationSampler(batches, model, seed=seed, fabric=fabric)


class LocationSampler:
    """Locations of all slides in turn, or slides; with several processes, each one's share."""

    def __init__(self, batches: Sequence[Batch], model: Any, *, seed: int, fabric: Any) -> None:
        self.draws = model.sampling_clusters(batches, seed=seed)
        self.batches, self.scalings = zip(*(model.ready(b) for b in batches), strict=True)
        self.model, self.fabric = model, fabric

    def epoch(self, order: np.random.Generator) -> Iterator[tuple[Any, str]]:
        """Yield samples, and the number of locations of each slide in them; a GPU's are prepared while it computes."""
        samples = self._samples(order)
        return ahead(samples) if self.fabric.device.type == "cuda" else samples

    def _samples(self, order: np.random.Generator) -> Iterator[tuple[Any, str]]:
        process = {"rank": self.fabric.global_rank, "world": self.fabric.world_size}
        for picks in _steps(self.batches, self.model, order, self.draws, **process):
            sample = gather(
                [self.batches[i].take(rows) for i, rows in picks],
                [self.scalings[i] for i, _ in picks],
                whole_slide=self.model.needs.whole_slide,
                device=self.fabric.device,
            )
            slides = listing(dict.fromkeys(self.batches[i].slide for i, _ in picks))
            yield sample, f"{len(sample.targets)} locations of slides {slides}"


def _steps(
    batches: Sequence[Batch],
    model: Any,
    order: np.random.Generator,
    draws: list[NDArray] | None,
    *,
    rank: int,
    world: int,
) -> Iterator[list[tuple[int, NDArray[np.int64]]]]:
    """Yield the (slide number, rows) of each step; with several processes, each one's share."""
    size = model.config.batch_size * world
    if model.unit == "slides":
        slides = order.permutation(len(batches))
        for start in range(0, len(slides), size):
            own = slides[start : start + size][rank::world]
            own = slides[start : start + 1] if len(own) == 0 else own
            yield [(int(i), np.arange(len(batches[i].targets))) for i in own]
        return
    slide, row = _locations(batches, order, draws)
    if model.config.loss in RELATIVE:  # a correlation over a slide's locations needs many of one slide in a step
        for i in order.permutation(len(batches)):
            mixed = order.permutation(row[slide == i])
            for part in np.array_split(mixed, -(-len(mixed) // size)):
                own = part[rank::world]
                yield [(int(i), np.sort(part[:1] if len(own) == 0 else own))]
        return
    shuffled = order.permutation(len(row))
    for start in range(0, len(row), size):
        step = shuffled[start : start + size]
        if len(step) < 2 * world and start > 0:
            continue  # a single location has no statistics of its own (batch norm), in whichever process
        own = step[rank::world]
        own = step[:1] if len(own) == 0 else own
        yield [(int(i), np.sort(row[own[slide[own] == i]])) for i in np.unique(slide[own])]


def _locations(
    batches: Sequence[Batch], order: np.random.Generator, draws: list[NDArray] | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return slide number and row of the locations of an epoch; with clusters, equally many of each."""
    slides, rows = [], []
    for i, batch in enumerate(batches):
        if draws is None:
            chosen = np.arange(len(batch.targets))
        else:
            sizes = np.bincount(draws[i])
            chosen = np.concatenate(
                [order.choice(np.flatnonzero(draws[i] == c), sizes.max()) for c in np.flatnonzero(sizes)]
            )
        slides.append(np.full(len(chosen), i))
        rows.append(chosen)
    return np.concatenate(slides), np.concatenate(rows)


def bootstrap(batches: Sequence[Batch], groups: Sequence[str], *, seed: int) -> tuple[list[Batch], list[str]]:
    """Draw donors with replacement, and locations within each slide: few donors alone would repeat themselves."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(sorted(set(groups)), len(set(groups)))
    picked = [i for d in drawn for i, g in enumerate(groups) if g == d]
    rows = [np.sort(rng.integers(len(batches[i].targets), size=len(batches[i].targets))) for i in picked]
    return [batches[i].take(r) for i, r in zip(picked, rows, strict=True)], [groups[i] for i in picked]

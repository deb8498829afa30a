"""Held-out parts of own slides, and the choice among candidates by their scores on these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred.data import TooSmall, blocks_of, far_from
from stpred.models.batch import Batch
from stpred.training._plan import INNER_FOLDS, group_folds

N_BLOCKS = (4, 8, 16)
"""Into how many blocks the slides of an only donor are cut: the first of which enough remains to learn from."""

MIN_KEPT = 0.5
"""Share of the locations that is to remain, on average, when a block and what is near it are left out."""

MIN_LOCATIONS = 10
"""Locations without which nothing can be learned."""

GAIN_ERRORS, SKILL_ERRORS = 1.0, 3.0
"""Standard errors by which a candidate has to gain on the old model, and to correlate with what was measured."""

DONORS, BLOCKS = "held-out donors", "held-out blocks of the only donor"
NOTHING = "nothing, for the slides are too small for blocks"


@dataclass(frozen=True)
class Part:
    """What is held out together, a donor or a block of each slide, and what is learned from meanwhile."""

    name: str
    train: list[Batch]
    test: list[Batch]
    block: bool = False


@dataclass(frozen=True)
class Trial:
    """Scores of every candidate on a held-out part; the first candidate is the old model.

    Attributes
    ----------
    part
        What was held out.
    pearson
        (C, S, n_genes) correlations of the part's slides.
    quality
        (C,) values of which more is better.
    predict
        Returns what a candidate predicts for each slide of the part.
    spearman
        Returns the (S, n_genes) rank correlations of a candidate.
    agreement
        (C, n) what each location of a block adds to the mean correlation; None: only whole parts tell how uncertain
        that is.
    """

    part: Part
    pearson: NDArray[np.float32]
    quality: NDArray[np.float64]
    predict: Callable[[int], list[NDArray[Any]]]
    spearman: Callable[[int], NDArray[Any]]
    agreement: NDArray[np.float64] | None = None


def parts_of(batches: Sequence[Batch], groups: Sequence[str], *, most: int | None) -> tuple[list[Part], str]:
    """Return what is held out in turn, donors or blocks of the only one's slides, and which of them these are."""
    slides = {b.slide: b for b in batches}
    donors = dict(zip(slides, groups, strict=True))
    if len(set(groups)) < 2:
        return _blocks(batches, most=most), BLOCKS
    return [
        Part(name, [slides[s] for s in train], [slides[s] for s in test])
        for name, train, test in group_folds(donors, n_folds=INNER_FOLDS if most is not None else None)
    ], DONORS


def _blocks(batches: Sequence[Batch], *, most: int | None) -> list[Part]:
    """Return compact blocks of every slide, without what is near them; `most`: so many, spread evenly."""
    total = sum(len(b.targets) for b in batches)
    parts: list[Part] = []
    for n in N_BLOCKS:
        found = [p for k in range(n) if (p := _block(batches, k, n)) is not None]
        kept = sum(len(b.targets) for p in found for b in p.train) / n / total
        if len(found) >= 2:
            parts = found
        if kept >= MIN_KEPT:
            break
    if len(parts) < 2:
        raise TooSmall(f"{total} locations are too few, or too close together, to hold blocks of them out.")
    if most is not None and len(parts) > most:
        parts = [parts[i] for i in np.linspace(0, len(parts) - 1, most).astype(int)]
    return parts


def _block(batches: Sequence[Batch], k: int, n: int) -> Part | None:
    """Return one of n blocks; None where too little remains to learn from."""
    train, test = [], []
    for batch in batches:
        try:
            rows = np.flatnonzero(blocks_of(batch.coords_um, n, slide=batch.slide) == k)
            far = far_from(batch.coords_um, rows, slide=batch.slide)
        except TooSmall:
            continue
        if len(rows) >= 3:
            train.append(batch.take(far))
            test.append(batch.take(rows))
    return (
        Part(f"block {k + 1} of {n}", train, test, block=True)
        if sum(len(b.targets) for b in train) >= MIN_LOCATIONS
        else None
    )


def choose(trials: Sequence[Trial], *, usual: int = 0) -> int:
    """Return the candidate that gains most over the usual one, beyond the standard error of its gain.

    The usual one is the old model itself (0) or another candidate that is known to be good where the own slides are
    like the old ones; the old model replaces it as any other does. A candidate must also correlate with what was
    measured, beyond three standard errors and what a single gene reaches by chance: where nothing can be predicted, the
    old model is as likely below zero as above, and any other would gain on it. Then, or where nothing was held out,
    the old model stays.
    """
    if not trials:
        return 0
    quality = padded([t.quality for t in trials])
    gain = quality - quality[:, usual : usual + 1]
    skill = padded([np.nan_to_num(t.pearson).mean(axis=(1, 2), dtype=np.float64) for t in trials])
    of_gain, of_skill = _errors(gain), _errors(skill)
    if agreement := [t.agreement for t in trials if t.agreement is not None]:
        each = np.concatenate(agreement, axis=1)
        of_gain, of_skill = _errors((each - each[usual]).T), _errors(each.T)
    n = sum(len(b.targets) for t in trials for b in t.part.test)
    by_chance = np.maximum(SKILL_ERRORS * of_skill, 1 / np.sqrt(n))  # errors between few parts may happen to be small
    unskilled = skill.mean(axis=0) <= by_chance
    if unskilled[usual] and usual > 0:
        return 0
    surely = gain.mean(axis=0) - GAIN_ERRORS * of_gain
    surely[unskilled], surely[usual] = -np.inf, 0.0
    return int(np.argmax(surely))


def _errors(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the standard errors of the means of (n, C) values; 0 of a single row."""
    n = len(values)
    return np.asarray(values.std(axis=0, ddof=1) / np.sqrt(n)) if n > 1 else np.zeros(values.shape[1])


def padded(qualities: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    longest = max(map(len, qualities))
    return np.stack([np.pad(q, (0, longest - len(q)), mode="edge") for q in qualities])

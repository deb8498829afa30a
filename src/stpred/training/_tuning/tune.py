"""Going on from a trained model: how far its weights move is chosen on held-out parts, and the old ones may win."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import FineTuning
from stpred._core.targets import dense
from stpred.data import TooSmall
from stpred.models.base import Model
from stpred.models.batch import Batch
from stpred.models.ensemble import Ensemble
from stpred.models.parts.iterative import Iterative
from stpred.models.parts.linear import is_linear
from stpred.training._run import Run
from stpred.training._samplers import bootstrap
from stpred.training._scores import HeldOut
from stpred.training._tuning import networks
from stpred.training._tuning.linear import LinearMethod
from stpred.training._tuning.parts import BLOCKS, NOTHING, Trial, choose, padded, parts_of

NETWORK_PARTS = 4
"""Held-out parts that a network is trained without, at most."""


@dataclass(frozen=True)
class Tuned:
    """A model that went on from another, and what came of it.

    Attributes
    ----------
    model
        On the CPU; the old one is unchanged.
    chosen
        What was chosen, and by what; JSON-able.
    scores
        Of held-out parts, each by the candidate that the other parts chose; of no slide where none could be held out.
    units, by_block
        Names of the scored slides or blocks, and which of them these are.
    residuals
        Returns observed minus predicted values of these, on the scale that `stable` brings both to.
    """

    model: Model
    chosen: dict[str, Any]
    scores: HeldOut
    units: list[str] = field(default_factory=list)
    by_block: bool = False
    residuals: Callable[[Callable[[Any], NDArray[np.float64]]], list[NDArray[np.float64]]] | None = None


def can_tune(model: Model) -> bool:
    """Whether a model has weights that fine-tuning can go on from."""
    first = model.first if isinstance(model, Ensemble) else model
    return (isinstance(first, Iterative) and not first.config.generative) or is_linear(first)


def tune(
    model: Model,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    genes: NDArray[np.bool_],
    options: FineTuning,
    seed: int = 0,
    run: Run | None = None,
) -> Tuned:
    """Go on from a trained model.

    Parameters
    ----------
    model
        The old one; it is not changed.
    batches, groups
        Own slides with targets of all of the model's genes (of genes that are not learned, any), and their donors.
    genes
        (n_genes,) which are learned; the others keep the old model's predictions: exactly those of linear models,
        nearly those of networks, which are shown their own as targets.
    options
        What moves, and how far where that is not to be chosen.
    seed, run
        As of :func:`fit`.
    """
    run = Run() if run is None else run
    first = model.first if isinstance(model, Ensemble) else model
    if isinstance(first, Iterative):
        batches = [networks.with_own_targets(first, b, genes) for b in batches]
        method: Any = networks.NetworkMethod(options, genes, seed, run)
    else:
        old, n = model.record.training, sum(len(b.targets) for b in batches)
        penalty = old.get("penalty")
        before = sum(s.get("n_locations", 0) for s in old.get("slides", {}).values())
        method = LinearMethod(options, genes, n, before or n, penalty if isinstance(penalty, float) else 1.0)
    trials, by = [], "given"
    try:
        parts, by = parts_of(batches, groups, most=NETWORK_PARTS if isinstance(first, Iterative) else None)
        trials = [method.trial(first, part) for part in parts]
    except TooSmall:
        by = NOTHING
    chosen = method.given if method.given is not None else choose(trials, usual=method.usual)
    if isinstance(model, Ensemble):
        new, summary = _members(model, method, batches, groups, chosen, seed=seed)
    else:
        new, summary = method.final(model, batches, chosen, seed=seed)
    summary |= {"chosen_by": "given" if method.given is not None else by, "n_parts": len(trials)}
    if trials:
        mean = np.mean(padded([t.quality for t in trials]), axis=0)
        at = min(chosen, len(mean) - 1)
        summary |= {"quality": {"base": float(f"{mean[0]:.5g}"), "tuned": float(f"{mean[at]:.5g}")}}
    used = [
        _chosen_by_others(trials, i, method.usual) if method.given is None else len(t.quality) - 1
        for i, t in enumerate(trials)
    ]
    units = [f"{b.slide}: {t.part.name}" if by == BLOCKS else b.slide for t in trials for b in t.part.test]

    def residuals(stable: Callable[[Any], NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        return [
            stable(dense(b.scored)) - stable(mean)
            for t, c in zip(trials, used, strict=True)
            for b, mean in zip(t.part.test, t.predict(c), strict=True)
        ]

    return Tuned(
        new.to("cpu").eval(),
        summary,
        _held_out(trials, used, genes),
        units,
        by == BLOCKS,
        residuals if trials else None,
    )


def _chosen_by_others(trials: Sequence[Trial], i: int, usual: int) -> int:
    """Return the candidate that the other parts choose: a part's own score has no say in it."""
    return min(choose([t for j, t in enumerate(trials) if j != i], usual=usual), len(trials[i].quality) - 1)


def _held_out(trials: Sequence[Trial], used: Sequence[int], genes: NDArray[np.bool_]) -> HeldOut:
    """Return the scores of all parts, each by the candidate given for it."""
    n = int(genes.sum())
    if not trials:
        return HeldOut(np.empty((0, n)), np.empty((0, n)), np.empty(0, dtype=np.int64))
    pearson = np.concatenate([t.pearson[c] for t, c in zip(trials, used, strict=True)])
    spearman = np.concatenate([t.spearman(c) for t, c in zip(trials, used, strict=True)])
    locations = np.array([len(b.targets) for t in trials for b in t.part.test])
    return HeldOut(pearson.astype(np.float64), spearman.astype(np.float64), locations)


def _members(
    model: Ensemble, method: Any, batches: Sequence[Batch], groups: Sequence[str], chosen: int, *, seed: int
) -> tuple[Model, dict[str, Any]]:
    """Go on from each member, as far as was chosen for the first; without randomness, each on other locations."""
    members: list[Model] = []
    first: dict[str, Any] = {}
    for k, member in enumerate(model.members):
        own = list(batches)
        if not model.config.member.seeded and k > 0:
            own, _ = bootstrap(batches, groups, seed=seed + k)
        new, found = method.final(member, own, chosen, seed=seed + k)
        members.append(new.to("cpu").eval())
        first = first or found
    result: Any = networks.copied(model)
    result.set_members(members, batches, relative=model.record.target == "relative")
    return result, {**first, "n_ensemble": len(members)}

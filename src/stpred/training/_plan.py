"""Folds that never share a donor, and how many fits a training takes: announced first, since it can last hours."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stpred.data import BLOCK_FOLDS
from stpred.models.auto import AutoConfig
from stpred.models.base import BaseConfig, Model
from stpred.models.ensemble import EnsembleConfig
from stpred.models.parts.iterative import Iterative

logger = logging.getLogger("stpred.fits")
"""The command line prints what is said here; elsewhere it is information like all other."""

INNER_FOLDS = 5
"""Into how many folds of donors a network's training slides are split at most, to choose epochs and score genes."""


def leave_groups_out(groups: Mapping[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield ``(fold, training slides, test slides)``, one fold per donor; a donor is never on both sides."""
    yield from group_folds(groups, n_folds=None)


def group_folds(groups: Mapping[str, str], *, n_folds: int | None) -> list[tuple[str, list[str], list[str]]]:
    """Return ``(fold, training slides, test slides)`` of folds that share no donor.

    Parameters
    ----------
    groups
        Slide to donor.
    n_folds
        Number of folds; donors are dealt out by their number of slides, most first, to the smallest fold. None, or as
        many as there are donors or more: one fold per donor.
    """
    donors = sorted(set(groups.values()))
    if n_folds is None or n_folds >= len(donors):
        parts = [[d] for d in donors]
    else:
        size = {d: sum(g == d for g in groups.values()) for d in donors}
        parts = [[] for _ in range(n_folds)]
        for donor in sorted(donors, key=lambda d: (-size[d], d)):
            min(parts, key=lambda part: sum(size[d] for d in part)).append(donor)
        parts = sorted(sorted(part) for part in parts)
    return [
        ("+".join(part), [s for s, g in groups.items() if g not in part], [s for s, g in groups.items() if g in part])
        for part in parts
    ]


@dataclass(frozen=True)
class Plan:
    """Fits of one training.

    Attributes
    ----------
    family
        What is fitted.
    n
        How many fits.
    what
        Which these are, in words.
    networks
        How many of them run step by step.
    long
        Whether it is worth saying: networks and ensembles, not a single closed form.
    """

    family: str
    n: int
    what: str
    networks: int
    long: bool

    def sentence(self, *, before: str = "Training") -> str:
        """Return the plan as one sentence."""
        return f"{before} {self.family} takes {count(self.n, 'fit')}: {self.what}."


def count(n: int, noun: str) -> str:
    """Write a number of things."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def plan(
    family: type[Model],
    config: BaseConfig,
    groups: Sequence[str],
    *,
    validated: bool = False,
    scored: bool = True,
    intervals: bool = False,
) -> Plan:
    """Count the fits of a training.

    Parameters
    ----------
    family, config
        What is trained.
    groups
        Donor of each training slide.
    validated
        Whether other slides end the training.
    scored
        Whether genes are scored on held-out donors also where these do not choose the number of epochs.
    intervals
        Whether intervals are calibrated, by models trained without the donor.
    """
    donors = len(set(groups))
    if isinstance(config, AutoConfig):
        return _plan_auto(config, groups, donors, intervals=intervals)
    n = 1
    if isinstance(config, EnsembleConfig):
        n, family, config = config.n_members, config.member.model_class, config.member
    network = issubclass(family, Iterative)
    slides = "the only slide" if len(groups) == 1 else f"all {len(groups)} slides"
    last = f"1 on {slides}" if n == 1 else f"{n} members of the ensemble on {slides}"
    given = getattr(config, "epochs", None)
    parts: list[str] = []
    total = n
    if network and not validated:
        k = min(INNER_FOLDS, donors) if donors > 1 and (scored or given is None) else 0
        why = "to score genes" if given is not None else "to choose the number of epochs and to score genes"
        what = "without a donor each" if k == donors else "without some donors each"
        if donors < 2 and given is None and getattr(config, "epochs_alone", given) is None:
            k, what, why = min(2, BLOCK_FOLDS), "without a block of the slide each", "to choose the number of epochs"
        if k:
            parts.append(f"{k} {what}, {why}")
        total += k
    elif not network and scored and donors > 1:
        parts.append(f"{donors} without a donor each, to score genes")
        total += donors
    parts.append(last)
    if intervals and donors > 1:
        inner = sum(plan(family, config, train, scored=False).n for train in fold_groups(groups))
        parts.append(f"{inner} to calibrate intervals, on models without a donor each")
        total += inner
    of = ""
    if network:
        most = getattr(config, "max_epochs", None)
        of = f" of {count(given, 'epoch')}" if given is not None else f" of up to {most} epochs"
    name = family.family if n == 1 else f"an ensemble of {n} x {family.family}"
    return Plan(
        name,
        total,
        _joined(parts) + (f"; each{of}" if of and total > 1 else of),
        total if network else 0,
        network or n > 1,
    )


def _plan_auto(config: AutoConfig, groups: Sequence[str], donors: int, *, intervals: bool) -> Plan:
    """Count the fits of every candidate in every fold, and at most all of them again."""
    k = len(config.members)
    members = [m.n_members if isinstance(m, EnsembleConfig) else 1 for m in config.members]
    networks = [
        n * issubclass((m.member if isinstance(m, EnsembleConfig) else m).model_class, Iterative)
        for n, m in zip(members, config.members, strict=True)
    ]
    folds = 0 if k == 1 else min(INNER_FOLDS, donors) if donors > 1 else BLOCK_FOLDS
    what = "without some donors each" if donors > 1 else "without a block of the slides each"
    parts = [f"{count(k, 'candidate')} in {count(folds, 'fold')} {what}, to choose and weigh them"] if folds else []
    parts.append(f"those that are kept on {'the only slide' if len(groups) == 1 else f'all {len(groups)} slides'}")
    total = (folds + 1) * sum(members)
    if intervals and donors > 1:
        inner = sum(plan(config.model_class, config, train).n for train in fold_groups(groups))
        parts.append(f"{inner} to calibrate intervals, on models without a donor each")
        total += inner
    return Plan(config.family, total, _joined(parts), (folds + 1) * sum(networks), long=True)


def fold_groups(groups: Sequence[str]) -> list[list[str]]:
    """Return the donors of the training slides of each inner fold."""
    donors = {str(i): g for i, g in enumerate(groups)}
    return [[donors[s] for s in train] for _, train, _ in group_folds(donors, n_folds=INNER_FOLDS)]


def _joined(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])}, and {parts[-1]}"


def announce(plans: Iterable[str]) -> None:
    """Say what will be fitted."""
    for sentence in plans:
        logger.info(sentence)

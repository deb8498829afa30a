"""How slides are split for a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stpred._core.checks import InputError, fraction_of, listing, one_of, whole

CRITERIA = ("pearson", "spearman", "top_genes")


@dataclass(frozen=True)
class Splits:
    """Folds of a cross-validation that are not one per donor, and what settings are chosen by inside them.

    One of `folds`, `test_fraction` and `train_on_one` says how donors are split.

    Parameters
    ----------
    folds
        The held-out donors (or slides) of each fold: a list of lists, or a mapping of fold names to lists.
    discarded
        Of `folds` with names: donors (or slides) of a fold that are neither trained nor tested on, such as a published
        protocol's validation donors.
    test_fraction
        Share of the donors that each of `repeats` random splits holds out.
    repeats
        Number of random splits. The result has a column ``repeat``, by which :func:`stpred.tl.summarise` combines
        p-values as twice their median.
    train_on_one
        Train on each donor's slides alone and test on all others.
    seed
        Of the random splits.
    criterion
        What settings of a grid are chosen by on held-out donors of the training slides: ``"pearson"`` or
        ``"spearman"``, the mean over genes and slides; ``"top_genes"``, the area under the median Pearson of the first
        N genes of the gene rule against N (DeepSpot's).

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Examples
    --------
    >>> import stpred as st
    >>> st.Splits(folds={"first": ["A", "H"], "second": ["B"]}, discarded={"first": ["F"]}).n
    2
    >>> st.Splits(test_fraction=0.2, repeats=25).n
    25
    """

    folds: Any = None
    discarded: Any = None
    test_fraction: float | None = None
    repeats: int = 1
    train_on_one: bool = False
    seed: int = 0
    criterion: str = "pearson"

    def __post_init__(self) -> None:
        one_of(self.criterion, CRITERIA, name="Splits.criterion")
        object.__setattr__(self, "repeats", whole(self.repeats, name="Splits.repeats"))
        given = [self.folds is not None, self.test_fraction is not None, bool(self.train_on_one)]
        if sum(given) > 1:
            raise InputError("`Splits` takes one of `folds`, `test_fraction` and `train_on_one`.")
        if self.repeats > 1 and self.test_fraction is None:
            raise InputError("`Splits.repeats` is of random splits: give `test_fraction`, too.")
        if self.test_fraction is not None:
            fraction_of(self.test_fraction, name="Splits.test_fraction")
        if self.folds is not None:
            object.__setattr__(self, "folds", _named_lists(self.folds, name="Splits.folds"))
        if self.discarded is not None:
            discarded = _named_lists(self.discarded, name="Splits.discarded")
            if unknown := sorted(set(discarded) - set(self.folds or {})):
                raise InputError(f"`Splits.discarded` names folds {listing(unknown)} that `folds` does not have.")
            object.__setattr__(self, "discarded", discarded)

    @property
    def n(self) -> int | None:
        """Number of folds, where it does not depend on the slides."""
        if self.folds is not None:
            return len(self.folds)
        return None if self.test_fraction is None else self.repeats

    def of(self, donors: Mapping[str, str]) -> list[tuple[str, list[str], list[str]]] | None:
        """Return ``(name, training slides, test slides)`` of each fold; None where they are one per donor.

        `donors`: slide to donor. No donor is on both sides.
        """
        if self.folds is not None:
            return self._explicit(donors)
        named = sorted(set(donors.values()))
        if self.train_on_one:
            _enough(named, 2, what="Training on one donor")
            return [
                (f"trained on {d}", [s for s, o in donors.items() if o == d], [s for s, o in donors.items() if o != d])
                for d in named
            ]
        if self.test_fraction is None:
            return None
        _enough(named, 2, what="A random split")
        n_test = min(len(named) - 1, max(1, round(self.test_fraction * len(named))))
        rng = np.random.default_rng(self.seed)
        drawn = [set(rng.permutation(named)[:n_test].tolist()) for _ in range(self.repeats)]
        return [
            (f"split {i}", [s for s, d in donors.items() if d not in test], [s for s, d in donors.items() if d in test])
            for i, test in enumerate(drawn)
        ]

    def _explicit(self, donors: Mapping[str, str]) -> list[tuple[str, list[str], list[str]]]:
        found: list[tuple[str, list[str], list[str]]] = []
        tested: dict[str, str] = {}
        for name, members in self.folds.items():
            test = _slides(members, donors, name=name)
            away = _slides((self.discarded or {}).get(name, ()), donors, name=name)
            train = [s for s in donors if s not in test and s not in away]
            if shared := {donors[s] for s in train} & {donors[s] for s in test}:
                raise InputError(
                    f"Fold {name!r} would train and test on donors {listing(sorted(shared))}; hold out all their "
                    "slides."
                )
            if not train or not test:
                raise InputError(f"Fold {name!r} leaves no slide to {'test' if train else 'train'} on.")
            if twice := [s for s in test if s in tested]:
                raise InputError(f"Slides {listing(twice)} are held out in folds {tested[twice[0]]!r} and {name!r}.")
            tested |= dict.fromkeys(test, name)
            found.append((name, train, test))
        return found


def _named_lists(value: Any, *, name: str) -> dict[str, tuple[str, ...]]:
    """Return lists of names by the name of their fold."""
    if isinstance(value, Mapping):
        found = {str(k): v for k, v in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, str):
        found = {f"fold {i}": v for i, v in enumerate(value)}
    else:
        raise InputError(f"`{name}` must be a list of lists of donors, or a mapping of names to such, got {value!r}.")
    if not found:
        raise InputError(f"`{name}` is empty.")
    for fold, members in found.items():
        if isinstance(members, str) or not isinstance(members, Sequence) or not members:
            raise InputError(f"`{name}` must have a list of donors or slides for {fold!r}, got {members!r}.")
    return {fold: tuple(str(m) for m in members) for fold, members in found.items()}


def _slides(members: Sequence[str], donors: Mapping[str, str], *, name: str) -> list[str]:
    """Return the slides that donors or slides of these names are."""
    known = {*donors, *donors.values()}
    if unknown := [m for m in members if m not in known]:
        raise InputError(
            f"Fold {name!r} names {listing(unknown)}, neither donors ({listing(sorted(set(donors.values())))}) nor "
            f"slides ({listing(donors)})."
        )
    return [s for s, donor in donors.items() if s in members or donor in members]


def _enough(donors: Sequence[str], n: int, *, what: str) -> None:
    if len(donors) < n:
        raise InputError(f"{what} needs {n} donors or more, got {listing(donors)}.")

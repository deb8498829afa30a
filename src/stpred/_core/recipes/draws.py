"""Repeated random draws of patients that a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, fraction_of, whole


@dataclass(frozen=True)
class Draws:
    """Patients drawn at random to train on, many times; all others are tested on.

    One of `n_train` and `train_fraction` is needed.

    Parameters
    ----------
    n_train
        Number of patients that are trained on, or several numbers to compare.
    train_fraction
        Share of the patients that are trained on, such as 0.7.
    repeats
        Draws of each size. A draw with nothing to learn from or to test on (fewer than two events, one class only) is
        drawn anew.
    seed
        Of the draws.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Notes
    -----
    DeepSpot's publication trains on ``Draws(n_train=(75, 100, 125), repeats=1000)``.

    Examples
    --------
    >>> import stpred as st
    >>> st.Draws(n_train=(75, 100, 125), repeats=1000).sizes(200)
    [75, 100, 125]
    >>> st.Draws(train_fraction=0.7).sizes(200)
    [140]
    """

    n_train: int | Sequence[int] | None = None
    train_fraction: float | None = None
    repeats: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.n_train is None) == (self.train_fraction is None):
            raise InputError("`Draws` takes one of `n_train` and `train_fraction`.")
        if self.n_train is not None:
            given = np.atleast_1d(np.asarray(self.n_train, dtype=object)).tolist()
            sizes = tuple(whole(n, name="Draws.n_train") for n in given)
            if not sizes or len(set(sizes)) < len(sizes):
                raise InputError(f"`Draws.n_train` must be one or more different numbers, got {self.n_train!r}.")
            object.__setattr__(self, "n_train", sizes)
        if self.train_fraction is not None:
            fraction_of(self.train_fraction, name="Draws.train_fraction")
        object.__setattr__(self, "repeats", whole(self.repeats, name="Draws.repeats"))

    def sizes(self, n_patients: int) -> list[int]:
        """Return the numbers of patients to train on; some must be left to test on."""
        if self.train_fraction is not None:
            found = [round(self.train_fraction * n_patients)]
        else:
            found = list(self.n_train)  # type: ignore[arg-type]
        if wrong := [n for n in found if not 0 < n < n_patients]:
            raise InputError(
                f"{', '.join(map(str, wrong))} of {n_patients} patients cannot be trained on: some must "
                "be, and others be left to test on."
            )
        return found

    def rng(self, size: int, repeat: int) -> np.random.Generator:
        """Return the source of one draw, which does not depend on the others."""
        return np.random.default_rng([self.seed, size, repeat])

    def train(self, groups: NDArray[np.str_], rng: np.random.Generator, size: int) -> NDArray[np.bool_]:
        """Return (S,) which samples are of `size` random patients."""
        return np.isin(groups, rng.permutation(np.unique(groups))[:size])

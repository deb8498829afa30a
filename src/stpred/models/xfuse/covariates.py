"""Levels of the slides' covariates, and the rows of their effects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stpred._core.checks import InputError, listing
from stpred._core.names import name_of, named


class Covariates:
    """Levels of all covariates in one row: those of the first, of the second, and so on.

    Parameters
    ----------
    slides
        Slide to covariate to level; None where a slide's level is missing.
    """

    def __init__(self, slides: Mapping[str, Mapping[str, str | None]]) -> None:
        self.slides = slides
        self.names = sorted({name for levels in slides.values() for name in levels})
        self.levels = {n: sorted({v for s in slides.values() if (v := s.get(n)) is not None}) for n in self.names}
        self._first, start = {}, 0
        for name in self.names:
            self._first[name] = start
            start += len(self.levels[name])
        self.n_levels = start
        self.widest = max((len(v) for v in self.levels.values()), default=0)
        unknown = [(s, n) for s in sorted(slides) for n in self.names if slides[s].get(n) is None]
        self.unknown = {key: k for k, key in enumerate(unknown)}

    @staticmethod
    def checked(slides: Any) -> dict[str, dict[str, str | None]]:
        """Return them as plain text; anything else is refused."""
        if not isinstance(slides, Mapping) or not all(isinstance(v, Mapping) for v in slides.values()):
            raise InputError(
                "`covariates` must map slides to covariates and their levels, such as {'s1': {'patient': 'a'}}, got "
                f"{slides!r}."
            )
        return {
            s: {n: _level(level) for n, level in named(levels, what="covariates").items()}
            for s, levels in named(slides, what="covariates").items()
        }

    @classmethod
    def restricted_to(cls, slides: Mapping[str, Mapping[str, str | None]], trained: Sequence[str]) -> dict[str, Any]:
        """Return the levels of the training slides, and of others whose levels training slides have as well."""
        if missing := [s for s in trained if s not in slides]:
            raise InputError(f"`covariates` lacks the slides {listing(missing)}; it has {listing(slides)}.")
        own = {s: dict(slides[s]) for s in trained}
        there = cls(own)
        if empty := [n for n in there.names if not there.levels[n]]:
            raise InputError(f"No training slide has a level of the covariates {listing(empty)}.")
        return own | {
            slide: dict(levels)
            for slide, levels in slides.items()
            if slide not in own and all(levels.get(n) in there.levels[n] for n in there.names)
        }

    def span(self, name: str) -> tuple[int, int]:
        """Return first and last (exclusive) row of a covariate's levels."""
        return self._first[name], self._first[name] + len(self.levels[name])

    def row(self, name: str, level: str) -> int:
        """Return the row of a level."""
        return self._first[name] + self.levels[name].index(level)

    def place(self, slide: str, name: str) -> tuple[int, bool]:
        """Return the row of a training slide's level and True, or the number of its unknown level and False."""
        level = self.slides[slide].get(name)
        if level is None:
            return self.unknown[slide, name], False
        return self.row(name, level), True

    def patches(self, n_patches: Mapping[str, int]) -> Tensor:
        """Return (n_levels,) patches per epoch of the slides with each level, 1 where there is none."""
        out = torch.zeros(self.n_levels)
        for slide, n in n_patches.items():
            for name in self.names:
                if (level := self.slides[slide].get(name)) is not None:
                    out[self.row(name, level)] += n
        return out.clamp(min=1)

    def of(self, slide: str, given: Mapping[str, str | None] | None) -> dict[str, tuple[list[int], int | None]]:
        """Return, for each covariate, the rows that a slide's effect may be, and the number of its unknown level.

        There is one row where the level is given, else all of them: as likely as training found for a training slide
        of unknown level (its number is given), otherwise each alike (None). What is `given` overrides the level
        of the slide; a level that no training slide has is refused.
        """
        given = {} if given is None else {n: _level(v) for n, v in named(given, what="covariates").items()}
        if unknown := sorted(set(given) - set(self.names)):
            raise InputError(f"The model has no covariates {unknown}; it has {listing(self.names)}.")
        found: dict[str, tuple[list[int], int | None]] = {}
        for name in self.names:
            level = {**self.slides.get(slide, {}), **given}.get(name)
            if level is not None and level not in self.levels[name]:
                raise InputError(
                    f"The covariate {name!r} had no level {level!r} in training; it had {listing(self.levels[name])}. "
                    "Pass None for a slide of another level: the effect is then drawn from all of them."
                )
            if level is not None:
                found[name] = [self.row(name, level)], None
            else:
                found[name] = list(range(*self.span(name))), None if name in given else self.unknown.get((slide, name))
        return found


def _level(given: Any) -> str | None:
    """Return a level as text; None, or a missing value, where it is missing."""
    return None if given is None or given != given else name_of(given)

"""Folds that never share a donor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping


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

"""Numbers of things, and lists, as sentences have them."""

from __future__ import annotations

from collections.abc import Sequence


def count(n: int, noun: str) -> str:
    """Write a number of things.

    >>> count(1, "slide"), count(1200, "gene")
    ('1 slide', '1,200 genes')
    """
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Write one name or more.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""Keeping, dropping and splitting metagenes by their contribution. Plain Python, no tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Tree = int | tuple["Tree", "Tree"]
"""A metagene, or two trees that came from one metagene."""


@dataclass
class Change:
    """Metagenes to drop, and new ones with the metagene that each copies (None: a random start)."""

    dropped: list[int] = field(default_factory=list)
    added: list[tuple[int, int | None]] = field(default_factory=list)


def drop_and_split(forest: list[Tree], contributes: Mapping[int, bool], *, capacity: int) -> tuple[list[Tree], Change]:
    """Keep a forest of binary trees whose leaves are metagenes, and split those that earn their place.

    Parameters
    ----------
    forest
        Trees as the last call left them.
    contributes
        For each metagene that there is, whether the model is worse without it.
    capacity
        Most metagenes; they are numbered from 0 to below this.

    Returns
    -------
    The new forest and the change. Leaves that are gone are pruned; a split with a leaf that does not contribute
    collapses to its sibling; trees of one such leaf go, though one tree stays; contributing metagenes outside the
    forest become trees, others go; then every contributing leaf is split, unless its sibling does not contribute.
    """
    trees = [t for tree in forest if (t := _collapsed(tree, contributes)) is not None]
    alive = [t for t in trees if not isinstance(t, int) or contributes[t]]
    trees = alive or trees[:1]
    inside = {m for tree in trees for m in leaves(tree)}
    trees += [m for m in sorted(contributes) if contributes[m] and m not in inside]
    if not trees:  # nothing contributes and there was no tree: one metagene stays
        trees = [min(contributes)]
    kept = {m for tree in trees for m in leaves(tree)}
    change = Change(dropped=sorted(set(contributes) - kept))
    free = iter(sorted(set(range(capacity)) - kept))
    split: dict[int, int] = {}
    for tree in trees:
        for leaf in leaves(tree):  # a sibling that does not contribute is gone by now
            if contributes[leaf] and (new := next(free, None)) is not None:
                split[leaf] = new
    change.added = [(new, parent) for parent, new in split.items()]
    return [_grown(tree, split) for tree in trees], change


def keep_spare(scores: Mapping[int, float], *, spare: int, capacity: int) -> Change:
    """Keep every metagene that contributes and a number of others.

    Parameters
    ----------
    scores
        For each metagene, how much better (0 or more) or worse (below 0) the model is without it.
    spare
        Metagenes that do not contribute to keep: the least superfluous; new ones are added where there are fewer.
    capacity
        Most metagenes.
    """
    idle = sorted((m for m in scores if scores[m] >= 0), key=lambda m: (scores[m], m))
    most = max(spare, 1) if len(idle) == len(scores) else spare  # one metagene stays, whatever it is worth
    dropped = idle[most:]
    kept = set(scores) - set(dropped)
    free = sorted(set(range(capacity)) - kept)
    missing = max(0, spare - (len(idle) - len(dropped)))
    return Change(sorted(dropped), [(new, None) for new in free[:missing]])


def leaves(tree: Tree) -> Iterable[int]:
    """Yield the metagenes of a tree."""
    if isinstance(tree, int):
        yield tree
    else:
        for part in tree:
            yield from leaves(part)


def flattened(forest: list[Tree]) -> list[int]:
    """Return a forest as whole numbers in prefix order: -1 opens a split, other numbers are metagenes."""
    out: list[int] = []

    def write(tree: Tree) -> None:
        if isinstance(tree, int):
            out.append(tree)
        else:
            out.append(-1)
            write(tree[0])
            write(tree[1])

    for tree in forest:
        write(tree)
    return out


def unflattened(numbers: Iterable[int]) -> list[Tree]:
    """Return the forest that `flattened` wrote."""
    rest = list(numbers)[::-1]

    def read() -> Tree:
        number = rest.pop()
        return number if number >= 0 else (read(), read())

    forest = []
    while rest:
        forest.append(read())
    return forest


def _collapsed(tree: Tree, contributes: Mapping[int, bool]) -> Tree | None:
    """Return a tree without leaves that are gone, and without splits of which a leaf does not contribute."""
    if isinstance(tree, int):
        return tree if tree in contributes else None
    first, second = (_collapsed(part, contributes) for part in tree)
    if first is None or second is None:
        return second if first is None else first
    for one, other in ((first, second), (second, first)):
        if isinstance(one, int) and not contributes[one]:
            return other
    return first, second


def _grown(tree: Tree, split: Mapping[int, int]) -> Tree:
    if isinstance(tree, int):
        return (tree, split[tree]) if tree in split else tree
    return _grown(tree[0], split), _grown(tree[1], split)

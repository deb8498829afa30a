"""Regions of a slide that are compared: classes of shapes, and pairs of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data
from stpred._core.checks import InputError, listing
from stpred._core.elements import table_instances, table_regions

if TYPE_CHECKING:
    from spatialdata import SpatialData

REST = "rest"
"""What all other regions together are called in the result."""

MAX_PAIRS = 50
"""Pairs of regions up to which all of them are compared where none are named."""

Pair = tuple[int, int | None]
"""Numbers of two regions; None: all others together."""


@dataclass(frozen=True)
class Classes:
    """Regions of a slide that are made of shapes.

    Attributes
    ----------
    names
        What they are called.
    codes
        Region of each shape, by the shape's index; -1 for none.
    what
        Where the names come from, for messages.
    """

    names: list[Any]
    codes: pd.Series
    what: str

    @classmethod
    def of(cls, sdata: SpatialData, shapes_key: str, *, groupby: str | None) -> Classes:
        """Return the classes of a column, or each shape for itself; one region alone is refused."""
        element = sdata.shapes[shapes_key]
        if groupby is None:
            what = f"shapes {shapes_key!r}"
            found = cls(list(element.index), pd.Series(np.arange(len(element)), index=element.index), what)
        else:
            values = pd.Categorical(column_of(sdata, shapes_key, groupby)).remove_unused_categories()
            what = f"column {groupby!r} of {shapes_key!r}"
            found = cls(list(values.categories), pd.Series(np.asarray(values.codes, np.int64), element.index), what)
        if len(found.names) < 2:
            raise InputError(
                f"There is nothing to compare: {what} has {len(found.names)} region"
                f"{'s' * (len(found.names) != 1)}{' ' + listing(found.names) if found.names else ''}; at least two are "
                "needed."
            )
        return found

    def position(self, name: Any) -> int:
        """Return the number of a region, by its name or what its name looks like."""
        for known in (self.names, [str(n) for n in self.names]):
            for wanted in (name, str(name)):
                if wanted in known:
                    return known.index(wanted)
        raise InputError(f"There is no region {name!r} (`pairs`) in {self.what}; it has {listing(self.names)}.")

    def names_of(self, pair: Pair) -> tuple[Any, Any]:
        """Return the names of a pair."""
        first, second = pair
        return self.names[first], REST if second is None else self.names[second]

    def only(self, pairs: list[Pair]) -> tuple[Classes, list[Pair]]:
        """Return the regions that pairs name, and the pairs in their numbers.

        All other regions have the number after the last one where a pair asks for them, else none (-1).
        """
        wanted = sorted({r for pair in pairs for r in pair if r is not None})
        rest = len(wanted) if any(second is None for _, second in pairs) else -1
        number = np.full(len(self.names) + 1, rest)  # the last one is that of -1
        number[wanted], number[-1] = np.arange(len(wanted)), -1
        of = {r: k for k, r in enumerate(wanted)}
        chosen = replace(self, names=[self.names[r] for r in wanted], codes=self.codes.map(lambda c: number[c]))
        return chosen, [(of[a], None if b is None else of[b]) for a, b in pairs]

    def codes_of(self, region: data.Region) -> NDArray[np.int64]:
        """Return the region of each location, -1 for none; a region of which nothing is on the image is refused."""
        codes = self.codes.loc[region.instances].to_numpy()
        if lost := [name for r, name in enumerate(self.names) if not (codes == r).any()]:
            raise InputError(f"The regions {listing(lost)} of {self.what} lie off image {region.image_key!r}.")
        return np.asarray(codes, dtype=np.int64)

    def check_pixels(self, sizes: NDArray[Any], pairs: list[Pair], *, mpp: float) -> None:
        """Refuse regions of the pairs that hold no pixel, by (n + 1,) numbers of pixels."""
        if empty := [name for name, size in zip(self.names, sizes[:-1], strict=True) if size <= 0]:
            raise InputError(
                f"The regions {listing(empty)} of {self.what} hold no pixel of the model's {mpp:g} um: they are too "
                "small, or lie off the image but for their centre."
            )
        for first in {a for a, b in pairs if b is None and sizes.sum() <= sizes[a]}:
            raise InputError(f"There is no pixel in any region of {self.what} other than {self.names[first]!r}.")


def column_of(sdata: SpatialData, shapes_key: str, groupby: str, *, name: str = "groupby") -> pd.Series:
    """Return a column of the shapes, or of the only table that annotates them and has it, by the shapes' index.

    `name`: the parameter that named it, for messages.
    """
    element = sdata.shapes[shapes_key]
    if groupby in element.columns and groupby != element.geometry.name:
        return element[groupby]
    annotating = {k: t for k, t in sdata.tables.items() if shapes_key in table_regions(t)}
    having = [k for k, t in annotating.items() if groupby in t.obs]
    if len(having) > 1:
        raise InputError(
            f"Several tables of {shapes_key!r} have a column {groupby!r}: {listing(having)}; copy the one you mean "
            f"into sdata.shapes[{shapes_key!r}][{groupby!r}]."
        )
    if not having:
        there = [c for c in element.columns if c != element.geometry.name]
        there += [c for t in annotating.values() for c in t.obs]
        raise InputError(
            f"Neither shapes {shapes_key!r} nor a table of theirs has a column {groupby!r} (`{name}`); available: "
            f"{listing(dict.fromkeys(there))}."
        )
    table = annotating[having[0]]
    rows, ids = table_instances(table, shapes_key)
    if not ids.is_unique:
        raise InputError(f"Table {having[0]!r} annotates some of {shapes_key!r} more than once.")
    return pd.Series(table.obs[groupby].iloc[rows].array, index=ids).reindex(element.index)


def checked_pairs(pairs: Any, classes: Classes) -> list[Pair]:
    """Return the pairs as numbers of regions, each once."""
    if pairs is None:
        n = len(classes.names)
        if n * (n - 1) // 2 > MAX_PAIRS:
            raise InputError(
                f"{classes.what[0].upper()}{classes.what[1:]} has {n} regions, which makes {n * (n - 1) // 2} pairs; "
                "name those to compare with `pairs`, such as [('a', 'b'), ('a', None)]."
            )
        return list(combinations(range(n), 2))
    if isinstance(pairs, (str, bytes)) or not isinstance(pairs, Iterable):
        raise InputError(f"`pairs` must be a list of pairs of regions, such as [('a', 'b')], got {pairs!r}.")
    found: dict[Pair, None] = {}
    for pair in pairs:
        if isinstance(pair, (str, bytes)) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputError(f"`pairs` must hold pairs such as ('a', 'b') or ('a', None), got {pair!r}.")
        if pair[0] is None:
            raise InputError("Only the second region of a pair may be None (all others): swap the two.")
        first, second = (None if name is None else classes.position(name) for name in pair)
        if first == second:
            raise InputError(f"`pairs` compares region {pair[0]!r} with itself.")
        found[first, second] = None  # type: ignore[index]
    if not found:
        raise InputError("`pairs` is empty; name at least one pair of regions, or leave it out for every pair.")
    return list(found)

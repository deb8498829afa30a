"""Names of slides, donors and samples: whole numbers do as well, and are their digits as text from then on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from stpred._core.checks import InputError, listing


def name_of(value: Any, *, what: str = "name") -> str:
    """Return a name as text: ``1``, ``numpy.int64(1)`` and ``1.0`` (what pandas makes of 1 beside a gap) are ``"1"``.

    Text stays as it is (``"007"`` is not 7). A missing value is no name.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bool, np.bool_)):
        return str(value)
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)) and np.isfinite(value) and float(value).is_integer():
        return str(int(value))
    if value is None or type(value).__name__ in ("NAType", "NaTType") or value != value:  # NaN is not equal to itself
        raise InputError(f"A {what} is missing ({value!r}); give every one a name.")
    return str(value)


def named(mapping: Any, *, what: str) -> dict[str, Any]:
    """Return a mapping (or Series) with its keys as text; two keys of the same text are refused.

    `what` is the parameter, for the message.
    """
    found: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in mapping.items():
        name = name_of(key, what=f"name in `{what}`")
        if name in found:
            raise InputError(
                f"`{what}` has two entries of the name {name!r} ({keys[name]!r} and {key!r}); names are compared as "
                "text, so give one of them another."
            )
        found[name], keys[name] = value, key
    return found


def names_of(names: Iterable[Any], *, what: str = "name") -> list[str]:
    """Return each name as text."""
    return [name_of(g, what=what) for g in names]


def look_up(mapping: Any, names: Iterable[str], *, what: str) -> dict[str, Any]:
    """Return what a mapping (or Series) has for each of the names; a name that it lacks is refused."""
    by_name, names = named(mapping, what=what), list(names)
    if missing := [n for n in names if n not in by_name]:
        raise InputError(f"`{what}` lacks {listing(missing)}; it has {listing(by_name)}.")
    return {n: by_name[n] for n in names}


def is_mapping(value: Any) -> bool:
    """Whether something maps names to values: a mapping or a pandas Series."""
    return isinstance(value, Mapping) or (hasattr(value, "items") and hasattr(value, "index"))

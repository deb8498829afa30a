"""Checks whose messages name the object, the key and what is available."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class InputError(ValueError):
    """Input that stpred cannot use. The message is one sentence that names the object and what would work."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that a reader needs is not there."""


class UnsafeResolutionError(InputError):
    """The image is too coarse for what the encoder expects."""


def listing(items: Iterable[Any], *, most: int = 8) -> str:
    """Write items as ``['a', 'b', ...]``, cut after `most` with the number left out."""
    items = [str(i) for i in items]
    shown = ", ".join(repr(i) for i in items[:most])
    more = f", ... and {len(items) - most} more" if len(items) > most else ""
    return f"[{shown}{more}]"


def one_of(value: Any, options: Iterable[Any], *, name: str) -> Any:
    """Return `value` if it is among `options`, else say what exists."""
    options = list(options)
    if value not in options:
        raise InputError(f"`{name}` must be one of {listing(options, most=40)}, got {value!r}.")
    return value


def key_in(key: str, available: Iterable[str], *, what: str, name: str | None = None) -> str:
    """Return `key` if it is `available`, else say what exists.

    `what` says what kind of thing it is, such as "shapes element", and `name` the parameter that gave it.
    """
    available = list(available)
    if key not in available:
        given = f" (`{name}`)" if name else ""
        raise InputError(f"No {what} named {key!r}{given}; available: {listing(available)}.")
    return key


def positive(value: float, *, name: str, unit: str = "") -> float:
    """Return `value` as float if it is finite and above zero."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (0 < number < float("inf")):
        raise InputError(f"`{name}` must be a positive number{' of ' + unit if unit else ''}, got {value!r}.")
    return number


def element_name(key: str, *, name: str = "key_added") -> str:
    """Return `key` if SpatialData and zarr can store an element of that name."""
    if not isinstance(key, str) or not key or any(c in key for c in "/:\\ ") or key.startswith("__"):
        raise InputError(f"`{name}` must be a non-empty name without '/', ':' or spaces, got {key!r}.")
    return key

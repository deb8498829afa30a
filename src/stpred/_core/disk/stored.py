"""Checks of values that were read from a stored JSON file: kinds, ranges and lengths, with the place in the message."""

from __future__ import annotations

import types
from collections.abc import Callable, Collection, Mapping
from typing import Any, Union, get_args, get_origin

from stpred._core.checks import InputError, listing

MAX_TEXT = 10_000
MAX_NUMBER = 1e18
MAX_DEPTH = 32
MAX_SETTINGS = 1000
"""Values of one setting, such as widths of layers."""
MAX_MEMBERS = 100
"""Encoders side by side."""
MPP = (0.01, 100.0)
TILE_PX = (1, 16_384)

Check = Callable[[Any, str], Any]


def refuse(where: str, wanted: str, value: Any) -> InputError:
    """Return the error of a value that is not what is wanted at a place, such as a file's name and a field's."""
    shown = repr(value)
    return InputError(f"{where} must be {wanted}, got {shown if len(shown) <= 80 else f'{shown[:80]} ...'}.")


def text(value: Any, where: str, *, most: int = MAX_TEXT) -> str:
    """Return non-empty text."""
    if not isinstance(value, str) or not value.strip() or len(value) > most or "\x00" in value:
        raise refuse(where, f"non-empty text of at most {most} characters", value)
    try:
        value.encode()
    except UnicodeEncodeError:  # a surrogate alone, which no file can hold
        raise refuse(where, "text that can be written as UTF-8", ascii(value)) from None
    return value


def flag(value: Any, where: str) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise refuse(where, "true or false", value)
    return value


def number(value: Any, where: str, *, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> Any:
    """Return a finite number within limits, as it is."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise refuse(where, f"a number from {low:g} to {high:g}", value)
    return value


def whole(value: Any, where: str, *, low: int = 1, high: int = 2**31 - 1) -> int:
    """Return a whole number within limits."""
    number(value, where, low=low, high=high)
    if value != int(value):
        raise refuse(where, "a whole number", value)
    return int(value)


def optional(check: Check, **limits: Any) -> Check:
    """Return a check that also takes None."""
    return lambda value, where: None if value is None else check(value, where, **limits)


def items(value: Any, where: str, check: Check, *, n: int | None = None, most: int = 10**7) -> list[Any]:
    """Return a list (of n items) of which every item passes a check."""
    if not isinstance(value, (list, tuple)) or (n is not None and len(value) != n) or len(value) > most:
        raise refuse(where, "a list" if n is None else f"a list of {n} values", value)
    return [check(v, f"{where}[{i}]") for i, v in enumerate(value)]


def mapping(
    value: Any, where: str, checks: Mapping[str, Check], *, required: Collection[str] = (), open_ended: bool = False
) -> dict[str, Any]:
    """Return an object whose fields pass their checks; others are refused, or with `open_ended` only kept sane."""
    if not isinstance(value, dict):
        raise refuse(where, "an object", value)
    if lacking := sorted(k for k in required if k not in value):
        raise InputError(f"{where} lacks {listing(lacking)}.")
    if not open_ended and (unknown := sorted(set(value) - set(checks))):
        raise InputError(
            f"{where} has unknown fields {listing(unknown)}; known are {listing(sorted(checks), most=40)}."
        )
    return {k: checks[k](v, f"{where}.{k}") if k in checks else v for k, v in value.items()}


def sane(value: Any, where: str, *, depth: int = 0) -> Any:
    """Return any JSON value without NaN, infinities, absurd numbers, unwritable text or deep nesting."""
    if depth > MAX_DEPTH:
        raise InputError(f"{where} is nested too deeply.")
    if isinstance(value, str):
        return value if value == "" or len(value) > MAX_TEXT else _writable(value, where)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return number(value, where)
    if isinstance(value, dict):
        return {_writable(k, where): sane(v, f"{where}.{k[:80]}", depth=depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [sane(v, where, depth=depth + 1) for v in value]
    return value


def _writable(value: str, where: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise refuse(where, "text that can be written as UTF-8", ascii(value)) from None
    return value


def tile(value: Any, where: str) -> dict[str, Any]:
    """Return a tile: micrometres per pixel and pixels."""
    mpp: Check = lambda v, w: number(v, w, low=MPP[0], high=MPP[1])  # noqa: E731
    size: Check = lambda v, w: whole(v, w, low=TILE_PX[0], high=TILE_PX[1])  # noqa: E731
    return mapping(value, where, {"mpp": mpp, "size_px": size}, required=("mpp", "size_px"))


def card(value: Any, where: str, *, required: Collection[str] = ("name",)) -> dict[str, Any]:
    """Return the card of an encoder, see :class:`stpred.encoders.EncoderCard`."""

    def channels(value: Any, where: str, *, low: float) -> list[Any]:
        return items(value, where, lambda v, w: number(v, w, low=low, high=100.0), n=3)

    def member(value: Any, where: str) -> dict[str, Any]:
        if "members" in (found := card(value, where, required=("name", "tile", "width"))):
            raise InputError(f"{where} is of several encoders, and itself one of several.")
        return found

    found = mapping(
        value,
        where,
        {
            "name": lambda v, w: text(v, w, most=500),
            "tile": tile,
            "width": lambda v, w: whole(v, w, high=10**9),
            **dict.fromkeys(("source", "revision", "licence"), text),
            "gated": flag,
            "feature_names": optional(lambda v, w: items(v, w, text)),
            "mean": optional(lambda v, w: channels(v, w, low=-100.0)),
            "std": optional(lambda v, w: channels(v, w, low=1e-6)),
            "dense": optional(lambda v, w: items(v, w, whole, n=3)),
            "layers": optional(lambda v, w: items(v, w, lambda i, at: whole(i, at, low=0), most=MAX_SETTINGS)),
            "pool": optional(text),
            "input_px": optional(lambda v, w: whole(v, w, high=4096)),
            "members": lambda v, w: items(v, w, member, most=MAX_MEMBERS),
            "views": optional(_views),
        },
        required=required,
    )
    if "members" in found and found.get("width") != sum(m["width"] for m in found["members"]):
        raise InputError(f"{where} has members whose widths do not add up to {found.get('width')}.")
    if (found.get("mean") is None) != (found.get("std") is None):
        raise InputError(f"{where} must have both of mean and std, or neither.")
    return found


def _views(value: Any, where: str) -> dict[str, Any]:
    """Return the stain variations over which an encoder's features are averaged."""
    checks: dict[str, Check] = {
        "n": lambda v, w: whole(v, w, high=256),
        "strength": lambda v, w: number(v, w, low=1e-9, high=1.0),
        "seed": lambda v, w: whole(v, w, low=0),
    }
    return mapping(value, where, checks, required=tuple(checks))


def of_kind(value: Any, hint: Any, where: str) -> Any:
    """Return a value that is what a type hint says; whole numbers become int, lists tuples; unknown hints pass.

    Numbers are checked for being finite and not absurd; their ranges are for the caller.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        several = isinstance(value, (list, tuple))
        kinds = [a for a in arguments if a is not type(None)]
        if len(kinds) > 1:
            kinds = [k for k in kinds if (get_origin(k) is tuple) == several]
        return of_kind(value, kinds[0], where) if len(kinds) == 1 else value
    if hint is bool:
        return flag(value, where)
    if hint is int:
        return whole(value, where, low=-(2**31))
    if hint is float:
        return number(value, where)
    if hint is str:
        return text(value, where, most=200)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(items(value, where, lambda v, w: of_kind(v, arguments[0], w), most=MAX_SETTINGS))
    if isinstance(origin, type) and issubclass(origin, Mapping) and len(arguments) == 2:
        if not isinstance(value, dict):
            raise refuse(where, "an object", value)
        return {text(k, where): of_kind(v, arguments[1], f"{where}.{k[:80]}") for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value

"""Checks whose messages name the object, the key and what is available."""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_ELEMENT = re.compile(r"[\w.-]+")


MAX_MESSAGE = 600
"""Characters of a message; names and lists that users give can be of any length."""


class InputError(ValueError):
    """Input that stpred cannot use. The message is one sentence that names the object and what would work.

    Examples
    --------
    >>> import stpred as st
    >>> try:
    ...     st.TileSpec(mpp=0)
    ... except st.InputError as error:
    ...     print(error)
    `TileSpec.mpp` must be a positive number of um per pixel, got 0.
    """

    def __str__(self) -> str:
        text = " ".join(str(a) for a in self.args).replace("\n", " ")
        half = (MAX_MESSAGE - 5) // 2
        return text if len(text) <= MAX_MESSAGE else f"{text[:half]} ... {text[-half:]}"


class InputWarning(UserWarning):
    """Something about the input or the result that the user should know."""


class MissingFileError(InputError, FileNotFoundError):
    """A file that a reader needs is not there."""


class UnsafeResolutionError(InputError):
    """The image is too coarse for what the encoder expects."""


def listing(items: Iterable[Any], *, most: int = 8) -> str:
    """Write items as ``['a', 'b', ...]``, cut after `most` with the number left out."""
    items = [str(i) for i in items]
    shown = ", ".join(repr(i if len(i) <= 150 else f"{i[:70]}...{i[-70:]}") for i in items[:most])
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
    available = [k for k in available if k is not None]  # anndata 0.13 lists X as the layer None
    if key not in available:
        given = f" (`{name}`)" if name else ""
        raise InputError(f"No {what} named {key!r}{given}; available: {listing(available)}.")
    return key


def positive(value: float, *, name: str, unit: str = "") -> float:
    """Return `value` as float if it is finite and above zero."""
    try:  # text and truth values pass as numbers in Python, not here
        number = float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (0 < number < float("inf")):
        raise InputError(f"`{name}` must be a positive number{' of ' + unit if unit else ''}, got {value!r}.")
    return number


def whole(value: Any, *, name: str, unit: str = "", unset: bool = False) -> int:
    """Return `value` as int if it is a whole number above zero; with `unset`, the message also offers None."""
    try:
        number = 0.0 if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not (number >= 1 and number.is_integer()):
        raise InputError(
            f"`{name}` must be a positive whole number{' of ' + unit if unit else ''}{' or None' if unset else ''}, "
            f"got {value!r}."
        )
    return int(number)


def fraction_of(value: Any, *, name: str, zero: bool = False) -> float:
    """Return `value` as float if it lies between 0 and 1, both excluded; with `zero`, 0 is allowed."""
    try:
        number = float("nan") if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not (0 < number < 1 or (zero and number == 0)):
        bounds = "at least 0 and below 1" if zero else "between 0 and 1"
        raise InputError(f"`{name}` must be {bounds}, got {value!r}.")
    return number


def distinct(values: Any, *, name: str, empty: bool = False) -> list[Any]:
    """Return one value or several as a list without repeats; refuse none at all unless `empty`."""
    listed = list(dict.fromkeys(values)) if isinstance(values, Iterable) and not isinstance(values, str) else [values]
    if not listed and not empty:
        raise InputError(f"`{name}` is empty.")
    return listed


def element_name(key: str, *, name: str = "key_added") -> str:
    """Return `key` if SpatialData and zarr can store an element of that name."""
    if not isinstance(key, str) or not _ELEMENT.fullmatch(key) or key.startswith(("__", ".")):
        raise InputError(
            f"`{name}` must be a non-empty name without '/', ':' or spaces (letters, digits, '_', '-' and '.', not "
            f"beginning with '.' or '__'), got {key!r}."
        )
    return key


def check_parent(path: Path) -> Path:
    """Return `path` if the folder that is to hold it exists or can be made."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name too long, links in a ring, a NUL
        raise InputError(
            f"{str(path)[:200]!r} cannot be written: {getattr(error, 'strerror', None) or error}."
        ) from error
    if lost := [p for p in (path.absolute(), *path.absolute().parents) if p.is_symlink() and not p.exists()]:
        raise InputError(f"{str(path)!r} cannot be written: {str(lost[-1])!r} is a link to nothing.")
    above = next(p for p in path.absolute().parents if p.exists())
    if not above.is_dir():
        raise InputError(f"{str(path)!r} cannot be written: {str(above)!r} is a file, not a folder.")
    if not os.access(above, os.W_OK):
        raise InputError(f"{str(path)!r} cannot be written: the folder {str(above)!r} is not writable.")
    return path


def warn(message: str) -> None:
    """Warn of something the user should know, at the line of theirs that called stpred."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and str(frame.f_globals.get("__name__", "")).split(".")[0] == "stpred":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, InputWarning, stacklevel=level)

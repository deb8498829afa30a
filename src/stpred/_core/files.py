"""Reading a user's files and writing results: what libraries and the system raise there, as one sentence.

Wrap only calls of other libraries (and looking into what they return), never stpred's own kernels: whatever is raised
within :func:`readable` is taken for a fault of the file.
"""

from __future__ import annotations

import errno
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError, MissingFileError

_DAMAGE = re.compile(
    r"truncat|unexpected end|end of file|\beof\b|\bcrc\b|corrupt|signature|checksum|incomplete|damaged|stored block",
    re.IGNORECASE,
)

MAX_REASON = 240
"""Characters that are kept of what a library said."""


@contextmanager
def readable(path: Path | str, *, what: str) -> Iterator[None]:
    """Turn whatever is raised while a user's file (or folder) is read into one sentence that names it.

    An :class:`InputError` passes unchanged; the cause stays chained. "Damaged or cut off" is said only where the
    library's error tells so.

    Parameters
    ----------
    path
        The file.
    what
        What it is, such as "spots file".
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise MissingFileError(f"The {what} {str(path)!r} is not there: {reason(error)}.") from error
    except Exception as error:  # the one place that takes any error of a library for a fault of the file
        raise InputError(_sentence(path, what, error)) from error


def _sentence(path: Path | str, what: str, error: Exception) -> str:
    message = f"The {what} {str(path)!r} cannot be read: {reason(error)}"
    if isinstance(error, MemoryError):
        return f"{message}; it declares more than fits into memory."
    known = isinstance(error, (EOFError, zipfile.BadZipFile, zlib.error))
    if known or _DAMAGE.search(f"{type(error).__name__} {error}"):
        return f"{message}; it is damaged or cut off, so copy or download it again."
    return f"{message}; check that it is what its name says, and complete."


def reason(error: BaseException) -> str:
    """Return the first sentence of what an error says, on one line and not long; its kind where it says nothing."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    text = re.split(r"[.] (?=[A-Z])", " ".join(text.split()))[0].rstrip(".")
    if isinstance(error, KeyError):
        text = f"it lacks {text}"
    if isinstance(error, RecursionError):
        text = "it is nested too deeply"
    if not text:
        text = type(error).__name__
    return text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]} ..."


def parse_json(text: str | bytes, *, path: Path | str, what: str) -> Any:
    """Return what a JSON text holds; one that is no JSON, nested too deeply or not text is refused by name."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and numbers of too many digits are ValueErrors
        raise InputError(f"The {what} {str(path)!r} is not valid JSON: {reason(error)}.") from error


def read_json(path: Path, *, what: str) -> dict[str, Any]:
    """Return the object that a JSON file holds, or say that there is none."""
    with readable(path, what=what):
        text = path.read_bytes()
    found = parse_json(text, path=path, what=what)
    if not isinstance(found, dict):
        raise InputError(f"The {what} {str(path)!r} holds no JSON object but {type(found).__name__}.")
    return found


@contextmanager
def writable(path: Path | str, *, what: str) -> Iterator[None]:
    """Turn what the system refuses while `path` is written (disk full, read-only, name too long) into one sentence.

    Errors that no refusal of the system stands behind pass: they are stpred's own.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        refused = _refusal(error)
        if refused is None:
            raise
        raise InputError(f"The {what} {str(path)!r} cannot be written: {refused}; nothing was changed.") from error


def _refusal(error: BaseException | None) -> str | None:
    """Return what the system said behind an error, also where a library wrapped or only printed it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            said = error.strerror or errno.errorcode.get(error.errno, type(error).__name__)
            return os.strerror(error.errno) if "errno" in said else said  # HDF5 puts a page of its own there
        if type(error).__module__ == "builtins" and (match := re.search(r"errno[ =]+(\d+)", str(error), re.IGNORECASE)):
            return os.strerror(int(match[1]))  # HDF5 and Arrow only print it
        if type(error).__module__.startswith("safetensors") and (
            match := re.search(r"(\w[\w -]+) \(os error", str(error))
        ):
            return match[1]
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None

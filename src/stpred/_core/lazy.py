"""Names of a package that are imported on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def attach(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package whose public names are imported when they are first used.

    Parameters
    ----------
    package
        Its ``__name__``.
    homes
        Public name to the module that defines it, relative to the package; or, for what is shown in a package of lower
        rank than its own, in full with the top package.
    """

    def getattr_(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name]
        absolute = home.split(".")[0] == package.split(".")[0]
        return getattr(import_module(home if absolute else f"{package}.{home}"), name)

    def dir_() -> list[str]:
        return sorted(homes)

    return getattr_, dir_

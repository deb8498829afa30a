"""What is made when it is needed: names of a package, items of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")


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


class Lazily(Sequence[T], Generic[T]):
    """Items that are made anew each time that they are asked for, and never kept.

    Parameters
    ----------
    make
        Number of an item to the item.
    n
        How many there are.
    """

    def __init__(self, make: Callable[[int], T], n: int) -> None:
        self._make, self._n = make, n

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Lazily[T]: ...
    def __getitem__(self, index: int | slice) -> T | Lazily[T]:
        which = range(self._n)[index]
        return self._make(which) if isinstance(which, int) else self.picked(which)

    def picked(self, which: Sequence[int]) -> Lazily[T]:
        """Return some of the items."""
        return Lazily(lambda i: self._make(which[i]), len(which))

    def mapped(self, function: Callable[[T], Any]) -> Lazily[Any]:
        """Return what a function makes of each item."""
        return Lazily(lambda i: function(self._make(i)), self._n)

"""Progress bars that appear on terminals and in notebooks, and nowhere else unless asked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from stpred._core.settings import settings

T = TypeVar("T")


def track(items: Iterable[T], *, total: int | None = None, describe: str = "", weight: Any = None) -> Iterator[T]:
    """Yield items while a bar advances by one each, or by ``weight(item)``."""
    from tqdm.auto import tqdm

    hidden = (
        not (sys.stderr.isatty() or "ipykernel" in sys.modules) if settings.progress is None else not settings.progress
    )
    with tqdm(total=total, desc=describe, disable=hidden, unit="" if weight is None else "tile", leave=False) as bar:
        for item in items:
            yield item
            bar.update(1 if weight is None else weight(item))

"""Progress: bars on terminals and in notebooks; elsewhere nothing, or for the command line a line every half minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from stpred._core.settings import settings

T = TypeVar("T")

LINE_EVERY_S = 30.0
"""Between two lines, whatever they are about."""

_last_line: float | None = None
"""When the last line was written; None where no lines are wanted."""


def track(
    items: Iterable[T],
    *,
    total: int | None = None,
    describe: str = "",
    weight: Any = None,
    unit: str = "",
    line_every_s: float | None = None,
) -> Iterator[T]:
    """Yield items while a bar, or a count in lines, advances by one each, or by ``weight(item)``.

    `unit`: what is counted, such as ``"tile"``. `line_every_s`: between two lines, instead of `LINE_EVERY_S`.
    """
    from tqdm.auto import tqdm

    hidden = is_hidden()
    if hidden and settings.progress is None and _last_line is not None:
        every_s = LINE_EVERY_S if line_every_s is None else line_every_s
        yield from _counted(items, total=total, describe=describe, weight=weight, unit=unit, every_s=every_s)
        return
    with tqdm(total=total, desc=describe, disable=hidden, unit=unit, leave=False) as bar:
        for item in items:
            yield item
            bar.update(1 if weight is None else weight(item))


def is_hidden() -> bool:
    """Whether no bars are drawn: neither a terminal nor a notebook is there, or the user wants none."""
    terminal = sys.stderr.isatty() or "ipykernel" in sys.modules
    return not terminal if settings.progress is None else not settings.progress


@contextmanager
def lines() -> Iterator[None]:
    """Let work within write a line every half minute where there is no terminal to draw a bar on."""
    global _last_line
    before, _last_line = _last_line, time.monotonic()
    try:
        yield
    finally:
        _last_line = before


def _counted(
    items: Iterable[T], *, total: int | None, describe: str, weight: Any, unit: str, every_s: float
) -> Iterator[T]:
    global _last_line
    done, start = 0, time.monotonic()
    for item in items:
        yield item
        done += 1 if weight is None else weight(item)
        now = time.monotonic()
        if _last_line is not None and now - _last_line >= every_s:
            _last_line = now
            print(_line(describe, done, total, now - start, unit=unit), file=sys.stderr, flush=True)


def _line(describe: str, done: int, total: int | None, seconds: float, *, unit: str = "") -> str:
    """Say how far work is, and when it will be done at the pace so far."""
    what = f"{describe or 'working'}: {done}" + (f" of {total}" if total else "") + (f" {unit}s" if unit else "")
    if not total or not done:
        return what
    return f"{what} ({min(done / total, 1):.0%}), about {duration(seconds * max(total - done, 0) / done)} left"


def duration(seconds: float) -> str:
    """Write a time in the largest fitting unit."""
    if seconds < 90:
        return f"{round(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"

"""Items that are made in the background while their user works on earlier ones."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from stpred._core.compute.threads import n_threads

T = TypeVar("T")

_END: Any = object()


def ahead(items: Iterable[T], n: int = 1, *, beside: bool = False) -> Iterator[T]:
    """Yield the same items in the same order, up to `n` of them made ahead by one thread.

    The thread is started by the first item that is asked for, and has ended when the last one was taken, an error was
    raised (at its place in the order) or the generator is closed; a generator `items` is closed then as well. Where
    a process may use one thread only, each item is made when it is asked for, but for items `beside` a user who waits
    for a GPU.
    """
    source = iter(items)
    if n_threads() == 1 and not beside:
        try:
            yield from source
        finally:
            if hasattr(source, "close"):
                source.close()
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="stpred-ahead")
    coming: deque[Future[T]] = deque()
    try:
        coming.extend(pool.submit(next, source, _END) for _ in range(n))
        while (item := coming.popleft().result()) is not _END:
            coming.append(pool.submit(next, source, _END))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
        if hasattr(source, "close"):
            source.close()

"""How many threads a process uses: one rule for reading, encoding, scores and dask."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def n_threads(most: int | None = None) -> int:
    """Return the number of threads that this process may keep busy, at most `most`.

    As many as OMP_NUM_THREADS allows, which PyTorch and BLAS follow too, and no more than there are cores in the
    process's affinity. With one thread nothing runs beside the caller: one worker process per core, each with
    OMP_NUM_THREADS=1, leaves no core idle and none shared.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # "4,2" is of nested regions
    allowed = int(first) if first.isdigit() and int(first) else cores
    return max(1, min(allowed, cores, cores if most is None else most))


def in_threads(work: Callable[[T], R], items: Iterable[T], *, threads: int | None = None) -> list[R]:
    """Return ``work(item)`` of each item, in their order; None takes :func:`n_threads`. One thread is the caller's."""
    items = list(items)
    n = min(n_threads() if threads is None else threads, len(items))
    if n <= 1:
        return [work(item) for item in items]
    with ThreadPoolExecutor(n) as pool:
        return list(pool.map(work, items))  # the list hands on errors


def dask_options() -> dict[str, Any]:
    """Return scheduler and number of workers with which a dask collection is computed in this process."""
    n = n_threads()
    return {"scheduler": "sync"} if n == 1 else {"scheduler": "threads", "num_workers": n}


@contextmanager
def dask_in_process() -> Iterator[None]:
    """Compute dask collections in this process's own threads.

    In a task of dask.distributed they would otherwise be sent back to the scheduler.
    """
    import dask

    with dask.config.set(dask_options()):
        yield

"""Where a run works: a Dask cluster on this machine for its length, or one that is there already."""

from __future__ import annotations

import ast
import logging
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, listing, whole
from stpred._core.files import reason

if TYPE_CHECKING:
    from distributed import Client

GPU = "GPU"
"""Dask's tag of workers that have a GPU to themselves (``dask worker --resources GPU=1``)."""

WORKER_GB = 4.0
"""Memory that a worker is counted with where their number is not given."""

CONNECT_S = 20.0

ALLOWED_FAILURES = 5
"""Workers that may end while they are at a slide, until it counts as failed."""

_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")


@dataclass(frozen=True)
class Workers:
    """The workers of a run.

    Attributes
    ----------
    client
        Dask's client of them.
    n
        How many there are at the start.
    resources
        That each slide takes.
    """

    client: Client
    n: int
    resources: dict[str, float] | None = None


@contextmanager
def workers(
    client: Any, *, n_slides: int, n_workers: int | None = None, devices: Sequence[int] | None = None
) -> Iterator[Workers]:
    """Give the workers of a run.

    Parameters
    ----------
    client
        A ``distributed.Client``, the address of a scheduler, or None: a cluster of processes on this machine.
    n_slides
        That are to be done; there are no more workers than that.
    n_workers
        Processes on this machine, of one core each (or as many as ``OMP_NUM_THREADS`` says). None: one for each core,
        or fewer where memory (4 GB each) or slides are fewer, which then share the cores.
    devices
        Numbers of the GPUs of this machine; each gets one worker.
    """
    from distributed import Client

    if client is None:
        with _on_this_machine(n_slides, n_workers, devices) as found:
            yield found
        return
    if n_workers is not None or devices is not None:
        raise InputError("`n_workers` and `devices` are for this machine; a scheduler has workers of its own.")
    if isinstance(client, Client):
        yield _of_client(client)
        return
    if not isinstance(client, str):
        raise InputError(f"`client` must be a distributed.Client or the address of a scheduler, got {client!r}.")
    try:
        connected = Client(client, timeout=CONNECT_S)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"No Dask scheduler answers at {client!r}: {reason(error)}.") from error
    with connected:
        yield _of_client(connected)


def _of_client(client: Client) -> Workers:
    here = version("stpred")
    try:
        there = set(client.run(version, "stpred").values())
    except PackageNotFoundError:
        raise InputError("The workers of the Dask cluster have no stpred; install it where they run.") from None
    if there - {here}:
        raise InputError(f"The workers of the Dask cluster have stpred {listing(sorted(there))}, and this is {here}.")
    found = client.scheduler_info(n_workers=-1)["workers"].values()
    if found and not any(w["resources"].get(GPU) for w in found):
        return Workers(client, len(found))
    tagged = [w for w in found if w["resources"].get(GPU)]
    return Workers(client, len(tagged), {GPU: 1} if tagged else None)


@contextmanager
def _on_this_machine(n_slides: int, n_workers: int | None, devices: Sequence[int] | None) -> Iterator[Workers]:
    with _usual_allocation(), _local(n_slides, n_workers, devices) as workers:
        yield workers


@contextmanager
def _local(n_slides: int, n_workers: int | None, devices: Sequence[int] | None) -> Iterator[Workers]:
    from distributed import Client, LocalCluster, Nanny, Scheduler, SpecCluster

    if getattr(multiprocessing.current_process(), "_inheriting", False) or _is_unguarded():
        raise InputError(
            "A script that starts workers is imported by each of them: put what it does below "
            "`if __name__ == '__main__':`."
        )
    n, n_threads = split_cores(n_slides, n_workers, None if devices is None else len(devices))
    limits = {name: str(n_threads) for name in _LIMITS}
    common: dict[str, Any] = {"nthreads": 1, "memory_limit": 0}
    scheduler = {"allowed_failures": ALLOWED_FAILURES, "dashboard": False, "dashboard_address": "127.0.0.1:0"}
    resources = None
    if devices is None:
        cluster: Any = LocalCluster(
            n_workers=n, threads_per_worker=1, processes=True, memory_limit=0,
            dashboard_address=scheduler.pop("dashboard_address"), silence_logs=logging.CRITICAL,
            scheduler_kwargs=scheduler, env=limits,
        )  # fmt: skip
    else:
        resources = {GPU: 1.0}
        spec = {
            f"gpu-{d}": {
                "cls": Nanny,
                "options": {**common, "resources": resources, "env": {**limits, "CUDA_VISIBLE_DEVICES": str(d)}},
            }
            for d in devices
        }
        options = {"host": "127.0.0.1", "port": 0, **scheduler}
        cluster = SpecCluster(
            workers=spec, scheduler={"cls": Scheduler, "options": options}, silence_logs=logging.CRITICAL
        )
    with cluster, Client(cluster) as client:
        yield Workers(client, n, resources)


def _is_unguarded() -> bool:
    """Whether each worker would start this very run, since a script calls for it outside ``if __name__ == ...``.

    Dask starts a worker anew for each that fails to import the script, without an end.
    """
    import dask

    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if (
        dask.config.get("distributed.worker.multiprocessing-method") == "fork"
        or getattr(main, "__spec__", None)
        or not file
    ):
        return False
    frame = sys._getframe()
    while frame.f_code.co_name != "<module>" or frame.f_globals is not vars(main):
        if frame.f_back is None:  # called from a thread
            return False
        frame = frame.f_back
    try:
        statements = ast.walk(ast.parse(Path(file).read_bytes()))
    except (OSError, SyntaxError, ValueError):  # such as a notebook
        return False
    guards = [s for s in statements if isinstance(s, ast.If) and "__name__" in ast.unparse(s.test)]
    line = frame.f_lineno
    return not any(s.body[0].lineno <= line <= (s.body[-1].end_lineno or line) for s in guards)


@contextmanager
def _usual_allocation() -> Iterator[None]:
    """Leave the workers' memory allocator as it is in any other process.

    Dask has its workers hand freed memory back at once (MALLOC_TRIM_THRESHOLD_), for many small objects. Each array of
    an image would then be mapped and cleared anew, with which a slide takes 1.3 to 1.6 times as long.
    """
    import dask

    with dask.config.set({"distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": None}):
        yield


def split_cores(n_slides: int, n_workers: int | None, n_devices: int | None) -> tuple[int, int]:
    """Return the number of workers on this machine, and the threads of each."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = os.environ.get("OMP_NUM_THREADS", "")
    stated = int(said) if said.isdigit() and int(said) > 0 else None
    if n_devices is not None:
        if n_workers is not None:
            raise InputError("Each GPU has one worker: leave `n_workers` out, or `devices`.")
        n = n_devices
    elif n_workers is not None:
        n, stated = min(whole(n_workers, name="n_workers"), max(n_slides, 1)), stated or 1
    else:
        n = max(1, min(cores, n_slides, int(_memory_gb() // WORKER_GB)))
    return n, stated or max(1, cores // n)


def parse_devices(text: str | None) -> tuple[int, ...] | None:
    """Return the numbers of GPUs of ``"0,1"``.

    Examples
    --------
    >>> parse_devices("0,2")
    (0, 2)
    """
    if text is None:
        return None
    parts = [p.strip() for p in text.split(",")]
    if not all(p.isdigit() for p in parts) or len(set(parts)) < len(parts):
        raise InputError(f"`devices` must be numbers of GPUs separated by commas, such as '0,1', got {text!r}.")
    return tuple(int(p) for p in parts)


def _memory_gb() -> float:
    if not hasattr(os, "sysconf"):
        return 8.0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9

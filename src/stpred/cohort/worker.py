"""What runs on a worker: one slide, whatever happens to it."""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from stpred._core.checks import InputError
from stpred._core.compute.threads import dask_in_process
from stpred._core.disk import locks
from stpred._core.files import reason
from stpred.cohort.fingerprint import fingerprint_of, stamp_of
from stpred.cohort.manifest import COMPLETE, FAILED, OWN, Record, write_record
from stpred.io.samples import Sample

WAIT_S = 3600.0
"""For another process that is at the same slide: a worker whose client was killed ends by itself."""


_ONE_SLIDE = threading.Lock()
"""Settings are of the process, so that a worker of several threads takes one slide after the other."""


class Job(Protocol):
    """What is done with each slide of a run; it is sent to the workers."""

    @property
    def what(self) -> str:
        """What it does, in one word."""
        ...

    @property
    def suffix(self) -> str:
        """Ending of its results' names."""
        ...

    @property
    def model_name(self) -> str:
        """Name of the model (or encoder)."""
        ...

    @property
    def model_id(self) -> str:
        """What tells it from any other."""
        ...

    def settings_of(self, sample: Sample) -> str:
        """Return a short hash of everything but model and files that decides the result."""
        ...

    def key_of(self, sample: Sample, fingerprint: str) -> str:
        """Return what the result is of: model, settings and content of the files."""
        ...

    def finished(self, folder: Path, store: str, key: str) -> dict[str, Any] | None:
        """Return what is said of a result, fields of a record, if it is there and of this key."""
        ...

    def is_there(self, folder: Path, store: str) -> bool:
        """Whether there is a result of any run."""
        ...

    def is_foreign(self, folder: Path, store: str) -> bool:
        """Whether something stands in the place of the result that no run has written."""
        ...

    def wants_more(self, folder: Path, store: str) -> bool:
        """Whether a finished result lacks what goes beside it."""
        ...

    def work(self, sample: Sample, folder: Path, store: str, key: str) -> None:
        """Put the result in its place, whole."""
        ...

    def add_more(self, folder: Path, store: str) -> None:
        """Add what goes beside a finished result."""
        ...

    def help(self, sample: Sample, folder: Path, store: str, key: str, *, start: float) -> None:
        """Do a part of the work on a large slide that another worker is at, from this share of its parts on."""
        ...


@dataclass(frozen=True)
class Task:
    """A slide of a run.

    Attributes
    ----------
    sample, store
        The slide, and the name of its result.
    folder
        Of the run.
    known
        Fingerprint that the slide had when its files had this stamp; "" if it has to be read.
    settings
        Of the session that workers take over.
    anew
        Do it again, whatever is there.
    """

    sample: Sample
    store: str
    folder: Path
    known: tuple[str, str] = ("", "")
    settings: Mapping[str, Any] | None = None
    anew: bool = False


def run_packed(packed: bytes, record: Record) -> Record:
    """Run a packed job and task; on a worker that lacks a package that they need, the record says so.

    Were they unpacked by Dask, such a worker would end and be started again for every slide.
    """
    from distributed.protocol.pickle import loads

    try:
        job, task = loads(packed)
    except Exception as error:  # noqa: BLE001  # whatever the import of a package raises
        said = (
            f"The worker on {platform.node()} cannot load what is to be done: {type(error).__name__}: {reason(error)}."
        )
        return replace(record, status=FAILED, error=said, worker=_worker())
    return run_task(job, task)


def help_packed(packed: bytes, start: float) -> None:
    """Help with a large slide; whatever goes wrong, the worker that is at it says so itself."""
    from distributed.protocol.pickle import loads

    with suppress(Exception):
        job, task = loads(packed)
        key = job.key_of(task.sample, fingerprint_of(task.sample))
        with _ONE_SLIDE, _quiet(task):
            if task.anew or job.finished(task.folder, task.store, key) is None:
                job.help(task.sample, task.folder, task.store, key, start=start)


def run_task(job: Job, task: Task) -> Record:
    """Bring one slide to its result and return its record, which is also kept in the run's folder.

    Nothing that goes wrong with the slide is raised: the record says it.
    """
    start = time.monotonic()
    record = record_of(job, task)
    if not (task.folder / OWN).is_dir():
        said = (
            f"The worker on {platform.node()} does not see the folder {str(task.folder)!r}; workers need a file system "
        )
        return replace(record, status=FAILED, error=said + "in common.")
    try:
        with _ONE_SLIDE, _quiet(task), locks.held(_lock(task), what=f"slide {task.sample.slide!r}", wait_s=WAIT_S):
            record = _finish(job, task, record)
    except Exception as error:  # noqa: BLE001  # whatever is wrong with a slide, the others go on
        record = replace(record, status=FAILED, error=_sentence(error))
        if not isinstance(error, InputError):
            _keep_traceback(task)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = replace(record, seconds=round(time.monotonic() - start, 3), worker=_worker(), finished=now)
    try:
        write_record(task.folder, record)
    except InputError as error:
        return replace(record, status=FAILED, error=_sentence(error))
    return record


def record_of(job: Job, task: Task) -> Record:
    """Return the record of a slide that is still to come."""
    sample = task.sample
    return Record(
        slide=sample.slide,
        path=str(sample.path.absolute()),
        donor=sample.donor or "",
        store=task.store,
        model=job.model_name,
        model_id=job.model_id,
        settings=job.settings_of(sample),
    )


def _finish(job: Job, task: Task, record: Record) -> Record:
    sample, folder, store = task.sample, task.folder, task.store
    stamp = stamp_of(sample)
    known, its_stamp = task.known
    fingerprint = known if known and stamp and its_stamp == stamp else fingerprint_of(sample)
    record = replace(record, fingerprint=fingerprint, stamp=stamp)
    key = job.key_of(sample, fingerprint)
    if job.is_foreign(folder, store):
        raise InputError(f"{str(folder / store)!r} was not written by a run; move it away, or name another folder.")
    found = None if task.anew else job.finished(folder, store, key)
    if found is None:
        job.work(sample, folder, store, key)
        found = job.finished(folder, store, key)
    if found is None:
        raise InputError(f"The result {store!r} of slide {sample.slide!r} is gone; another process moved it away.")
    if job.wants_more(folder, store):
        job.add_more(folder, store)
    return replace(record, status=COMPLETE, **found)


def _lock(task: Task) -> Path:
    folder = task.folder / OWN / "locks"
    folder.mkdir(exist_ok=True)
    return folder / f"{task.store}.lock"


@contextmanager
def _quiet(task: Task) -> Iterator[None]:
    """Work with the session's settings; dask within a slide stays within the process."""
    from stpred import settings

    with dask_in_process(), settings.override(progress=False, **(task.settings or {})), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what stpred warns of is in the record
        yield


def _sentence(error: Exception) -> str:
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, MemoryError):
        return "It takes more memory than there is."
    return f"{type(error).__name__}: {reason(error)}."


def _keep_traceback(task: Task) -> None:
    with suppress(OSError):
        folder = task.folder / OWN / "errors"
        folder.mkdir(exist_ok=True)
        (folder / f"{task.store}.txt").write_text(traceback.format_exc(), encoding="utf-8")


def _worker() -> str:
    """Return host, process, and the worker's name where there is one."""
    name = ""
    with suppress(ImportError, ValueError):
        from distributed import get_worker

        name = f", worker {get_worker().name}"
    return f"{platform.node()}, process {os.getpid()}{name}"

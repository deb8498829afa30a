"""A run over many slides: what is to be done, by whom, and what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError, check_parent, listing
from stpred.cohort.clusters import Workers, workers
from stpred.cohort.fingerprint import is_large, size_of, stamp_of
from stpred.cohort.locks import alone
from stpred.cohort.manifest import (
    COMPLETE,
    FAILED,
    Record,
    file_names,
    prepare,
    read_manifest,
    read_records,
    to_frame,
    write_manifest,
    write_record,
)
from stpred.cohort.worker import Job, Task, help_packed, record_of, run_packed
from stpred.io.samples import Sample

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stpred")

MAX_HELPERS = 15
"""Workers that help with one large slide."""

MANIFEST_S = 30.0
"""Between two manifests that are written while a run goes on."""

MANIFEST_SHARE = 0.02
"""Of the time of a run that writing them takes at most; of many thousand slides they are therefore fewer."""


@dataclass
class Run:
    """A run whose folder this process has to itself.

    Attributes
    ----------
    job, folder
        What is done with each slide, and where to.
    tasks
        The slides that are to be done, the largest first.
    records
        What is known of all slides of the run, by store.
    n_stale
        Slides with a result of another model, image or settings, which is moved to ``replaced/``.
    """

    job: Job
    folder: Path
    tasks: list[Task]
    records: dict[str, Record]
    others: dict[str, Record] = field(default_factory=dict)
    n_stale: int = 0

    @property
    def n_complete(self) -> int:
        """Slides that were complete before."""
        return len(self.records) - len(self.tasks)

    @property
    def failed(self) -> list[Record]:
        """Records of the slides that failed."""
        return [r for r in self.records.values() if r.status == FAILED]

    @property
    def frame(self) -> pd.DataFrame:
        """The manifest of the slides of this run."""
        return to_frame(self.records.values())

    def results(
        self, *, client: Any = None, n_workers: int | None = None, devices: Sequence[int] | None = None
    ) -> Iterator[Record]:
        """Do what is to be done, and yield the record of each slide as it ends.

        Parameters as of :func:`stpred.cohort.clusters.workers`.
        """
        try:
            due = self._write()
            if not self.tasks:
                return
            with workers(client, n_slides=len(self.tasks), n_workers=n_workers, devices=devices) as found:
                for record in _results(self.job, self.tasks, found):
                    self.records[record.store] = record
                    yield record
                    if time.monotonic() > due:
                        due = self._write()
        finally:
            self._write()

    def _write(self) -> float:
        """Write the manifest: of this run, and of what other runs and shards put in; return when the next is due."""
        start = time.monotonic()
        there = {**self.others, **read_records(self.folder)}
        write_manifest(list({**there, **self.records}.values()), self.folder)
        end = time.monotonic()
        return end + max(MANIFEST_S, (end - start) / MANIFEST_SHARE)


@contextmanager
def open_run(
    samples: Sequence[Sample],
    job: Job,
    folder: str | Path,
    *,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
) -> Iterator[Run]:
    """Take the folder of a run and find out what is to be done.

    Parameters
    ----------
    samples
        All slides, in every shard the same.
    job
        What is done with each.
    folder
        New, or that of an earlier run: what is complete for this job is not done again.
    shard
        Only the i-th of n parts of the slides, (i, n).
    overwrite
        Do all of them again.

    Raises
    ------
    InputError
        If another client is at it, or stores stand there that no run has written.
    """
    folder = check_parent(Path(folder).absolute())
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{str(folder)!r} is a file, not a folder for the results of several slides.")
    own = prepare(folder)
    with alone(own, shard):
        yield _plan(list(samples), job, folder, shard, overwrite=overwrite)


def _plan(samples: list[Sample], job: Job, folder: Path, shard: tuple[int, int] | None, *, overwrite: bool) -> Run:
    names = file_names(s.slide for s in samples)
    ordered = sorted(samples, key=lambda s: s.slide)
    mine = ordered if shard is None else ordered[shard[0] - 1 :: shard[1]]
    kept = read_records(folder)
    records: dict[str, Record] = {}
    tasks: list[Task] = []
    foreign: list[str] = []
    n_stale = 0
    for sample in mine:
        store = names[sample.slide] + job.suffix
        earlier = kept.get(store)
        known = ("", "") if earlier is None or overwrite else (earlier.fingerprint, earlier.stamp)
        task = Task(sample, store, folder, known=known, anew=overwrite)
        record = record_of(job, task)
        if job.is_foreign(folder, store):
            foreign.append(store)
        elif not overwrite and earlier is not None and _is_complete(earlier, record, job, task):
            records[store] = replace(earlier, path=record.path, donor=record.donor)
            continue
        elif not overwrite and earlier is not None and earlier.status == COMPLETE and not _alike(earlier, record):
            n_stale += job.is_there(folder, store)
        records[store] = record
        tasks.append(task)
    if foreign:
        raise InputError(
            f"{str(folder)!r} holds {listing(foreign)}, which no run has written; name another folder, or move them "
            "away."
        )
    tasks.sort(key=lambda t: -size_of(t.sample))
    return Run(job, folder, tasks, records, {**_earlier(folder), **kept}, n_stale)


def _earlier(folder: Path) -> dict[str, Record]:
    """Return what the folder's manifest says, also of slides whose records are gone."""
    from stpred.cohort.manifest import PARQUET, records_of

    return {r.store: r for r in records_of(read_manifest(folder))} if (folder / PARQUET).is_file() else {}


def _alike(earlier: Record, record: Record) -> bool:
    return (earlier.model_id, earlier.settings) == (record.model_id, record.settings)


def _is_complete(earlier: Record, record: Record, job: Job, task: Task) -> bool:
    """Whether the result is there, of this model and settings, and its files have not changed since, or are gone."""
    if earlier.status != COMPLETE or not _alike(earlier, record):
        return False
    if (stamp := stamp_of(task.sample)) and stamp != earlier.stamp:
        return False
    key = job.key_of(task.sample, earlier.fingerprint)
    return job.finished(task.folder, task.store, key) is not None and not job.wants_more(task.folder, task.store)


def _results(job: Job, tasks: list[Task], found: Workers) -> Iterator[Record]:
    """Yield the record of each slide as it ends."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker, as_completed
    from distributed.protocol.pickle import dumps

    from stpred.cohort.session import session_settings

    settings = session_settings()
    futures: dict[Any, Task] = {}
    helpers: list[Any] = []
    for place, task in enumerate(tasks):
        packed = dumps((job, replace(task, settings=settings)))
        future = found.client.submit(
            run_packed, packed, record_of(job, task), pure=False, key=f"{job.what}-{task.store}-{time.time_ns()}",
            retries=1, priority=-place, resources=found.resources,
        )  # fmt: skip
        futures[future] = task
        if is_large(task.sample):  # of the lowest rank: only workers that have nothing else to do
            helpers += [
                found.client.submit(
                    help_packed, packed, k / found.n, pure=False, priority=-len(tasks) - k, resources=found.resources
                )
                for k in range(1, min(found.n, MAX_HELPERS + 1))
            ]
    try:
        for future in as_completed(list(futures)):
            task = futures[future]
            if future.status == "cancelled" or future.status == "lost":
                raise CancelledError
            error = future.exception()
            if error is None:
                yield future.result()
                continue
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, KilledWorker):
                said = "Its worker ended again and again while it was at this slide: killed, or out of memory."
            record = replace(record_of(job, task), status=FAILED, error=said)
            write_record(task.folder, record)
            yield record
    except CancelledError:
        raise InputError("The Dask scheduler was lost; start the same run again, it goes on where it was.") from None
    finally:
        with suppress(Exception):  # the scheduler may be lost
            found.client.cancel([f for f in (*futures, *helpers) if not f.done()])

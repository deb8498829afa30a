"""Many slides on the command line: a run, and how far one is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from stpred._core.progress import duration, track
from stpred._core.words.phrases import count
from stpred.cli.messages import as_options
from stpred.cli.session import console, errors, plain_messages, session

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stpred.cohort.manifest import Record
    from stpred.cohort.options import PredictOptions
    from stpred.cohort.worker import Job
    from stpred.io.samples import Sample

FAILED, SKIPPED = 2, 3
"""Exit status where slides failed, and where that is no error."""

MAX_SHOWN = 50
"""Failed slides that are printed; the manifest has all."""


@dataclass(frozen=True)
class ClusterOptions:
    """Options of many slides; what is not given is None or False."""

    workers: int | None
    devices: str | None
    scheduler: str | None
    shard: str | None
    skip_errors: bool
    previews: bool

    @property
    def given(self) -> bool:
        """Whether any was, so that one slide is a run as well."""
        return any(v is not None and v is not False for v in vars(self).values())


def predict_many(
    samples: list[Sample],
    model: str | None,
    out: Path,
    options: PredictOptions,
    cluster: ClusterOptions,
    *,
    overwrite: bool,
) -> None:
    """Predict many slides, print how far the run is and, at the end, what failed and why."""
    from stpred.cohort.predict_cohort import prediction_of

    out = out.with_suffix("") if out.suffix == ".zarr" else out
    job = prediction_of(model, out, options, previews=cluster.previews)
    go_through(samples, job, out, cluster, overwrite=overwrite, then=f"stpred collect {out} -o {out / 'cohort.h5ad'}")


def go_through(
    samples: list[Sample], job: Job, out: Path, cluster: ClusterOptions, *, overwrite: bool, then: str
) -> None:
    """Do a job with each slide; `then` is the command that can follow."""
    from stpred.cohort.clusters import parse_devices
    from stpred.cohort.locks import parse_shard
    from stpred.cohort.run import open_run

    shard, devices = parse_shard(cluster.shard), parse_devices(cluster.devices)
    with open_run(samples, job, out, shard=shard, overwrite=overwrite) as run:
        if not session.quiet:
            console.print(f"{count(len(run.records), 'slide')}, {run.n_complete} complete already: {out}")
        if run.n_stale and job.suffix == ".zarr":
            console.print(
                f"Of another model or other settings: {count(run.n_stale, 'result')}; replaced ones go to "
                f"{out / 'replaced'}."
            )
        results = run.results(client=cluster.scheduler, n_workers=cluster.workers, devices=devices)
        for _ in track(results, total=len(run.tasks), describe="slides", line_every_s=60.0):
            pass
        failed = sorted(run.failed, key=lambda r: r.slide)
        n_done = sum(r.status == "complete" for r in run.records.values())
    console.print(f"{n_done} of {len(run.records)} slides are complete; {out / 'manifest.csv'} lists all.")
    if not failed:
        console.print(f"Next: {then}")
        return
    print_failed(failed)
    raise typer.Exit(SKIPPED if cluster.skip_errors else FAILED)


def status(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="Folder that stpred predict or stpred features wrote for many slides."),
    ],
) -> None:
    """Print how far a run over many slides is, and what failed."""
    from stpred.cohort.status import Status

    with plain_messages():
        found = Status.of(folder)
        console.print(
            f"{found.n('complete')} complete, {found.n('failed')} failed, {found.n('pending')} pending of "
            f"{count(len(found.records), 'slide')}: {folder}"
        )
        if found.client is not None:
            left = "" if found.left_s is None else f", about {duration(found.left_s)} left"
            console.print(f"Running: {found.client}{left}.")
        elif found.n("pending"):
            console.print("Nobody is running it; start the same command again to go on.")
        print_failed([r for r in found.records if r.status == "failed"])


def print_failed(failed: Iterable[Record], *, word: str = "Failed") -> None:
    """List slides with the reason of each."""
    failed = list(failed)
    for record in failed[:MAX_SHOWN]:
        said = as_options(record.error, known=session.options, slide=record.slide)
        errors.print(f"[red]{word}:[/red] {escape(record.slide)}: {escape(said)}", highlight=False)
    if len(failed) > MAX_SHOWN:
        errors.print(f"... and {len(failed) - MAX_SHOWN} more, see the manifest.", highlight=False)

"""``stpred features``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

from stpred.cli.help import complete
from stpred.cli.options import (
    OUTPUT,
    Device,
    Encoder,
    GPUs,
    Scheduler,
    ShapesKey,
    Shard,
    SkipErrors,
    Slides,
    Upsampling,
    Workers,
    flag,
    option,
    reads_slides,
)
from stpred.cli.session import plain_messages
from stpred.cli.slides import find_samples


@partial(reads_slides, cache=False)
def features(
    slides: Slides,
    out: Annotated[
        Path, option("--out", "-o", metavar="FOLDER", help="Folder of the features: pass it on as --cache.")
    ],
    models: Annotated[
        str,
        option(
            "--models", metavar="MODELS", complete=complete.families_or_trained,
            help="What they are for, separated by commas: families that will be trained, and trained models (folders, "
            "bundled names) that will predict.",
        ),
    ] = "ridge",
    shapes: ShapesKey = None,
    overwrite: Annotated[bool, flag("--overwrite", panel=OUTPUT, help="Go through all slides again.")] = False,
    encoder: Encoder = None,
    allow_upsampling: Upsampling = False,
    device: Device = None,
    workers: Workers = None,
    devices: GPUs = None,
    scheduler: Scheduler = None,
    shard: Shard = None,
    skip_errors: SkipErrors = False,
    *,
    reading: dict[str, Any],
) -> None:  # fmt: skip
    """Extract features of slides into a folder, from which train, evaluate and predict take them with --cache.

    Start the same command again to go on after an interruption, or with further slides: what is there stays.
    """
    from stpred.cli.cohort import ClusterOptions, go_through
    from stpred.cohort.extraction.extraction import Extraction, FeatureOptions

    cluster = ClusterOptions(workers, devices, scheduler, shard, skip_errors, previews=False)
    with plain_messages():
        samples = find_samples(slides, reading)
        named = tuple(m.strip() for m in models.split(","))
        job = Extraction.of(FeatureOptions(named, tuple(encoder or ()) or None, shapes, device))
        family = next((m for m in named if m in job.options.families), None)
        given = " ".join(slides)
        then = f"stpred predict {given} -o OUT --model {named[0]} --cache {out}"
        if family is not None:
            then = f"stpred train {given} -o MODEL --model {family} --cache {out}"
        go_through(samples, job, out, cluster, overwrite=overwrite, then=then)

"""``stpred predict``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stpred._core.checks import InputError, listing
from stpred._core.words.phrases import count
from stpred.cli.encoders import load_encoder
from stpred.cli.help import complete
from stpred.cli.options import (
    MACHINE,
    MANY,
    OUTPUT,
    Device,
    GPUs,
    Scheduler,
    ShapesKey,
    Shard,
    SkipErrors,
    Upsampling,
    Workers,
    flag,
    option,
    overwrites,
    reads_slides,
)
from stpred.cli.session import console, plain_messages
from stpred.cli.slides import find_samples

if TYPE_CHECKING:
    from anndata import AnnData

    from stpred.cohort.options import PredictOptions
    from stpred.io.samples import Sample
    from stpred.models.base import Model


@reads_slides
def predict(
    slides: Annotated[
        list[str],
        typer.Argument(
            metavar="SLIDE",
            help="Slide: an image file, a vendor's folder or a SpatialData store; or many: several of these, a folder "
            "of them, a csv that lists them, or a pattern in quotes such as 'slides/*.svs'.",
        ),
    ],
    out: Annotated[
        Path,
        option("--out", "-o", metavar="OUT", help="Zarr store to write; of many slides, the folder of their stores."),
    ],
    model: Annotated[
        str | None,
        option(
            "--model", metavar="MODEL", complete=complete.trained,
            help="Model folder, bundled name (see stpred models) or hf:owner/name@revision; default: the bundled one.",
        ),
    ] = None,
    shapes: ShapesKey = None,
    cells: Annotated[bool, flag("--cells", help="Predict on cells, or nuclei, which are found first.")] = False,
    genes: Annotated[
        str | None, option("--genes", metavar="GENES", help="Keep only these symbols, separated by commas.")
    ] = None,
    qc: Annotated[
        bool,
        flag("--qc", help="Leave out locations on little tissue, pen marks, fill, folds or out of focus."),
    ] = False,
    picture: Annotated[
        Path | None,
        option("--picture", metavar="PNG", panel=OUTPUT, help="Picture of one slide; default: beside the store."),
    ] = None,
    with_image: Annotated[
        bool, flag("--with-image", panel=OUTPUT, help="Copy the slide's pixels into the store, not a thumbnail.")
    ] = False,
    with_map: Annotated[
        bool, flag("--map", panel=OUTPUT, help="Add a map of the tissue; of a model of patches, such as student.")
    ] = False,
    overwrite: Annotated[bool, overwrites("existing stores")] = False,
    encoder: Annotated[
        list[str] | None,
        option(
            "--encoder", metavar="ENCODER", panel=MACHINE, complete=complete.encoders,
            help="The model's encoder or its folder, if it is not found; as in stpred train.",
        ),
    ] = None,
    allow_upsampling: Upsampling = False,
    device: Device = None,
    workers: Workers = None,
    devices: GPUs = None,
    scheduler: Scheduler = None,
    shard: Shard = None,
    skip_errors: SkipErrors = False,
    previews: Annotated[bool, flag("--previews", panel=MANY, help="Also draw a picture of each slide.")] = False,
    *,
    reading: dict[str, Any],
) -> None:  # fmt: skip
    """Predict expression for slides: a table on their spots, bins or cells, or on a grid.

    One slide becomes a zarr store with a picture beside it. Of many slides each has a store of its own in the output
    folder, beside manifest.parquet and manifest.csv. Start the same command again to go on after an interruption, or
    with further slides: what is complete stays.
    """
    from stpred.cli.cohort import ClusterOptions, predict_many
    from stpred.cohort.options import PredictOptions
    from stpred.cohort.slides import is_many

    cluster = ClusterOptions(workers, devices, scheduler, shard, skip_errors, previews)
    with plain_messages() as translate:
        samples = find_samples(slides, reading)
        several = len(samples) > 1 or cluster.given or (is_many(slides[0]) and out.suffix != ".zarr")
        if several and picture is not None:
            names = listing(s.slide for s in samples)
            raise InputError(f"`--picture` is of one slide, and there are {len(samples)}, {names}; pass --previews.")
        options = PredictOptions(
            shapes_key=shapes,
            cells=cells,
            genes=None if genes is None else tuple(g.strip() for g in genes.split(",")),
            encoder=(tuple(encoder or ()) or None) if several else load_encoder(encoder),
            device=device,
            with_image=with_image,
            with_map=with_map,
            qc=qc or None,
        )
        if several:
            predict_many(samples, model, out, options, cluster, overwrite=overwrite)
            return
        translate.slide = samples[0].slide
        _predict_one(samples[0], model, out, options, picture=picture, overwrite=overwrite)


def _predict_one(
    sample: Sample, model: str | None, out: Path, options: PredictOptions, *, picture: Path | None, overwrite: bool
) -> None:
    """Predict one slide, write and draw it, and print how far it can be trusted."""
    import stpred as st
    from stpred.cohort.pictures import write_picture
    from stpred.cohort.slides import read_slide
    from stpred.stores import check_free, check_picture, write_result

    picture = out.with_suffix(".png") if picture is None else picture
    check_free(out, overwrite=overwrite)
    check_picture(picture, overwrite=overwrite, keep=(sample.path, sample.options.get("image")))
    trained: Model = st.models.load("default" if model is None else model)
    options.check(trained)
    sdata = read_slide(sample)
    key, notes = options.predict(sdata, trained, slide=sample.slide)
    for note in notes:
        console.print(note)
    write_result(sdata, out, with_image=options.with_image, overwrite=overwrite)
    raster_key = options.predict_map(sdata, trained, out) if options.with_map else None
    write_picture(sdata, key, raster_key, picture)
    table = sdata.tables[key]
    console.print(
        f"Predicted {count(table.n_vars, 'gene')} for {count(table.n_obs, 'location')} of slide "
        f"{sample.slide!r} ({key!r})."
    )
    console.print(f"  store    {out}\n  picture  {picture}")
    if raster_key is not None:
        size = sdata.images[raster_key]["scale0"].ds["image"].sizes
        console.print(
            f"  map      {raster_key!r}: {size['x']} x {size['y']} pixels of {count(size['c'], 'gene')}, an image "
            "element"
        )
    console.print(f"  trust    {_trust(table)}")
    console.print(f'Next: spatialdata.read_zarr("{out}").tables["{key}"], ready for scanpy and squidpy.')
    if raster_key is not None:
        console.print(
            f'      sdata = spatialdata.read_zarr("{out}"); sdata.images["{raster_key}"], or '
            f'stpred.pl.raster(sdata, "{raster_key}", "{table.var_names[0]}").'
        )


def _trust(table: AnnData) -> str:
    """Return how far a prediction can be trusted; a slide out of distribution is named first."""
    known = int(table.var["trusted"].sum()) if "trusted" in table.var else 0
    fraction = float(table.obs["in_distribution"].mean())
    tiles = f"{fraction:.0%} of the tiles look like the model's training tiles"
    genes = f"{known} of {table.n_vars} genes were predictable on left-out slides of the model's own training data"
    if fraction < 0.5:
        return (
            f"OUT OF DISTRIBUTION: only {tiles}, so the values of this slide should not be relied on; {genes}, which "
            "says nothing about tissue like this."
        )
    return f"{genes}; {tiles}."

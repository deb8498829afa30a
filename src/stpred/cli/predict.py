"""``stpred predict``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stpred._core.checks import InputError, listing
from stpred.cli.encoders import load_encoder
from stpred.cli.options import Device, ShapesKey, Upsampling, reads_slides
from stpred.cli.session import console, plain_messages
from stpred.cli.slides import default_region, ensure_cells, find_samples

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.io.samples import Sample
    from stpred.models.base import Model


@reads_slides
def predict(
    slide: Annotated[
        str, typer.Argument(help="Slide: an image file or a vendor's folder; or a folder of slides, or a csv of them.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Zarr store to write; of several slides, the folder of their stores.")
    ],
    model: Annotated[str | None, typer.Option(help="Model folder or bundled name; default: the bundled model.")] = None,
    shapes: ShapesKey = None,
    genes: Annotated[str | None, typer.Option(help="Keep only these symbols, separated by commas.")] = None,
    picture: Annotated[Path | None, typer.Option(help="PNG to draw; default: beside the store.")] = None,
    with_image: Annotated[bool, typer.Option("--with-image", help="Copy the slide's pixels into the store.")] = False,
    with_map: Annotated[bool, typer.Option("--map", help="Add a map of the tissue, of a model of patches.")] = False,
    allow_upsampling: Upsampling = False,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ENCODER",
            help="The model's encoder or its folder, if it is not found; as in stpred train.",
        ),
    ] = None,
    device: Device = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing store.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Predict expression for a slide: a table on its spots, bins or cells, or on a grid, and a picture."""
    import stpred as st
    from stpred.stores import check_free, check_picture

    with plain_messages() as translate:
        samples = find_samples([slide], reading)
        names = [sample.slide for sample in samples]
        stores = {names[0]: out}
        if len(samples) > 1:
            if picture is not None:
                raise InputError(f"`--picture` is of one slide, and {slide!r} holds {len(samples)}, {listing(names)}.")
            out = out.with_suffix("") if out.suffix == ".zarr" else out
            stores = {name: out / _store_name(name) for name in names}
        pictures = {name: store.with_suffix(".png") if picture is None else picture for name, store in stores.items()}
        for sample in samples:
            check_free(stores[sample.slide], overwrite=overwrite)
            check_picture(pictures[sample.slide], overwrite=overwrite, keep=(sample.path, sample.options.get("image")))
        trained = st.models.load("default" if model is None else model)
        if with_map and not trained.needs.tokens:
            raise InputError(f"`--map` is of models of patches ('student'), and {trained.record.name!r} sees tiles.")
        options = _Options(
            shapes=shapes,
            genes=None if genes is None else genes.split(","),
            encoder=load_encoder(encoder),
            device=device,
            with_image=with_image,
            with_map=with_map,
            overwrite=overwrite,
        )
        if len(samples) > 1:
            console.print(f"{len(samples)} slides in {slide}: {', '.join(names)}.")
        for sample in samples:
            translate.slide = sample.slide
            _predict_slide(sample, trained, stores[sample.slide], pictures[sample.slide], options)


@dataclass(frozen=True)
class _Options:
    """What is the same for all slides of one call."""

    shapes: str | None
    genes: list[str] | None
    encoder: Any
    device: str | None
    with_image: bool
    with_map: bool
    overwrite: bool


def _store_name(slide: str) -> str:
    return re.sub(r"[^\w.-]+", "-", slide) + ".zarr"


def _predict_slide(sample: Sample, model: Model, out: Path, picture: Path, options: _Options) -> None:
    """Predict one slide, write and draw it, and print how far it can be trusted."""
    import matplotlib.pyplot as plt

    import stpred as st
    from stpred._core.files import writable
    from stpred.io.samples import read_sample
    from stpred.stores import write_result

    sdata = read_sample(sample)
    shapes = options.shapes
    if model.needs.cells:
        cells = ensure_cells(sdata)
        shapes = cells if shapes is None else shapes
    if shapes is None:
        shapes = default_region(sdata, model.record.region)
    genes, device, encoder = options.genes, options.device, options.encoder
    tables = set(sdata.tables)
    st.tl.predict(sdata, model, shapes_key=shapes, genes=genes, device=device, encoder=encoder)
    (key,) = set(sdata.tables) - tables
    write_result(sdata, out, with_image=options.with_image, overwrite=options.overwrite)
    raster_key = None
    if options.with_map:
        images = set(sdata.images)
        st.tl.predict_map(sdata, model, out=out, genes=genes, device=device, encoder=encoder)
        (raster_key,) = set(sdata.images) - images
    panels = _draw(sdata, key, raster_key)
    with writable(picture, what="picture"):
        picture.parent.mkdir(parents=True, exist_ok=True)
        panels[0].figure.savefig(picture, dpi=130)
    plt.close(panels[0].figure)
    table = sdata.tables[key]
    console.print(f"Predicted {table.n_vars} genes for {table.n_obs} locations of slide {sample.slide!r} ({key!r}).")
    console.print(f"  store    {out}\n  picture  {picture}")
    if raster_key is not None:
        size = sdata.images[raster_key]["scale0"].ds["image"].sizes
        console.print(
            f"  map      {raster_key!r}: {size['x']} x {size['y']} pixels of {size['c']} genes, an image element"
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


def _draw(sdata: SpatialData, key: str, raster_key: str | None) -> Any:
    """Draw the genes that are predicted best and the out-of-distribution score; return the axes."""
    import stpred as st
    from stpred.pl.labels import best_genes

    table = sdata.tables[key]
    genes = best_genes(table)
    if raster_key is not None:
        return st.pl.raster(sdata, raster_key, genes, table_key=key)
    return st.pl.spatial(sdata, key, [*genes, "ood_score"], ncols=5)

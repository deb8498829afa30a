"""``stpred finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stpred.cli.encoders import load_encoder
from stpred.cli.options import (
    Checkpoint,
    Device,
    Encoder,
    Groups,
    Precision,
    ShapesKey,
    Slides,
    Upsampling,
    reads_slides,
)
from stpred.cli.session import console, plain_messages
from stpred.cli.slides import ensure_cells, parse_groups, read_slides


@reads_slides
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            help="Model to go on from, which is not changed: folder, bundled name or hf:owner/name@revision."
        ),
    ],
    slides: Slides,
    out: Annotated[Path, typer.Option("--out", "-o", help="Model folder to write.")],
    genes: Annotated[
        str | None, typer.Option(help="Genes of the model to learn, with commas; default: all that were measured.")
    ] = None,
    groups: Groups = None,
    shapes: ShapesKey = None,
    encoder: Encoder = None,
    trains: Annotated[str, typer.Option(help="Networks: which layers move, all or head.")] = "all",
    epochs: Annotated[int | None, typer.Option(help="Networks: passes over the slides; default: chosen.")] = None,
    strength: Annotated[
        float | None, typer.Option(help="Ridge: penalty on the distance from the old weights; default: chosen.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model; default: the output folder's.")] = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    seed: Annotated[int, typer.Option(help="Seed of whatever is random.")] = 0,
    device: Device = None,
    allow_upsampling: Upsampling = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing model.")] = False,
    *,
    reading: dict[str, Any],
) -> None:
    """Go on from a trained model on own slides with measured expression."""
    import stpred as st
    from stpred.stores import check_free

    with plain_messages():
        check_free(out, overwrite=overwrite)
        base = st.models.load(model)
        read, donors = read_slides(slides, reading)
        if base.needs.cells:
            for sdata in read.values():
                ensure_cells(sdata)
        with st.settings.override(checkpoint_dir=checkpoint, precision=precision):
            new = st.tl.finetune(
                base,
                read,
                genes=None if genes is None else [g.strip() for g in genes.split(",")],
                groups=parse_groups(groups, donors, required=False),
                shapes_key=shapes,
                encoder=load_encoder(encoder),
                options=st.FineTuning(trains=trains, epochs=epochs, strength=strength),
                name=out.name if name is None else name,
                seed=seed,
                device=device,
            )
        st.models.save(new, out, overwrite=overwrite)
        said = new.record.training["finetuned"]
        found = said.get("quality")
        scored = f"; held out: {found['base']:.3f} before, {found['tuned']:.3f} now" if found else ""
        moved = "each gene's mean alone" if said["moved"] == "intercept" else f"{said['moved']} moved"
        console.print(f"Fine-tuned {model} on {len(read)} slides, {said['n_genes']} genes, {moved}{scored}: {out}")
        console.print(f"Next: stpred predict SLIDE -o OUT.zarr --model {out}")

"""``stpred finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stpred._core.words.phrases import count
from stpred.cli.encoders import load_encoder
from stpred.cli.help import complete
from stpred.cli.options import (
    OUTPUT,
    TRAINING,
    Checkpoint,
    Device,
    Encoder,
    Groups,
    Precision,
    Seed,
    ShapesKey,
    Slides,
    Upsampling,
    option,
    overwrites,
    reads_slides,
)
from stpred.cli.session import console, plain_messages
from stpred.cli.slides import ensure_cells, parse_groups, read_slides


@reads_slides
def finetune(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", autocompletion=complete.trained,
            help="Model to go on from, which is not changed: folder, bundled name or hf:owner/name@revision.",
        ),
    ],
    slides: Slides,
    out: Annotated[Path, option("--out", "-o", metavar="FOLDER", help="Model folder to write.")],
    genes: Annotated[
        str | None,
        option(
            "--genes", metavar="GENES",
            help="Genes of the model to learn, with commas; default: all that were measured."
        ),
    ] = None,
    groups: Groups = None,
    shapes: ShapesKey = None,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", panel=OUTPUT, help="Name of the model; default: the output folder's."),
    ] = None,
    overwrite: Annotated[bool, overwrites("an existing model")] = False,
    trains: Annotated[
        str,
        option(
            "--trains", metavar="LAYERS", panel=TRAINING, complete=complete.one_of(("all", "head")),
            help="Networks: which layers move, all or head.",
        ),
    ] = "all",
    epochs: Annotated[
        int | None,
        option(
            "--epochs", metavar="N", panel=TRAINING, help="Networks: passes over the slides; default: chosen."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        option(
            "--strength", metavar="X", panel=TRAINING,
            help="Ridge: penalty on the distance from the old weights; default: chosen.",
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    seed: Seed = 0,
    encoder: Encoder = None,
    allow_upsampling: Upsampling = False,
    device: Device = None,
    *,
    reading: dict[str, Any],
) -> None:  # fmt: skip
    """Fine-tune a trained model on your own slides with measured expression."""
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
        console.print(
            f"Fine-tuned {model} on {count(len(read), 'slide')}, {count(said['n_genes'], 'gene')}, "
            f"{moved}{scored}: {out}"
        )
        console.print(f"Next: stpred predict SLIDE -o OUT.zarr --model {out}")

"""``stpred train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from stpred._core.checks import InputError, whole
from stpred._core.settings import settings
from stpred._core.targets import TRAINED_ON
from stpred._core.words.phrases import count
from stpred.cli.encoders import load_encoder
from stpred.cli.help import complete
from stpred.cli.options import (
    OUTPUT,
    TRAINING,
    Checkpoint,
    Device,
    Encoder,
    Ensemble,
    Genes,
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
from stpred.cli.session import console, errors, plain_messages
from stpred.cli.slides import ensure_cells, needs_cells, parse_genes, parse_groups, read_slides


@reads_slides
def train(
    slides: Slides,
    out: Annotated[Path, option("--out", "-o", metavar="FOLDER", help="Model folder to write.")],
    model: Annotated[
        str,
        option(
            "--model", metavar="FAMILY", complete=complete.families,
            help="What to train: ridge (start here), miso and deepspot (context), scellst (cells), student (maps), "
            "stnet (pixels), ...; stpred models says which question each answers.",
        ),
    ] = "ridge",
    genes: Genes = None,
    groups: Groups = None,
    shapes: ShapesKey = None,
    target: Annotated[
        str | None,
        option(
            "--target", metavar="SCALE", complete=complete.one_of(TRAINED_ON),
            help="log1p_cp10k, counts, or log1p_cp10k_given_library (or _half_library); default: the family's own.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", panel=OUTPUT, help="Name of the model; default: the output folder's."),
    ] = None,
    overwrite: Annotated[bool, overwrites("an existing model")] = False,
    validation: Annotated[
        str | None,
        option(
            "--validation", metavar="SLIDES", panel=TRAINING,
            help="Slides, with commas, on which only the number of epochs is chosen; default: donors held out.",
        ),
    ] = None,
    ensemble: Ensemble = None,
    checkpoint: Checkpoint = None,
    precision: Precision = None,
    devices: Annotated[
        int | None,
        option(
            "--devices", metavar="N", panel=TRAINING,
            help="GPUs (with --device cpu: processes) that train a network together; default: one.",
        ),
    ] = None,
    seed: Seed = 0,
    encoder: Encoder = None,
    allow_upsampling: Upsampling = False,
    device: Device = None,
    *,
    reading: dict[str, Any],
) -> None:  # fmt: skip
    """Train a model on slides with measured expression.

    With slides of two donors or more, settings are chosen on held-out donors, and the genes that were predicted there
    are marked as trusted in every prediction.
    """
    import stpred as st
    from stpred.stores import check_free

    with plain_messages():
        check_free(out, overwrite=overwrite)
        read, donors = read_slides(slides, reading)
        if needs_cells([model]):
            for sdata in read.values():
                ensure_cells(sdata)
        fabric = None if devices is None else _launched(model, devices, device=device, precision=precision)
        own = precision if fabric is None else None
        with st.settings.override(checkpoint_dir=checkpoint, precision=own, fabric=fabric):
            trained = st.tl.train(
                read,
                model if ensemble is None else st.models.Ensemble.Config(model, n_members=ensemble),
                genes=parse_genes(genes),
                groups=parse_groups(groups, donors, required=False),
                shapes_key=shapes,
                encoder=load_encoder(encoder),
                target=target,
                name=out.name if name is None else name,
                validation=None if validation is None else [s.strip() for s in validation.split(",")],
                seed=seed,
                device=device,
            )
        if fabric is not None and not fabric.is_global_zero:
            return
        st.models.save(trained, out, overwrite=overwrite)
        scores = [v for v in trained.record.var["cv_pearson"] if v is not None]
        why = " (one donor)" if trained.record.training.get("n_donors") == 1 else ""
        held_out = f"mean held-out Pearson {sum(scores) / len(scores):.3f}" if scores else f"no held-out scores{why}"
        console.print(
            f"Trained {model} on {count(len(read), 'slide')}, {count(len(trained.record.genes), 'gene')}, "
            f"{held_out}: {out}"
        )
        console.print(f"Next: stpred predict SLIDE -o OUT.zarr --model {out}")


def _launched(model: str, devices: int, *, device: str | None, precision: str | None) -> Any:
    """Start this command again for each further device, and return the Fabric that binds all of them."""
    from lightning_fabric import Fabric

    from stpred.models import registry
    from stpred.models.parts.iterative import Iterative

    n = whole(devices, name="devices")
    if not issubclass(registry.resolve(model).model_class, Iterative):
        raise InputError(f"`devices` is for networks, and {model!r} is fitted in closed form.")
    accelerator = "cpu" if device == "cpu" else "cuda"
    fabric = Fabric(accelerator=accelerator, devices=n, strategy="ddp", precision=precision or "32-true")  # type: ignore[arg-type]
    fabric.launch()
    if not fabric.is_global_zero:
        console.quiet = errors.quiet = True
        settings.progress = False
    return fabric

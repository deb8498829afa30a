"""``stpred demo`` and ``stpred models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stpred.cli.session import console, plain_messages


def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")] = Path("demo"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Make synthetic slides in the vendor's format, train, predict on held-out tissue and compare with the truth."""
    from stpred._demo import run

    with plain_messages():
        run(out, console=console, overwrite=overwrite)


def list_models() -> None:
    """List the models that come with stpred, the families that can be trained, and encoders."""
    from rich.markup import escape
    from rich.table import Table

    import stpred as st
    from stpred.encoders.registry import summaries
    from stpred.models.registry import bundled, families, family, resolve

    table = Table(title="Models", title_justify="left")
    for column in ("name", "what", "genes", "scale", "encoder"):
        table.add_column(column)
    for name in bundled():
        record = st.models.load(name).record
        table.add_row(
            name,
            record.training.get("summary", "trained"),
            str(len(record.genes)),
            record.target,
            record.encoder["name"],
        )
    for name in sorted(families()):
        found = family(name)
        table.add_row(
            name, f"to train: {(found.__doc__ or '').strip().splitlines()[0]}", "", "", resolve(name).default_encoder
        )
    console.print(table)
    encoders = Table(title="Encoders", title_justify="left")
    for column in ("name", "what"):
        encoders.add_column(column)
    alike: dict[str, list[str]] = {}
    for name, what in summaries().items():
        alike.setdefault(what, []).append(name)
    for what, names in alike.items():
        encoders.add_row(", ".join(sorted(names)), escape(what))
    encoders.add_row("timm/...", "Any vision model of timm; its weights are downloaded.")
    console.print(encoders)
    console.print(
        "stpred predict SLIDE -o OUT.zarr --model NAME, or "
        "stpred train SLIDES... -o MODEL --model FAMILY --encoder ENCODER"
    )

"""``stpred demo`` and ``stpred models``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from stpred._core.words.phrases import count
from stpred.cli.options import flag, option
from stpred.cli.session import console, plain_messages, session


def demo(
    out: Annotated[Path, option("--out", "-o", metavar="FOLDER", help="Folder to write into.")] = Path("demo"),
    overwrite: Annotated[bool, flag("--overwrite", help="Replace an earlier demo.")] = False,
) -> None:
    """Make synthetic slides in the vendor's format, train, predict on held-out tissue and compare with the truth.

    Takes one to two minutes on two cores and 0.25 GB of disk. Nothing is downloaded.
    """
    from stpred._demo import run

    with plain_messages():
        run(out, console=console, overwrite=overwrite, quiet=session.quiet)


def list_models() -> None:
    """List trained models that come with stpred, families to train by what they are for, and encoders."""
    from rich.markup import escape

    import stpred as st
    from stpred._core.words.encoders import encoder_words
    from stpred.cli.help.families import grouped
    from stpred.encoders.registry import summaries
    from stpred.models.registry import bundled, resolve

    console.print("[bold]Trained models[/bold] (stpred predict SLIDE -o OUT.zarr --model NAME)")
    rows = []
    for name in bundled():
        record = st.models.load(name).record
        said = f"{record.training.get('summary', 'trained')}; {count(len(record.genes), 'gene')} on the scale"
        rows.append((name, f"{said} {record.target}; encoder: {encoder_words(record.encoder, record.tile)}"))
    _print_rows(rows)
    console.print("\n[bold]Families to train[/bold] (stpred train SLIDES -o MODEL --model FAMILY)")
    for question, families in grouped().items():
        console.print(f"  [bold]{escape(question)}[/bold]")
        _print_rows([(name, f"{what} Encoder: {_default_encoder(resolve(name))}.") for name, what in families.items()])
    console.print("\n[bold]Encoders[/bold] (stpred train ... --encoder ENCODER)")
    alike: dict[str, list[str]] = {}
    for name, what in summaries().items():
        alike.setdefault(what, []).append(name)
    single = [(names[0], what) for what, names in alike.items() if len(names) == 1]
    _print_rows([*single, ("timm/...", "Any vision model of timm; its weights are downloaded.")])
    for what, names in alike.items():
        if len(names) > 1:
            console.print(f"  {escape(what)}")
            _print_rows([("", ", ".join(sorted(names)))])


def _default_encoder(config: Any) -> str:
    return str(config.default_encoder)


def _print_rows(rows: list[tuple[str, str]]) -> None:
    """Print names and what they stand for in two columns, as wide as the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=2)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(overflow="fold")
    for name, what in rows:
        table.add_row("", escape(name), escape(what))
    console.print(table, soft_wrap=False)

"""The application: options before the command, and its commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from stpred.cli.cohort import status
from stpred.cli.collect import collect
from stpred.cli.doctor.command import doctor
from stpred.cli.evaluate import evaluate
from stpred.cli.features import features
from stpred.cli.finetune import finetune
from stpred.cli.help.examples import epilog
from stpred.cli.help.formatting import Command, Group
from stpred.cli.others import demo, list_models
from stpred.cli.predict import predict
from stpred.cli.results.export import export
from stpred.cli.session import console, session
from stpred.cli.train import train

app = typer.Typer(
    name="stpred",
    cls=Group,
    help="Predict spatial gene expression from H&E images.",
    epilog=epilog(""),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        import stpred

        console.print(f"stpred {stpred.__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def common(
    context: typer.Context,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress and no notes; results and warnings only.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Predict spatial gene expression from H&E images."""
    command = getattr(context.command, "commands", {}).get(context.invoked_subcommand)
    names = [] if command is None else [o for p in command.params for o in (*p.opts, *p.secondary_opts)]
    session.quiet, session.verbose, session.options = quiet, verbose, frozenset(names)


COMMANDS: dict[str, dict[str, Callable[..., None]]] = {
    "First steps": {"doctor": doctor, "demo": demo, "models": list_models},
    "Predict": {"predict": predict, "export": export},
    "Your own models": {"train": train, "finetune": finetune, "evaluate": evaluate},
    "Many slides": {"features": features, "status": status, "collect": collect},
}
for panel, commands in COMMANDS.items():
    for name, command in commands.items():
        app.command(name, cls=Command, epilog=epilog(name), rich_help_panel=panel)(command)

"""``stpred doctor``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from stpred.cli.doctor import machine, packages, weights
from stpred.cli.doctor.finding import BROKEN, NOTE, OK, Finding, Section
from stpred.cli.options import flag, option
from stpred.cli.session import console, plain_messages

_MARKS = {OK: "[green]ok[/green]", NOTE: "[yellow]note[/yellow]", BROKEN: "[red]BROKEN[/red]"}


def doctor(
    as_json: Annotated[bool, flag("--json", help="Print JSON for programs instead of text.")] = False,
    cache: Annotated[
        Path | None,
        option("--cache", metavar="FOLDER", help="Folder of features to look at, as other commands take it."),
    ] = None,
) -> None:
    """Check the installation: versions, devices, folders, extras and weights. Nothing is downloaded or sent.

    Exit status: 0 where all that stpred needs works, 1 where something is broken. What is optional and absent is a note
    with the command that installs it, and no error.
    """
    sections: dict[str, Callable[[], Section]] = {
        "Versions": packages.versions,
        "Devices": machine.devices,
        "Folders": lambda: machine.folders(cache),
        "Settings": machine.session_settings,
        "Extras": packages.extras,
        "Weights": weights.weights,
        "Programs": weights.programs,
    }
    found: dict[str, list[Finding]] = {}
    with plain_messages():
        for title, inspect in sections.items():
            if not as_json:
                console.print(f"[bold]{title}[/bold]")
            found[title] = list(inspect())
            if not as_json:
                _print(found[title])
    broken = [f for findings in found.values() for f in findings if f.status == BROKEN]
    if as_json:
        said = {title.lower(): [f.to_dict() for f in findings] for title, findings in found.items()}
        typer.echo(json.dumps({"ok": not broken, **said}, indent=1, default=str))
    elif broken:
        console.print(f"[red]{len(broken)} broken:[/red] {escape(', '.join(f.name for f in broken))}.")
    else:
        console.print("All that stpred needs works.")
    if broken:
        raise typer.Exit(1)


def _print(findings: list[Finding]) -> None:
    """Print a section: a line for each finding, its hint below; what is as it should be shares a line."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(width=6, justify="right")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    alike = {f.name: f"{f.name} {f.value}" for f in findings if f.status == OK and _is_usual(f)}
    shown = [f for f in findings if f.name not in alike]
    if alike:
        shown.append(Finding("others" if shown else "defaults", ", ".join(alike.values())))
    for finding in shown:
        table.add_row(_MARKS[finding.status], escape(finding.name), escape(finding.value))
        if finding.hint:
            table.add_row("", "", f"[dim]{escape(finding.hint)}[/dim]")
    console.print(table, soft_wrap=False)


def _is_usual(finding: Finding) -> bool:
    """Return whether a finding is a setting as it comes, or a package that works and is not among the first."""
    return finding.details.get("changed") is False or finding.details.get("required") is True

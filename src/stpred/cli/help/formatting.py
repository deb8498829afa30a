"""Help as plain text of eighty columns: options in groups, then examples as they are typed."""

from __future__ import annotations

import os
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

FIRST, LAST, OTHER = "Options", "Reading the slides", "Other"
"""Groups of options: the first, the one before the end, and the end, which holds ``--help``."""


def usage_pieces(command: Any, context: Any) -> list[str]:
    """Return what follows a command's name: options, arguments, and options that must be given."""
    pieces = ["[OPTIONS]"]
    params = command.get_params(context)
    pieces += [argument_name(p) for p in params if p.param_type_name == "argument"]
    pieces += [f"{_in_order(p)[0]} {p.metavar}" for p in params if p.param_type_name == "option" and p.required]
    return pieces


def argument_name(param: Any) -> str:
    """Return an argument's name, with dots where it may be given several times."""
    name = str(param.metavar or param.name.upper()).removesuffix("...")
    return name if param.nargs == 1 else f"{name}..."


def option_names(param: Any) -> str:
    """Return an option's names, the short one first, and what is to be given."""
    names = ", ".join(_in_order(param))
    if param.secondary_opts:
        names += f" / {', '.join(param.secondary_opts)}"
    return names if param.is_flag else f"{names} {param.metavar}"


def _in_order(param: Any) -> list[str]:
    return sorted(param.opts, key=lambda name: name.startswith("--"))


def grouped(command: Any, context: Any) -> dict[str, list[tuple[str, str]]]:
    """Return names and help of a command's options by their group, in the order in which they are shown."""
    groups: dict[str, list[tuple[str, str]]] = {FIRST: []}
    for param in command.get_params(context):
        if param.param_type_name != "option" or (record := param.get_help_record(context)) is None:
            continue
        generic = not {"--help", "--install-completion", "--show-completion"}.isdisjoint(param.opts)
        panel = OTHER if generic else getattr(param, "rich_help_panel", None) or FIRST
        groups.setdefault(panel, []).append((option_names(param), record[1]))
    order = [k for k in groups if k not in (LAST, OTHER)] + [k for k in (LAST, OTHER) if k in groups]
    return {k: groups[k] for k in order if groups[k]}


def write_groups(command: Any, context: Any, formatter: Any) -> None:
    """Write arguments and options, a section for each group."""
    arguments = [p for p in command.get_params(context) if p.param_type_name == "argument"]
    if arguments:
        with formatter.section(_styled("Arguments", bold=True)):
            formatter.write_dl([(argument_name(p), p.help or "") for p in arguments])
    for panel, rows in grouped(command, context).items():
        with formatter.section(_styled(panel, bold=True)):
            formatter.write_dl([(_styled(names, fg="cyan"), said) for names, said in rows])


def write_epilog(command: Any, formatter: Any) -> None:
    """Write the epilog as it is."""
    if command.epilog:
        formatter.write_paragraph()
        lines = command.epilog.splitlines()
        formatter.write("\n".join(_styled(x, bold=True) if x[:1].strip() else x for x in lines) + "\n")


def _styled(text: str, **style: Any) -> str:
    """Return text with codes of the terminal, where there is one."""
    shown = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return typer.style(text, **style) if shown and text else text


class Command(TyperCommand):
    """A command whose help groups its options."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return what follows the name in the line of usage."""
        return usage_pieces(self, ctx)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and groups of options."""
        write_groups(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        write_epilog(self, formatter)


class Group(TyperGroup):
    """The application, whose help groups its commands."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the groups of commands, then the options before a command."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = str(getattr(command, "rich_help_panel", None) or "Commands")
                what = " ".join((command.help or "").split("\n\n")[0].split())
                groups.setdefault(panel, []).append((name, what))
        width = max(len(name) for rows in groups.values() for name, _ in rows)
        for panel, rows in groups.items():
            with formatter.section(_styled(panel, bold=True)):
                formatter.write_dl([(_styled(name.ljust(width), fg="cyan"), what) for name, what in rows])
        write_groups(self, ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        write_epilog(self, formatter)

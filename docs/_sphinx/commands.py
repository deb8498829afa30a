"""The page of the command line is made from the application itself: a section per command with its options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

PLACE = "<!-- commands -->"
USED = re.compile(r"(--?[a-z][\w-]*)")


def commands_page() -> str:
    """Return Markdown: each command with its text, its examples, its arguments and its options in their groups."""
    from typer.main import get_command

    from stpred.cli import app

    root: Any = get_command(app)
    lines = ["## Before the command", "", *_options(root, "stpred"), *_epilog(root.epilog or "")]
    for name, command in root.commands.items():
        if command.hidden:
            continue
        usage = " ".join(["stpred", name, *command.collect_usage_pieces(_context(command, name))])
        text = [_plain(line.strip()) for line in (command.help or "").splitlines()]
        lines += [f"## stpred {name}", "", *text, "", "```text", usage, "```", ""]
        lines += [*_epilog(command.epilog or ""), *_options(command, name)]
    return "\n".join(lines)


def _context(command: Any, name: str) -> Any:
    return command.context_class(command, info_name=name)


def _epilog(text: str) -> Iterator[str]:
    """Give what stands below the options: commands and lists of values as they are."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("  "):
            block.append(line.removeprefix("  "))
            continue
        if block:
            yield from ("```text", *block, "```", "")
            block = []
        yield from (_plain(line.strip()), "")


def _plain(text: str) -> str:
    """Return text as Markdown shows it unchanged."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


def _options(command: Any, name: str) -> Iterator[str]:
    """Give a table for each group of options."""
    context, groups = _context(command, name), {}
    for param in command.params:
        record = param.get_help_record(context)
        if record is not None:
            title = "Arguments" if param.param_type_name == "argument" else "Options"
            groups.setdefault(getattr(param, "rich_help_panel", None) or title, []).append(record)
    for title, records in groups.items():
        yield from (f"### {title}", "", "| option | what it does |", "|---|---|")
        for names, text in records:
            # Names and the kind of value stay on one line each.
            shown = USED.sub(r"`\1`", names) if names.startswith("-") else f"`{names.split()[0]}`"
            yield f"| {shown} | {_plain(' '.join(text.split()))} |"
        yield ""


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    if docname == "reference/cli":
        source[0] = source[0].replace(PLACE, commands_page())


def _always_read(app: Sphinx, *_: Any) -> list[str]:
    return ["reference/cli"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("source-read", _on_read)
    app.connect("env-get-outdated", _always_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

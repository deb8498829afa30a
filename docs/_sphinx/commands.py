"""The page of the command line is made from the application itself: a section per command with its options."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sphinx.application import Sphinx

PLACE = "<!-- commands -->"
EXAMPLES = re.compile(r"^(?:Examples?:?)$|^ *(?:\\$ )?stpred ")


def commands_page() -> str:
    """Return Markdown: each command with its text, its arguments and its options in their groups."""
    from typer.main import get_command

    from stpred.cli import app

    root: Any = get_command(app)
    lines = ["## Before the command", "", *_options("stpred", root.params)]
    for name, command in root.commands.items():
        if not command.hidden:
            usage = " ".join(["stpred", name, *(p.make_metavar(_context(command)) for p in _arguments(command))])
            lines += [f"## stpred {name}", "", f"```text\n{usage} [OPTIONS]\n```", "", *_text(command.help or "")]
            lines += _options(name, command.params)
    return "\n".join(lines)


def _context(command: Any) -> Any:
    return command.context_class(command, info_name=command.name)


def _arguments(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "argument"]


def _text(text: str) -> Iterator[str]:
    """Give a help text; lines of commands are a block of code."""
    block: list[str] = []
    for line in [*text.replace("\b", "").splitlines(), ""]:
        if re.match(r"\s*(\$ )?stpred ", line) or (block and line.startswith("  ")):
            block.append(line.strip().removeprefix("$ "))
            continue
        if block:
            yield "\n".join(["", "```bash", *block, "```", ""])
            block = []
        yield _plain(line.strip())
    yield ""


def _plain(text: str) -> str:
    """Return text without the marks of the terminal, and with capitals in brackets as they are."""
    text = re.sub(r"\[/?(?:bold|dim|italic|red|green|cyan|yellow|blue)[^\]]*\]", "", text)
    return text.replace("<", "&lt;").replace("|", "\\|")


def _options(name: str, params: list[Any]) -> Iterator[str]:
    """Give a table for each group of options."""
    groups: dict[str, list[Any]] = {}
    for param in params:
        if not getattr(param, "hidden", False) and param.name != "help":
            standard = "Arguments" if param.param_type_name == "argument" else "Options"
            groups.setdefault(getattr(param, "rich_help_panel", None) or standard, []).append(param)
    for title, found in groups.items():
        yield from (f"### {title}", "", "| | |", "|---|---|")
        for param in found:
            yield f"| {_names(param)} | {_plain(' '.join((param.help or '').split()))}{_default(param)} |"
        yield ""


def _names(param: Any) -> str:
    if param.param_type_name == "argument":
        return f"`{param.human_readable_name}`"
    names = ", ".join(f"`{o}`" for o in (*param.opts, *param.secondary_opts))
    return names if param.is_flag else f"{names} {param.type.name.upper()}"


def _default(param: Any) -> str:
    value = param.default
    if value is None or value is False or callable(value) or param.required or value in ((), [], ""):
        return ""
    return f" Default: `{value}`."


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

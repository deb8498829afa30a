"""The reference: each public name is on one page, and each command on that of the command line."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
ENTRY = re.compile(r"^   ([A-Za-z_][\w.]*)$", flags=re.MULTILINE)


@pytest.fixture
def sphinx_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `docs/conf.py` adds to Sphinx can be imported."""
    monkeypatch.syspath_prepend(str(DOCS))
    yield
    for name in [n for n in sys.modules if n == "_sphinx" or n.startswith("_sphinx.")]:
        del sys.modules[name]


def entries() -> Counter[str]:
    """Return the names on the pages of the reference, with how often each is there."""
    pages = [p.read_text() for p in sorted((DOCS / "reference").glob("*.md"))]
    blocks = [b for text in pages for b in re.findall(r"autosummary::\n(.*?)```", text, flags=re.DOTALL)]
    return Counter(f"stpred.{name}" for block in blocks for name in ENTRY.findall(block))


def test_each_public_name_is_on_one_page(sphinx_parts: None) -> None:
    from _sphinx.public_names import public_names

    found = entries()
    assert set(found) == set(public_names())
    assert not [name for name, n in found.items() if n > 1]


def test_the_page_of_the_command_line_has_every_command_and_option(sphinx_parts: None) -> None:
    from _sphinx.commands import PLACE, commands_page
    from typer.main import get_command

    from stpred.cli import app

    assert PLACE in (DOCS / "reference" / "cli.md").read_text()
    sections = re.split(r"^## ", commands_page(), flags=re.MULTILINE)
    by_name = {s.splitlines()[0]: s for s in sections if s.strip()}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        options = [o for p in command.params if p.param_type_name == "option" for o in p.opts if o != "--help"]
        assert not [o for o in options if f"`{o}`" not in by_name[f"stpred {name}"]]

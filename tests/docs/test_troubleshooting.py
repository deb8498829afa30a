"""Each heading of the page of messages is a part of a message that the package prints."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "howto" / "troubleshooting.md"
LEAST = 20


@cache
def printed() -> tuple[str, ...]:
    """Return the constant parts of all strings of the package."""
    parts: set[str] = set()
    for module in (ROOT / "src" / "stpred").rglob("*.py"):
        tree = ast.parse(module.read_text())
        parts |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return tuple(parts)


def test_headings_are_messages_of_the_package() -> None:
    text, others = PAGE.read_text().split("## Messages of other packages")
    headings = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    messages = [h.strip("`") for h in headings if re.fullmatch(r"`[^`]+`", h)]
    assert len(messages) == len(headings) >= LEAST
    assert len(set(messages)) == len(messages)
    assert not [m for m in messages if not any(m in text for text in printed())]
    assert len(re.findall(r"^### `[^`]+`$", others, flags=re.MULTILINE)) == others.count("\n### ")


def test_each_message_has_a_cause_and_a_remedy() -> None:
    sections = re.split(r"^### ", PAGE.read_text(), flags=re.MULTILINE)[1:]
    assert not [s.splitlines()[0] for s in sections if len(s.split()) < 15]

"""The documentation builds without a warning, and a search for an error message finds the page that explains it."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGES = ROOT / "docs" / "howto" / "troubleshooting.md"


def headings() -> list[str]:
    """Return the messages that the page of troubleshooting explains: its headings in backticks, with ... for values."""
    if not MESSAGES.is_file():
        return []
    text = re.sub(r"```.*?```", "", MESSAGES.read_text(), flags=re.DOTALL)
    return [m.strip("` ") for m in re.findall(r"^###? (`.+`)\s*$", text, flags=re.MULTILINE)]


def texts_of(path: Path) -> Iterator[str]:
    """Give the strings of a module; a value within an f-string is one character that no message has."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "\0" for v in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def absent(messages: list[str], texts: list[str]) -> list[str]:
    """Return the messages of which no text has all parts, in order."""
    patterns = {
        m: re.compile(".*".join(re.escape(part.strip()) for part in m.split("...")), re.DOTALL) for m in messages
    }
    return [m for m, pattern in patterns.items() if not any(pattern.search(text) for text in texts)]


def test_a_message_that_is_gone_is_noticed() -> None:
    texts = ["There are \0 images; name one.", "another"]
    assert absent(["There are ... images; name one.", "There are ... files"], texts) == ["There are ... files"]


@pytest.mark.skipif(not MESSAGES.is_file(), reason="the page is being written")
def test_the_messages_that_are_explained_are_those_of_the_source() -> None:
    texts = [text for path in (ROOT / "src").rglob("*.py") for text in texts_of(path)]
    assert len(headings()) >= 20
    assert not absent(headings(), texts)


@pytest.mark.slow
def test_the_documentation_builds_and_messages_are_found(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")
    html = tmp_path / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(html)], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr[-5000:]
    text = (html / "searchindex.js").read_text()
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    if not headings():
        return
    page = index["docnames"].index("howto/troubleshooting")
    found = {title for title, places in index["alltitles"].items() if page in [doc for doc, _ in places]}
    plain = {re.sub(r"[^\w]+", "", title) for title in found}
    assert not [h for h in headings() if re.sub(r"[^\w]+", "", h) not in plain]

"""The documentation builds without a warning, and a search for an error message finds the page that explains it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MESSAGES = ROOT / "docs" / "howto" / "troubleshooting.md"


def headings() -> list[str]:
    """Return the messages that the page of troubleshooting explains: its headings in backticks, with ... for values."""
    text = re.sub(r"```.*?```", "", MESSAGES.read_text(), flags=re.DOTALL)
    return [m.strip("` ") for m in re.findall(r"^###? (`.+`)\s*$", text, flags=re.MULTILINE)]


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
    page = index["docnames"].index("howto/troubleshooting")
    found = {title for title, places in index["alltitles"].items() if page in [doc for doc, _ in places]}
    plain = {re.sub(r"[^\w]+", "", title) for title in found}
    assert not [h for h in headings() if re.sub(r"[^\w]+", "", h) not in plain]

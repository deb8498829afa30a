"""The notebooks of `notebooks/` become pages of `docs/tutorials/`, with their stored outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx


def from_the_copy(text: str) -> str:
    """Return a notebook with its links out of `notebooks/` as they are from `docs/tutorials/`."""
    return re.sub(r"\]\(\.\./(docs/)?", lambda found: "](../" if found[1] else "](../../", text)


def copy_notebooks(notebooks: Path, tutorials: Path) -> list[str]:
    """Copy each notebook that changed beside the tutorials' index, and remove copies of those that are gone.

    Links become links from the copy.
    """
    wanted = {p.name: from_the_copy(p.read_text(encoding="utf-8")) for p in notebooks.glob("*.ipynb")}
    for copy in tutorials.glob("*.ipynb"):
        if copy.name not in wanted:
            copy.unlink()
    for name, text in wanted.items():
        copy = tutorials / name
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
    return sorted(wanted)


def _before_reading(app: Sphinx) -> None:
    docs = Path(app.srcdir)
    copy_notebooks(docs.parent / "notebooks", docs / "tutorials")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", _before_reading)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

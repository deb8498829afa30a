"""Relative links that lead out of `docs/`, such as to `benchmarks/README.md`, lead to the repository on the web."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

LINK = re.compile(r"(\]\()(\.\./[^)#\s]+)([^)\s]*\))")


def to_the_web(text: str, page: Path, docs: Path, url: str) -> str:
    """Return the text of a page with each link to a file of the repository outside `docs` as an address of the web."""

    def replace(found: re.Match[str]) -> str:
        target = (page.parent / found[2]).resolve()
        if target.is_relative_to(docs) or not target.is_relative_to(docs.parent) or not target.exists():
            return found[0]
        kind = "tree" if target.is_dir() else "blob"
        return f"{found[1]}{url}/{kind}/main/{target.relative_to(docs.parent).as_posix()}{found[3]}"

    return LINK.sub(replace, text)


def _on_read(app: Sphinx, docname: str, source: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    source[0] = to_the_web(source[0], page, Path(app.srcdir).resolve(), app.config.repository_url)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_config_value("repository_url", "", "env")
    app.connect("source-read", _on_read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""The README is short, is read outside the repository, and its links lead to pages and files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]


def test_it_is_short_and_names_the_test_command() -> None:
    assert len(README.splitlines()) <= 120
    assert re.search(r"^make test\b", README, flags=re.MULTILINE)


def test_all_links_are_absolute() -> None:
    assert not re.findall(r"\]\((?!https://)[^)]*\)", README)


def test_links_to_pages_and_files_lead_somewhere() -> None:
    pages = re.findall(rf"{re.escape(URLS['Documentation'])}/en/latest/([\w/]+)\.html", README)
    files = re.findall(rf"{re.escape(URLS['Source'])}/blob/main/([^)#\s]+)", README)
    files += re.findall(r"https://raw\.githubusercontent\.com/[\w-]+/stpred/main/([^)\s]+)", README)
    assert pages
    assert files
    assert not [p for p in pages if not (ROOT / "docs" / f"{p}.md").is_file()]
    assert not [f for f in files if not (ROOT / f).exists()]

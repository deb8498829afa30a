"""The pages of methods: every family has one, in the same order of sections, and documented defaults are the code's."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from stpred.models import registry

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "methods"
SCRIPT = runpy.run_path(str(ROOT / "scripts" / "method_defaults.py"))
OTHERS = ("index", "training", "publications")
FAMILIES = {*registry.FAMILIES, *registry.STORED}
METHODS = [p for p in sorted(FOLDER.glob("*.md")) if p.stem not in OTHERS]
LAST = ["Limitations", "Measured", "Published", "Checkpoints and licence"]


def marked(text: str) -> dict[str, str]:
    """Return what stands between the markers, by family."""
    return {m[2]: m[3] for m in SCRIPT["MARKED"].finditer(text)}


def test_every_family_has_its_table_on_one_page() -> None:
    found = [name for page in FOLDER.glob("*.md") for name in marked(page.read_text())]
    assert sorted(found) == sorted([*FAMILIES, "network"])


@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda p: p.stem)
def test_documented_defaults_are_those_of_the_code(page: Path) -> None:
    wrong = [name for name, text in marked(page.read_text()).items() if text != SCRIPT["tables"](name)]
    assert not wrong, "run `python scripts/method_defaults.py --write`"


def test_the_index_links_each_family_to_the_page_that_has_its_table() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\((\w+\.md)\)", (FOLDER / "index.md").read_text(), flags=re.M)
    assert sorted(name for name, _ in rows) == sorted(FAMILIES)
    assert not [name for name, page in rows if name not in marked((FOLDER / page).read_text())]


def test_the_index_says_which_families_state_an_uncertainty() -> None:
    """Those that fill ``layers["std"]`` are the generative ones and ensembles."""
    rows = [line.split("|") for line in (FOLDER / "index.md").read_text().splitlines() if line.startswith("| [`")]
    stated = {name[1] for r in rows if "std" in r[5] and (name := re.search(r"`(\w+)`", r[1]))}
    assert stated == {n for n in registry.FAMILIES if registry.family(n).Config.generative} | {"ensemble"}


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.stem)
def test_pages_say_what_a_reader_must_know(page: Path) -> None:
    text = page.read_text()
    assert re.match(r"# .+\n\nThis page describes ", text)
    assert "**Publication" in text
    assert [s for s in re.findall(r"^## (.+)$", text, flags=re.M) if s in LAST] == LAST
    assert text.index("```python") < text.index("## Limitations")


def test_tables_come_from_the_classes() -> None:
    """Defaults, published values and meanings; settings that a family describes itself are among its own."""
    miso = SCRIPT["tables"]("miso")
    assert "| `n_neighbors` | `36` |  | Nearest locations" in miso
    assert "| `epochs` | `None` | `5` |\n" in miso
    assert "| `scale_genes` | `True` |" in SCRIPT["tables"]("scellst").split("Training (")[0]

"""Tables of the settings of model families, as in docs/methods: defaults, published values, meaning.

python scripts/method_defaults.py miso        # the tables of one family; network: settings that all networks share
python scripts/method_defaults.py --write     # put them into the pages of docs/methods, between their markers

Everything is read from the `Config` dataclasses and their docstrings.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import stpred as st
from stpred.encoders.composite import Composite
from stpred.models import registry
from stpred.models.base import BaseConfig
from stpred.models.parts.iterative import IterativeConfig
from stpred.models.parts.network import NetworkConfig

PAGES = Path(__file__).parents[1] / "docs" / "methods"

MARKED = re.compile(r"(<!-- printed by python scripts/method_defaults.py (\S+) -->\n)(.*?)(<!-- end -->)", flags=re.S)

HEAD = "| setting | default | {published}meaning |\n|---|---|{rule}---|\n"

NO_TILE = ("mean", "pretrained")
"""Families whose pages say nothing of a tile: there is none, or it depends on the predictor."""


def shown(value: Any) -> str:
    """Write a setting's value as code; a Config by its class."""
    if is_dataclass(value):
        return f"`{type(value).__name__}`"
    return f"`{value!r}`".replace("|", "\\|")


def plain(text: str) -> str:
    """Turn the markup of docstrings into markdown."""
    text = re.sub(r":(?:class|func|meth|mod):`~?([^`]+)`", r"`\1`", " ".join(text.split()))
    return text.replace("``", "`").replace("|", "\\|")


def described(config: type) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return each setting's companions in one entry of the docstring, and that entry's text."""
    found: dict[str, tuple[tuple[str, ...], str]] = {}
    for cls in reversed(config.__mro__):
        doc = inspect.cleandoc(cls.__doc__ or "")
        if "\nParameters\n" not in doc:
            continue
        part = doc.split("\nParameters\n----------\n")[1].split("\n\n")[0]
        for names, text in re.findall(r"^(\w[^\n]*)\n((?:[ ]+[^\n]*\n?)+)", part, flags=re.M):
            listed = tuple(n.strip() for n in names.split(","))
            found |= {name: (listed, plain(text)) for name in listed}
    return found


def rows(config: type[BaseConfig], names: list[str]) -> Iterator[str]:
    """Yield the lines of a table, one for each entry of the docstring."""
    ours = config()
    published = config.published() if hasattr(config, "published") else None
    entries, done = described(config), set()
    for name in names:
        together = [n for n in entries[name][0] if n in names]
        if name in done:
            continue
        done |= set(together)
        cells = [", ".join(f"`{n}`" for n in together), ", ".join(shown(getattr(ours, n)) for n in together)]
        if published is not None:
            same = all(getattr(ours, n) == getattr(published, n) for n in together)
            cells.append("" if same else ", ".join(shown(getattr(published, n)) for n in together))
        yield f"| {' | '.join([*cells, entries[name][1]])} |\n"


def table(config: type[BaseConfig], names: list[str]) -> str:
    """Return one table, or nothing where there is nothing to set."""
    if not names:
        return ""
    published = hasattr(config, "published")
    head = HEAD.format(published="`published()` | " if published else "", rule="---|" if published else "")
    return head + "".join(rows(config, names))


def short(config: type[BaseConfig], names: list[str]) -> str:
    """Return a table of settings whose meaning is on the page of training."""
    ours, published = config(), config.published() if hasattr(config, "published") else None
    text = "| setting | default |" + (" `published()` |" if published else "") + "\n|---|---|"
    text += ("---|" if published else "") + "\n"
    for name in names:
        value, other = getattr(ours, name), getattr(published, name, None)
        last = "" if published is None else f" {'' if value == other else shown(other)} |"
        text += f"| `{name}` | {shown(value)} |{last}\n"
    return text


def summary(family: str, config: BaseConfig) -> str:
    """Return what a family is trained on by default, in one line."""
    name = config.default_encoder
    seen = sizes(name, config.default_tile) if family not in NO_TILE else ""
    target, output = config.training_target(None), config.output_scale(None)
    scale = f'trained on `"{target}"`, predicts `"{output}"`'
    if family == "pretrained":
        return '`st.models.get` fills these in; scale of the predictions: `target=`, else `"relative"`.\n\n'
    return f'Default encoder `"{name}"`{seen}; {scale}.\n\n'


def sizes(name: str, tile: st.TileSpec | None) -> str:
    """Return what a default encoder sees, in micrometres and micrometres per pixel."""
    encoder = st.encoders.get(name) if "+" not in name else None
    members = encoder.members if isinstance(encoder, Composite) else ()
    specs = [m.card.tile for m in members] or [tile or encoder.card.tile]  # type: ignore[union-attr]
    said = list(dict.fromkeys(f"{s.size_um:.0f} um at {s.mpp:.3g} um per pixel" for s in specs))
    return f", tiles of {', '.join(said)}"


def tables(family: str) -> str:
    """Return what stands between the markers of a family, or of ``network``: the settings that all networks share."""
    if family == "network":
        return table(NetworkConfig, [f.name for f in fields(NetworkConfig)])
    cls = registry.family(family, stored=True).Config
    own = [f.name for f in fields(cls)]
    shared: list[str] = []
    if issubclass(cls, IterativeConfig):
        base = NetworkConfig if issubclass(cls, NetworkConfig) else IterativeConfig
        shared = [f.name for f in fields(base)]
        entries = inspect.cleandoc(vars(cls).get("__doc__") or "")
        shared = [n for n in shared if not re.search(rf"^([\w, ]*\b)?{n}\b[\w, ]*$", entries, flags=re.M)]
        described_here = [n for n in own if n not in shared]
        inherited = {f.name for f in fields(base)}
        own = sorted(described_here, key=lambda n: n in inherited)
    parts = [summary(family, cls()), table(cls, own)]
    if shared:
        parts += ["\n" if own else "", "Training ([what these mean](training.md)):\n\n", short(cls, shared)]
    return "".join(parts)


def main() -> None:
    """Print the tables of a family, or write those of all pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", help="a family's name, such as miso")
    parser.add_argument("--write", action="store_true", help="rewrite the pages of docs/methods")
    chosen = parser.parse_args()
    if chosen.family:
        sys.stdout.write(tables(chosen.family))
    if chosen.write:
        for page in sorted(PAGES.glob("*.md")):
            text = page.read_text()
            new = MARKED.sub(lambda m: m[1] + tables(m[2]) + m[4], text)
            if new != text:
                page.write_text(new)
                print(page.name)


if __name__ == "__main__":
    main()

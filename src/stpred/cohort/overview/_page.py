"""The page itself: words and figures put into the template, and the data that its script draws from."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from stpred._core.progress import duration, track
from stpred._core.tables import package_versions
from stpred.cohort.manifest import COMPLETE, FAILED, PENDING
from stpred.cohort.overview._thumbnails import thumbnail

if TYPE_CHECKING:
    import pandas as pd

ORDER = (FAILED, PENDING, COMPLETE)
"""Status from what a reader must look at to what they need not."""

LOW = 0.5
"""Share in distribution below which a slide is counted as out of distribution, as ``stpred predict`` does."""

MAX_GROUPS = 12

_TEXTS = ("slide", "path", "donor", "store", "error", "warnings", "worker", "finished", "table", "model", "model_id",
          "settings", "fingerprint")  # fmt: skip


def render(manifest: pd.DataFrame, folder: Path, page: Path, *, title: str | None, room: int, px: int) -> str:
    """Return the page; its thumbnails take what is left of `room` bytes."""
    heading = title if title is not None else f"Slides of {folder.resolve().name}"
    errors, warnings = _groups(manifest, "error", FAILED), _groups(manifest, "warnings", COMPLETE)
    data = {
        "columns": _columns(manifest, folder, page),
        "errorGroup": errors.member,
        "warningGroup": warnings.member,
        "low": LOW,
    }
    slots = {
        "title": escape(heading),
        "lead": _lead(manifest, folder),
        "tiles": _tiles(manifest),
        "histogram": _histogram(manifest["in_distribution"].dropna().to_numpy(dtype=np.float64)),
        "errors": _group_list(errors, "error", "Why slides failed"),
        "warnings": _group_list(warnings, "warning", "What was warned of"),
        "provenance": _provenance(manifest),
        "style": _read("page.css"),
        "script": _read("page.js"),
    }
    template = Template(_read("page.html"))
    rest = template.substitute(slots, data=_json(data), thumbnails="", footer="")
    sizes, pictures, dropped = _pictures(manifest, folder, px=px, room=room - len(rest.encode()))
    footer = f"Written on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by stpred {package_versions().get('stpred', '')}."
    if dropped:
        footer += f" {dropped:,} thumbnail{'s' * (dropped != 1)} found no room in the file (max_mb)."
    return template.substitute(slots, data=_json(data | {"thumbs": sizes}), thumbnails=pictures, footer=footer)


def _read(name: str) -> str:
    return (files("stpred.cohort.overview") / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """Return JSON that cannot end the element that it stands in, whatever a slide is called."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _columns(manifest: pd.DataFrame, folder: Path, page: Path) -> dict[str, list[Any]]:
    """Return what the script shows, a list a column."""
    found: dict[str, list[Any]] = {name: [str(v) for v in manifest[name]] for name in _TEXTS}
    found["status"] = [ORDER.index(s) for s in manifest["status"]]
    for name, key in (("share", "in_distribution"), ("mpp", "mpp"), ("seconds", "seconds")):
        values = manifest[key].to_numpy(dtype=np.float64)
        found[name] = [float(f"{v:.4g}") if np.isfinite(v) else None for v in values]
    for name, key in (("tiles", "n_tiles"), ("genes", "n_genes")):
        found[name] = [None if v != v else int(v) for v in manifest[key].astype("float64")]
    found["picture"] = [_link(folder, store, page) for store in found["store"]]
    return found


def _link(folder: Path, store: str, page: Path) -> str:
    """Return the link from the page to the picture beside a store, if it is there."""
    picture = (folder / store).with_suffix(".png") if store else None
    if picture is None or not picture.is_file():
        return ""
    relative = os.path.relpath(picture.resolve(), page.resolve().parent)
    return "./" + quote(Path(relative).as_posix())


class _Groups:
    """Texts that differ only in names and numbers, most frequent first."""

    def __init__(self, texts: list[str]) -> None:
        patterns = [_pattern(t) if t else "" for t in texts]
        count: dict[str, int] = {}
        for p in patterns:
            if p:
                count[p] = count.get(p, 0) + 1
        self.names = sorted(count, key=lambda p: (-count[p], p))
        self.counts = [count[p] for p in self.names]
        at = {p: i for i, p in enumerate(self.names)}
        self.member = [at.get(p, -1) for p in patterns]
        first: dict[str, str] = {}
        for text, p in zip(texts, patterns, strict=True):
            first.setdefault(p, text)
        self.examples = [first[p] for p in self.names]


def _groups(manifest: pd.DataFrame, column: str, status: str) -> _Groups:
    kept = manifest["status"] == status
    return _Groups([str(v).strip() if k else "" for v, k in zip(manifest[column], kept, strict=True)])


_VARIES = (
    (re.compile(r"'[^']*'|\"[^\"]*\"|“[^”]*”"), "…"),
    (re.compile(r"\[[^\]]*\]"), "…"),
    (re.compile(r"\S*[/\\]\S*[\w/\\]"), "…"),
    (re.compile(r"(?<![A-Za-z])[-+]?\d[\d.,]*(?:e[-+]?\d+)?"), "#"),
)


def _pattern(text: str) -> str:
    """Return a text without what differs from slide to slide: quoted names, paths and numbers.

    Examples
    --------
    >>> _pattern("The image '/a/b.svs' of 3 levels is cut off.") == _pattern("The image 'c' of 12 levels is cut off.")
    True
    """
    for varies, said in _VARIES:
        text = varies.sub(said, text)
    return " ".join(text.split())


def _group_list(groups: _Groups, kind: str, heading: str) -> str:
    if not groups.names:
        return ""
    items = []
    for i, (pattern, n, example) in enumerate(
        zip(groups.names[:MAX_GROUPS], groups.counts, groups.examples, strict=False)
    ):
        text = example if n == 1 else pattern
        items.append(
            f'<li><button type="button" class="group {kind}" data-{kind}="{i}" aria-pressed="false">'
            f"<span class=count>{n:,}</span> <span class=what>{escape(text)}</span></button></li>"
        )
    more = len(groups.names) - MAX_GROUPS
    note = f"<p class=note>and {more:,} more kinds, see the table</p>" if more > 0 else ""
    return f"<div><h3>{escape(heading)}</h3><ul class=groups>{''.join(items)}</ul>{note}</div>"


def _lead(manifest: pd.DataFrame, folder: Path) -> str:
    models = sorted({str(m) for m in manifest["model"] if m})
    by = f" by <strong>{escape(', '.join(models[:3]))}</strong>" if models else ""
    n = len(manifest)
    return f"{n:,} slide{'s' * (n != 1)}, predicted{by} into {escape(str(folder.resolve()))}."


def _tile(value: str, label: str, note: str = "", *, kind: str = "") -> str:
    small = f"<span class=note>{escape(note)}</span>" if note else ""
    return (
        f'<div class="tile {kind}"><span class=value>{escape(value)}</span>'
        f"<span class=label>{escape(label)}</span>{small}</div>"
    )


def _tiles(manifest: pd.DataFrame) -> str:
    count = {status: int((manifest["status"] == status).sum()) for status in ORDER}
    found = [_tile(f"{count[COMPLETE]:,}", f"of {len(manifest):,} slides are complete")]
    found.append(_tile(f"{count[FAILED]:,}", "failed", kind="bad" if count[FAILED] else ""))
    if count[PENDING]:
        found.append(_tile(f"{count[PENDING]:,}", "are pending"))
    share = manifest["in_distribution"].dropna().to_numpy(dtype=np.float64)
    if len(share):
        low = int((share < LOW).sum())
        found.append(_tile(f"{np.median(share):.0%}", "of tiles in distribution", "median of the slides"))
        what = "slide is" if low == 1 else "slides are"
        found.append(_tile(f"{low:,}", f"{what} mostly out of distribution", f"share below {LOW:.0%}"))
    tiles, seconds = manifest["n_tiles"].dropna(), manifest["seconds"].dropna()
    if len(tiles):
        found.append(_tile(_short(int(tiles.sum())), "tiles", f"median {int(tiles.median()):,} a slide"))
    if len(seconds):
        found.append(_tile(duration(float(seconds.sum())), "of work", f"median {duration(float(seconds.median()))}"))
    return "".join(found)


def _short(n: int) -> str:
    for size, unit in ((1e9, " G"), (1e6, " M")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,}"


def _histogram(share: np.ndarray) -> str:
    """Return the distribution of slides over the share in distribution, as SVG."""
    if len(share) == 0:
        return ""
    counts, edges = np.histogram(share, bins=20, range=(0.0, 1.0))
    top = int(counts.max())
    width, height, left, base = 440, 190, 40, 150
    right = width - 24
    step, scale = (right - left) / len(counts), (base - 16) / top
    bars = [
        f'<rect class="{"bar low" if edges[i] < LOW - 1e-9 else "bar"}" x="{left + i * step + 1:.1f}" '
        f'y="{base - n * scale:.1f}" width="{step - 2:.1f}" height="{n * scale:.1f}">'
        f"<title>{n} slides between {edges[i]:.0%} and {edges[i + 1]:.0%}</title></rect>"
        for i, n in enumerate(counts)
        if n
    ]
    marks = [
        f'<text x="{left + v * (right - left):.1f}" y="{base + 16}" text-anchor="middle">{v:.0%}</text>'
        for v in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    said = f"{len(share):,} slides by the share of their tiles that are in distribution, median {np.median(share):.0%}"
    return (
        f"<div><h3>Share of a slide’s tiles in distribution</h3><figure>"
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(said)}">{"".join(bars)}'
        f'<line class="axis" x1="{left}" y1="{base}" x2="{right}" y2="{base}"/>{"".join(marks)}'
        f'<text x="{left - 6}" y="20" text-anchor="end">{top:,}</text>'
        f'<text x="{left - 6}" y="{base}" text-anchor="end">0</text>'
        f'<text x="{(left + right) / 2:.0f}" y="{base + 34}" text-anchor="middle">'
        "tiles that look like those of the model’s training</text></svg></figure></div>"
    )


def _provenance(manifest: pd.DataFrame) -> str:
    """Return a table of the models, options and versions, and how many complete slides are of each."""
    complete = manifest[manifest["status"] == COMPLETE]
    if complete.empty:
        return "<p class=note>No slide is complete.</p>"
    columns = ["model", "model_id", "table", "settings", "versions"]
    rows = []
    for said, part in complete.groupby(columns, sort=False):
        cells = [*(str(v) for v in said[:4]), _versions(str(said[4])), f"{len(part):,}"]
        rows.append("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in cells) + "</tr>")
    head = "".join(f"<th scope=col>{c}</th>" for c in ("model", "id", "table", "options", "versions", "slides"))
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Models and versions">'
        f"<table class=plain><thead><tr>{head}</tr></thead><tbody>{''.join(rows[:50])}</tbody></table></div>"
    )


def _versions(text: str) -> str:
    try:
        return ", ".join(f"{k} {v}" for k, v in json.loads(text).items())
    except (ValueError, AttributeError):
        return text


def _pictures(manifest: pd.DataFrame, folder: Path, *, px: int, room: int) -> tuple[list[int], str, int]:
    """Return the length of each slide's thumbnail in base64, all of them in one text, and how many found no room."""
    sizes, parts, dropped = [], [], 0
    for picture in track(_each(manifest, folder, px), total=len(manifest), describe="thumbnails"):
        text = "" if picture is None else base64.b64encode(picture).decode("ascii")
        if len(text) > room:
            text, dropped = "", dropped + 1
        room -= len(text)
        sizes.append(len(text))
        parts.append(text)
    return sizes, "".join(parts), dropped


def _each(manifest: pd.DataFrame, folder: Path, px: int) -> Iterator[bytes | None]:
    for store, status in zip(manifest["store"], manifest["status"], strict=True):
        yield thumbnail(folder / store, px=px) if store and status == COMPLETE else None

"""The page itself: words and figures put into the template, and the data that its script draws from."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred._core import keys
from stpred._core.tables import one_donor, package_versions
from stpred._report._alignment import shift_text
from stpred._report._collect import (
    CONTEXT,
    LEVEL,
    LIBRARY,
    MEAN,
    NEIGHBOURS,
    RELIABILITY,
    RMAX,
    SCALES,
    Content,
)
from stpred._report._maps import Layout, Values, drawn_note, lay_out
from stpred._report._stated import stated
from stpred.pl.labels import unit_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEW = 8
"""Slides up to which their thumbnails are large."""

COLUMNS = {
    "score": ("Pearson", ""),
    "cv_pearson": ("In training", "Pearson on left-out slides of the model's own training"),
    LIBRARY: ("Library size", "Pearson that a location's total of all other genes gives"),
    NEIGHBOURS: ("Neighbour average", "Pearson that the measured mean of the nearest locations gives"),
    "ceiling": ("Ceiling", "Highest Pearson that the noise of the measurement allows"),
    "rmax": ("rmax", "Highest Pearson that the noise of the raw counts of training allows"),
    "mean_count": ("Mean count", "Measured counts per location"),
}

NAMES = {
    LIBRARY: "library size alone",
    NEIGHBOURS: "neighbour average",
    MEAN: "mean of training",
    RELIABILITY: "ceiling: reliability of the measurement",
    RMAX: "ceiling: rmax, the noise of raw counts",
}

METRIC_NAMES = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "pearson_given_library_size": "Pearson given library size",
    "pearson_smoothed": "Pearson, smoothed truth",
    "r2": "R²",
    "rmse": "RMSE",
    "mae": "MAE",
    "auroc": "AUROC",
    "ssim": "SSIM",
    LIBRARY: "library size",
    NEIGHBOURS: "neighbour average",
}

EXPLAINED = {
    "pearson_given_library_size": "“Given library size” is the partial correlation, the log library size held fixed.",
    "pearson_smoothed": "“Smoothed truth” is the measurement averaged over neighbouring locations.",
}
"""Sentences below the table of scores for metrics that it has."""


def render(
    content: Content, *, title: str | None, n_maps: int, room: int, image_key: str | None, coordinate_system: str
) -> str:
    """Return the page; its maps take what is left of `room` bytes."""
    slides = content.slides
    layouts = [
        lay_out(s, image_key=image_key, max_px=900 if len(slides) <= FEW else 480, coordinate_system=coordinate_system)
        for s in slides
    ]
    ranked = _ranked(content)
    best = ranked[:n_maps]
    worst = [g for g in ranked[::-1][:n_maps] if g not in best]
    data = _data(content, layouts, best, worst)
    named = ", ".join(s.name for s in slides[:3]) + (f" and {len(slides) - 3} more" if len(slides) > 3 else "")
    of = "" if slides[0].anonymous else f" of {named}"
    heading = title if title is not None else f"{content.model}: predicted expression{of}"
    unscored = [g for g in range(len(content.genes)) if g not in set(ranked)]
    order = list(dict.fromkeys([*_alternate(best, worst), *ranked, *unscored]))
    slots = {
        "title": escape(heading),
        "lead": _lead(content),
        "warnings": _warning_list(content),
        "tiles": _tiles(content),
        "histogram": _histogram(content),
        "overview": _overview(content),
        "slides": _slide_table(content),
        "provenance": stated(content),
        "score": escape(content.score),
        "drawn": drawn_note(layouts),
        "untried": " Where “Trusted” is –, the gene was not scored in every fold." if _any_untried(content) else "",
        "footer": f"Written on {datetime.now(UTC):%Y-%m-%d} by stpred {package_versions().get('stpred', '')}.",
        "style": _read("page.css"),
        "script": _read("page.js"),
    }
    template = Template(_read("page.html"))
    size = len(template.substitute(slots, data=_json(data | {"maps": {}})).encode())
    data["maps"] = _maps(content, layouts, order, room=room - size)
    return template.substitute(slots, data=_json(data))


def _read(name: str) -> str:
    return (files("stpred._report") / name).read_text(encoding="utf-8")


def _json(data: Any) -> str:
    """Return JSON that cannot end the element that it stands in, whatever a gene is called."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _ranked(content: Content) -> list[int]:
    """Return positions of scored genes, best first."""
    score = content.genes["score"].to_numpy(dtype=np.float64)
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), kind="stable")
    return [int(g) for g in order if np.isfinite(score[g])]


def _alternate(best: list[int], worst: list[int]) -> list[int]:
    rows = [*zip(best, worst, strict=False)]
    return [g for pair in rows for g in pair] + best[len(rows) :] + worst[len(rows) :]


def _numbers(values: Any) -> list[Any]:
    """Return numbers that are read by people: four digits, None where there is none."""
    return [None if not np.isfinite(v) else float(f"{v:.4g}") for v in np.asarray(values, dtype=np.float64)]


def _data(content: Content, layouts: list[Layout], best: list[int], worst: list[int]) -> dict[str, Any]:
    """Return what the script shows: genes, scores and slides."""
    genes = content.genes
    columns = []
    for key, (label, what) in COLUMNS.items():
        known = key in genes and genes[key].notna().any()
        if key == "cv_pearson" and known:  # out of cross-validation it is the score
            unseen = any("cross_validated" in s.provenance for s in content.slides)
            known = not unseen and not np.allclose(genes[key], genes["score"], atol=1e-3, equal_nan=True)
        if key == "rmax" and "ceiling" in genes and genes["ceiling"].notna().any():
            known = False
        if known or key == "score":
            text = content.score if key == "score" else what
            columns.append({"key": key, "label": label, "title": text, "values": _numbers(genes[key])})
    per_slide = [
        {"label": METRIC_NAMES.get(k, k), "values": [_numbers(row) for row in v]} for k, v in content.per_slide.items()
    ]
    return {
        "genes": [str(g) for g in genes.index],
        "columns": columns,
        "trusted": [None if pd.isna(t) else int(t) for t in genes["trusted"]] if "trusted" in genes else None,
        "units": [
            unit_of(content.slides[0].provenance.get("output_scale")),
            next((unit_of(s.both.target) for s in content.slides if s.both is not None), ""),
        ],
        "perSlide": per_slide,
        "slides": [layout.to_json(s.name) for s, layout in zip(content.slides, layouts, strict=True)],
        "measured": any(s.both is not None for s in content.slides),
        "best": best,
        "worst": worst,
    }


def _maps(content: Content, layouts: list[Layout], order: list[int], *, room: int) -> dict[str, Any]:
    """Return values of as many genes as there is room for, in that order."""
    readers = [Values(s, layout) for s, layout in zip(content.slides, layouts, strict=True)]
    found: dict[str, Any] = {}
    for g in order:
        maps = [reader.of(str(content.genes.index[g])) for reader in readers]
        size = len(json.dumps({str(g): maps}, separators=(",", ":")))
        if size > room:
            break
        room -= size
        found[str(g)] = maps
    return found


def _lead(content: Content) -> str:
    n, where = len(content.genes), len(content.slides)
    total = sum(len(s.rows) for s in content.slides)
    words = {keys.in_words(s.region) for s in content.slides}
    one = words.pop() if len(words) == 1 else ""
    what = one if one.endswith("s") or one == keys.NUCLEI else "locations"
    donors = "" if content.n_donors is None else f" of {_several(content.n_donors, 'donor')}"
    return (
        f"{_several(n, 'gene')} predicted from the H&amp;E image for {total:,} "
        f"{escape(what)} of {_several(where, 'slide')}{donors} by "
        f"<strong>{escape(content.model)}</strong>{_trained(content)}."
    )


def _several(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _trained(content: Content) -> str:
    """Say of how many donors the model learned, or that each slide's did not see it."""
    provenance = content.slides[0].provenance
    if provenance.get("cross_validated"):
        return ", cross-validated"
    donors = (provenance.get("training") or {}).get("n_donors")
    return f", trained on {_several(donors, 'donor')}" if donors else ""


def _warning_list(content: Content) -> str:
    if not content.warnings:
        return '<p class="fine">Nothing to warn of was found.</p>'
    return "<ul>" + "".join(f"<li>{escape(w)}</li>" for w in content.warnings) + "</ul>"


def _tile(value: str, label: str, note: str = "") -> str:
    small = f"<span class=note>{escape(note)}</span>" if note else ""
    return (
        f"<div class=tile><span class=value>{escape(value)}</span><span class=label>{escape(label)}</span>{small}</div>"
    )


def _tiles(content: Content) -> str:
    genes, found = content.genes, []
    score = genes["score"].dropna()
    if "trusted" in genes:
        found.append(_trusted(genes["trusted"], over=content.scored_over))
    if len(score):
        note = ""
        if LIBRARY in genes and genes[LIBRARY].notna().any():
            note = f"library size alone: {genes[LIBRARY].median():.2f}"
        found.append(_tile(f"{score.median():.2f}", f"median {content.score}", note))
        found.append(
            _tile(f"{score.quantile(0.9):.2f}", "90th percentile of genes", f"10th: {score.quantile(0.1):.2f}")
        )
    usual = [s.usual for s in content.slides if s.usual is not None]
    if usual:
        worst = f"lowest slide: {min(usual):.0%}" if len(usual) > 1 else ""
        if all(one_donor(s.provenance) for s in content.slides):
            worst = "which are of one donor"
        found.append(_tile(f"{np.mean(usual):.0%}", "of locations look like those of training", worst))
    covered = [s.coverage for s in content.slides if s.coverage is not None]
    if covered:
        found.append(_tile(f"{np.mean(covered):.0%}", f"of measurements inside their {LEVEL:.0%} intervals"))
    return "".join(found)


def _any_untried(content: Content) -> bool:
    return "trusted" in content.genes and bool(content.genes["trusted"].isna().any())


def _trusted(trusted: pd.Series, *, over: str | None) -> str:
    """Count trusted genes among those that were scored; of a cross-validation, in every fold."""
    known = trusted.dropna()
    label, note = "genes are trusted", "as the model states" + ("" if over is None else f", over {over}")
    if n_unknown := len(trusted) - len(known):
        label, note = "genes scored in every fold are trusted", f"{n_unknown:,} more were chosen in some folds only"
    return _tile(f"{int(known.sum()):,} of {len(known):,}", label, note)


def _histogram(content: Content) -> str:
    """Return the distribution of genes over scores, with the library size's as a line, as SVG."""
    score = content.genes["score"].dropna().to_numpy(dtype=np.float64)
    if len(score) == 0:
        return ""
    size = content.genes[LIBRARY].dropna().to_numpy(dtype=np.float64) if LIBRARY in content.genes else np.empty(0)
    low = float(np.floor(min(0.0, *score, *size) * 10) / 10)
    edges = np.linspace(low, 1.0, round((1.0 - low) * 20) + 1)
    bars, line = (np.histogram(np.clip(v, low, 1.0), bins=edges)[0] for v in (score, size))
    top = max(int(bars.max()), int(line.max()) if len(size) else 0, 1)
    width, height, left, base = 440, 220, 36, 180

    def across(v: float) -> float:
        return left + (v - low) / (1.0 - low) * (width - left - 12)

    def down(n: float) -> float:
        return base - n / top * (base - 14)

    parts = [
        f'<rect class="bar" x="{across(a) + 0.8:.1f}" y="{down(n):.1f}" width="{across(b) - across(a) - 1.6:.1f}" '
        f'height="{base - down(n):.1f}"><title>{a:.2f} to {b:.2f}: {n} genes</title></rect>'
        for a, b, n in zip(edges[:-1], edges[1:], bars.tolist(), strict=True)
        if n
    ]
    if len(size):
        steps = " ".join(
            f"L{across(a):.1f} {down(n):.1f} L{across(b):.1f} {down(n):.1f}"
            for a, b, n in zip(edges[:-1], edges[1:], line.tolist(), strict=True)
        )
        parts.append(f'<path class="line" d="M{across(low):.1f} {base} {steps} L{across(1.0):.1f} {base}"/>')
    parts.append(f'<path class="axis" d="M{left} {base} H{width - 12}"/>')
    ticks = np.round(np.arange(np.ceil(low * 5) / 5, 1.001, 0.2), 1)
    parts += [
        f'<text x="{across(float(t)):.1f}" y="{base + 17}" text-anchor="middle">{t:g}</text>' for t in ticks + 0.0
    ]
    parts += [
        f'<text x="{left - 6}" y="{down(n) + 4:.1f}" text-anchor="end">{n}</text>' for n in sorted({0, top // 2, top})
    ]
    parts.append(f'<text x="{(left + width) / 2}" y="{height - 6}" text-anchor="middle">{escape(content.score)}</text>')
    key = '<span class="key bar"></span> genes by prediction'
    if len(size):
        key += ' <span class="key line"></span> by library size alone'
    text = f"Distribution of {len(score)} genes: median {np.median(score):.2f}."
    return (
        f'<figure><figcaption>{key}</figcaption><svg viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(text)}">{"".join(parts)}</svg></figure>'
    )


def _table(header: list[str], rows: list[list[str]], *, marked: set[int] | None = None) -> str:
    """Return a table whose first column heads its rows; cells are HTML already."""
    head = "".join(f'<th scope="col">{h}</th>' for h in header)
    body = ""
    for i, row in enumerate(rows):
        light = ' class="context"' if marked and i in marked else ""
        cells = "".join(f"<td>{c}</td>" for c in row[1:])
        body += f'<tr{light}><th scope="row">{row[0]}</th>{cells}</tr>'
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any, form: str = ".3f") -> str:
    return "–" if value is None or not np.isfinite(value) else format(value, form)


def _overview(content: Content) -> str:
    """Return mean scores of the model beside its context, a table per scale."""
    frame = content.overview
    if not len(frame):
        return "<p>There are no scores against measurements to show.</p>"
    parts = []
    for scale in dict.fromkeys(frame.index.get_level_values(0)):
        part: pd.DataFrame = frame.loc[scale]
        part = part.loc[:, part.notna().any()]
        header = ["", *(METRIC_NAMES.get(c, c) for c in part.columns)]
        rows = [[escape(NAMES.get(m, str(m))), *(_cell(v) for v in row)] for m, row in part.iterrows()]
        light = {i for i, m in enumerate(part.index) if m in CONTEXT}
        parts.append(f"<h3>On {escape(SCALES.get(scale, str(scale)))}</h3>" + _table(header, rows, marked=light))
    note = (
        f"Means over {_several(len(content.genes), 'gene')}, each averaged over its slides first; a correlation that "
        "is undefined counts as 0. The lighter rows are no models: they say what a score is worth."
    )
    note += "".join(f" {said}" for metric, said in EXPLAINED.items() if metric in frame)
    return "".join(parts) + f'<p class="note">{note}</p>'


def _slide_table(content: Content) -> str:
    header = ["slide", "locations", "like training"]
    pearson, size = content.per_slide.get("pearson"), content.per_slide.get(LIBRARY)
    header += ["mean Pearson"] * (pearson is not None) + ["library size"] * (size is not None)
    covered = any(s.coverage is not None for s in content.slides)
    shifted = any(s.alignment is not None for s in content.slides)
    header += ["in intervals"] * covered + ["best shift, gain in Pearson"] * shifted + ["µm per pixel"]
    rows = []
    for i, s in enumerate(content.slides):
        row = [escape(s.name), f"{len(s.rows):,}", "–" if s.usual is None else f"{s.usual:.0%}"]
        row += [_cell(_mean(v[i])) for v in (pearson, size) if v is not None]
        row += ["–" if s.coverage is None else f"{s.coverage:.0%}"] * covered
        row += [shift_text(s)] * shifted
        row.append(_cell(s.provenance.get("mpp"), ".3g"))
        rows.append(row)
    return _table(header, rows)


def _mean(values: NDArray[np.float64]) -> float | None:
    """Return the mean of a correlation over the genes that have one on a slide, None where none has."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else None

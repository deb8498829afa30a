"""The card (``README.md``) of a model on the hub: what its record says, for people and for the hub's search."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.disk.hub_cards import header, metric, section, table, text_of
from stpred._core.keys import UM
from stpred._core.words.phrases import count

if TYPE_CHECKING:
    from stpred.models.base import Model, Record

MAX_GENES = 100
"""Rows of the table of genes."""
MAX_SLIDES = 50
"""Rows of the table of slides."""
FEW_DONORS = 5
"""Fewer than these, and the card says that scores say little about other donors."""

TAGS = ["biology", "spatial-transcriptomics", "histopathology", "gene-expression", "spatialdata", "scverse"]

_SCALES = {
    "log1p_cp10k": "log1p of counts per 10 000",
    "counts": "counts",
    "log_share": "logarithm of a gene's share of all counts",
    "relative": "a relative scale: correlations alone mean something",
}


def model_card(model: Model, repository: str, *, licence: str | None, notes: str | None) -> str:
    """Return the text of the card.

    Parameters
    ----------
    model
        A trained model.
    repository
        ``owner/name``, for the lines of code.
    licence
        Of the weights, an SPDX identifier such as ``"cc-by-4.0"``; None leaves it open.
    notes
        Markdown of the author, such as the study that the slides are from.
    """
    record = model.record
    parts = [
        header(
            {
                "library_name": "stpred",
                **_licence(licence),
                "tags": [*TAGS, model.family],
                "model-index": _index(record, repository),
            }
        ),
        f"# {text_of(record.name)}\n\n{_summary(model)}",
        "" if notes is None else section("Notes of the author", notes.strip()),
        section("How to use it", _usage(repository)),
        section("Training data", _training(record)),
        section("Genes", _genes(record)),
        section("Scores", _scores(record)),
        section("Encoder", _encoder(model)),
        section("Intended use", _INTENDED),
        section("Limits", _limits(model)),
        section("Details", _details(model)),
    ]
    return "\n\n".join(p for p in parts if p) + "\n"


_INTENDED = """\
Research on gene expression in H&E-stained tissue: virtual expression tables for spots, bins, cells or a grid, as an
input of scanpy and squidpy. Not for diagnosis, and not for decisions about patients."""


def _licence(licence: str | None) -> dict[str, str]:
    from stpred._core.disk.hub_cards import licence_fields

    return {} if licence is None else licence_fields(licence)


def _summary(model: Model) -> str:
    record = model.record
    scale = _SCALES.get(record.target, record.target)
    said = record.training.get("summary")
    return (
        f"Predicts the expression of {len(record.genes):,} genes from H&E images, as {scale}. A model of the family "
        f"`{model.family}` of [stpred](https://pypi.org/project/stpred/)" + (f", {text_of(said)}." if said else ".")
    )


def _usage(repository: str) -> str:
    return f"""\
```bash
pip install "stpred[hub]"
stpred predict SLIDE -o OUT.zarr --model hf:{repository}
```

```python
import stpred as st

sdata = st.io.read("SLIDE")
model = st.models.load("hf:{repository}")
st.tl.predict(sdata, model)
```

`hf:{repository}@COMMIT` is this version for good. The commit is part of the provenance of every prediction."""


def _training(record: Record) -> str:
    training = record.training
    slides: Mapping[str, Any] = training.get("slides", {})
    if not slides:
        return "The record of this model names no slides."
    donors = {str(s.get("donor") or name) for name, s in slides.items()}
    total = sum(int(s.get("n_locations", 0)) for s in slides.values())
    stated = "" if training.get("donors_given", True) else " Donors were not stated, so each slide counts as one."
    lines = [f"{count(len(slides), 'slide')} of {count(len(donors), 'donor')}, {total:,} locations.{stated}", ""]
    mpp = training.get("mpp", {})
    rows = [
        (text_of(name), text_of(s.get("donor") or name), f"{int(s.get('n_locations', 0)):,}", _decimals(mpp.get(name)))
        for name, s in list(slides.items())[:MAX_SLIDES]
    ]
    lines.append(table(("slide", "donor", "locations", f"{UM} per pixel"), rows))
    if len(slides) > MAX_SLIDES:
        lines.append(f"\n{len(slides) - MAX_SLIDES:,} more slides are in `config.json`.")
    where = [] if record.region is None else [f"Region: `{text_of(record.region)}`."]
    if record.pitch_um is not None:
        where.append(f"Median distance of neighbouring locations: {record.pitch_um:.4g} um.")
    if record.cells is not None:
        where.append(f"Locations are seen through their cells, `{text_of(record.cells)}`.")
    return "\n".join([*lines, *(["", " ".join(where)] if where else [])])


def _genes(record: Record) -> str:
    columns = {c: np.array([_float(v) for v in record.var[c]]) for c in _COLUMNS if c in record.var}
    trusted = record.var.get("trusted")
    n = len(record.genes)
    order = np.arange(n)
    if "cv_pearson" in columns:
        order = np.argsort(-np.nan_to_num(columns["cv_pearson"], nan=-2.0), kind="stable")
    rows = [
        (
            text_of(record.genes[i]),
            *(_decimals(values[i]) for values in columns.values()),
            *([] if trusted is None else ["yes" if trusted[i] else "no"]),
        )
        for i in order[:MAX_GENES].tolist()
    ]
    head = ("gene", *(_COLUMNS[c] for c in columns), *([] if trusted is None else ["trusted"]))
    known = "" if trusted is None else f", of which {sum(map(bool, trusted)):,} are trusted"
    said = f"{n:,} genes{known}."
    if n > MAX_GENES:
        best = "with the highest scores " if "cv_pearson" in columns else ""
        said += f" The {MAX_GENES} {best}are below; all are in `config.json` (`record.var`)."
    return f"{said}\n\n{table(head, rows)}"


_COLUMNS = {
    "cv_pearson": "Pearson",
    "cv_spearman": "Spearman",
    "rmax": "ceiling (rmax)",
    "n_slides": "slides scored",
}


def _scores(record: Record) -> str:
    pearson = _defined(record, "cv_pearson")
    if not len(pearson):
        return (
            "No gene was scored on held-out tissue, so none is trusted. Score the model on slides of your own with "
            "`stpred.tl.validate` before use."
        )
    rows = [("all genes", *_of(record, np.ones(len(record.genes), dtype=bool)))]
    if "trusted" in record.var:
        rows.append(("trusted genes", *_of(record, np.array([bool(t) for t in record.var["trusted"]]))))
    said = "Correlation of each gene's predictions with its measurement on slides that were held out of training."
    levels = [lv for lv in record.intervals.get("levels", ()) if lv.get("coverage") is not None]
    if levels:
        covered = ", ".join(f"{lv['coverage']:.1%} at {lv['level']:.0%}" for lv in levels)
        said += f" Coverage of the conformal intervals on held-out slides: {covered}."
    return f"{said}\n\n{table(('', 'genes scored', 'mean Pearson', 'median Pearson', 'mean Spearman'), rows)}"


def _of(record: Record, chosen: Any) -> tuple[str, ...]:
    pearson, spearman = _defined(record, "cv_pearson", chosen), _defined(record, "cv_spearman", chosen)
    middle = float(np.median(pearson)) if len(pearson) else None
    return f"{len(pearson):,}", _decimals(_mean(pearson)), _decimals(middle), _decimals(_mean(spearman))


def _index(record: Record, repository: str) -> list[dict[str, Any]] | None:
    """Return the scores as the hub's search reads them; None without."""
    found = [
        metric(kind, name, value)
        for kind, name, value in (
            ("pearson", "mean Pearson over genes", _mean(_defined(record, "cv_pearson"))),
            ("spearman", "mean Spearman over genes", _mean(_defined(record, "cv_spearman"))),
        )
        if value is not None
    ]
    if not found:
        return None
    task = {"type": "gene-expression-prediction", "name": "Gene expression from H&E"}
    data = {"type": "held-out-slides", "name": "Slides held out of training"}
    return [{"name": repository.partition("/")[2], "results": [{"task": task, "dataset": data, "metrics": found}]}]


def _encoder(model: Model) -> str:
    encoder = model.record.encoder
    if not encoder:
        return "None: the network takes pixels."
    rows = []
    for card in encoder.get("members") or [encoder]:
        tile = card.get("tile") or model.record.tile
        size = f"{tile['mpp'] * tile['size_px']:.4g} um ({tile['size_px']} px at {tile['mpp']:g} um)" if tile else ""
        gated = "on request" if card.get("gated") else "open"
        rows.append(
            (
                f"`{text_of(card['name'])}`", size, text_of(card.get("source", "")), text_of(card.get("revision", "")),
                text_of(card.get("licence", "unknown")), gated,
            )
        )  # fmt: skip
    said = "The licences of the encoders hold beside that of these weights."
    return f"{table(('encoder', 'tile', 'source', 'revision', 'licence', 'access'), rows)}\n\n{said}"


def _limits(model: Model) -> str:
    record = model.record
    donors = {str(s.get("donor") or n) for n, s in record.training.get("slides", {}).items()}
    found = [
        "Values hold for tissue, staining and scanners like those of the training slides. The columns `ood_score` and "
        "`in_distribution` of a prediction say which locations are unlike them.",
        f"A value depends on {model.support_um:.4g} um of tissue around its location, so values of a finer grid share "
        "most of what they depend on.",
    ]
    if "trusted" in record.var:
        found.append(
            "Use the genes whose column `trusted` is true; predictions of the others did not correlate with held-out "
            "measurements."
        )
    if 0 < len(donors) < FEW_DONORS:
        most = "" if record.training.get("donors_given", True) else "at most "
        found.append(
            f"It was trained on {most}{count(len(donors), 'donor')}: the scores say little about other donors, "
            "laboratories and diseases."
        )
    if record.target == "relative":
        found.append("Predictions have no unit; do not compare their size between genes.")
    if record.intervals:
        found.append("Intervals hold on average over slides like the training slides, not for each location.")
    return "\n".join(f"- {line}" for line in found)


def _details(model: Model) -> str:
    record = model.record
    rows = [
        ("family", f"`{model.family}`"),
        ("model id", f"`{model.id}`"),
        ("output scale", f"`{record.target}`"),
        ("gene rule", f"`{text_of(record.gene_rule.get('method', 'list'))}`"),
        ("seed", str(record.training.get("seed", ""))),
        ("written by", f"stpred {version('stpred')}"),
    ]
    if (tuned := record.training.get("finetuned")) is not None:
        base = tuned.get("base_hub") or tuned.get("base_name") or tuned.get("base")
        rows.append(("fine-tuned from", f"`{text_of(base)}` (model id `{text_of(tuned.get('base', ''))}`)"))
    files = "`config.json` (settings and record) and `model.safetensors` (weights). stpred reads nothing else."
    return f"{table(('', ''), rows)}\n\nFiles: {files}"


def _defined(record: Record, column: str, chosen: Any = None) -> Any:
    """Return the finite values of a column of the genes."""
    values = np.array([_float(v) for v in record.var.get(column, ())], dtype=np.float64)
    if chosen is not None and len(values):
        values = values[chosen]
    return values[np.isfinite(values)]


def _mean(values: Sequence[float] | Any) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _decimals(value: Any) -> str:
    """Return a number as it stands in a table, whole ones without decimals; empty without."""
    if value is None or not math.isfinite(value):
        return ""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"

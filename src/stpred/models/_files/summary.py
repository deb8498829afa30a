"""What a model prints of itself: its record in a few lines."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.words.encoders import encoder_words
from stpred._core.words.phrases import count

if TYPE_CHECKING:
    from stpred.models._files.record import Record
    from stpred.models.base import Model


def summary(model: Model) -> str:
    """Return the name, genes and scale of a model, its encoder, training data, scores and the tissue that it sees."""
    record, kind = model.record, type(model).__name__
    if not record.genes:
        return f"{kind}, not trained"
    lines = {
        "encoder": encoder_words(record.encoder, record.tile),
        "members": _members(model),
        "trained on": _training(record),
        "fine-tuned": _fine_tuned(record),
        "distilled": _distilled(record),
        "cross-validation": _scores(record),
        "a value depends on": _support(model),
        "from": model.hub,
    }
    head = f"{kind} {record.name!r}: {count(len(record.genes), 'gene')} on the scale {record.target}"
    return "\n".join([head, *(f"    {name}: {said}" for name, said in lines.items() if said)])


def _members(model: Model) -> str | None:
    """Count the members of an ensemble by their class."""
    kinds = Counter(type(m).__name__ for m in getattr(model, "members", ()))
    return " + ".join(f"{n} {kind}" for kind, n in kinds.items()) or None


def _fine_tuned(record: Record) -> str | None:
    if not (tuned := record.training.get("finetuned")):
        return None
    n = len(tuned.get("slides", []))
    return f"from {tuned.get('base_name')!r}, on {n} of these slides"


def _distilled(record: Record) -> str | None:
    teachers = Counter(str(t.get("family")) for t in record.training.get("distilled", {}).get("teachers", []))
    return ("from " + " + ".join(f"{n} {family}" for family, n in teachers.items())) if teachers else None


def _support(model: Model) -> str:
    """Say which tissue a value depends on, `support_um` and what is beyond it."""
    said, needs = f"{model.support_um:.4g} um of tissue", model.needs
    if needs.pixel_grid:
        return f"a pixel of {model.support_um:.4g} um, and what is seen around it"
    if needs.whole_slide:
        return f"{said}, and the whole slide"
    return f"{said}, and the mean and deviation of the slide's features" if needs.slide_statistics else said


def _training(record: Record) -> str | None:
    slides = record.training.get("slides", {})
    said = record.training.get("summary")
    if not slides:
        return said and f"slides that are not listed; {said}"
    n_locations = sum(int(s.get("n_locations", 0)) for s in slides.values())
    where = count(n_locations, "location") if record.region is None else f"{n_locations:,} {record.region}"
    if record.training.get("donors_given", True):
        whose = f" of {count(len({s.get('donor') or name for name, s in slides.items()}), 'donor')}"
    else:
        whose = " (donors not stated)"
    return f"{count(len(slides), 'slide')}{whose}, {where}" + (f"; {said}" if said else "")


def _scores(record: Record) -> str:
    scores = np.array([np.nan if v is None else v for v in record.var.get("cv_pearson", [])], dtype=float)
    if not np.isfinite(scores).any():
        return "no gene was scored on held-out tissue, so none is trusted"
    trusted = sum(map(bool, record.var.get("trusted", [])))
    return f"median Pearson {np.nanmedian(scores):.2f}; {trusted:,} of {len(record.genes):,} genes trusted"

"""What a model prints of itself: its record in a few lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stpred.models._files.record import Record
    from stpred.models.base import Model


def summary(model: Model) -> str:
    """Return the name, genes and scale of a model, its encoder, training data, scores and the tissue that it sees."""
    record, kind = model.record, type(model).__name__
    if not record.genes:
        return f"{kind}, not trained"
    lines = {
        "encoder": _encoder(record),
        "trained on": _training(record),
        "cross-validation": _scores(record),
        "a value depends on": f"{model.support_um:.4g} um of tissue",
        "from": model.hub,
    }
    head = f"{kind} {record.name!r}: {_number(len(record.genes), 'gene')}, {record.target}"
    return "\n".join([head, *(f"    {name}: {said}" for name, said in lines.items() if said)])


def _number(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _encoder(record: Record) -> str | None:
    name = record.encoder.get("name")
    if name is None or not record.tile:
        return name
    mpp, size_px = record.tile["mpp"], record.tile["size_px"]
    return f"{name}, tiles of {mpp * size_px:.4g} um at {mpp:.4g} um per pixel"


def _training(record: Record) -> str | None:
    slides = record.training.get("slides", {})
    said = record.training.get("summary")
    if not slides:
        return said
    n_locations = sum(int(s.get("n_locations", 0)) for s in slides.values())
    where = _number(n_locations, "location") if record.region is None else f"{n_locations:,} {record.region}"
    if record.training.get("donors_given", True):
        whose = f" of {_number(len({s.get('donor') or name for name, s in slides.items()}), 'donor')}"
    else:
        whose = " (donors not stated)"
    return f"{_number(len(slides), 'slide')}{whose}, {where}" + (f"; {said}" if said else "")


def _scores(record: Record) -> str:
    scores = np.array([np.nan if v is None else v for v in record.var.get("cv_pearson", [])], dtype=float)
    if not np.isfinite(scores).any():
        return "no gene was scored on held-out tissue, so none is trusted"
    trusted = sum(map(bool, record.var.get("trusted", [])))
    return f"median Pearson {np.nanmedian(scores):.2f}; {trusted:,} of {len(record.genes):,} genes trusted"

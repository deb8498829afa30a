"""What made the predictions, as the tables state it."""

from __future__ import annotations

import json
from html import escape
from typing import TYPE_CHECKING, Any

from stpred._report._collect import LEVEL, SCALES

if TYPE_CHECKING:
    from stpred._report._collect import Content


def stated(content: Content) -> str:
    """Return what made the predictions, in words, and all that the tables state, folded."""
    provenance = content.slides[0].provenance
    training = provenance.get("training") or {}
    encoder, tile = provenance.get("encoder") or {}, provenance.get("tile") or {}
    learned = training.get("slides") or {}
    versions = provenance.get("versions") or {}
    ids = list(dict.fromkeys(str(s.provenance.get("model_id")) for s in content.slides if s.provenance.get("model_id")))
    rows = {
        "Model": f"{provenance.get('model', 'not stated')} (family {provenance.get('family', 'not stated')})",
        "Model id": ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else ""),
        "Encoder": " ".join(str(encoder[k]) for k in ("name", "revision") if encoder.get(k)),
        "Licence of the encoder": str(encoder.get("licence") or ""),
        "Tile": (
            f"{tile['size_px']} px at {tile['mpp']:g} µm per pixel ({tile['size_px'] * tile['mpp']:g} µm)"
            if {"size_px", "mpp"} <= set(tile)
            else ""
        ),
        "A prediction sees": f"{provenance['support_um']:g} µm of tissue" if provenance.get("support_um") else "",
        "Output scale": SCALES.get(
            str(provenance.get("output_scale")), str(provenance.get("output_scale", "not stated"))
        ),
        "Trained on": _learned(training, learned, folds=provenance.get("cross_validated")),
        "Intervals": _intervals(provenance.get("intervals") or {}),
        "Genes chosen by": _rule(provenance.get("gene_rule") or {}),
        "Versions": ", ".join(f"{k} {v}" for k, v in versions.items()),
    }
    entries = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows.items() if v)
    stated = {s.name: s.provenance for s in content.slides}
    raw = escape(json.dumps(stated, indent=1, sort_keys=True, default=str))
    return f"<dl>{entries}</dl><details><summary>Everything that the tables state</summary><pre>{raw}</pre></details>"


def _learned(training: dict[str, Any], learned: dict[str, Any], *, folds: Any) -> str:
    """Write what the model learned from."""
    if folds:
        return "cross-validation: every slide is predicted by a model of slides that it shares no fold with"
    if not learned:
        return "not stated"
    donors = training.get("n_donors")
    of = f" of {donors} donor{'s' * (donors != 1)}" if donors else ""
    named = ", ".join(list(learned)[:12]) + (f" and {len(learned) - 12} more" if len(learned) > 12 else "")
    return f"{len(learned)} slide{'s' * (len(learned) != 1)}{of}: {named}"


def _intervals(stated: dict[str, Any]) -> str:
    """Write how intervals were calibrated, and what they held on slides that were left out of that."""
    level = next((i for i in stated.get("levels", []) if i.get("level") == LEVEL), None)
    if level is None:
        return ""
    held = level.get("coverage")
    notes = "".join(f" {sentence}" for sentence in stated.get("doubts", ()))
    if stated.get("withheld"):
        return f"withheld: {notes.strip()}"
    if not stated.get("slides"):
        return f"of {stated.get('how', 'not stated what')}.{notes}"
    text = f": at {LEVEL:.0%} they held {held:.0%} of the measurements of slides left out" if held is not None else ""
    return f"calibrated on {len(stated['slides'])} slides ({stated.get('how', 'not stated how')}){text}.{notes}"


def _rule(rule: dict[str, Any]) -> str:
    """Write a gene rule."""
    method, n = rule.get("method"), rule.get("n")
    if not method:
        return ""
    what = {"mean": "highest mean count", "hvg": "variability", "svg": "spatial variability", "rmax": "rmax"}
    if method == "list":
        return "a list that was given"
    return "all" if method == "all" else f"{what.get(method, method)}" + (f" (the first {n})" if n else "")

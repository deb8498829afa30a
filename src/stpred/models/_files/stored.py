"""What a stored model may say: every field of its record, checked before use."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError, listing
from stpred._core.disk import stored
from stpred._core.targets import SCALES
from stpred.models.base import MAX_UM, Model, Record

TARGETS = (*SCALES, "relative")
MAX_GENES = 200_000


_um = partial(stored.number, low=0.01, high=MAX_UM)
_correlation = partial(stored.number, low=-1.0 - 1e-6, high=1.0 + 1e-6)
_amount = partial(stored.number, low=0)
_name = partial(stored.text, most=500)


def _target(value: Any, where: str) -> str:
    if value not in TARGETS:
        raise stored.refuse(where, f"one of {list(TARGETS)}", value)
    return str(value)


def _symbols(value: Any, where: str) -> list[str]:
    found = stored.items(value, where, _name, most=MAX_GENES)
    if not found:
        raise InputError(f"{where} lacks genes.")
    if len(set(found)) < len(found):
        twice = sorted({g for g in found if found.count(g) > 1}) if len(found) < 2000 else ()
        raise InputError(f"{where} has genes twice{f': {listing(twice)}' if twice else ''}.")
    return found


def _optional_items(check: stored.Check) -> stored.Check:
    return lambda value, where: stored.items(value, where, stored.optional(check))


_COLUMNS: dict[str, stored.Check] = {
    "gene_id": _optional_items(_name),
    "trusted": lambda v, w: stored.items(v, w, stored.optional(stored.flag)),
    **dict.fromkeys(("cv_pearson", "cv_spearman", "rmax"), _optional_items(_correlation)),
    **dict.fromkeys(("mean", "n_slides"), _optional_items(_amount)),
    **dict.fromkeys(("interval_low", "interval_high"), _optional_items(stored.number)),
}


def _column(value: Any, where: str) -> Any:
    """Check a column of another name: all text, all true or false, or all numbers; None anywhere."""
    there = [v for v in value if v is not None] if isinstance(value, (list, tuple)) else []
    first = there[0] if there else 0.0
    check: stored.Check = (
        stored.flag if isinstance(first, bool) else stored.text if isinstance(first, str) else stored.number
    )
    return stored.items(value, where, stored.optional(check))


def _var(value: Any, where: str) -> dict[str, list[Any]]:
    found = stored.mapping(value, where, {}, open_ended=True)
    for name in found:
        stored.text(name, f"a column's name in {where}", most=200)
        if "/" in name or name.startswith("_"):
            raise InputError(f"{where} has a column {name!r}, which no table can hold.")
    return {k: _COLUMNS.get(k, _column)(v, f"{where}.{k}") for k, v in found.items()}


def _gene_rule(value: Any, where: str) -> dict[str, Any]:
    return stored.mapping(
        value,
        where,
        {
            "method": partial(stored.text, most=50),
            "n": stored.optional(stored.whole),
            "genes": stored.optional(lambda v, w: stored.items(v, w, _name)),
            "min_total": _amount,
        },
        open_ended=True,  # models may say what was done beside the rule
    )


def _training(value: Any, where: str) -> dict[str, Any]:
    def slide(value: Any, where: str) -> dict[str, Any]:
        checks: dict[str, stored.Check] = {
            "donor": stored.optional(_name),
            "image": stored.optional(_name),
            "n_locations": partial(stored.whole, low=0),
        }
        return stored.mapping(value, where, checks, open_ended=True)

    def curve(value: Any, where: str) -> dict[str, Any]:
        each = stored.mapping(value, where, {}, open_ended=True)
        return {k: stored.items(v, f"{where}.{k}", stored.optional(stored.number)) for k, v in each.items()}

    def by_slide(value: Any, where: str, check: stored.Check) -> dict[str, Any]:
        each = stored.mapping(value, where, {}, open_ended=True)
        return {k: check(v, f"{where}.{k[:80]}") for k, v in each.items()}

    return stored.mapping(
        value,
        where,
        {
            "slides": lambda v, w: by_slide(v, w, slide),
            "mpp": lambda v, w: by_slide(v, w, stored.optional(partial(stored.number, low=1e-4, high=1e4))),
            "summary": _name,
            **dict.fromkeys(("target", "scored_on"), stored.optional(_name)),
            **dict.fromkeys(("hexagonal", "donors_given"), stored.flag),
            **dict.fromkeys(("width_um", "token_um"), stored.optional(_um)),
            "slide_limit": stored.optional(partial(stored.number, low=1e-9, high=1e9)),
            "epochs": stored.optional(stored.whole),
            "curve": stored.optional(curve),
        },
        open_ended=True,
    )


def _library(value: Any, where: str) -> dict[str, Any]:
    found = stored.mapping(
        value,
        where,
        {
            "n_genes": stored.whole,
            "median_size": _amount,
            "genes": _symbols,
            "share": lambda v, w: stored.items(v, w, lambda n, at: stored.number(n, at, low=0, high=1)),
        },
        required=("genes", "share", "median_size") if value else (),
        open_ended=True,
    )
    if len(found.get("genes", ())) != len(found.get("share", ())):
        raise InputError(f"{where} has {len(found['genes'])} genes, but {len(found['share'])} values of share.")
    return found


def _intervals(value: Any, where: str) -> dict[str, Any]:
    def scale(value: Any, where: str) -> str:
        if value not in ("identity", "sqrt"):
            raise stored.refuse(where, "'identity' or 'sqrt'", value)
        return str(value)

    def level(value: Any, where: str) -> dict[str, Any]:
        return stored.mapping(
            value,
            where,
            {
                "level": partial(stored.number, low=1e-6, high=1 - 1e-6),
                **dict.fromkeys(("factor", "coverage", "coverage_sd"), stored.optional(stored.number)),
                **dict.fromkeys(("low", "high"), _optional_items(stored.number)),
            },
            required=("level", "low", "high"),
            open_ended=True,
        )

    found = stored.mapping(
        value,
        where,
        {
            "scale": scale,
            "slides": lambda v, w: stored.items(v, w, _name),
            "n_donors": stored.optional(stored.whole),
            "width_um": stored.optional(_um),
            "how": _name,
            "levels": lambda v, w: stored.items(v, w, level, most=1000),
        },
        required=("levels",) if value else (),
        open_ended=True,
    )
    stated = [i["level"] for i in found.get("levels", ())]
    if len(set(stated)) < len(stated):
        raise InputError(f"{where} has a level twice.")
    return found


def _hub(value: Any, where: str) -> dict[str, Any]:
    wanted = ("repository", "revision", "model_id")
    return stored.mapping(value, where, dict.fromkeys(wanted, _name), required=wanted)


def _empty_or(check: stored.Check) -> stored.Check:
    return lambda value, where: {} if value == {} else check(value, where)


_RECORD: dict[str, stored.Check] = {
    "name": partial(stored.text, most=200),
    "genes": _symbols,
    "var": _var,
    "encoder": _empty_or(stored.card),
    "tile": _empty_or(stored.tile),
    "gene_rule": _gene_rule,
    "target": _target,
    "pitch_um": stored.optional(_um),
    **dict.fromkeys(("region", "cells"), stored.optional(_name)),
    "reach_um": stored.optional(partial(stored.number, low=0, high=MAX_UM)),
    "training": _training,
    "library": _library,
    "intervals": _intervals,
    "output_size": lambda v, w: stored.items(v, w, _amount, most=MAX_GENES),
    "hub": _empty_or(_hub),
}


def record(values: Any, path: Path) -> Record:
    """Return the record that a file holds, after checking every field's kind, range and length."""
    where = f"The record of {str(path)!r}"
    if not isinstance(values, dict):
        raise InputError(f"{str(path)!r} holds no record under 'record' but {values!r}.")
    parsers = {f.name: _RECORD.get(f.name, stored.sane) for f in fields(Record)}
    if unknown := sorted(set(values) - set(parsers)):
        raise InputError(f"{where} has unknown fields {listing(unknown)}; known are {sorted(parsers)}.")
    if lacking := [k for k in ("name", "genes") if not values.get(k)]:
        raise InputError(f"{where} lacks {lacking}.")
    stored.sane(values, where)
    found = Record(**{k: parsers[k](v, f"{where} ({k})") for k, v in values.items()})
    n = len(found.genes)
    columns: dict[str, Any] = dict(found.var)
    if found.output_size:
        columns["output_size"] = found.output_size
    for level in found.intervals.get("levels", ()):
        columns |= {f"{side} of intervals {level['level']}": level[side] for side in ("low", "high")}
    if odd := [k for k, v in columns.items() if len(v) != n]:
        raise InputError(f"{where} has {n} genes, but not as many values of {listing(odd)}.")
    return found


def check_width(model: Model, path: Path) -> None:
    """Refuse a record whose encoder gives features of another width than the network takes."""
    found = model.record.encoder
    if not found:
        return
    if model.record.tile and found.get("tile", model.record.tile) != model.record.tile:
        raise InputError(f"The record of {str(path)!r} states two tiles: {found['tile']} and {model.record.tile}.")
    dense = model.needs.tokens and not model.needs.isolated
    given = (found.get("dense") or [None] * 3)[2] if dense else found.get("width")
    if dense and model.needs.hierarchy:  # beside a token those of its tile, and a colour
        given = None if given is None else given + found["width"] + 3
    if given is not None and not model.needs.pixel_grid and given != model.n_features:
        raise InputError(
            f"{str(path)!r} says that the network takes {model.n_features} features, and that the encoder "
            f"{found['name']!r} gives {given}."
        )

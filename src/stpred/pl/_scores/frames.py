"""Rows of tidy frames that are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing
from stpred.pl._figure import need_columns
from stpred.pl.labels import unit_of

if TYPE_CHECKING:
    import pandas as pd

ACRONYMS = {"r2": "R2", "rmse": "RMSE", "mae": "MAE", "auroc": "AUROC", "ssim": "SSIM"}
SOURCE = "stpred.tl.cross_validate"


def of_metric(scores: Any, metric: str, target: str | None, *, context: bool = False) -> pd.DataFrame:
    """Return the rows of one metric and scale of a tidy frame; without `context`, those of models alone."""
    needed = ("model", "slide", "gene", "metric", "value", "target")
    frame = need_columns(scores, needed, name="scores", source=SOURCE)
    scales = [str(t) for t in frame["target"].dropna().unique()]
    if target is not None:
        key_in(target, scales, what="scale", name="target")
    elif len(scales) != 1:
        raise InputError(f"`scores` were taken on the scales {listing(scales)}; name one with `target`.")
    part = frame[(frame["target"] == (target or scales[0])) & (frame["metric"] == metric)]
    part = part[part["model"] != keys.CEILING] if context else part[~part["model"].isin(keys.CONTEXT)]
    if part.empty:
        raise InputError(f"No score named {metric!r} (`metric`); available: {listing(frame['metric'].unique())}.")
    if keys.zero_is_nothing(metric):
        part = part.assign(value=part["value"].fillna(0.0))
    return part


def axis_name(metric: str, target: str) -> str:
    """Return what an axis of scores is called."""
    name = metric.replace("_", " ")
    name = name[0].upper() + name[1:] if metric not in ACRONYMS else ACRONYMS[metric]
    return f"{name} ({unit_of(target) or target})"


def of_model(part: pd.DataFrame, model: str | None) -> tuple[pd.DataFrame, str]:
    """Return the rows of one model, the only one where none is named."""
    names = [str(m) for m in part["model"].unique()]
    if model is None and len(names) > 1:
        raise InputError(f"`scores` has the models {listing(names)}; name one with `model`.")
    chosen = names[0] if model is None else key_in(model, names, what="model", name="model")
    return part[part["model"] == chosen], chosen


def p_text(p: float) -> str:
    """Write a p-value."""
    if p != p:
        return "n.a."
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"

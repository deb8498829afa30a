"""Genes, scales and scores as they are named in figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.tables import read_provenance, scored_over

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

OOD_UNIT = "0 = like the training tiles"


def best_genes(table: AnnData, n: int = 3) -> list[str]:
    """Return the genes that the model predicts best; the first ones where nothing is known."""
    order = table.var_names
    if "cv_pearson" in table.var:
        order = table.var["cv_pearson"].fillna(-1).sort_values(ascending=False, kind="stable").index
    return list(order[:n])


def spaced(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Return rising heights at least `gap` apart, about the middle of the given ones, so that labels do not overlap."""
    steps = np.arange(len(heights)) * gap
    found = np.maximum.accumulate(heights - steps) + steps
    return found - (found - heights).mean() if len(heights) else found


def unit_of(scale: str | None) -> str:
    """Name a scale as it is written beside a colour bar."""
    names = {
        "log1p_cp10k": "log1p CP10k", "counts": "counts", "log_share": "log share", "relative": "relative expression",
    }  # fmt: skip
    return names.get(scale or "", "")


def stated_of(table: AnnData) -> dict[str, Any]:
    """Return the provenance of a table, empty where it has none."""
    return read_provenance(table) if isinstance(table.uns.get(keys.UNS), str) else {}


def title_of(table: AnnData, name: str, shapes_key: str) -> str:
    """Say beside the gene how well it was predicted on slides that were held out during training.

    Where that was over other locations than those of `shapes_key`, which are drawn, it says over which.
    """
    if name not in table.var_names or "cv_pearson" not in table.var:
        return name
    score = table.var.loc[name, "cv_pearson"]
    if not np.isfinite(score):
        return f"{name} (not validated)"
    where = scored_over(stated_of(table), shapes_key)
    return (
        f"{name} (cross-validated r = {score:.2f})"
        if where is None
        else f"{name} (r = {score:.2f} over held-out {where})"
    )

"""Who may be trained on with whom, and which genes the training slides choose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stpred import genes as gene_kernels
from stpred._core.checks import InputError, listing
from stpred.data._regions import Region

if TYPE_CHECKING:
    import pandas as pd


def donor_folds(slides: list[str], groups: Mapping[str, str] | str) -> dict[str, str]:
    """Return each slide's donor; ``groups="slide"`` makes each slide its own."""
    if isinstance(groups, str):
        if groups != "slide":
            raise InputError(f"`groups` must map every slide to its donor, or be 'slide'; got {groups!r}.")
        return {s: s for s in slides}
    if not isinstance(groups, Mapping):
        raise InputError(f"`groups` must map every slide to its donor, or be 'slide'; got {groups!r}.")
    if missing := [s for s in slides if s not in groups]:
        raise InputError(f"`groups` names no donor for slides {listing(missing)}; it has {listing(groups)}.")
    return {s: str(groups[s]) for s in slides}


def choose_genes(regions: list[Region], rule: Any) -> pd.DataFrame:
    """Return genes chosen by a rule on these regions alone, best first, with their scores."""
    names, columns = gene_kernels.shared_genes({r.slide: r.var.index for r in regions if r.var is not None})
    counts = {r.slide: r.counts[:, columns[r.slide]] for r in regions if r.counts is not None}
    return gene_kernels.select(rule, counts, names, coords_um={r.slide: r.coords_um for r in regions})

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, fraction_of, listing, whole
from stpred.pl._figure import finish, need_columns, plain, single
from stpred.pl.labels import spaced

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

MIN_P = 1e-300
"""Smallest p that is drawn, so that a p of 0 has a place."""

MIN_PROBABILITY = 1e-40
"""The same of a posterior probability, which some tens of draws cannot tell from 0 anyway."""

SOURCE = "stpred.tl.differential_expression or stpred.tl.markers"


@dataclass(frozen=True)
class _Genes:
    names: NDArray[Any]
    change: NDArray[np.float64]
    height: NDArray[np.float64]
    clear: NDArray[np.bool_]
    label: str
    title: str


def volcano(
    found: Any,
    *,
    group: Any = None,
    min_change: float = 1.0,
    level: float = 0.05,
    n_labels: int = 10,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the fold change of each gene against the evidence for it.

    Parameters
    ----------
    found
        What :func:`stpred.tl.differential_expression` or :func:`stpred.tl.markers` (with ``n_genes=None``) returned, or
        an AnnData after :func:`scanpy.tl.rank_genes_groups`.
    group
        Which comparison of several: a pair of regions such as ``("tumour", "stroma")``, or a group; None: the only one.
    min_change
        Smallest absolute log2 fold change that is coloured.
    level
        Largest adjusted p that is coloured; of a posterior, probability that the sign is wrong.
    n_labels
        Genes that are named on each side, those of largest evidence among the coloured ones.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Upwards is minus the decimal logarithm of the adjusted p, or of the posterior probability that the sign of
    the change is wrong.

    Raises
    ------
    InputError
        If `found` holds no comparison, or several and `group` names none of them.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> frame = pd.DataFrame({"group": "a", "gene": ["A", "B"], "log2_fold_change": [2.0, 0.1], "p_adj": [1e-9, 0.8]})
    >>> axes = st.pl.volcano(frame)
    """
    level, n_labels = fraction_of(level, name="level"), whole(n_labels, name="n_labels") if n_labels else 0
    genes = _genes(found, group, level=level)
    known = np.isfinite(genes.change) & np.isfinite(genes.height)
    if not known.any():
        raise InputError("No gene has a fold change and its evidence; relative values have no fold change.")
    change, height, names = genes.change[known], genes.height[known], genes.names[known]
    strong = genes.clear[known] & (np.abs(change) >= float(min_change))
    ax = single(ax, size=(5.4, 4.6))
    colors = np.where(~strong, "0.75", np.where(change > 0, "C3", "C0"))
    ax.scatter(change, height, c=colors.tolist(), s=10, linewidths=0)
    ax.axhline(-np.log10(level), color="0.4", linestyle=":", linewidth=0.8)
    for edge in (-min_change, min_change) if min_change else ():
        ax.axvline(edge, color="0.4", linestyle=":", linewidth=0.8)
    reach = 1.45 * float(np.abs(change).max()) or 1.0
    ax.set(xlim=(-reach, reach), ylim=(-0.02 * height.max(), 1.1 * max(float(height.max()), 1e-6)))
    for side in (change > 0, change < 0):
        rows = np.flatnonzero(strong & side)
        order = rows[np.lexsort([-np.abs(change[rows]), -height[rows]])][:n_labels]
        _name(ax, change[order], height[order], names[order])
    ax.set(xlabel="log2 fold change", ylabel=genes.label, title=genes.title)
    ax.text(0.99, 0.01, f"{int((strong & (change > 0)).sum())} up", color="C3", ha="right", transform=ax.transAxes)
    ax.text(0.01, 0.01, f"{int((strong & (change < 0)).sum())} down", color="C0", ha="left", transform=ax.transAxes)
    plain(ax)
    return finish(ax, save)


def _name(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], names: NDArray[Any]) -> None:
    """Write names in a column beyond the outermost point, inside the axes, with a line from each to its point."""
    if not len(x):
        return
    low, high = ax.get_ylim()
    step = 0.035 * (high - low)
    column = float(np.abs(x).max()) + 0.06 * ax.get_xlim()[1]
    order = np.argsort(y, kind="stable")
    heights = spaced(y[order], step)
    heights += max(0.0, low + 2 * step - heights[0])  # above the number of genes
    for i, height in zip(order, heights, strict=True):
        ax.annotate(
            str(names[i]), (x[i], y[i]), xytext=(np.sign(x[i]) * column, height), fontsize=7, va="center",
            ha="right" if x[i] < 0 else "left", textcoords="data",
            arrowprops={"arrowstyle": "-", "linewidth": 0.3, "color": "0.5", "shrinkA": 1, "shrinkB": 2},
        )  # fmt: skip


def _genes(found: Any, group: Any, *, level: float) -> _Genes:
    """Return fold changes and evidence of one comparison, whatever it came from."""
    if hasattr(found, "uns"):
        return _of_scanpy(found, group, level=level)
    from scipy.stats import norm

    frame = need_columns(found, ("gene", "log2_fold_change"), name="found", source=SOURCE)
    by = ["first", "second"] if {"first", "second"} <= set(frame) else ["group"] if "group" in frame else []
    part, title = _chosen(frame, by, group)
    names, change = part["gene"].to_numpy(dtype=object), part["log2_fold_change"].to_numpy(dtype=np.float64)
    if "probability" in part:
        wrong = 1 - part["probability"].to_numpy(dtype=np.float64)
        if "inverse_cv" in part:  # where all draws agree: 1 - probability is lost in rounding
            tail = norm.sf(part["inverse_cv"].to_numpy(dtype=np.float64))
            wrong = np.where(wrong > 1e-12, wrong, tail)
        clear = wrong <= level
        if "credible" in part:
            clear &= part["credible"].to_numpy(dtype=bool)
        label = "-log10 posterior probability of the other sign"
        return _Genes(names, change, _height(np.maximum(wrong, MIN_PROBABILITY)), clear, label, title)
    need_columns(part, ("p_adj",), name="found", source=SOURCE)
    p = part["p_adj"].to_numpy(dtype=np.float64)
    return _Genes(names, change, _height(p), p <= level, "-log10 adjusted p", title)


def _height(p: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log10(np.maximum(p, MIN_P))


def _chosen(frame: pd.DataFrame, by: list[str], group: Any) -> tuple[pd.DataFrame, str]:
    """Return the rows of one comparison, and what it is called."""
    if not by:
        return frame, ""
    wanted = None if group is None else tuple(map(str, group if isinstance(group, (tuple, list)) else (group,)))
    keyed = list(frame[by].astype(str).itertuples(index=False, name=None))
    known = list(dict.fromkeys(keyed))
    if wanted is None and len(known) > 1:
        raise InputError(f"`found` holds {len(known)} comparisons; name one with `group`: {listing(known)}.")
    chosen = known[0] if wanted is None else wanted
    if chosen not in known:
        raise InputError(f"`found` has no comparison {group!r} (`group`); it has {listing(known)}.")
    rows = np.array([k == chosen for k in keyed])
    return frame[rows], " against ".join(chosen) if len(chosen) == 2 else chosen[0]


def _of_scanpy(table: Any, group: Any, *, level: float) -> _Genes:
    """Return the comparison of a group by scanpy."""
    if "rank_genes_groups" not in table.uns:
        raise InputError("The AnnData has no uns['rank_genes_groups']; run scanpy.tl.rank_genes_groups on it.")
    ranked = table.uns["rank_genes_groups"]
    groups = list(ranked["names"].dtype.names)
    if group is None and len(groups) > 1:
        raise InputError(f"scanpy compared {len(groups)} groups; name one with `group`: {listing(groups)}.")
    chosen = groups[0] if group is None else str(group)
    if chosen not in groups:
        raise InputError(f"scanpy compared no group {group!r} (`group`); it has {listing(groups)}.")
    if "logfoldchanges" not in ranked or "pvals_adj" not in ranked:
        raise InputError("The ranking has no fold changes or p-values: rank by 't-test' or 'wilcoxon'.")
    p = np.asarray(ranked["pvals_adj"][chosen], dtype=np.float64)
    return _Genes(
        np.asarray(ranked["names"][chosen], dtype=object),
        np.asarray(ranked["logfoldchanges"][chosen], dtype=np.float64),
        _height(p), p <= level, "-log10 adjusted p", f"{chosen} against {ranked['params'].get('reference', 'rest')}",
    )  # fmt: skip

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.checks import InputError, listing
from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

CEILINGS = ("rmax", "reliability")
"""Columns that bound a correlation, so that the line of equal values means something."""


def genes(
    scores: pd.DataFrame,
    *,
    x: str = "rmax",
    y: str | None = None,
    n_labels: int = 8,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the score of every gene against how well it could be predicted at all.

    Parameters
    ----------
    scores
        One row per gene, as :func:`stpred.tl.compare` returns them at one level, or the ``var`` of a predicted table.
    x
        Column of the horizontal axis, mostly the ceiling ``"rmax"``. A ``"mean_count"`` is drawn on a logarithmic axis.
    y
        Column of the score; None takes ``"pearson"``, or where there is none ``"cv_pearson"``.
    n_labels
        Number of best genes to name.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes, with the line of equal values where `x` is a ceiling. Genes that the model marks as ``trusted`` are
    coloured. Note that ``rmax`` is that of raw counts and no bound for scores on the logarithmic scale.

    Raises
    ------
    InputError
        If a column is not there, or genes occur several times.

    Examples
    --------
    >>> import stpred as st
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, "intensity", genes="all", shapes_key="spots")
    >>> table = st.tl.predict(cohort["donor0"], model, inplace=False)
    >>> axes = st.pl.genes(table.var)
    """
    y = ("pearson" if "pearson" in scores else "cv_pearson") if y is None and hasattr(scores, "columns") else y
    frame = need_columns(scores, (x, str(y)), name="scores", source="stpred.tl.compare")
    names = frame.index.astype(str)
    if not names.is_unique:
        some = listing(names[names.duplicated()].unique()[:3])
        raise InputError(f"`scores` has several rows of genes {some}; keep one level or slide.")
    across, up = (frame[c].to_numpy(dtype=np.float64) for c in (x, str(y)))
    trusted = np.zeros(len(frame), dtype=bool)
    if "trusted" in frame:
        trusted = frame["trusted"].fillna(value=False).to_numpy(dtype=bool)
    known = np.isfinite(across) & np.isfinite(up)
    if x == "mean_count":
        known &= across > 0
    if not known.any():
        raise InputError(f"No gene of `scores` has both {x!r} and {y!r}.")
    ax = single(ax, size=(6.4, 4.6))
    for which, color, name in (
        (~trusted & known, "0.6", "not trusted" if "trusted" in frame else ""),
        (trusted & known, "C0", "trusted"),
    ):
        if which.any():
            legend = f"{name} ({which.sum()})" if name else None
            ax.scatter(across[which], up[which], s=14, color=color, alpha=0.7, linewidths=0, label=legend)
    if x in CEILINGS:
        ax.axline((0, 0), slope=1, color="black", linestyle="--", linewidth=0.8, label=f"score = {x}")
        ax.set_xlim(min(0, np.min(across[known])) - 0.03, 1.03)
    if x == "mean_count":
        ax.set_xscale("log")
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set(xlabel=_axis_label(x), ylabel=_axis_label(str(y)))
    plain(ax)
    order = np.argsort(-np.where(known, up, -np.inf), kind="stable")[: min(n_labels, int(known.sum()))]
    _write_names(ax, across[order], up[order], [str(names[i]) for i in order])
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    return finish(ax, save)


def _axis_label(column: str) -> str:
    """Write a column's name for an axis."""
    return {
        "pearson": "Pearson correlation",
        "cv_pearson": "Pearson correlation on left-out slides",
        "rmax": "rmax: highest correlation that the noise of raw counts allows",
        "mean_count": "mean count per location",
    }.get(column, column.replace("_", " "))


def _write_names(ax: Axes, x: NDArray[np.float64], y: NDArray[np.float64], names: list[str]) -> None:
    """Write names of points, highest first, in a column right of the axes, so that none lies on another."""
    if not names:
        return
    low, high = ax.get_ylim()
    gap = 0.055 * (high - low)
    at = np.minimum.accumulate(np.r_[high, y])[1:]
    for i in range(1, len(at)):
        at[i] = min(at[i], at[i - 1] - gap)
    at += max(0.0, low - at[-1])  # a crowd at the bottom moves up
    for i, name in enumerate(names):
        ax.annotate(
            name,
            (x[i], y[i]),
            xytext=(1.03, (at[i] - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 2},
        )
    ax.set_ylim(low, high)

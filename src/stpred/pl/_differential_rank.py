from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.checks import InputError, whole
from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def differential_rank(
    frame: pd.DataFrame, *, n_genes: int = 20, ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Draw the genes whose expression goes furthest with a risk score, or against it, with their intervals.

    Parameters
    ----------
    frame
        One row per gene, as :func:`stpred.tl.differential_rank` returns them: ``gene`` (or the index), ``score``,
        ``low`` and ``high``.
    n_genes
        Number of genes, those whose scores lie furthest from 0.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes, highest score first. Genes whose interval holds 0 are drawn lighter; those without one (from a single
    slide) have no whisker.

    Raises
    ------
    InputError
        If a column is not there, a gene occurs twice, or no score is known.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> frame = pd.DataFrame({"gene": ["A", "B"], "score": [0.4, -0.1], "low": [0.2, -0.3], "high": [0.6, 0.1]})
    >>> axes = st.pl.differential_rank(frame)
    """
    n_genes = whole(n_genes, name="n_genes")
    source = "stpred.tl.differential_rank"
    frame = need_columns(frame, ("score", "low", "high"), name="frame", source=source)
    names = (frame["gene"] if "gene" in frame else frame.index.to_series()).astype(str).to_numpy()
    if len(set(names)) < len(names):
        raise InputError("`frame` has several rows of one gene; keep one score of each.")
    score, low, high = (frame[c].to_numpy(dtype=np.float64) for c in ("score", "low", "high"))
    rows = np.flatnonzero(np.isfinite(score))
    if len(rows) == 0:
        raise InputError("No gene of `frame` has a score.")
    rows = rows[np.argsort(-np.abs(score[rows]), kind="stable")[:n_genes]]
    rows = rows[np.argsort(score[rows], kind="stable")]
    ax = single(ax, size=(5.2, 0.24 * len(rows) + 1.1))
    clear = ~((low[rows] <= 0) & (high[rows] >= 0))
    colors = np.where(score[rows] > 0, "C3", "C0")
    at = np.arange(len(rows))
    for which, alpha in ((clear, 0.9), (~clear, 0.35)):
        ax.barh(at[which], score[rows][which], color=colors[which].tolist(), alpha=alpha, height=0.7)
    ax.hlines(at, low[rows], high[rows], color="black", linewidth=1)
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(at, names[rows].tolist(), fontsize=8)
    ax.set(ylim=(-0.6, len(rows) - 0.4), xlabel="DR score")
    plain(ax)
    return finish(ax, save)

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.checks import InputError, whole
from stpred.pl._figure import finish, need_columns, plain, single
from stpred.pl.labels import spaced

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def rank_agreement(
    frame: pd.DataFrame, *, n_labels: int = 8, ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Draw the measured differential rank of each gene against the predicted one.

    Parameters
    ----------
    frame
        Result of :func:`stpred.tl.rank_agreement`.
    n_labels
        Genes of the lists of both sides that are named, those of highest and of lowest score.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Genes that are in the list of highest scores of both sides are red, those of lowest scores blue. The
    dashed line is where both scores are the same.

    Raises
    ------
    InputError
        If the frame is not of :func:`stpred.tl.rank_agreement`, with its attrs.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(800, 800), n_genes=20)
    >>> risk = {n: s["spots_counts"].layers["expected"][:, 3] for n, s in slides.items()}
    >>> found = st.tl.differential_rank(slides, "spots_counts", risk, n_top=10)
    >>> axes = st.pl.rank_agreement(st.tl.rank_agreement(found, found, n_top=5))
    """
    n_labels = whole(n_labels, name="n_labels")
    frame = need_columns(frame, ("group", "spearman"), name="frame", source="stpred.tl.rank_agreement")
    if not {"genes", "top", "bottom"} <= set(frame.attrs):
        raise InputError("`frame` must be a frame of stpred.tl.rank_agreement, with its attrs.")
    genes, row = frame.attrs["genes"], frame.iloc[0]
    names = np.array(genes["gene"])
    x, y = np.array(genes["predicted"]), np.array(genes["measured"])
    ax = single(ax, size=(4.8, 4.6))
    both = np.concatenate([x, y])
    ends = np.array([both.min(), both.max()]) + np.array([-0.05, 0.05]) * max(np.ptp(both), 1e-6)
    ax.plot(ends, ends, color="0.6", linestyle="--", linewidth=0.8, zorder=0)
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.85", linewidth=0.8, zorder=0)
    ax.scatter(x, y, s=12, color="0.6", linewidths=0)
    for end, color, side in (("top", "C3", "right"), ("bottom", "C0", "left")):
        at = np.flatnonzero(np.isin(names, frame.attrs[end][row["group"]]))
        ax.scatter(x[at], y[at], s=18, color=color, linewidths=0)
        far = at[np.argsort(-np.abs(x[at] + y[at]), kind="stable")[:n_labels]]
        far = far[np.argsort(y[far], kind="stable")]
        edge = x[at].min() - 0.06 * np.ptp(ends) if side == "right" else x[at].max() + 0.06 * np.ptp(ends)
        for k, height in zip(far, spaced(y[far], 0.04 * np.ptp(ends)), strict=True):
            ax.annotate(
                names[k], (x[k], y[k]), xytext=(edge, height), fontsize=7, ha=side, va="center",
                arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
            )  # fmt: skip
    known = np.isfinite(row["spearman_low"])
    interval = f" [{row['spearman_low']:.2f}, {row['spearman_high']:.2f}]" if known else ""
    ax.set_title(
        f"Spearman {row['spearman']:.2f}{interval}; {row['top_shared']} of the first {frame.attrs['n_top']} shared\n"
        f"({row['top_expected']:.1f} by chance), {row['n_genes']} genes, {row['n_slides']} slides",
        fontsize=9,
    )
    ax.set(xlim=ends, ylim=ends, xlabel="DR score of predictions", ylabel="DR score of measurements")
    plain(ax)
    return finish(ax, save)

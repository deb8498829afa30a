from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SPREAD = (0.05, 0.95)
"""Quantiles of genes between which the band lies."""

MAX_NAMED = 10
"""Slides from which on the lines of single ones have no name."""


def coverage(frame: pd.DataFrame, *, ax: Axes | None = None, save: str | Path | None = None) -> Axes:
    """Draw how often intervals hold what was measured, against how often they should.

    Parameters
    ----------
    frame
        One row per gene and level (and slide), as :func:`stpred.tl.coverage` and :func:`stpred.tl.calibration` return
        them: ``gene``, ``level``, ``coverage``, ``n_locations`` and perhaps ``slide``.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes: the mean over genes, the band that holds 90 % of the genes (each averaged over slides), a thin line per
    slide, and the dashed line of calibrated intervals. Above it intervals are too wide, below it too narrow.

    Raises
    ------
    InputError
        If a column is not there.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> frame = pd.DataFrame({"gene": ["A", "B"] * 2, "level": [0.5, 0.5, 0.9, 0.9], "coverage": [0.5, 0.4, 0.9, 0.8]})
    >>> axes = st.pl.coverage(frame.assign(n_locations=100))
    """
    frame = need_columns(frame, ("gene", "level", "coverage"), name="frame", source="stpred.tl.coverage")
    ax = single(ax, size=(4.8, 4.6))
    by_gene = frame.groupby(["level", "gene"], observed=True)["coverage"].mean()
    mean = by_gene.groupby(level=0).mean()
    levels = mean.index.to_numpy(dtype=np.float64)
    low, high = (by_gene.groupby(level=0).quantile(q).to_numpy() for q in SPREAD)
    n = frame["gene"].nunique()
    ax.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=0.8, label="calibrated")
    if n > 1:
        ax.fill_between(levels, low, high, color="C0", alpha=0.2, linewidth=0, label=f"90 % of {n} genes")
        ax.vlines(levels, low, high, color="C0", alpha=0.5, linewidth=1)  # a single level has no band
    if "slide" in frame and frame["slide"].nunique() > 1:
        slides = frame.groupby(["slide", "level"], observed=True)["coverage"].mean()
        for i, (name, part) in enumerate(slides.groupby(level=0, observed=True)):
            label = str(name) if len(slides.index.unique(0)) < MAX_NAMED else (None if i else "single slides")
            color = f"C{i % 8 + 1}" if len(slides.index.unique(0)) < MAX_NAMED else "0.6"
            ax.plot(
                part.index.get_level_values(1), part.to_numpy(), color=color, linewidth=0.9, marker=".", label=label
            )
    ax.plot(levels, mean.to_numpy(), color="C0", marker="o", label="mean")
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="level of the interval", ylabel="share of the measurements inside")
    ax.legend(frameon=False, fontsize=8, loc="upper left")
    plain(ax)
    return finish(ax, save)

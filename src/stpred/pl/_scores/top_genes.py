from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def top_genes(
    curve: pd.DataFrame, *, ylabel: str = "Pearson correlation", ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Draw how models score on the first N genes as N grows, with bootstrap bands over donors.

    Parameters
    ----------
    curve
        Frame of :func:`stpred.tl.top_gene_curve`.
    ylabel
        Name of the score.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes, with each model's area under its curve in the legend, best first.

    Raises
    ------
    InputError
        If columns are missing.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["ridge"], groups="slide", genes="all", shapes_key="spots")
    >>> axes = st.pl.top_genes(st.tl.top_gene_curve(scores, n_genes=[5, 10, 20]))
    """
    columns = ("model", "n_genes", "value", "low", "high", "area", "area_low", "area_high")
    frame = need_columns(curve, columns, name="curve", source="stpred.tl.top_gene_curve")
    ax = single(ax, size=(6.4, 4.4))
    areas = frame.groupby("model", sort=False, observed=True)["area"].first()
    for k, model in enumerate(areas.sort_values(ascending=False, kind="stable").index):
        rows = frame[frame["model"] == model]
        x, y = rows["n_genes"].to_numpy(), rows["value"].to_numpy(dtype=np.float64)
        first = rows.iloc[0]
        area = f"{first['area']:.3f}"
        if np.isfinite(first["area_low"]):
            area += f" ({first['area_low']:.3f} to {first['area_high']:.3f})"
        ax.plot(x, y, color=f"C{k % 10}", marker="o", markersize=3.5, label=f"{model}: area {area}")
        low, high = (rows[c].to_numpy(dtype=np.float64) for c in ("low", "high"))
        if np.isfinite(low).all():
            ax.fill_between(x, low, high, color=f"C{k % 10}", alpha=0.18, linewidth=0)
    ax.set(xlabel="first N genes", ylabel=ylabel)
    ax.set_ylim(min(0.0, ax.get_ylim()[0]), None)
    if frame["n_genes"].max() > 10 * frame["n_genes"].min():
        ax.set_xscale("log")
        ticks: list[int] = []
        for n in sorted(frame["n_genes"].unique()):
            if not ticks or n >= 1.4 * ticks[-1]:
                ticks.append(int(n))
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xticks([], minor=True)
    ax.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    plain(ax)
    return finish(ax, save)

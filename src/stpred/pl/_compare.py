from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.pairing import Pair, pair
from stpred.pl._maps import Canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from spatialdata import SpatialData


def compare(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    genes: str | Sequence[str] | None = None,
    target: str | None = None,
    image_key: str | None = None,
    cmap: str = "viridis",
    coordinate_system: str = keys.UM,
) -> Figure:
    """Draw measured and predicted expression side by side, and the scores of all genes.

    Parameters
    ----------
    sdata
        Object with both tables.
    predicted_key, measured_key
        Predicted table and raw counts of the same shapes, or of two regions of the same things (nuclei and cells), as
        :func:`stpred.tl.compare` matches them by their overlap.
    genes
        Genes to map; None takes the best, the 90th percentile and the median gene by Pearson correlation.
    target
        Scale, ``"log1p_cp10k"`` or ``"counts"``; None takes the prediction's own.
    image_key
        H&E image; None takes the one in the micrometre frame.
    cmap
        Matplotlib colour map.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    The matplotlib figure: a row per gene (measured, predicted, scatter), and below the distribution of per-gene Pearson
    correlations beside that of the library-size baseline.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=1)
    >>> cohort = st.datasets.toy_cohort(2)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> figure = st.pl.compare(slide, "spots_ridge", "spots_counts", genes="EPCAM")
    """
    import matplotlib.pyplot as plt

    both = pair(sdata, predicted_key, measured_key, target=target)
    scores = metrics.pearson(both.guessed, both.observed)
    chosen = _chosen(both, scores, genes)
    canvas = Canvas(sdata, both.shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    n = len(chosen)
    figure = plt.figure(figsize=(12, 3.6 * n + 2.8), layout="constrained")
    grid = figure.add_gridspec(n + 1, 3, height_ratios=[3.6] * n + [2.6])
    for row, g in enumerate(chosen):
        ours, theirs = both.guessed[:, g], both.observed[:, g]
        for column, (what, values) in enumerate((("measured", theirs), ("predicted", ours))):
            ax = figure.add_subplot(grid[row, column])
            canvas.values(ax, values, both.instances, title=f"{both.genes[g]}, {what}", cmap=cmap)
        _scatter(figure.add_subplot(grid[row, 2]), theirs, ours, title=f"{both.genes[g]}: r = {scores[g]:.2f}")
    baseline = metrics.library_size_baseline(both.counts, target=both.target, genes=both.columns)
    _histogram(figure.add_subplot(grid[n, :]), scores, baseline, scale=both.target)
    plt.close(figure)
    return figure


def _chosen(both: Pair, scores: NDArray[np.float64], genes: str | Sequence[str] | None) -> list[int]:
    """Return positions of the genes to map."""
    if genes is None:
        order = np.argsort(-np.nan_to_num(scores, nan=-2.0), kind="stable")
        picks = [0, len(order) // 10, len(order) // 2]
        return list(dict.fromkeys(int(order[p]) for p in picks))
    wanted = [genes] if isinstance(genes, str) else list(genes)
    if missing := [g for g in wanted if g not in both.genes]:
        some = listing(both.genes[:5])
        raise InputError(f"Genes {listing(missing)} are not both predicted and measured; shared ones are {some} ...")
    return [int(both.genes.get_loc(g)) for g in wanted]


def _scatter(ax: Axes, observed: NDArray[np.float32], predicted: NDArray[np.float32], *, title: str) -> None:
    ax.scatter(observed, predicted, s=8, alpha=0.5, linewidths=0, rasterized=True)
    ax.set(xlabel="measured", ylabel="predicted", title=title)
    ax.spines[["top", "right"]].set_visible(False)


def _histogram(ax: Axes, scores: NDArray[np.float64], baseline: NDArray[np.float64], *, scale: str) -> None:
    bins = np.linspace(-1, 1, 81).tolist()
    for values, label, color in ((scores, "predicted from the image", "C0"), (baseline, "library size alone", "C7")):
        known = values[np.isfinite(values)]
        median = np.median(known) if len(known) else np.nan
        ax.hist(known, bins=bins, alpha=0.6, color=color, label=f"{label} (median {median:.2f})")
    ax.axvline(0, color="black", linewidth=0.8)
    low = min(-0.3, float(np.nanmin(np.r_[scores, baseline, 0.0])) - 0.05)
    ax.set(xlim=(low, 1), xlabel=f"Pearson correlation per gene ({scale})", ylabel="genes")
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ax.spines[["top", "right"]].set_visible(False)

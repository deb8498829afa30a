from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import metrics
from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.targets import standardised
from stpred.comparison.pairing import pair
from stpred.pl._canvas import Canvas, color_limits
from stpred.pl._figure import array, finish, plain
from stpred.pl.labels import unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

ERROR_COLORS = "RdBu_r"


def compare(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    genes: str | Sequence[str] | None = None,
    target: str | None = None,
    image_key: str | None = None,
    cmap: str = "viridis",
    shared_limits: bool | None = None,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw measured and predicted expression and the error side by side, and the scores of all genes.

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
        Matplotlib colour map of the values.
    shared_limits
        Give a gene's measured and predicted values the same colours; False spreads the colours over each alone. None
        shares them where both are on one scale.
    coordinate_system
        The slide's micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (4 n + 1,) axes: for each of n genes measured, predicted, error and scatter, and below them the distribution of
    per-gene Pearson correlations beside that of the library-size baseline. The error, predicted minus measured, has
    the same colours for all genes, white at 0 and ending at the 99th percentile of its size. Where the prediction is on
    another scale than the measurement, such as a relative one, both are standardised before, as the title says.

    Raises
    ------
    InputError
        If a table is not there, the two have no gene or location in common, or a gene is not in both.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20, donor=2)
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> len(st.pl.compare(slide, "spots_ridge", "spots_counts", genes="EPCAM"))
    5
    """
    import matplotlib.pyplot as plt

    both = pair(sdata, predicted_key, measured_key, target=target, coordinate_system=coordinate_system)
    scores = metrics.pearson(both.guessed, both.observed)
    chosen = _chosen(both, scores, genes)
    canvas = Canvas(sdata, both.shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    n = len(chosen)
    share = both.comparable if shared_limits is None else shared_limits
    units = unit_of(both.target), unit_of(both.target if both.comparable else "relative")
    errors, what = _errors(both, chosen)
    known = np.abs(errors[np.isfinite(errors)])
    limit = float(np.quantile(known, 0.99)) if len(known) else 1.0
    limits = (-limit, limit) if limit > 0 else (-1.0, 1.0)
    figure = plt.figure(figsize=(15.5, 3.6 * n + 2.8), layout="constrained")
    grid = figure.add_gridspec(n + 1, 4, height_ratios=[3.6] * n + [2.6])
    panels = []
    for row, g in enumerate(chosen):
        ours, theirs, gene = both.guessed[:, g], both.observed[:, g], both.genes[g]
        measured, predicted, error, scatter = (figure.add_subplot(grid[row, column]) for column in range(4))
        ends = color_limits(theirs, ours) if share else None
        style: dict[str, Any] = {"cmap": cmap, "limits": ends}
        canvas.values(measured, theirs, both.instances, title=f"{gene}, measured", unit=units[0], **style)
        canvas.values(predicted, ours, both.instances, title=f"{gene}, predicted", unit=units[1], **style)
        canvas.values(
            error, errors[:, row], both.instances, title=f"{gene}, {what}",
            cmap=ERROR_COLORS, limits=limits, unit=units[0] if both.comparable else "z-score",
        )  # fmt: skip
        _scatter(scatter, theirs, ours, title=f"{gene}: r = {scores[g]:.2f}")
        panels += [measured, predicted, error, scatter]
    baseline = metrics.library_size_baseline(both.counts, target=both.target, genes=both.columns)
    panels.append(figure.add_subplot(grid[n, :]))
    _histogram(panels[-1], scores, baseline, scale=both.target)
    return finish(array(panels), save)


def _errors(both: Pair, chosen: list[int]) -> tuple[NDArray[np.float32], str]:
    """Return (n, chosen) predicted minus measured, of z-scores where the two are on different scales, and its name."""
    ours, theirs = (v[:, chosen].astype(np.float64) for v in (both.guessed, both.observed))
    if both.comparable:
        return (ours - theirs).astype(np.float32), "error"
    return (standardised(ours) - standardised(theirs)).astype(np.float32), "error of z-scores"


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
    ax.set_box_aspect(1)
    plain(ax)


def _histogram(ax: Axes, scores: NDArray[np.float64], baseline: NDArray[np.float64], *, scale: str) -> None:
    from matplotlib.ticker import MaxNLocator

    bins = np.linspace(-1, 1, 81).tolist()
    for values, label, color in ((scores, "predicted from the image", "C0"), (baseline, "library size alone", "C7")):
        known = values[np.isfinite(values)]
        median = np.median(known) if len(known) else np.nan
        ax.hist(known, bins=bins, alpha=0.6, color=color, label=f"{label} (median {median:.2f})")
    ax.axvline(0, color="black", linewidth=0.8)
    low = min(-0.3, float(np.nanmin(np.r_[scores, baseline, 0.0])) - 0.05)
    ax.set(xlim=(low, 1), xlabel=f"Pearson correlation per gene ({unit_of(scale) or scale})", ylabel="genes")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    plain(ax)

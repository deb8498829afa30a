from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred.pl._figure import finish, need_columns, plain, single
from stpred.pl._scores.frames import axis_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from stpred.metrics import ModelComparison

CONTEXT = keys.CONTEXT[:3]
"""Rows that are no models and tell what a score is worth."""

NARROW_INCHES = 5.5
"""Width of axes under which the line below them is broken."""

CEILING = keys.CEILING
CORRELATIONS = ("pearson", "spearman", "pearson_smoothed", "pearson_given_library_size")
"""Metrics of which an undefined value means that nothing was predicted: 0."""


def models(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    target: str | None = None,
    order: Sequence[str] | None = None,
    points: Literal["gene", "slide"] = "gene",
    comparison: ModelComparison | None = None,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the scores of models side by side, with what they have to be read against.

    Parameters
    ----------
    scores
        Tidy frame of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`,
        :func:`stpred.tl.withheld_sections` or :func:`stpred.tl.withheld_spots`.
    metric
        Metric to draw. Correlations that are undefined, since a prediction does not vary, count as 0; undefined values
        of other metrics are left out.
    target
        Scale scored on; None takes the only one there is.
    order
        Models from left to right; None: best median first, then the context.
    points
        What one point is: a ``"gene"``, averaged over slides, or a ``"slide"``, averaged over genes.
    comparison
        Result of :func:`stpred.tl.rank_models` (or :func:`stpred.metrics.compare_models`) for the same models. Models
        whose mean ranks are within the critical difference of each other, so that they cannot be told apart, are
        joined by a bar with a dot for each of them.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes. The context (library size, neighbours, training mean) is drawn lighter; a dashed line is the median
    ceiling, the reliability of the measurement, or else, of raw counts only, rmax.

    Raises
    ------
    InputError
        If the frame has no such metric, model or scale, or several scales and none is named.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["mean", "intensity"], groups="slide", shapes_key="spots")
    >>> axes = st.pl.models(scores, target="log1p_cp10k")
    """
    one_of(points, ("gene", "slide"), name="points")
    needed = ("model", "slide", "gene", "metric", "value", "target")
    frame = need_columns(scores, needed, name="scores", source="stpred.tl.cross_validate")
    frame = frame[frame["target"] == _target(frame, target)]
    part = frame[(frame["metric"] == metric) & (frame["model"] != CEILING)]
    if part.empty:
        raise InputError(f"No score named {metric!r} (`metric`); available: {listing(frame['metric'].unique())}.")
    values = _values(part, metric, points)
    names = _ordered(values, order, ascending=metric in ("rmse", "mae"))
    ax = single(ax, size=(max(4.0, 1.15 * len(names) + 1.6), 4.4))
    for at, name in enumerate(names):
        _violin(ax, at, values[name], light=name in CONTEXT)
    ax.set_xticks(range(len(names)), [n.replace("_", " ") for n in names])
    if max(map(len, names)) * len(names) > 60:
        ax.tick_params(axis="x", labelrotation=30)
        for text in ax.get_xticklabels():
            text.set(ha="right", rotation_mode="anchor")
    ax.set(xlim=(-0.6, len(names) - 0.4), xlabel=_what_points_are(part, points, ax))
    ax.set_ylabel(axis_name(metric, str(_target(frame, target))))
    if metric in CORRELATIONS:
        ax.axhline(0, color="black", linewidth=0.5)
        _ceiling(ax, frame, metric)
    plain(ax)
    if comparison is not None:
        _joined(ax, names, comparison)
    return finish(ax, save)


def _what_points_are(part: pd.DataFrame, points: str, ax: Axes) -> str:
    """Say what a point is, and of how many genes, slides and donors the scores are; on narrow axes in two lines."""
    part = part[part["slide"].notna()]
    n_genes, n_slides = part["gene"].nunique(), part["slide"].nunique()
    slides = f"{n_slides} slide{'s' * (n_slides != 1)}"
    if "donor" in part and not ("donor_shared" in part and part["donor_shared"].astype(bool).any()):
        n_donors = part["donor"].nunique()
        slides += f" of {n_donors} donor{'s' * (n_donors != 1)}"
    genes = f"{n_genes:,} gene{'s' * (n_genes != 1)}"
    one, over = (slides, genes) if points == "slide" else (genes, slides)
    narrow = ax.get_window_extent().width / ax.figure.dpi < NARROW_INCHES
    gap = "\n" if narrow else " "
    return f"each point is one of {one},{gap}averaged over {over}"


def _target(frame: pd.DataFrame, target: str | None) -> str:
    """Return the scale to draw."""
    there = [str(t) for t in frame["target"].dropna().unique()]
    if target is not None:
        return key_in(target, there, what="scale", name="target")
    if len(there) != 1:
        raise InputError(f"`scores` were taken on the scales {listing(there)}; name one with `target`.")
    return there[0]


def _values(part: pd.DataFrame, metric: str, points: str) -> dict[str, NDArray[np.float64]]:
    """Return the values of each model's points."""
    if metric in CORRELATIONS:
        part = part.assign(value=part["value"].fillna(0.0))
    means = part.groupby(["model", points], observed=True)["value"].mean().dropna()
    found = {str(m): v.to_numpy(dtype=np.float64) for m, v in means.groupby(level=0, observed=True)}
    if not found:
        raise InputError(
            f"No model has a value of {metric!r}; scores with a scale are missing for relative predictions."
        )
    return found


def _ordered(values: dict[str, Any], order: Sequence[str] | None, *, ascending: bool) -> list[str]:
    """Return models from left to right."""
    if order is not None:
        return [key_in(name, values, what="model", name="order") for name in order]
    sign = 1 if ascending else -1
    by_median = sorted(values, key=lambda n: (sign * float(np.median(values[n])), n))
    return [n for n in by_median if n not in CONTEXT] + [n for n in CONTEXT if n in values]


def _violin(ax: Axes, at: int, values: NDArray[np.float64], *, light: bool) -> None:
    """Draw the distribution of points, the points, and their median."""
    color = "0.7" if light else "C0"
    if len(values) > 2 and np.ptp(values) > 1e-9:
        for body in ax.violinplot(values, [at], widths=0.8, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=color, edgecolor="none", alpha=0.25 if light else 0.35)
    spread = np.random.default_rng(0).uniform(-0.12, 0.12, len(values))
    ax.scatter(at + spread, values, s=6, color=color, alpha=0.6, linewidths=0, rasterized=True)
    median = float(np.median(values))
    ax.hlines(median, at - 0.28, at + 0.28, color="0.45" if light else "black", linewidth=1.6)
    ax.annotate(
        f"{median:.2f}", (at + 0.3, median), fontsize=8, va="center", color="0.35" if light else "black",
        bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _ceiling(ax: Axes, frame: pd.DataFrame, metric: str) -> None:
    """Draw how high the noise of the measurement lets a Pearson correlation come."""
    if metric != "pearson":
        return
    rows = frame[frame["model"] == CEILING]
    for name in ("reliability", "rmax"):
        part = rows[rows["metric"] == name]
        if name == "rmax":  # the noise of raw counts is no bound on the logarithmic scale
            part = part[part["target"] == "counts"]
        known = part.groupby("gene", observed=True)["value"].mean().dropna()
        if len(known):
            middle = float(known.median())
            ax.axhline(middle, color="C3", linestyle="--", linewidth=1, label=f"ceiling ({name}), median {middle:.2f}")
            ax.legend(frameon=False, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0.2)
            return


def _joined(ax: Axes, names: list[str], comparison: ModelComparison) -> None:
    """Draw a bar over each set of models that cannot be told apart, and say by what."""
    groups = [sorted(names.index(n) for n in group if n in names) for group in comparison.groups]
    if not set(comparison.ranks.index) & set(names):
        raise InputError(f"`comparison` is of none of the models {listing(names)}.")
    low, high = ax.get_ylim()
    step = 0.05 * (high - low)
    for line, members in enumerate(g for g in groups if len(g) > 1):
        level = high + (line + 0.4) * step
        ax.plot(members, [level] * len(members), color="black", linewidth=2.5, marker="o", markersize=5, clip_on=False)
    ax.set_ylim(low, high + (len(groups) + 0.2) * step)
    unit = f"{comparison.n_blocks} blocks, critical difference of mean ranks {comparison.cd:.2f}"
    ax.set_xlabel(f"{ax.get_xlabel()}\nbars join models that cannot be told apart\n({unit})")

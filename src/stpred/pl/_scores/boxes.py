from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, key_in, one_of
from stpred.pl._figure import finish, need_columns, plain, single
from stpred.pl._scores.frames import axis_name, of_metric, p_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

UNITS = ("gene", "slide", "donor")
MAX_POINTS = 400
"""Points of a box up to which they are drawn one by one."""


def boxes(
    scores: pd.DataFrame,
    *,
    metric: str = "pearson",
    target: str | None = None,
    column: str = "model",
    groupby: Literal["slide", "donor", "gene"] | None = None,
    points: Literal["gene", "slide", "donor"] = "gene",
    order: Sequence[Any] | None = None,
    tests: pd.DataFrame | None = None,
    context: bool = False,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw box plots of models (or conditions) side by side within slides, donors or genes, with tests above them.

    Parameters
    ----------
    scores
        Tidy frame of :func:`stpred.tl.cross_validate`, :func:`stpred.tl.validate`,
        :func:`stpred.tl.withheld_sections`, :func:`stpred.tl.withheld_spots` or of a check that changes what is trained
        on.
    metric, target
        Metric and scale; undefined correlations count as 0.
    column
        What the boxes of a group are: ``"model"``, or another column, such as ``"shift_radii"``.
    groupby
        Groups along the axis: ``"slide"``, ``"donor"`` or ``"gene"``; None: one group.
    points
        What a box holds: a value for each ``"gene"``, ``"slide"`` or ``"donor"``, averaged over the rest.
    order
        Values of `column` from left to right; None: best median first.
    tests
        Frame of :func:`stpred.tl.paired_tests` with the same `groupby` and `column`: each of its rows is drawn as a
        bracket with its p-value after Holm.
    context
        Draw what scores are read against (library size, neighbours), too, with `column` ``"model"``.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Boxes span the quartiles, whiskers 1.5 times as much; the line is the median.

    Raises
    ------
    InputError
        If the frame has no such metric, scale or column, or `tests` are of other groups.

    References
    ----------
    Box plots with paired tests are how Schmauch et al. (2025), A deep learning-based multiscale integration of
    spatial omics with tumor morphology, Nature Communications, compare models by section.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> scores = st.tl.cross_validate(slides, ["intensity", "ridge"], groups="slide", shapes_key="spots")
    >>> tests = st.tl.paired_tests(scores, groupby="slide")
    >>> axes = st.pl.boxes(scores, groupby="slide", tests=tests)
    """
    one_of(points, UNITS, name="points")
    one_of(groupby, (*UNITS, None), name="groupby")
    if groupby == points:
        raise InputError(f"`groupby` and `points` are both {points!r}: a box of one value.")
    part = of_metric(scores, metric, target, context=context)
    for name in (column, points, *([] if groupby is None else [groupby])):
        key_in(name, part.columns, what="column of `scores`")
    names = _ordered(part, column, order, ascending=metric in keys.ERRORS)
    groups = [None] if groupby is None else list(part[groupby].unique())
    width = 0.8 / len(names)
    legend = 0.0 if groupby is None else 1.4 + 1.5 * min(len(names), 5)
    ax = single(ax, size=(max(4.5, legend, 1.2 + 0.42 * len(groups) * (len(names) + 0.6)), 4.6))
    place: dict[tuple[Any, Any], float] = {}
    tops: dict[Any, float] = {}
    for g, group in enumerate(groups):
        rows = part if groupby is None else part[part[groupby] == group]
        means = rows.groupby([column, points], observed=True)["value"].mean().dropna()
        for k, name in enumerate(names):
            values = means.xs(name).to_numpy(dtype=np.float64) if name in means.index.get_level_values(0) else None
            place[group, name] = g + (k - (len(names) - 1) / 2) * width
            if values is None or not len(values):
                continue
            _box(ax, place[group, name], values, width, color=_color(names, name))
            tops[group] = max(tops.get(group, -np.inf), float(values.max()))
    if keys.zero_is_nothing(metric):
        ax.axhline(0, color="black", linewidth=0.5, zorder=0)
    if tests is not None:
        _brackets(ax, tests, place, tops, groupby=groupby)
    _axes(ax, names, groups, column=column, label=axis_name(metric, str(part["target"].iloc[0])), points=points)
    return finish(ax, save)


def _ordered(part: pd.DataFrame, column: str, order: Sequence[Any] | None, *, ascending: bool) -> list[Any]:
    there = list(part[column].dropna().unique())
    if order is not None:
        for name in order:
            if name not in there:
                raise InputError(f"`order` names {name!r}, which is none of {column!r}: {there}.")
        return list(order)
    if column != "model":
        return sorted(there)
    median = part.groupby(column, observed=True)["value"].median()
    found = list(median.sort_values(ascending=ascending, kind="stable").index)
    return [m for m in found if m not in keys.CONTEXT] + [m for m in found if m in keys.CONTEXT]


def _color(names: list[Any], name: Any) -> str:
    own = [n for n in names if n not in keys.CONTEXT]
    return f"C{own.index(name) % 10}" if name in own else ("0.55", "0.7", "0.8")[keys.CONTEXT.index(name)]


def _box(ax: Axes, at: float, values: Any, width: float, *, color: str) -> None:
    """Draw one box, and its points where these are few."""
    ax.boxplot(
        values, positions=[at], widths=0.85 * width, patch_artist=True, showfliers=len(values) > MAX_POINTS,
        manage_ticks=False, flierprops={"marker": ".", "markersize": 2, "markerfacecolor": color, "markeredgewidth": 0},
        medianprops={"color": "black", "linewidth": 1.2}, whiskerprops={"color": "0.35"}, capprops={"color": "0.35"},
        boxprops={"facecolor": color, "alpha": 0.55, "edgecolor": "0.35"},
    )  # fmt: skip
    if len(values) <= MAX_POINTS:
        spread = np.random.default_rng(0).uniform(-0.25, 0.25, len(values)) * width
        ax.scatter(
            at + spread,
            values,
            s=14 if len(values) <= 40 else 4,
            color=color,
            alpha=0.6,
            linewidths=0,
            zorder=3,
            rasterized=True,
        )


def _brackets(
    ax: Axes, tests: pd.DataFrame, place: dict[tuple[Any, Any], float], tops: dict[Any, float], *, groupby: str | None
) -> None:
    """Draw a bracket with its p-value for every test, the narrow ones below."""
    columns = ("first", "second", "p_holm") if groupby is None else (groupby, "first", "second", "p_holm")
    tests = need_columns(tests, columns, name="tests", source="stpred.tl.paired_tests")
    pairs = [
        ((None if groupby is None else getattr(row, groupby)), row.first, row.second, float(row.p_holm))
        for row in tests.itertuples()
    ]
    known = [p for p in pairs if (p[0], p[1]) in place and (p[0], p[2]) in place]
    if not known:
        raise InputError("`tests` has none of the groups and models that are drawn.")
    low, high = ax.get_ylim()
    step = 0.085 * (high - low)
    levels: dict[Any, int] = {}
    for group, first, second, p in sorted(known, key=lambda t: abs(place[t[0], t[1]] - place[t[0], t[2]])):
        left, right = sorted((place[group, first], place[group, second]))
        level = levels[group] = levels.get(group, 0) + 1
        y = tops.get(group, high) + (level - 0.55) * step
        ax.plot([left, left, right, right], [y, y + 0.2 * step, y + 0.2 * step, y], color="0.2", linewidth=0.9)
        ax.text((left + right) / 2, y + 0.22 * step, p_text(p), ha="center", va="bottom", fontsize=7)
    ax.set_ylim(low, max(high, max(tops.get(g, high) + (n + 0.7) * step for g, n in levels.items())))


def _axes(ax: Axes, names: list[Any], groups: list[Any], *, column: str, label: str, points: str) -> None:
    """Write names of groups and boxes."""
    from matplotlib.patches import Patch

    words = [str(n).replace("_", " ") for n in names]
    if groups == [None]:
        width = 0.8 / len(names)
        at = [(k - (len(names) - 1) / 2) * width for k in range(len(names))]
        ax.set_xticks(at, words)
        ax.set_xlim(-0.5, 0.5)
    else:
        ax.set_xticks(range(len(groups)), [str(g) for g in groups])
        ax.set_xlim(-0.55, len(groups) - 0.45)
        patches = [Patch(facecolor=_color(names, n), alpha=0.55, label=w) for n, w in zip(names, words, strict=True)]
        title = None if column == "model" else column.replace("_", " ")
        ax.legend(
            handles=patches, frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), title=title,
            ncols=min(len(names), 5), borderaxespad=0.2,
        )  # fmt: skip
    text = [t.get_text() for t in ax.get_xticklabels()]
    if max(map(len, text)) * len(text) > 45:
        ax.tick_params(axis="x", labelrotation=30)
        for tick in ax.get_xticklabels():
            tick.set(ha="right", rotation_mode="anchor")
    ax.set(ylabel=label, xlabel=f"each point is a {points}")
    plain(ax)

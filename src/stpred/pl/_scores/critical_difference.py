from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred._core.checks import InputError, one_of
from stpred.pl._figure import finish, single

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stpred.metrics import ModelComparison


def critical_difference(
    comparison: ModelComparison,
    *,
    test: Literal["nemenyi", "wilcoxon"] = "nemenyi",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the mean ranks of models on a line, joining those that cannot be told apart (Demšar's diagram).

    Parameters
    ----------
    comparison
        Result of :func:`stpred.tl.rank_models` or :func:`stpred.metrics.compare_models`.
    test
        What joins models: ``"nemenyi"``, mean ranks within the critical difference of each other; ``"wilcoxon"``, runs
        of models of which no pair differs by the signed-rank test after Holm.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes, best rank (1) at the left, with the p-value of Friedman's test.

    Raises
    ------
    InputError
        If `comparison` is none.

    References
    ----------
    Demšar, Statistical comparisons of classifiers over multiple data sets, J. Mach. Learn. Res. 7 (2006).

    Examples
    --------
    >>> import stpred as st
    >>> values = [[0.3, 0.2, 0.1], [0.5, 0.3, 0.3], [0.4, 0.2, 0.1], [0.6, 0.1, 0.2]]
    >>> axes = st.pl.critical_difference(st.metrics.compare_models(values, ["a", "b", "c"]))
    """
    one_of(test, ("nemenyi", "wilcoxon"), name="test")
    if not all(hasattr(comparison, k) for k in ("ranks", "pairs", "cd")):
        raise InputError(f"`comparison` must be what stpred.tl.rank_models returns, got {type(comparison).__name__}.")
    ranks = comparison.ranks["mean_rank"]
    names, k = [str(n) for n in ranks.index], len(ranks)
    groups = [list(g) for g in comparison.groups] if test == "nemenyi" else _runs(comparison, names)
    half = (k + 1) // 2
    rows = max(half, k - half)
    top = 0.9 + 0.42 * len(groups)
    ax = single(ax, size=(7.0, 1.1 + 0.3 * (rows + len(groups) + 2)))
    ax.hlines(0, 1, k, color="black", linewidth=1.2)
    for tick in range(1, k + 1):
        ax.vlines(tick, 0, 0.18, color="black", linewidth=1.0)
        ax.text(tick, 0.26, str(tick), ha="center", va="bottom", fontsize=9)
    for i, name in enumerate(names):
        left = i < half
        depth = -(top + 0.55 * (i if left else k - 1 - i))
        end = 1 - 0.06 * k if left else k + 0.06 * k
        ax.plot([ranks.iloc[i], ranks.iloc[i], end], [0, depth, depth], color="0.35", linewidth=0.9)
        ax.text(
            end - 0.015 * k if left else end + 0.015 * k, depth, f"{name.replace('_', ' ')} ({ranks.iloc[i]:.2f})",
            ha="right" if left else "left", va="center", fontsize=9,
        )  # fmt: skip
    for row, group in enumerate(groups):
        ends = ranks[group].min() - 0.015 * k, ranks[group].max() + 0.015 * k
        ax.hlines(-(0.38 + 0.42 * row), *ends, color="C3", linewidth=3.5)
    if test == "nemenyi":
        shown = min(comparison.cd, k - 1)
        ax.hlines(1.0, 1, 1 + shown, color="C3", linewidth=1.4)
        ax.vlines([1, 1 + shown], 0.9, 1.1, color="C3", linewidth=1.4)
        ax.text(1 + shown / 2, 1.12, f"critical difference {comparison.cd:.2f}", ha="center", va="bottom", fontsize=8)
    said = "mean ranks within the critical difference" if test == "nemenyi" else "no pair differs (signed ranks, Holm)"
    ax.set_title(
        f"{comparison.n_blocks} blocks, Friedman p = {comparison.friedman_p:.2g}; bars: {said}", fontsize=9, loc="left"
    )
    ax.set_xlim(1 - 0.35 * k, k + 0.35 * k)
    ax.set_ylim(-(top + 0.55 * rows), 1.7 if test == "nemenyi" else 0.8)
    ax.axis("off")
    return finish(ax, save)


def _runs(comparison: ModelComparison, names: list[str]) -> list[list[str]]:
    """Return the largest runs of two or more models, by rank, of which no pair differs after Holm."""
    alike = np.ones((len(names), len(names)), dtype=bool)
    at: dict[Any, int] = {n: i for i, n in enumerate(names)}
    for row in comparison.pairs.itertuples():
        i, j = at[str(row.first)], at[str(row.second)]
        alike[i, j] = alike[j, i] = row.wilcoxon_holm > comparison.alpha
    runs: list[tuple[int, int]] = []
    for i in range(len(names)):
        stop = i + 1
        while stop < len(names) and alike[i : stop + 1, i : stop + 1].all():
            stop += 1
        if stop - i >= 2 and (not runs or stop > runs[-1][1]):
            runs.append((i, stop))
    return [names[i:stop] for i, stop in runs]

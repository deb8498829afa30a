from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

METRICS = ("concordance", "auroc")


def cohort_size(
    frames: pd.DataFrame | Mapping[str, pd.DataFrame], *, ax: Axes | None = None, save: str | Path | None = None
) -> Axes:
    """Draw how well patients are predicted against how many were trained on, with standard errors over draws.

    Parameters
    ----------
    frames
        Result of :func:`stpred.tl.survival` or :func:`stpred.tl.classify` with ``draws``; or several by name, such as
        predictions of two models and measured bulk.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes: mean score and its standard error by number of patients. A dotted line is what chance gives. The errors
    are of the mean over draws of this cohort, which share patients; those of another cohort would be wider.

    Raises
    ------
    InputError
        If a frame is not of draws, or they are of different scores.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> draws = pd.DataFrame({"n_train": [50, 50, 80, 80], "draw": [0, 1, 0, 1], "concordance": [0.6, 0.7, 0.7, 0.8]})
    >>> axes = st.pl.cohort_size({"ridge": draws})
    """
    named: dict[str, Any] = dict(frames) if isinstance(frames, Mapping) else {"": frames}
    if not named:
        raise InputError("`frames` is empty; give one result of stpred.tl.survival with `draws`, or several.")
    source = "stpred.tl.survival (with `draws`)"
    found = {n: need_columns(f, ("n_train", "draw"), name="frames", source=source) for n, f in named.items()}
    metrics = {next((m for m in METRICS if m in f), "") for f in found.values()}
    if len(metrics) != 1 or "" in metrics:
        raise InputError("`frames` must all have the column 'concordance', or all 'auroc'.")
    metric = metrics.pop()
    ax = single(ax, size=(4.6, 3.6))
    sizes = sorted({int(n) for f in found.values() for n in f["n_train"]})
    width = 0.15 * min(np.diff(sizes), default=10)
    for k, (name, frame) in enumerate(found.items()):
        by = frame.groupby("n_train")[metric]
        mean, error = by.mean(), by.std(ddof=1) / np.sqrt(by.count())
        at = mean.index.to_numpy() + width * (k - (len(found) - 1) / 2) / max(len(found) - 1, 1)
        ax.errorbar(at, mean, yerr=error.fillna(0), marker="o", markersize=4, capsize=3, linewidth=1.4, label=name)
    ax.axhline(0.5, color="0.5", linestyle=":", linewidth=1)
    n_draws = sorted({int(n) for f in found.values() for n in f.groupby("n_train").size()})
    ax.set_xticks(sizes)
    ax.set(xlabel=f"patients trained on ({' or '.join(map(str, n_draws))} draws each)")
    ax.set(ylabel=f"{'AUROC' if metric == 'auroc' else metric}, mean and standard error")
    if any(found):
        ax.legend(frameon=False, fontsize=8)
    plain(ax)
    return finish(ax, save)

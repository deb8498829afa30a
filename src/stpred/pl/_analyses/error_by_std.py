from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred.pl._figure import finish, need_columns, plain, single
from stpred.pl.labels import unit_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def error_by_std(frame: pd.DataFrame, *, ax: Axes | None = None, save: str | Path | None = None) -> Axes:
    """Draw realised errors against the standard deviations that a prediction stated.

    Parameters
    ----------
    frame
        A row per bin, as :func:`stpred.tl.error_by_std` returns them; with a column ``slide`` or ``model`` a line for
        each.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes: root mean squared error of each bin over its stated standard deviation, and the dashed line of calibrated
    ones; the title says how far off they are. Above the line errors are larger than stated.

    Raises
    ------
    InputError
        If a column is not there.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> frame = pd.DataFrame({"bin": [0, 1], "n": [9, 9], "std": [0.2, 0.6], "rmse": [0.3, 0.6]})
    >>> axes = st.pl.error_by_std(frame)
    """
    frame = need_columns(frame, ("std", "rmse"), name="frame", source="stpred.tl.error_by_std")
    said = frame.attrs.get(keys.UNS, {})
    ax = single(ax, size=(4.6, 4.4))
    by = next((c for c in ("model", "slide") if c in frame and frame[c].nunique() > 1), None)
    groups = [("", frame)] if by is None else list(frame.groupby(by, observed=True, sort=False))
    right, top = (1.1 * float(frame[c].max()) for c in ("std", "rmse"))
    ax.plot(
        [0, max(right, top)], [0, max(right, top)], color="black", linestyle="--", linewidth=0.8, label="calibrated"
    )
    for i, (name, part) in enumerate(groups):
        part = part.sort_values("std")
        label = str(name) if by is not None else "bins of equal size"
        ax.plot(part["std"], part["rmse"], color=f"C{i % 10}", marker="o", markersize=4, linewidth=1.2, label=label)
    unit = unit_of(said.get("scale"))
    suffix = f" ({unit})" if unit else ""
    ax.set(xlim=(0, right), ylim=(0, top))
    ax.set(xlabel=f"stated standard deviation{suffix}", ylabel=f"realised error, RMSE{suffix}")
    calibration = said.get("calibration", {})
    if by is None and np.isfinite(ratio := calibration.get("ratio", np.nan)):
        verdict = str(said.get("verdict", "")).split(":")[0]
        ax.set_title(f"{verdict}: error / stated = {ratio:.2f}", fontsize=10)
    ax.legend(frameon=False, fontsize=8, loc="lower right")
    plain(ax)
    return finish(ax, save)

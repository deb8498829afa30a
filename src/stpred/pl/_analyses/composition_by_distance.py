from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of
from stpred.pl._figure import finish, need_columns, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KINDS = ("lines", "areas")
MAX_NAMES = 20


def composition_by_distance(
    frame: pd.DataFrame,
    *,
    what: str | Sequence[str] | None = None,
    kind: str = "lines",
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the composition of the tissue by the distance from a border.

    Parameters
    ----------
    frame
        A row per slide, bin and class, as :func:`stpred.tl.composition_by_distance` returns them.
    what
        Classes to draw; None: all.
    kind
        ``"lines"``: a line for each class, the mean over the slides, with the interval of the only slide or the range
        of several ones as a band; ``"areas"``: shares stacked, of all classes.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes; the border is the dashed line at 0, the region is left of it.

    Raises
    ------
    InputError
        If a column or class is not there, or means are to be stacked.

    Examples
    --------
    >>> import pandas as pd
    >>> import stpred as st
    >>> frame = pd.DataFrame({"slide": "a", "distance_um": [-50, 50], "what": "T", "value": [0.1, 0.4]})
    >>> axes = st.pl.composition_by_distance(frame.assign(low=[0.0, 0.3], high=[0.2, 0.5]))
    """
    source = "stpred.tl.composition_by_distance"
    needed = ("slide", "distance_um", "what", "value", "low", "high")
    frame = need_columns(frame, needed, name="frame", source=source)
    one_of(kind, KINDS, name="kind")
    is_share = frame.attrs.get(keys.UNS, {}).get("value", "share") == "share"
    known = [str(w) for w in dict.fromkeys(frame["what"])]
    wanted = known if what is None else [what] if isinstance(what, str) else [str(w) for w in what]
    if missing := [w for w in wanted if w not in known]:
        raise InputError(f"`frame` has no class {listing(missing)} (`what`); it has {listing(known)}.")
    if kind == "areas" and not is_share:
        raise InputError("Only shares of classes add up to be stacked; pass kind='lines' for means.")
    if len(wanted) > MAX_NAMES:
        raise InputError(f"{len(wanted)} lines cannot be told apart; name at most {MAX_NAMES} with `what`.")
    ax = single(ax, size=(6.0, 3.8))
    cells = frame.groupby(["what", "distance_um"], observed=True)
    mean = cells["value"].mean()
    several = frame["slide"].nunique() > 1
    low = cells["value"].min() if several else cells["low"].mean()
    high = cells["value"].max() if several else cells["high"].mean()
    if kind == "areas":
        wide = mean.unstack(level=0)[wanted].fillna(0.0)
        ax.stackplot(wide.index, wide.to_numpy().T, labels=wanted, colors=[f"C{i % 10}" for i in range(len(wanted))])
        ax.set_ylim(0, 1)
    else:
        for i, name in enumerate(wanted):
            at = mean[name].index.to_numpy(dtype=np.float64)
            style = "-" if i < 10 else "--"
            ax.plot(at, mean[name], color=f"C{i % 10}", linestyle=style, marker="o", markersize=3, label=name)
            ax.fill_between(at, low[name], high[name], color=f"C{i % 10}", alpha=0.15, linewidth=0)
        if is_share:
            ax.set_ylim(bottom=0)
    ax.axvline(0, color="black", linestyle="--", linewidth=0.8)
    ax.set(xlabel="distance from the border (µm), inside < 0", ylabel="share of locations" if is_share else "mean")
    ax.margins(x=0.01)
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plain(ax)
    return finish(ax, save)

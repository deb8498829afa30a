"""What every plot ends with, and what several of them begin with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from stpred._core.checks import InputError, check_parent, listing
from stpred._core.disk.staging import staged_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Panels = TypeVar("Panels")

DPI = 150
"""Of files that are written."""


def finish(axes: Panels, save: str | Path | None) -> Panels:
    """Return `axes`; with `save`, write their figure and take it from pyplot's list, so that many do not pile up.

    Without, the figure stays open: a notebook shows what is open, and the axes alone would show nothing.
    """
    import matplotlib.pyplot as plt

    if save is not None:
        path = Path(save)
        figure: Any = np.ravel(axes)[0].figure  # type: ignore[call-overload]
        known = figure.canvas.get_supported_filetypes()
        if path.suffix.lstrip(".").lower() not in known:
            raise InputError(f"`save` must end in a format that can be written, one of {listing(known, most=20)}.")
        if check_parent(path).is_dir():
            raise InputError(f"`save`={str(path)!r} is a folder, not a file to write.")
        with staged_file(path, what="picture") as part:
            figure.savefig(part, dpi=DPI, bbox_inches="tight")
        plt.close(figure)
    return axes


def single(ax: Axes | None, *, size: tuple[float, float]) -> Axes:
    """Return the axes to draw into, new ones if none are given."""
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def array(panels: Any) -> Any:
    """Return axes as an array of them; numpy alone would look into each."""
    out = np.empty(len(panels), dtype=object)
    out[:] = panels
    return out


def plain(ax: Axes) -> None:
    """Take off the lines that bound nothing."""
    ax.spines[["top", "right"]].set_visible(False)


def need_columns(frame: Any, columns: tuple[str, ...], *, name: str, source: str) -> pd.DataFrame:
    """Return `frame` if it is a DataFrame with rows and these columns, else say where one comes from."""
    import pandas as pd

    if not isinstance(frame, pd.DataFrame):
        raise InputError(f"`{name}` must be a DataFrame such as {source} returns, got {type(frame).__name__}.")
    if missing := [c for c in columns if c not in frame]:
        raise InputError(
            f"`{name}` lacks the columns {listing(missing)}; {source} returns them. It has {listing(frame)}."
        )
    if frame.empty:
        raise InputError(f"`{name}` has no row to draw.")
    return frame

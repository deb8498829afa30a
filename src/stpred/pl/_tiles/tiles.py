from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing, positive, whole
from stpred._core.elements import find_image
from stpred._core.specs import TileSpec
from stpred.comparison.slide_tables import named_slides
from stpred.pl._canvas import scale_bar
from stpred.pl._figure import finish, need_columns
from stpred.tiles import Pyramid, read_tiles

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MAX_PX = 224
"""Longest edge of a tile in pixels: more would not be seen."""

ROWS = ("cluster", "kind")
"""Columns of which each combination has a row of its own."""


def tiles(
    slides: Mapping[str, SpatialData] | SpatialData,
    frame: pd.DataFrame,
    *,
    size_um: float = 150.0,
    ncols: int = 6,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw the H&E tiles of a list of locations, such as the representatives of clusters or a tile's neighbours.

    Parameters
    ----------
    slides
        The slides that the list names, or the only one.
    frame
        A row per tile with ``slide``, ``x_um`` and ``y_um``, as :func:`stpred.tl.typical_tiles` (a row of tiles for
        each cluster and kind) and :func:`stpred.tl.similar_tiles` (in order) return them.
    size_um
        Edge of the tiles that are drawn; 150 um is what ST-Net sees.
    ncols
        Tiles per row.
    image_key
        H&E image; None takes the one in the micrometre frame.
    coordinate_system
        The slides' micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (rows, ncols) axes. Titles are the location, its slide where there are several, and the distance.

    Raises
    ------
    InputError
        If the frame lacks a column, has no row, or names a slide that is not given.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.features(slide, shapes_key="spots")
    >>> found = st.tl.typical_tiles(slide, "spots_feat_morphology", groupby=None, n=2)
    >>> st.pl.tiles(slide, found).shape
    (2, 2)
    """
    import matplotlib.pyplot as plt

    frame = need_columns(frame, ("slide", "x_um", "y_um"), name="frame", source="stpred.tl.typical_tiles")
    edge, ncols, by_name = (
        positive(size_um, name="size_um", unit="um"),
        whole(ncols, name="ncols"),
        named_slides(slides),
    )
    if missing := sorted(set(frame["slide"].astype(str)) - set(by_name)):
        raise InputError(f"`frame` has tiles of {listing(missing)}, and `slides` are {listing(by_name)}.")
    frame = frame.reset_index(drop=True)
    pictures = _pictures(by_name, frame, edge, image_key=image_key, coordinate_system=coordinate_system)
    lines = _lines(frame, ncols)
    width = max(len(rows) for _, rows in lines)
    size = (1.75 * width + 1.0, 2.05 * len(lines) + 0.2)
    _, axes = plt.subplots(len(lines), width, figsize=size, squeeze=False, layout="constrained")
    several = frame["slide"].nunique() > 1
    for panels, (label, rows) in zip(axes, lines, strict=True):
        for ax in panels:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, row in zip(panels, rows, strict=False):
            ax.imshow(pictures[row], extent=(0, edge, edge, 0))
            ax.set_title(_title(frame.iloc[row], several=several), fontsize=8, pad=2)
            if frame.get("rank", default=np.ones(len(frame)))[row] == 0:  # the tile whose neighbours the others are
                ax.spines[:].set(visible=True, color="C3", linewidth=2)
        scale_bar(panels[0])
        panels[0].set_ylabel(label, rotation=90)
    return finish(axes, save)


def _pictures(
    slides: Mapping[str, SpatialData],
    frame: pd.DataFrame,
    edge: float,
    *,
    image_key: str | None,
    coordinate_system: str,
) -> dict[int, NDArray[np.uint8]]:
    """Return the tile of each row."""
    found: dict[int, NDArray[np.uint8]] = {}
    for name, part in frame.groupby(frame["slide"].astype(str)):
        sdata = slides[str(name)]
        key = find_image(sdata, image_key, coordinate_system=coordinate_system)
        pyramid = Pyramid.from_image(sdata.images[key], coordinate_system=coordinate_system)
        px = int(np.clip(round(edge / pyramid.mpp), 16, MAX_PX))
        centres = part[["x_um", "y_um"]].to_numpy(dtype=np.float64)
        found |= dict(zip(part.index, read_tiles(pyramid, centres, TileSpec(edge / px, px)), strict=True))
    return found


def _lines(frame: pd.DataFrame, ncols: int) -> list[tuple[str, NDArray[np.int64]]]:
    """Return the label and the rows of the frame of each row of tiles."""
    by = [c for c in ROWS if c in frame]
    groups = [("", frame)] if not by else list(frame.groupby(by, sort=False, observed=True))
    lines = []
    for name, part in groups:
        label = "\n".join(str(n) for n in name) if isinstance(name, tuple) else str(name)
        rows = part.index.to_numpy()
        lines += [(label if first == 0 else "", rows[first : first + ncols]) for first in range(0, len(rows), ncols)]
    return lines


def _title(row: Any, *, several: bool) -> str:
    name = str(row.get("instance", ""))
    text = f"{row['slide']} {name}".strip() if several else name
    distance = row.get("distance")
    return text if distance is None else f"{text}\n{distance:.3g}"

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, positive, whole
from stpred._core.elements import find_image, need_sdata, table_in_frame, table_instances, table_regions
from stpred._core.geometry import geometries_um
from stpred._core.names import names_of
from stpred._core.specs import TileSpec
from stpred._core.tables import check_values
from stpred.comparison.cell_types import CELL_TYPE, UNASSIGNED, score_columns
from stpred.pl._figure import finish
from stpred.tiles import Pyramid, read_tiles

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_MAX_PX = 256
"""Longest edge of a crop in pixels: more would not be seen."""


def gallery(
    sdata: SpatialData,
    table_key: str,
    *,
    color: str | Sequence[str] | None = None,
    groups: str | Sequence[str] | None = None,
    n: int = 8,
    size_um: float = 24.0,
    min_distance_um: float | None = None,
    layer: str | None = None,
    outline: bool = True,
    image_key: str | None = None,
    seed: int = 0,
    coordinate_system: str = keys.UM,
    save: str | Path | None = None,
) -> NDArray[Any]:
    """Draw the cells that score highest for each type (or gene) as crops of the H&E image, a row each.

    Parameters
    ----------
    sdata
        Object with the image, the shapes and the table.
    table_key
        Predicted or measured table.
    color
        A categorical column of ``obs``, one row per category, whose cells are ranked by their score where
        :func:`stpred.tl.score_cell_types` wrote the column and drawn at random otherwise; or genes and numeric columns
        of ``obs``, one row each, ranked by value. None takes ``"cell_type"`` if it is there, else the three genes that
        the model predicts best.
    groups
        Categories to show; None shows all but ``"unassigned"``.
    n
        Cells per row, from left to right.
    size_um
        Edge of a crop in micrometres.
    min_distance_um
        Cells of a row whose centres are closer than this in both x and y are not shown together; None takes `size_um`,
        so that crops do not overlap.
    layer
        Layer that genes are ranked by instead of ``X``.
    outline
        Draw the outline of each cell.
    image_key
        H&E image; None takes the one in the micrometre frame.
    seed
        Of the random choice where cells have no score.
    coordinate_system
        The slide's micrometre frame.
    save
        File to write the figure to.

    Returns
    -------
    (rows, crops) axes, with a scale bar in micrometres in the first crop of each row and the score above each crop.
    Cells at the border of the image and those that the model was not trained for (``obs["in_distribution"]`` is False)
    are not shown.

    Raises
    ------
    InputError
        If a column, gene or category is not there, or no cell of a row can be shown.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=30)
    >>> st.tl.score_cell_types(slide, "cells_counts", {"tumour": ["EPCAM", "KRT8"], "plasma": ["JCHAIN", "MZB1"]})
    >>> st.pl.gallery(slide, "cells_counts", n=6).shape
    (2, 6)
    """
    import matplotlib.pyplot as plt

    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    number, edge = whole(n, name="n"), positive(size_um, name="size_um", unit="um")
    apart = edge if min_distance_um is None else positive(min_distance_um, name="min_distance_um", unit="um")
    table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    check_values(table, what=f"table {table_key!r}", layer=layer)
    lines = _lines(table, table_key, color=color, groups=groups, layer=layer, seed=seed)
    image_key = find_image(sdata, image_key, coordinate_system=coordinate_system)
    pyramid = Pyramid.from_image(sdata.images[image_key], coordinate_system=coordinate_system)
    shapes, centres, usable = _cells(sdata, table, table_key, coordinate_system=coordinate_system)
    for dx, dy in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        usable &= pyramid.contains(centres + np.array([dx, dy]) * edge / 2)
    picked = [_apart(line.order[usable[line.order]], centres, n=number, apart_um=apart) for line in lines]
    for line, rows in zip(lines, picked, strict=True):
        if len(rows) == 0:
            raise InputError(
                f"Table {table_key!r} has no cell to show for {line.name!r}: of {len(line.order)}, none is in "
                f"distribution and {edge / 2:g} um or more inside image {image_key!r}."
            )
    px = int(np.clip(round(edge / pyramid.mpp), 16, _MAX_PX))
    crops = iter(read_tiles(pyramid, centres[np.concatenate(picked)], TileSpec(edge / px, px)))
    width = max(len(rows) for rows in picked)
    size = (1.3 * width + 1.2, 1.5 * len(picked) + 0.2)
    _, axes = plt.subplots(len(picked), width, figsize=size, squeeze=False, layout="constrained")
    for panels, line, rows in zip(axes, lines, picked, strict=True):
        for ax in panels:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, row in zip(panels, rows, strict=False):
            x, y = centres[row]
            ax.imshow(next(crops), extent=(x - edge / 2, x + edge / 2, y + edge / 2, y - edge / 2))
            ax.set(xlim=(x - edge / 2, x + edge / 2), ylim=(y + edge / 2, y - edge / 2), xticks=[], yticks=[])
            if outline:
                _outline(ax, shapes[row])
            if line.values is not None:
                ax.set_title(_number(line.values[row]), fontsize=8, pad=2)
        _scale_bar(panels[0], edge)
        panels[0].set_ylabel(line.name, rotation=0, ha="right", va="center", labelpad=8)
    return finish(axes, save)


@dataclass(frozen=True)
class _Line:
    """One row of the gallery: its title, the table's rows from best to worst, and what they are ranked by."""

    name: str
    order: NDArray[np.int64]
    values: NDArray[np.float64] | None = None


def _lines(
    table: AnnData,
    table_key: str,
    *,
    color: str | Sequence[str] | None,
    groups: str | Sequence[str] | None,
    layer: str | None,
    seed: int,
) -> list[_Line]:
    """Return what to show in each row of the gallery."""
    if color is None:
        color = CELL_TYPE if CELL_TYPE in table.obs else _best_predicted(table)
    names = [color] if isinstance(color, str) else [str(c) for c in color]
    if missing := [c for c in names if c not in table.obs and c not in table.var_names]:
        raise InputError(
            f"Table {table_key!r} has no obs column or gene {listing(missing)}; columns: {listing(table.obs.columns)}, "
            f"genes: {listing(table.var_names[:5])} ..."
        )
    if not names:
        raise InputError("`color` is empty; name an obs column or genes.")
    categorical = [c for c in names if c in table.obs and table.obs[c].dtype.kind not in "iuf"]
    if categorical and len(names) > 1:
        raise InputError(f"`color` may be one categorical column or several numeric ones and genes, got {names}.")
    if categorical:
        return _categories(table, table_key, names[0], groups, seed=seed)
    if groups is not None:
        raise InputError(f"`groups` are categories of a categorical column, but {listing(names)} are numbers.")
    found = []
    for name in names:
        values = _values(table, name, layer)
        order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
        found.append(_Line(name, order[np.isfinite(values[order])], values))
    return found


def _categories(
    table: AnnData, table_key: str, column: str, groups: str | Sequence[str] | None, *, seed: int
) -> list[_Line]:
    labels = table.obs[column].astype("category")
    known = names_of(labels.cat.categories, what="category")
    spoken = np.array([*known, ""], dtype=object)[labels.cat.codes]  # the last one is that of -1
    if groups is None:
        wanted = [c for c in known if c != UNASSIGNED and (spoken == c).any()]
    else:
        wanted = names_of(groups if isinstance(groups, Iterable) and not isinstance(groups, str) else [groups])
    if missing := [g for g in wanted if g not in known]:
        raise InputError(
            f"obs[{column!r}] of table {table_key!r} has no category {listing(missing)}; it has {listing(known)}."
        )
    if not wanted:
        raise InputError(f"obs[{column!r}] of table {table_key!r} has no category to show; name some with `groups`.")
    scores, found = score_columns(table, column), []
    for name in wanted:
        rows = np.flatnonzero((spoken == name) & labels.notna().to_numpy())
        if name in scores:
            values = table.obs[scores[name]].to_numpy(dtype=np.float64)
            found.append(_Line(name, rows[np.argsort(-values[rows], kind="stable")], values))
        else:
            found.append(_Line(name, np.random.default_rng(seed).permutation(rows)))
    return found


def _best_predicted(table: AnnData) -> list[str]:
    order = table.var_names
    if "cv_pearson" in table.var:
        order = table.var["cv_pearson"].fillna(-1).sort_values(ascending=False, kind="stable").index
    return [str(g) for g in order[:3]]


def _values(table: AnnData, name: str, layer: str | None) -> NDArray[np.float64]:
    if name not in table.var_names:
        return table.obs[name].to_numpy(dtype=np.float64)
    if layer is not None:
        key_in(layer, table.layers, what="layer", name="layer")
    source = table.X if layer is None else table.layers[layer]
    return targets.dense(source[:, [table.var_names.get_loc(name)]]).ravel()


def _cells(
    sdata: SpatialData, table: AnnData, table_key: str, *, coordinate_system: str
) -> tuple[NDArray[Any], NDArray[np.float64], NDArray[np.bool_]]:
    """Return for each row of the table its outline and centre in micrometres, and whether it may be shown."""
    import shapely

    shapes = np.full(table.n_obs, None, dtype=object)
    for region in table_regions(table):
        outlines, index = geometries_um(sdata, region, coordinate_system=coordinate_system)
        rows, ids = table_instances(table, region)
        positions = index.get_indexer(ids)
        shapes[rows[positions >= 0]] = outlines[positions[positions >= 0]]
    there = np.array([s is not None for s in shapes])
    if not there.any():
        raise InputError(
            f"No row of table {table_key!r} has a shape; it annotates {listing(table_regions(table))}, shapes: "
            f"{listing(sdata.shapes)}."
        )
    centres = np.zeros((table.n_obs, 2))
    centres[there] = shapely.get_coordinates(shapely.centroid(shapes[there]))
    if keys.IN_DISTRIBUTION in table.obs:
        there &= table.obs[keys.IN_DISTRIBUTION].to_numpy(dtype=bool)
    return shapes, centres, there


def _apart(order: NDArray[np.int64], centres: NDArray[np.float64], *, n: int, apart_um: float) -> NDArray[np.int64]:
    """Return the first `n` rows of `order` whose squares of this edge do not overlap those before them."""
    kept: list[int] = []
    for row in order:
        if len(kept) == n:
            break
        if (np.abs(centres[kept] - centres[row]).max(axis=1) >= apart_um).all():
            kept.append(int(row))
    return np.asarray(kept, dtype=np.int64)


def _number(value: float) -> str:
    """Write a score with two decimals, a large one with none."""
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.0f}"


def _outline(ax: Axes, shape: Any) -> None:
    """Draw the rings of a polygon, light on dark so that they show on any stain."""
    import shapely

    for ring in shapely.get_rings(shape):
        x, y = shapely.get_coordinates(ring).T
        ax.plot(x, y, color="black", linewidth=1.6, alpha=0.6)
        ax.plot(x, y, color="white", linewidth=0.8)


def _scale_bar(ax: Axes, edge_um: float) -> None:
    """Draw a bar of a round length of about a third of the crop into its lower left corner."""
    step = 10 ** np.floor(np.log10(edge_um / 3))
    length = float(max(m * step for m in (1, 2, 5) if m * step <= edge_um / 2.5))
    left, bottom = ax.get_xlim()[0] + 0.06 * edge_um, ax.get_ylim()[0] - 0.08 * edge_um
    ax.plot([left, left + length], [bottom, bottom], color="black", linewidth=3, solid_capstyle="butt")
    box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.8}
    ax.text(
        left, bottom - 0.05 * edge_um, f"{length:g} µm", fontsize=7, ha="left", va="bottom", color="black", bbox=box
    )

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred._core.elements import table_in_frame
from stpred.comparison.slide_tables import named_slides
from stpred.pl._figure import finish, plain, single

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from numpy.typing import NDArray
    from spatialdata import SpatialData

METHODS = ("pca", "umap")
SLIDE = "slide"
MAX_CLASSES = 30


def latent(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    *,
    color: str = SLIDE,
    method: str = "pca",
    n_neighbors: int = 15,
    seed: int = 0,
    coordinate_system: str = keys.UM,
    ax: Axes | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw the locations of one or several slides in two dimensions of a latent space.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: of :func:`stpred.tl.latent`, or any other whose rows are points of one space.
    color
        Column of its ``obs``, such as clusters or ``"ood_score"``; ``"slide"``: the slide.
    method
        ``"pca"``: the first two principal components; ``"umap"`` of the first fifty, by umap-learn.
    n_neighbors
        Of ``"umap"``.
    seed
        Of ``"umap"``.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.
    ax
        Axes to draw into; None makes a figure.
    save
        File to write the figure to.

    Returns
    -------
    The axes. Points are drawn in random order, so that no slide hides another.

    Raises
    ------
    InputError
        If a table or column is missing, or tables have different columns.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> for slide in slides.values():
    ...     st.pp.features(slide, shapes_key="spots")
    >>> axes = st.pl.latent(slides, "spots_feat_morphology")
    """
    one_of(method, METHODS, name="method")
    tables = _tables(slides, table_key, coordinate_system=coordinate_system)
    x = np.concatenate([targets.dense(t.X, np.float64) for t in tables.values()])
    if not np.isfinite(x).all():
        raise InputError(f"Tables {table_key!r} hold NaN or infinite values.")
    values = _color(tables, table_key, color)
    xy, names = _reduced(x, method=method, n_neighbors=n_neighbors, seed=seed)
    ax = single(ax, size=(5.6, 4.4))
    order = np.random.default_rng(seed).permutation(len(xy))
    x1, x2 = xy[order].T
    size = float(np.clip(4000 / len(xy), 3, 25))
    if values.dtype.kind == "f":
        drawn = ax.scatter(x1, x2, c=values[order], s=size, linewidths=0, cmap="viridis")
        ax.figure.colorbar(drawn, ax=ax, label=color, shrink=0.8)
    else:
        known = sorted(set(values), key=lambda c: (0, int(c), c) if c.isdigit() else (1, 0, c))
        colors = np.array([f"C{i % 10}" for i in range(len(known))], dtype=object)
        position = {c: i for i, c in enumerate(known)}
        chosen = colors[[position[v] for v in values[order]]].tolist()
        ax.scatter(x1, x2, c=chosen, s=size, linewidths=0)
        for i, name in enumerate(known):
            ax.scatter([], [], c=f"C{i % 10}", s=20, label=name or "missing")
        ax.legend(title=color, frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    ax.set(xlabel=names[0], ylabel=names[1], xticks=[], yticks=[])
    plain(ax)
    return finish(ax, save)


def _tables(
    slides: Mapping[str, SpatialData] | SpatialData, table_key: str, *, coordinate_system: str
) -> dict[str, AnnData]:
    """Return the table of every slide; they must have the same columns."""
    found = {}
    for name, sdata in named_slides(slides).items():
        key_in(table_key, sdata.tables, what=f"table of {name!r}", name="table_key")
        found[name] = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    first, *others = found
    for other in others:
        if not found[other].var_names.equals(found[first].var_names):
            raise InputError(f"Tables {table_key!r} of {first!r} and {other!r} have different columns.")
    return found


def _color(tables: Mapping[str, AnnData], table_key: str, color: str) -> NDArray[Any]:
    """Return (n,) numbers, or text of classes."""
    import pandas as pd

    parts: list[pd.Series] = []
    for name, table in tables.items():
        if color == SLIDE and SLIDE not in table.obs:
            parts.append(pd.Series([name] * table.n_obs))
            continue
        key_in(color, table.obs.columns, what=f"column of obs in table {table_key!r} of {name!r}", name="color")
        parts.append(table.obs[color])
    joined = pd.concat([p.astype(object) if p.dtype.kind not in "iuf" else p for p in parts])
    if joined.dtype.kind in "iuf":
        return joined.to_numpy(dtype=np.float64)
    if joined.nunique() > MAX_CLASSES:
        raise InputError(
            f"obs[{color!r}] has {joined.nunique()} classes, too many colours: {listing(joined.unique()[:3])} ..."
        )
    return np.where(joined.isna(), "", joined.astype(str)).astype(object)


def _reduced(
    x: NDArray[np.float64], *, method: str, n_neighbors: int, seed: int
) -> tuple[NDArray[np.float64], tuple[str, str]]:
    """Return (n, 2) coordinates and the names of their axes."""
    from sklearn.decomposition import PCA

    if min(x.shape) < 2 or len(x) < 3:
        raise InputError(f"A picture needs three locations of two values at least, got {x.shape[0]} of {x.shape[1]}.")
    parts = PCA(min(50 if method == "umap" else 2, *x.shape), random_state=seed)
    found = parts.fit_transform(x)
    if method == "pca":
        first, second = (f"PC{i + 1} ({100 * r:.0f} %)" for i, r in enumerate(parts.explained_variance_ratio_[:2]))
        return found, (first, second)
    from umap import UMAP

    return np.asarray(
        UMAP(n_neighbors=min(n_neighbors, len(x) - 1), random_state=seed, n_jobs=1).fit_transform(found), np.float64
    ), ("UMAP 1", "UMAP 2")

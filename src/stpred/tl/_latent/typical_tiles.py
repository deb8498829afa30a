from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpred._core import keys
from stpred._core.checks import InputError, whole
from stpred.tl._latent.space import Space

if TYPE_CHECKING:
    from spatialdata import SpatialData

KINDS = ("representative", "atypical")


def typical_tiles(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    *,
    groupby: str | None = "latent_cluster",
    n: int = 5,
    metric: str = "euclidean",
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Find the locations nearest to the middle of their cluster in a latent space, and the farthest ones.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: of :func:`stpred.tl.latent`, or any other whose rows are points of one space.
    groupby
        Column of its ``obs`` (or of the shapes) with the clusters, or with any other classes; None: all locations are
        one.
    n
        Locations of either kind per cluster, fewer where the cluster is smaller than twice that.
    metric
        ``"euclidean"`` or ``"cosine"`` (1 - cosine).
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    DataFrame, rows by cluster, kind and rank: ``cluster``, ``kind`` (``"representative"``: nearest to the mean of the
    cluster; ``"atypical"``: farthest from it), ``rank`` from 1, ``distance``, and ``slide``, ``image``, ``region``,
    ``instance``, ``x_um``, ``y_um`` of the location. :func:`stpred.pl.tiles` draws them.

    Raises
    ------
    InputError
        If a table or column is missing, or the tables are of different models.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.features(slide, shapes_key="spots")
    >>> found = st.tl.typical_tiles(slide, "spots_feat_morphology", groupby=None, n=2)
    >>> found["kind"].tolist()
    ['representative', 'representative', 'atypical', 'atypical']
    """
    n = whole(n, name="n")
    space = Space.of(slides, table_key, metric=metric, coordinate_system=coordinate_system)
    groups = (
        np.full(len(space.values), "all", dtype=object)
        if groupby is None
        else space.column(groupby, parameter="groupby")
    )
    # Equal distances are told apart by names, not by the order of slides.
    names = space.places["slide"].astype(str) + "\0" + space.places["instance"].astype(str)
    by_name = np.argsort(names.to_numpy(dtype=object), kind="stable")
    parts = []
    known = sorted(set(groups) - {""}, key=lambda c: (0, int(c), c) if c.isdigit() else (1, 0, c))
    if not known:
        raise InputError(f"No location of table {table_key!r} is in a class of {groupby!r}.")
    for group in known:
        rows = by_name[groups[by_name] == group]
        distance = space.distances(space.values[rows].mean(axis=0, dtype=np.float64), rows)
        order = np.argsort(distance, kind="stable")
        n_near = min(n, -(-len(rows) // 2))
        n_far = min(n, len(rows) - n_near)
        chosen = np.concatenate([order[:n_near], order[len(order) - n_far :][::-1]])
        frame = space.places.iloc[rows[chosen]].reset_index(drop=True)
        frame.insert(0, "cluster", group)
        frame.insert(1, "kind", np.repeat(KINDS, [n_near, n_far]))
        frame.insert(2, "rank", np.concatenate([np.arange(n_near), np.arange(n_far)]) + 1)
        frame.insert(3, "distance", distance[chosen])
        parts.append(frame)
    return pd.concat(parts, ignore_index=True)

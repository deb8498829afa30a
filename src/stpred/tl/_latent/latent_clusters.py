from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, element_name, whole
from stpred.tl._latent.space import Space, write_columns

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

N_INIT = 10
"""Starts of k-means, of which the best is taken."""


def latent_clusters(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    *,
    n_clusters: int = 8,
    metric: str = "euclidean",
    key_added: str = "latent_cluster",
    seed: int = 0,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> pd.DataFrame | None:
    """Cluster the locations of one or several slides by k-means in the latent space of a network.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide: of :func:`stpred.tl.latent`, or any other whose rows are points of one space, such as
        features.
    n_clusters
        Number of clusters.
    metric
        ``"euclidean"``, or ``"cosine"``: rows are scaled to length 1 first.
    key_added
        Column of ``obs``; ``{key_added}_distance`` gets the distance from the cluster's middle.
    seed
        Of the ten starts, the best of which is taken.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.
    inplace
        With False the two columns are returned, beside slide, region, instance and place of each location, and the
        tables are left alone.

    Returns
    -------
    None, or with ``inplace=False`` a DataFrame with a row per location. Writes the categorical ``obs[key_added]``
    (``"0"``, the largest cluster, ``"1"``, ...) and ``obs[f"{key_added}_distance"]`` (float32). Neither depends on the
    order of slides or rows.

    Raises
    ------
    InputError
        If a table is missing, tables are of different models, or there are fewer different locations than clusters.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827: k-means of the 1 024 values of each tile.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, st.models.MLP.Config(hidden=(16,), epochs=2), shapes_key="spots")
    >>> st.tl.latent(slides, model)
    >>> st.tl.latent_clusters(slides, "spots_mlp_latent", n_clusters=3)
    >>> slides["donor1"].tables["spots_mlp_latent"].obs["latent_cluster"].cat.categories.tolist()
    ['0', '1', '2']
    """
    n_clusters = whole(n_clusters, name="n_clusters")
    element_name(key_added)
    space = Space.of(slides, table_key, metric=metric, coordinate_system=coordinate_system)
    labels, middles = kmeans(space.values, n_clusters=n_clusters, seed=seed)
    distance = np.empty(len(labels), dtype=np.float32)
    for k, middle in enumerate(middles):
        rows = np.flatnonzero(labels == k)
        distance[rows] = space.distances(middle, rows)
    columns = {key_added: labels.astype(str).astype(object), f"{key_added}_distance": distance}
    if not inplace:
        return space.places.assign(**columns)
    write_columns(space, table_key, columns)
    return None


def kmeans(x: NDArray[Any], *, n_clusters: int, seed: int = 0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (n,) clusters of (n, width) rows, the largest first, and the (k, width) middles of them.

    Rows are sorted by their values before the random starts, so that their order does not matter.
    """
    from sklearn.cluster import KMeans

    x = np.ascontiguousarray(x, dtype=np.float64)
    distinct, position = np.unique(x, axis=0, return_inverse=True)
    if len(distinct) < n_clusters:
        raise InputError(
            f"`n_clusters`={n_clusters} is more than the {len(distinct)} different locations; ask for fewer."
        )
    weights = np.bincount(position.ravel()).astype(np.float64)
    fitted = KMeans(n_clusters, n_init=N_INIT, random_state=seed).fit(distinct, sample_weight=weights)
    found = fitted.labels_[position.ravel()]
    middles = np.stack([x[found == k].mean(axis=0) for k in range(n_clusters)])
    order = np.lexsort([*middles.T[::-1], -np.bincount(found, minlength=n_clusters)])
    return np.argsort(order)[found], middles[order]

"""Predicted tables go through squidpy with no step between."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import squidpy as sq
from anndata import AnnData

BUILDERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # what the newer functions take, and what the plain one takes for the same graph
    "knn": ({"n_neighs": 5}, {"coord_type": "generic", "n_neighs": 5}),
    "radius": ({"radius": 130.0}, {"coord_type": "generic", "radius": 130.0}),
    "grid": ({"n_neighs": 6}, {"coord_type": "grid", "n_neighs": 6}),
    "delaunay": ({}, {"coord_type": "generic", "delaunay": True}),
}


def _connect(table: AnnData, how: str) -> None:
    """Build the graph with the function of its own where this squidpy has it."""
    new, plain = BUILDERS[how]
    function = getattr(sq.gr, f"spatial_neighbors_{how}", None)
    if function is None:
        sq.gr.spatial_neighbors(table, **plain)
    else:
        function(table, **new)


@pytest.fixture
def connected(table: AnnData) -> AnnData:
    _connect(table, "knn")
    return table


@pytest.mark.parametrize("how", BUILDERS)
def test_spatial_neighbors(table: AnnData, how: str) -> None:
    _connect(table, how)
    graph = table.obsp["spatial_connectivities"]
    assert graph.shape == (table.n_obs, table.n_obs)
    if how == "knn":
        assert (np.asarray((graph > 0).sum(axis=1)).ravel() == 5).all()
    if how == "radius":  # micrometres, as the coordinates are
        away = np.linalg.norm(table.obsm["spatial"][:, None] - table.obsm["spatial"], axis=2)
        assert graph.nnz == ((away <= 130.0) & (away > 0)).sum()


def test_nhood_enrichment(connected: AnnData) -> None:
    first = connected.X[:, 0]
    connected.obs["level"] = pd.Categorical(np.where(first > np.median(first), "high", "low"))
    sq.gr.nhood_enrichment(connected, cluster_key="level", n_perms=50, seed=0, show_progress_bar=False)
    z = connected.uns["level_nhood_enrichment"]["zscore"]
    assert z.shape == (2, 2)
    assert np.isfinite(z).all()


def test_spatial_autocorr(connected: AnnData) -> None:
    sq.gr.spatial_autocorr(connected, mode="moran")
    scores = connected.uns["moranI"]
    assert set(scores.index) == set(connected.var_names)
    assert scores["I"].between(-1, 1).all()
    assert scores["I"].max() > 0.1  # tissue is patchy, and so is what is predicted from it


def test_spatial_scatter(table: AnnData) -> None:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    sq.pl.spatial_scatter(table, shape=None, color=table.var_names[0], ax=ax)
    assert len(ax.collections[0].get_offsets()) == table.n_obs
    plt.close(figure)

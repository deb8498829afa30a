"""Predicted tables go through scanpy with no step between."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from anndata import AnnData


@pytest.fixture
def clustered(table: AnnData) -> AnnData:
    sc.pp.neighbors(table, random_state=0)
    sc.tl.leiden(table, flavor="igraph", n_iterations=2, directed=False, resolution=2.0, random_state=0)
    return table


def test_neighbors(table: AnnData) -> None:
    sc.pp.neighbors(table, random_state=0)
    assert table.obsp["connectivities"].shape == (table.n_obs, table.n_obs)
    assert table.obsp["connectivities"].nnz > table.n_obs


def test_leiden(clustered: AnnData) -> None:
    assert clustered.obs["leiden"].cat.categories.size > 1


def test_rank_genes_groups(clustered: AnnData) -> None:
    sc.tl.rank_genes_groups(clustered, "leiden", method="wilcoxon")
    best = sc.get.rank_genes_groups_df(clustered, group="0")
    assert set(best["names"]) == set(clustered.var_names)
    # What is ranked is X, on its log scale: the fold change has the sign of the difference of means.
    first = clustered.obs["leiden"] == "0"
    values = clustered.to_df()
    difference = values[first].mean() - values[~first].mean()
    top = best.iloc[0]
    assert np.sign(top["logfoldchanges"]) == np.sign(difference[top["names"]])


def test_spatial_plot(table: AnnData) -> None:
    import matplotlib.pyplot as plt

    ax = sc.pl.embedding(table, "spatial", color=table.var_names[0], show=False)
    assert len(ax.collections[0].get_offsets()) == table.n_obs
    plt.close(ax.figure)

"""Predicted tables in SpatialData: valid, unchanged by disk, found by its queries and drawn by its plots."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData, get_values, match_table_to_element, read_zarr
from spatialdata.models import TableModel

mpl.use("Agg")


def test_table_is_valid(table: AnnData) -> None:
    TableModel().validate(table)


def test_table_holds_what_is_promised(predicted: SpatialData, table: AnnData, region: str) -> None:
    shapes = predicted.shapes[region]
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X).all()
    assert table.layers["std"].dtype == np.float32
    assert table.obs["ood_score"].dtype == np.float32
    assert table.obs["in_distribution"].dtype == bool
    assert table.obsm["spatial"].dtype == np.float64
    assert table.obs["instance_id"].isin(shapes.index).all()
    centres = shapes.geometry.loc[table.obs["instance_id"]].centroid
    np.testing.assert_allclose(table.obsm["spatial"], np.column_stack([centres.x, centres.y]))
    assert json.loads(table.uns["stpred"])["output_scale"] == "log1p_cp10k"


def test_table_survives_disk(predicted: SpatialData, table: AnnData, region: str, tmp_path: Path) -> None:
    predicted.write(tmp_path / "slide.zarr")
    back = read_zarr(tmp_path / "slide.zarr").tables[f"{region}_ridge"]
    np.testing.assert_array_equal(back.X, table.X)
    assert back.X.dtype == np.float32
    assert set(back.layers) - {None} == {"std"}  # anndata 0.13 lists X as the layer None
    np.testing.assert_array_equal(back.layers["std"], table.layers["std"])
    assert back.layers["std"].dtype == np.float32
    np.testing.assert_array_equal(back.obsm["spatial"], table.obsm["spatial"])
    assert back.obsm["spatial"].dtype == np.float64
    assert back.uns["stpred"] == table.uns["stpred"]
    assert back.uns["spatialdata_attrs"] == table.uns["spatialdata_attrs"]
    # How strings are held (object, or pandas' own type) is the reader's business; their values are not.
    pd.testing.assert_frame_equal(
        back.obs, table.obs, check_dtype=False, check_categorical=False, check_index_type=False
    )
    assert isinstance(back.obs["region"].dtype, pd.CategoricalDtype)
    for name in ("ood_score", "in_distribution"):
        assert back.obs[name].dtype == table.obs[name].dtype
    pd.testing.assert_frame_equal(back.var, table.var, check_dtype=False, check_index_type=False)
    assert back.var["trusted"].dtype == bool


@pytest.mark.parametrize("layer", [None, "std"])
def test_plots_by_gene_name(predicted: SpatialData, table: AnnData, region: str, layer: str | None) -> None:
    import matplotlib.pyplot as plt
    import spatialdata_plot  # noqa: F401  (registers .pl)

    gene = table.var_names[0]
    figure, ax = plt.subplots()
    drawn = predicted.pl.render_images("he").pl.render_shapes(
        region, color=gene, table_name=f"{region}_ridge", table_layer=layer, method="matplotlib"
    )
    drawn.pl.show(coordinate_systems="um", ax=ax)
    figure.canvas.draw()
    colours = np.concatenate([c.get_facecolor() for c in ax.collections])
    assert len(colours) == len(predicted.shapes[region])
    values = np.asarray(table[:, gene].X if layer is None else table[:, gene].layers[layer])
    assert len(np.unique(colours, axis=0)) > 0.3 * min(len(np.unique(values)), 256)
    plt.close(figure)


def test_values_by_gene_name(predicted: SpatialData, table: AnnData, region: str) -> None:
    genes = list(table.var_names[:2])
    values = get_values(genes, sdata=predicted, element_name=region, table_name=f"{region}_ridge")
    np.testing.assert_array_equal(values.loc[table.obs["instance_id"]].to_numpy(), table[:, genes].X)


def test_table_matches_its_element(predicted: SpatialData, table: AnnData, region: str) -> None:
    matched = match_table_to_element(predicted, region, f"{region}_ridge")
    assert matched.obs["instance_id"].tolist() == predicted.shapes[region].index.tolist()
    assert matched.n_obs == table.n_obs


def test_filter_by_coordinate_system(predicted: SpatialData, table: AnnData, region: str) -> None:
    kept = predicted.filter_by_coordinate_system("um", filter_tables=True)
    assert set(kept.shapes) == {"spots", "cells"}
    np.testing.assert_array_equal(kept.tables[f"{region}_ridge"].X, table.X)


def test_box_cuts_the_table(predicted: SpatialData, table: AnnData, region: str) -> None:
    part = predicted.query.bounding_box(
        axes=("x", "y"), min_coordinate=[0, 0], max_coordinate=[350, 350], target_coordinate_system="um"
    )
    left = part.tables[f"{region}_ridge"]
    assert 0 < left.n_obs < table.n_obs
    assert set(left.obs["instance_id"]) == set(part.shapes[region].index)
    TableModel().validate(left)

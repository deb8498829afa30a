"""The latent space of trained networks on slides: tables, clusters, typical and similar tiles."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import get_transformation

import stpred as st
from stpred import InputError
from stpred.tl._latent.cluster_purity import purity
from stpred.tl._latent.latent_clusters import kmeans

KEY = "spots_mlp_latent"


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)


@pytest.fixture(scope="module")
def model(slides: dict[str, SpatialData]) -> Any:
    config = st.models.MLP.Config(hidden=(24, 8), epochs=2)
    return st.tl.train(slides, config, encoder="intensity", genes=["EPCAM", "COL1A2"], shapes_key="spots")


@pytest.fixture(scope="module")
def written(slides: dict[str, SpatialData], model: Any) -> dict[str, SpatialData]:
    st.tl.latent(slides, model)
    return slides


def points(values: Mapping[str, Any]) -> dict[str, SpatialData]:
    """Slides whose tables hold the given rows."""
    found = {}
    for name, x in values.items():
        n = len(x)
        xy = np.column_stack([np.arange(n) * 100.0, np.zeros(n)])
        shapes = ShapesModel.parse(xy, geometry=0, radius=50, index=pd.Index([f"s{i}" for i in range(n)]))
        obs = pd.DataFrame({"region": pd.Categorical(["spots"] * n), "instance_id": shapes.index})
        obs.index = obs.index.astype(str)
        table = AnnData(np.asarray(x, np.float32), obs=obs)
        table.obsm["spatial"] = xy
        table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance_id")
        found[name] = SpatialData(shapes={"spots": shapes}, tables={"rows": table})
    return found


def test_the_table_holds_the_last_hidden_layer(written: dict[str, SpatialData], model: Any) -> None:
    slide = written["donor1"]
    table = slide.tables[KEY]
    TableModel().validate(table)
    assert table.shape == (len(slide.shapes["spots"]), 8)
    assert table.X.dtype == np.float32
    assert table.var_names[0] == "latent_0"
    assert {"ood_score", "in_distribution"} <= set(table.obs)
    said = json.loads(table.uns["stpred"])
    assert said["kind"] == "latent"
    assert said["layer"] == "the last hidden layer's values"
    assert "output_scale" not in said
    with torch_off():
        head = model.head.weight.numpy(), model.head.bias.numpy()
    values = (table.X @ head[0].T + head[1]) * model.gene_std.numpy() + model.gene_mean.numpy()
    predicted = st.tl.predict(slide, model, shapes_key="spots", inplace=False)
    np.testing.assert_allclose(values.clip(min=0), predicted.X, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match="holds latent, neither expression"):
        st.tl.differential_rank(slide, KEY, np.arange(table.n_obs))


def torch_off() -> Any:
    import torch

    return torch.no_grad()


def test_a_tile_alone_is_the_tile_among_others(written: dict[str, SpatialData], model: Any) -> None:
    slide = written["donor0"]
    alone = slide.shapes["spots"].iloc[[5]]
    part = ShapesModel.parse(
        gpd.GeoDataFrame({"radius": alone.radius.to_numpy()}, geometry=alone.geometry.to_numpy(), index=alone.index),
        transformations=get_transformation(slide.shapes["spots"], get_all=True),
    )
    one = SpatialData(images=dict(slide.images), shapes={"spots": slide.shapes["spots"], "one": part})
    with st.settings.override(batch_size=3):
        found = st.tl.latent(one, model, shapes_key="one", inplace=False)
        all_of_them = st.tl.latent(one, model, shapes_key="spots", inplace=False)
    assert isinstance(found, AnnData)
    np.testing.assert_allclose(found.X[0], slide.tables[KEY].X[5], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(all_of_them.X, slide.tables[KEY].X, rtol=1e-4, atol=1e-5)
    assert set(one.tables) == set()


def test_several_slides_at_once(slides: dict[str, SpatialData], model: Any, written: Any) -> None:
    found = st.tl.latent(dict(reversed(slides.items())), model, inplace=False)
    assert list(found) == ["donor2", "donor1", "donor0"]
    for name, table in found.items():
        np.testing.assert_array_equal(table.X, written[name].tables[KEY].X)


def test_methods_without_a_hidden_layer_say_who_has_one(slides: dict[str, SpatialData]) -> None:
    ridge = st.tl.train(slides["donor0"], "ridge", encoder="intensity", genes=["EPCAM"], shapes_key="spots")
    with pytest.raises(InputError, match=r"'ridge' model has no hidden layer.*'mlp'.*'stnet'"):
        st.tl.latent(slides, ridge)
    with pytest.raises(InputError, match="must be a mapping of names"):
        st.tl.latent([1], ridge)  # type: ignore[arg-type]


def test_kmeans_is_that_of_scikit_learn_in_any_order() -> None:
    from sklearn.cluster import KMeans

    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 2], [50, 30, 20])
    x = rng.normal(size=(100, 5)) + 6 * np.eye(5)[truth]
    labels, middles = kmeans(x, n_clusters=3)
    np.testing.assert_array_equal(labels, truth)  # numbered by size
    own = KMeans(3, n_init=10, random_state=0).fit(x)
    assert np.square(x - middles[labels]).sum() == pytest.approx(own.inertia_)
    order = rng.permutation(100)
    again, same = kmeans(x[order], n_clusters=3)
    np.testing.assert_array_equal(again, labels[order])
    np.testing.assert_allclose(same, middles)


def test_clusters_do_not_depend_on_the_order_of_slides(written: dict[str, SpatialData]) -> None:
    one = st.tl.latent_clusters(written, KEY, n_clusters=3, inplace=False)
    other = st.tl.latent_clusters(dict(reversed(written.items())), KEY, n_clusters=3, inplace=False)
    place = ["slide", "instance"]
    both = one.merge(other, on=place, suffixes=("", "_other"))
    assert len(both) == len(one)
    assert (both["latent_cluster"] == both["latent_cluster_other"]).all()
    np.testing.assert_allclose(both["latent_cluster_distance"], both["latent_cluster_distance_other"], rtol=1e-5)
    assert all("latent_cluster" not in s.tables[KEY].obs for s in written.values())


def test_clusters_are_written_into_each_table() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=(12, 3)), "b": rng.normal(size=(9, 3)) + 20}
    slides = points(values)
    st.tl.latent_clusters(slides, "rows", n_clusters=2)
    a, b = (slides[k].tables["rows"].obs for k in "ab")
    assert a["latent_cluster"].tolist() == ["0"] * 12
    assert b["latent_cluster"].tolist() == ["1"] * 9
    middle = values["b"].mean(axis=0)
    np.testing.assert_allclose(b["latent_cluster_distance"], np.linalg.norm(values["b"] - middle, axis=1), rtol=1e-4)
    cosine = st.tl.latent_clusters(slides, "rows", n_clusters=2, metric="cosine", inplace=False)
    assert cosine["latent_cluster_distance"].between(-1e-6, 2).all()


def test_purity_equals_counting() -> None:
    clusters = np.array(["0", "0", "0", "1", "1", "10", "10"], dtype=object)
    labels = np.array(["t", "t", "n", "n", "n", "t", "n"], dtype=object)
    frame, total, chance = purity(clusters, labels)
    assert frame["cluster"].tolist() == ["0", "1", "10"]
    assert frame["label"].tolist() == ["t", "n", "n"]
    np.testing.assert_allclose(frame["purity"], [2 / 3, 1, 0.5])
    assert total == pytest.approx(5 / 7)
    assert chance == pytest.approx(4 / 7)


def test_purity_of_planted_and_of_shuffled_labels() -> None:
    rng = np.random.default_rng(0)
    kind = {k: rng.integers(0, 2, size=150) for k in "ab"}
    slides = points({k: rng.normal(size=(150, 4)) + 5 * v[:, None] for k, v in kind.items()})
    for name, slide in slides.items():
        slide.shapes["spots"]["tumour"] = np.where(kind[name] == 1, "yes", "no")
        slide.tables["rows"].obs["shuffled"] = rng.permutation(np.where(kind[name] == 1, "yes", "no"))
    slides["a"].shapes["spots"].loc["s0", "tumour"] = None
    st.tl.latent_clusters(slides, "rows", n_clusters=2)
    found = st.tl.cluster_purity(slides, "rows", "tumour")
    assert found.attrs["stpred"]["purity"] == 1
    assert found.attrs["stpred"]["n_unlabelled"] == 1
    assert (found["n_slides"] == 2).all()
    assert found["n"].sum() == 299
    chance = st.tl.cluster_purity(slides, "rows", "shuffled").attrs["stpred"]
    assert chance["purity"] < chance["chance"] + 0.06
    assert abs(chance["adjusted_rand"]) < 0.05
    with pytest.raises(InputError, match=r"has a column 'kind' \(`labels`\)"):
        st.tl.cluster_purity(slides, "rows", "kind")


def test_typical_tiles_are_nearest_to_the_mean() -> None:
    slides = points({"a": [[0.0], [1], [2], [9]], "b": [[100.0]]})
    slides["a"].tables["rows"].obs["c"] = "x"
    slides["b"].tables["rows"].obs["c"] = "y"
    found = st.tl.typical_tiles(slides, "rows", groupby="c", n=1)  # the mean of x is 3
    assert found["cluster"].tolist() == ["x", "x", "y"]
    assert found["kind"].tolist() == ["representative", "atypical", "representative"]
    assert found["instance"].tolist() == ["s2", "s3", "s0"]
    np.testing.assert_allclose(found["distance"], [1, 6, 0])
    assert found["x_um"].tolist() == [200, 300, 0]
    many = st.tl.typical_tiles(slides, "rows", groupby=None, n=50)
    assert len(many) == 5
    assert not many.duplicated(["slide", "instance"]).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_similar_tiles_equal_a_slow_search(metric: str) -> None:
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(3)
    values = {k: rng.normal(size=(20, 6)).astype(np.float32) for k in "abc"}
    slides = points(values)
    found = st.tl.similar_tiles(slides, "rows", "s4", slide="b", n=7, metric=metric)
    x = np.concatenate(list(values.values()))
    distance = cdist(x[[24]], x, metric)[0]
    order = np.argsort(distance)[:8]
    assert found["rank"].tolist() == list(range(8))
    np.testing.assert_allclose(found["distance"], distance[order], atol=1e-6)
    assert (found["slide"] + found["instance"]).tolist() == [f"{'abc'[i // 20]}s{i % 20}" for i in order]
    turned = st.tl.similar_tiles(dict(reversed(slides.items())), "rows", "s4", slide="b", n=7, metric=metric)
    pd.testing.assert_frame_equal(found, turned)
    others = st.tl.similar_tiles(slides, "rows", "s4", slide="b", n=5, among="others")
    assert set(others["slide"].iloc[1:]) <= {"a", "c"}
    same = st.tl.similar_tiles(slides, "rows", "s4", slide="b", n=50, among="same")
    assert len(same) == 20


def test_bad_input() -> None:
    slides = points({"a": np.eye(3), "b": np.eye(3)})
    with pytest.raises(InputError, match="is more than the 3 different locations"):
        st.tl.latent_clusters(slides, "rows", n_clusters=4)
    with pytest.raises(InputError, match=r"on the slides \['a', 'b'\]; name one"):
        st.tl.similar_tiles(slides, "rows", "s0")
    with pytest.raises(InputError, match="has no location 'q'"):
        st.tl.similar_tiles(slides, "rows", "q")
    with pytest.raises(InputError, match="No slide named 'c'"):
        st.tl.similar_tiles(slides, "rows", "s0", slide="c")
    with pytest.raises(InputError, match="`metric` must be one of"):
        st.tl.typical_tiles(slides, "rows", groupby=None, metric="l1")
    with pytest.raises(InputError, match="No table of 'a' named 'none'"):
        st.tl.typical_tiles(slides, "none")
    with pytest.raises(InputError, match="value 0 on all axes"):
        st.tl.latent_clusters(points({"a": np.zeros((3, 2))}), "rows", n_clusters=1, metric="cosine")
    with pytest.raises(InputError, match="different variables"):
        st.tl.typical_tiles(points({"a": np.eye(3), "b": np.eye(2)}), "rows", groupby=None)
    with pytest.raises(InputError, match="no location to compare"):
        st.tl.similar_tiles(points({"a": np.eye(3)}), "rows", "s0", among="others")


def test_latents_of_two_models_are_not_mixed(slides: dict[str, SpatialData], model: Any, written: Any) -> None:
    other = st.tl.train(
        slides, st.models.MLP.Config(hidden=(24, 8), epochs=1), encoder="intensity", genes=["EPCAM"],
        shapes_key="spots",
    )  # fmt: skip
    mixed = {"a": SpatialData(tables={KEY: written["donor0"].tables[KEY]}, shapes=dict(written["donor0"].shapes))}
    table = st.tl.latent(slides["donor1"], other, inplace=False)
    mixed["b"] = SpatialData(tables={KEY: table}, shapes=dict(slides["donor1"].shapes))
    with pytest.raises(InputError, match="different models"):
        st.tl.latent_clusters(mixed, KEY)

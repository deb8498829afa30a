"""Context models on other regions: targets get what training gave, whatever the region's own pitch."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
from shapely import Point

import stpred as st
from stpred import data
from stpred._core.places import Place
from stpred.models import Needs
from stpred.regions import Lattice

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


pytestmark = pytest.mark.usefixtures("kept_features")


def put(sdata: SpatialData, name: str, points: list[Point], *, radius_um: float = 4.0) -> None:
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    frame = gpd.GeoDataFrame({"radius": np.full(len(points), radius_um)}, geometry=points)
    sdata.shapes[name] = ShapesModel.parse(frame, transformations={"um": Identity()})


@pytest.fixture(scope="module", params=["miso", "deepspot"])
def trained(request: pytest.FixtureRequest, cohort: dict[str, SpatialData]) -> Model:
    models = st.models
    config = {
        "miso": models.MISO.Config(n_neighbors=18, width=48, inner=32, n_heads=4, epochs=3),
        "deepspot": models.DeepSpot.Config(width=24, n_phi=3, n_rho=2, epochs=3, parts=2),
    }[request.param]
    train = {s: cohort[s] for s in list(cohort)[:2]}
    return st.tl.train(train, config, genes=st.GeneRule("mean", n=10), shapes_key="spots")


def test_cells_at_the_spots_centres_get_the_spots_values(trained: Model, unseen: SpatialData) -> None:
    centres = unseen.shapes["spots"].geometry.centroid.to_list()
    elsewhere = unseen.shapes["cells"].geometry.centroid.to_list()[::20]
    put(unseen, "among", centres + elsewhere)  # the cells at the centres, and others between them
    at_spots = st.tl.predict(unseen, trained, shapes_key="spots", inplace=False)
    among = st.tl.predict(unseen, trained, shapes_key="among", inplace=False)
    assert np.ptp(at_spots.X, axis=0).min() > 1e-3
    np.testing.assert_allclose(among.X[: len(centres)], at_spots.X, rtol=1e-4, atol=1e-5)
    assert json.loads(at_spots.uns["stpred"])["context"] == "region"
    assert json.loads(among.uns["stpred"])["context"] in ("spots", "spots+grid")
    assert json.loads(among.uns["stpred"])["support_um"] == json.loads(at_spots.uns["stpred"])["support_um"]


def test_a_value_does_not_depend_on_which_others_are_asked_for(trained: Model, unseen: SpatialData) -> None:
    points = unseen.shapes["cells"].geometry.centroid.to_list()[::20]
    put(unseen, "many", points)
    put(unseen, "few", points[5:12])
    many = st.tl.predict(unseen, trained, shapes_key="many", inplace=False)
    few = st.tl.predict(unseen, trained, shapes_key="few", inplace=False)
    np.testing.assert_allclose(few.X, many.X[5:12], rtol=1e-4, atol=1e-5)


def test_without_spots_context_is_one_grid_embedded_once(
    trained: Model, unseen: SpatialData, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred.data import _features

    put(unseen, "some", unseen.shapes["cells"].geometry.centroid.to_list()[::8])
    del unseen.tables["spots_counts"], unseen.shapes["spots"]
    cells = len(unseen.shapes["some"])
    calls: list[int] = []
    original = _features._embed
    monkeypatch.setattr(_features, "_embed", lambda *a, **k: (calls.append(len(a[2])), original(*a, **k))[1])
    table = st.tl.predict(unseen, trained, shapes_key="some", inplace=False)
    facts = json.loads(table.uns["stpred"])
    assert facts["context"] == "grid"
    pitch = trained.record.pitch_um
    assert calls == [calls[0]]
    assert cells < calls[0] <= cells + 1.3 * (800 / pitch) ** 2 / 0.8  # the cells, and one grid over the tissue


def test_support_is_the_tile_and_the_reach_of_the_context(cohort: dict[str, SpatialData]) -> None:
    config = st.models.MISO.Config(n_neighbors=6, width=16, inner=8, n_heads=1, epochs=1)
    model = st.tl.train(cohort, config, genes=["EPCAM"], shapes_key="spots")
    assert model.support_um == pytest.approx(112 + 2 * 100, rel=0.1)
    spot = st.tl.train(cohort, st.models.MLP.Config(hidden=(8,), epochs=1), genes=["EPCAM"], shapes_key="spots")
    assert spot.support_um == 448  # the larger of its two tiles


@pytest.mark.parametrize("hexagonal", [True, False])
def test_deepspots_radius_follows_the_pitch(hexagonal: bool) -> None:
    for pitch in (100.0, 200.0):
        config = st.models.DeepSpot.Config().at_pitch(pitch)
        points = Lattice(pitch, hexagonal).points((0, 0, 12 * pitch, 12 * pitch))
        batch = st.models.Batch.of(np.zeros((len(points), 2), np.float32), coords_um=points)
        linked = data.with_needs(batch, Needs(context_um=config.context_um))
        inner = ((points > 2 * pitch) & (points < 10 * pitch)).all(axis=1)
        assert (linked.links.counts()[inner] == (6 if hexagonal else 8)).all()


def test_sub_tiles_are_where_they_should_be(cohort: dict[str, SpatialData]) -> None:
    """The mean colour of a tile is the mean of its sub-tiles' colours."""
    from stpred import encoders

    sdata = next(iter(cohort.values()))
    region = data.read_region(sdata, Place(shapes_key="spots"))
    region = region.take(np.arange(10))
    colour = encoders.get("intensity")
    batch = data.reader_for(region, colour, Needs(parts=4)).whole()
    assert batch.features.shape == (10 + 160, 3)
    sub = batch.features[batch.parts.indices].reshape(10, 16, 3)
    np.testing.assert_allclose(sub.mean(axis=1), batch.own, atol=1.0)
    # Row by row: the first four are the tile's upper quarter.
    upper = data.embed(
        region, encoders.get("intensity", tile=st.TileSpec(0.125, 224)), region.coords_um - np.array([42.0, 42.0])
    )
    np.testing.assert_allclose(sub[:, 0], upper, atol=2.0)


def test_features_of_another_encoder_or_tile_are_refused(trained: Model, unseen: SpatialData) -> None:
    from stpred import encoders

    with pytest.raises(st._core.checks.InputError, match="is not the one that model .* was trained with"):
        st.tl.predict(unseen, trained, encoder=encoders.get("intensity"), shapes_key="spots")
    st.pp.features(unseen, "morphology", shapes_key="spots", tile=st.TileSpec(1.0, 112))
    want = st.tl.predict(unseen, trained, shapes_key="spots", inplace=False)
    del unseen.tables["spots_feat_morphology"]  # features of another tile were there, and were not used
    assert np.array_equal(st.tl.predict(unseen, trained, shapes_key="spots", inplace=False).X, want.X)


def test_cached_features_give_the_same_twice(
    cohort: dict[str, SpatialData], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred import encoders

    monkeypatch.setattr(st.settings, "cache_dir", tmp_path)
    region = data.read_region(next(iter(cohort.values())), Place(shapes_key="spots")).take(np.arange(12))
    encoder = encoders.get("morphology")
    first = data.embed(region, encoder, region.coords_um)
    assert first.dtype == np.float16
    assert isinstance(first, np.memmap)
    monkeypatch.setattr(type(encoder), "encode", lambda *a: pytest.fail("embedded again"))
    assert np.array_equal(data.embed(region, encoder, region.coords_um), first)
    monkeypatch.undo()
    with st.settings.override(cache_dir=None):
        plain = data.embed(region, encoder, region.coords_um)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(first, plain, rtol=1e-3, atol=1e-3)


def test_table_of_a_network_keeps_the_contract(trained: Model, unseen: SpatialData) -> None:
    st.tl.predict(unseen, trained, shapes_key="spots")
    table = unseen.tables[f"spots_{trained.family}"]
    assert table.X.dtype == np.float32
    assert np.isfinite(table.X).all()
    assert {"cv_pearson", "trusted"} <= set(table.var)
    assert json.loads(table.uns["stpred"])["output_scale"] == trained.record.target
    assert isinstance(table.obs, pd.DataFrame)

"""Signed distances from a region's border, and the composition of what lies at them."""

from __future__ import annotations

from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from anndata import AnnData
from spatialdata import SpatialData
from spatialdata.models import ShapesModel, TableModel
from spatialdata.transformations import Identity, Scale, set_transformation

import stpred as st
from stpred import InputError
from stpred.tl._borders.composition_by_distance import by_bins
from stpred.tl._borders.distance_to_border import distance_to_others, signed_distance


def slide_of(xy: Any, outline: Any, **obs: Any) -> SpatialData:
    """Cells at points, and a region whose outline is drawn in half micrometres."""
    xy = np.asarray(xy, dtype=float)
    cells = ShapesModel.parse(xy, geometry=0, radius=2.0, transformations={"um": Identity()})
    frame = pd.DataFrame({"region": pd.Categorical(["cells"] * len(xy)), "instance_id": cells.index, **obs})
    frame.index = frame.index.astype(str)
    table = AnnData(np.zeros((len(xy), 1), np.float32), obs=frame)
    table.obsm["spatial"] = xy
    table = TableModel.parse(table, region="cells", region_key="region", instance_key="instance_id")
    shapes = {"cells": cells}
    if outline is not None:
        region = ShapesModel.parse(gpd.GeoDataFrame(geometry=outline))
        set_transformation(region, Scale([0.5, 0.5], axes=("x", "y")), "um")
        shapes["tumour"] = region
    return SpatialData(shapes=shapes, tables={"rows": table})


def test_distances_of_a_circle_and_of_a_ring_are_known() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(-200, 200, size=(300, 2))
    radius = np.linalg.norm(xy, axis=1)
    circle = shapely.Point(0, 0).buffer(100, quad_segs=400)
    np.testing.assert_allclose(signed_distance(xy, circle), radius - 100, atol=0.01)
    ring = circle.difference(shapely.Point(0, 0).buffer(40, quad_segs=400))
    expected = np.where(radius < 70, 40 - radius, radius - 100)
    np.testing.assert_allclose(signed_distance(xy, ring), expected, atol=0.01)


def test_outlines_are_joined_and_placed_in_micrometres() -> None:
    halves = [shapely.box(0, 0, 100, 200), shapely.box(100, 0, 200, 200)]  # one square of 100 um
    slide = slide_of([[50, 50], [50, 90], [150, 50], [50, -30]], halves)
    st.tl.distance_to_border(slide, "rows", "tumour")
    np.testing.assert_allclose(slide["rows"].obs["border_distance_um"], [-50, -10, 50, 30])


def test_classes_of_locations_have_their_border_midway() -> None:
    xy = np.stack(np.meshgrid(np.arange(10), np.arange(4)), axis=-1).reshape(-1, 2) * 100.0
    kind = np.where(xy[:, 0] < 450, "tumour", "stroma").astype(object)
    kind[0] = None
    slide = slide_of(xy, None, kind=pd.Categorical(kind))
    found = st.tl.distance_to_border(slide, "rows", "tumour", groupby="kind", inplace=False)
    assert found is not None
    expected = xy[:, 0] - 450
    np.testing.assert_allclose(found["slide"][1:], expected[1:])
    assert np.isnan(found["slide"][0])
    slow = distance_to_others(xy, kind == "tumour", kind != None)  # noqa: E711
    order = np.random.default_rng(0).permutation(len(xy))
    again = distance_to_others(xy[order], (kind == "tumour")[order], (kind != None)[order])  # noqa: E711
    np.testing.assert_allclose(again, slow[order])


def test_shares_recover_a_planted_gradient() -> None:
    rng = np.random.default_rng(1)
    distance = rng.uniform(-300, 300, size=6000)
    chance = 1 / (1 + np.exp(-distance / 100))
    cells = np.where(rng.random(6000) < chance, "T", "tumour")
    slide = slide_of(np.zeros((6000, 2)) + np.arange(6000)[:, None], None, kind=cells, border_distance_um=distance)
    found = st.tl.composition_by_distance(slide, "rows", "kind", width_um=50)
    wide = found.pivot(index="distance_um", columns="what", values="value")
    np.testing.assert_allclose(wide.sum(axis=1), 1)
    np.testing.assert_allclose(wide["T"], 1 / (1 + np.exp(-wide.index.to_numpy() / 100)), atol=0.06)
    assert wide.index.tolist() == list(np.arange(-275, 300, 50.0))
    inside = found[found["what"] == "T"]
    hit = (inside["low"] <= inside["value"]) & (inside["value"] <= inside["high"])
    assert hit.all()
    near = st.tl.composition_by_distance(slide, "rows", "kind", width_um=50, limits_um=(-100, 100))
    assert near["distance_um"].abs().max() == 75


def test_shuffled_types_have_no_gradient() -> None:
    rng = np.random.default_rng(2)
    n = 4000
    slide = slide_of(
        np.arange(n)[:, None] + np.zeros((n, 2)), None,
        kind=rng.choice(["a", "b"], n), border_distance_um=rng.uniform(-200, 200, n),
    )  # fmt: skip
    found = st.tl.composition_by_distance(slide, "rows", "kind", width_um=50)
    part = found[found["what"] == "a"]
    assert np.ptp(part["value"]) < 0.12


def test_bins_equal_a_slow_loop_and_wilsons_formula() -> None:
    statsmodels = pytest.importorskip("statsmodels.stats.proportion")
    rng = np.random.default_rng(3)
    distance, values = rng.uniform(-50, 50, 200), rng.integers(0, 2, size=(200, 1)).astype(float)
    frame = by_bins(distance, values, width=20, min_locations=5, level=0.9, shares=True)
    for row in frame.itertuples():
        inside = values[(distance >= row.distance_low) & (distance < row.distance_high), 0]
        low, high = statsmodels.proportion_confint(inside.sum(), len(inside), alpha=0.1, method="wilson")
        np.testing.assert_allclose([row.value, row.low, row.high], [inside.mean(), low, high])
        assert row.n == len(inside)


def test_means_of_numbers_and_of_several_slides() -> None:
    slides = {
        name: slide_of([[0, 0]] * 12, None, score=np.full(12, v), border_distance_um=np.repeat([-10.0, 10.0], 6))
        for name, v in (("a", 1.0), ("b", 3.0))
    }
    found = st.tl.composition_by_distance(slides, "rows", ["score"], width_um=100)
    assert found.groupby("slide")["value"].unique().map(list).to_dict() == {"a": [1.0], "b": [3.0]}
    assert found.attrs["stpred"]["value"] == "mean"
    assert (found["low"] == found["value"]).all()


def test_bad_input() -> None:
    slide = slide_of([[0, 0], [5, 5]], [shapely.box(0, 0, 4, 4)], kind=["a", "a"], border_distance_um=[1.0, 1.0])
    with pytest.raises(InputError, match=r"No shapes element of 'slide' named 'nope' \(`region`\)"):
        st.tl.distance_to_border(slide, "rows", "nope")
    with pytest.raises(InputError, match=r"There is no border of 'b' in obs\['kind'\]"):
        st.tl.distance_to_border(slide, "rows", "b", groupby="kind")
    with pytest.raises(InputError, match="There is no border of 'a'"):
        st.tl.distance_to_border(slide, "rows", "a", groupby="kind")
    with pytest.raises(InputError, match="holds numbers; pass it in a list"):
        st.tl.composition_by_distance(slide, "rows", "border_distance_um")
    with pytest.raises(InputError, match="No bin of 100 um has 5 locations"):
        st.tl.composition_by_distance(slide, "rows", "kind")
    with pytest.raises(InputError, match="No column of obs in the table of 'slide' named 'far'"):
        st.tl.composition_by_distance(slide, "rows", "kind", distance="far")
    with pytest.raises(InputError, match="lowest and the highest distance"):
        st.tl.composition_by_distance(slide, "rows", "kind", limits_um=(5, 1))
    with pytest.raises(InputError, match=r"no obs column or gene \['nope'\]"):
        st.tl.composition_by_distance(slide, "rows", ["nope"])
    with pytest.raises(InputError, match="makes 1001 bins|makes .* bins"):
        by_bins(np.array([0.0, 5000.0]), np.ones((2, 1)), width=1, min_locations=1, level=0.9, shares=True)

"""Crops: what the border of the image cuts is left out and counted, and only misplaced locations are refused."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import shapely
from shapely.geometry import Polygon, box
from spatialdata import SpatialData, polygon_query

import stpred as st
from stpred import InputError, data
from stpred._core.geometry import distance_outside
from stpred._core.places import Place
from stpred.calibration import check_inside
from stpred.models import Model


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    return st.datasets.toy(size_um=(1000, 1000), n_genes=20, mpp=1.0)


@pytest.fixture(scope="module")
def model(slide: SpatialData) -> Model:
    return st.tl.train(slide, genes=["EPCAM", "COL1A2"], shapes_key="spots", encoder="intensity")


@pytest.mark.parametrize("low", [150, 205, 233])
@pytest.mark.parametrize("size", [300, 500])
def test_a_crop_is_predicted_on(
    low: float, size: float, slide: SpatialData, model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    area = box(low, low, low + size, low + size)
    crop = polygon_query(slide, area, target_coordinate_system="um")
    inside = np.array([area.contains(p) for p in crop["spots"].geometry])
    assert not inside.all()
    with caplog.at_level(logging.INFO, logger="stpred"):
        table = st.tl.predict(crop, model, shapes_key="spots", inplace=False)
    assert table is not None
    assert table.obs["instance_id"].tolist() == crop["spots"].index[inside].tolist()
    assert json.loads(table.uns["stpred"])["left_out"]["off_image"] == (~inside).sum()
    assert "are cut by the border of the image" in caplog.text
    assert "are off the image" not in caplog.text


def test_a_crop_is_trained_on_and_embedded(slide: SpatialData) -> None:
    crop = polygon_query(slide, Polygon([(200, 200), (640, 260), (520, 660)]), target_coordinate_system="um")
    trained = st.tl.train(crop, genes=["EPCAM"], shapes_key="spots", encoder="intensity")
    features = st.pp.features(crop, "intensity", shapes_key="spots", inplace=False)
    st.tl.predict(crop, trained, shapes_key="spots")
    assert len(st.tl.compare(crop, "spots_ridge", "spots_counts")) == 1
    assert crop["spots_ridge"].n_obs == features.n_obs < len(crop["spots"])


def test_polygons_cut_by_the_border(slide: SpatialData, model: Model) -> None:
    crop = polygon_query(slide, box(200, 200, 260, 260), target_coordinate_system="um")
    cells = crop["cells"]
    inside = np.array([box(200, 200, 260, 260).contains(p.centroid) for p in cells.geometry])
    assert (~inside).mean() > 0.1
    table = st.tl.predict(crop, model, shapes_key="cells", inplace=False)
    assert table is not None
    assert table.obs["instance_id"].tolist() == cells.index[inside].tolist()


def moved(slide: SpatialData, by: float, share: float) -> SpatialData:
    """Move some of the spots of a slide off its left border."""
    spots = slide["spots"].copy()
    chosen = np.arange(len(spots)) < share * len(spots)
    spots["geometry"] = [shapely.Point(by, p.y) if c else p for c, p in zip(chosen, spots.geometry, strict=True)]
    return SpatialData(images={"he": slide["he"]}, shapes={"spots": spots}, tables={"c": slide["spots_counts"]})


def test_what_lies_wholly_off_the_image_is_refused(slide: SpatialData) -> None:
    radius = float(slide["spots"]["radius"].iloc[0])
    place = Place("spots")
    near = data.read_region(moved(slide, -0.9 * radius, 0.5), place)
    assert near.n_outside == int(np.ceil(0.5 * len(slide["spots"])))
    with pytest.raises(InputError, match="50% of 'spots'.*lie outside image"):
        data.read_region(moved(slide, -1.5 * radius - 3, 0.5), place)
    far = data.read_region(moved(slide, -1.5 * radius - 3, 0.05), place)
    assert far.n_outside > 0


def test_distance_outside() -> None:
    xy = [[5, 5], [0, 10], [-3, 5], [13, 24], [-3, -4]]
    np.testing.assert_allclose(distance_outside(np.array(xy), width=10, height=20), [0, 0, 3, 5, 5])
    cut = np.array([[-3.0, 5.0]] * 5 + [[5.0, 5.0]] * 5)
    check_inside(cut, width=10, height=20, mpp=1.0, radius_px=4.0)
    with pytest.raises(InputError, match="50% of the spots lie outside"):
        check_inside(cut, width=10, height=20, mpp=1.0)
    with pytest.raises(InputError, match="50% of the spots lie outside"):
        check_inside(np.where(cut < 0, -90, cut), width=10, height=20, mpp=1.0, radius_px=4.0)
    with pytest.raises(InputError, match="50% of the spots lie outside"):
        check_inside(np.where(cut < 0, np.nan, cut), width=10, height=20, mpp=1.0, radius_px=4.0)

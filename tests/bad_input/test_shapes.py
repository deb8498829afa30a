"""Regions: unknown, ambiguous, of another kind, empty, off the image, with NaN or repeated ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
from spatialdata import SpatialData
from spatialdata.models import Labels2DModel, ShapesModel
from spatialdata.transformations import Identity, Scale

import stpred as st
from stpred.models import Model

Change = Callable[[gpd.GeoDataFrame], gpd.GeoDataFrame]


@pytest.fixture
def changed(rebuild: Any, cohort: dict[str, SpatialData]) -> Callable[[Change], SpatialData]:
    """Returns slide ``a`` with other spots."""

    def build(change: Change) -> SpatialData:
        old = cohort["a"].shapes["spots"]
        frame = gpd.GeoDataFrame({"radius": old["radius"]}, geometry=old.geometry.to_numpy(), index=old.index)
        spots = ShapesModel.parse(change(frame), transformations={"um": Identity()})
        return rebuild(shapes={"spots": spots}, tables={"spots_counts": cohort["a"].tables["spots_counts"].copy()})

    return build


def uses(sdata: SpatialData, model: Model) -> list[Callable[[], Any]]:
    return [
        lambda: st.tl.predict(sdata, model),
        lambda: st.tl.train(sdata, "intensity"),
        lambda: st.pp.features(sdata, "intensity"),
    ]


def test_unknown_keys_list_what_is_there(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild()
    calls: list[Callable[..., Any]] = [
        lambda **k: st.tl.predict(sdata, trained, **k),
        lambda **k: st.tl.train(sdata, "intensity", **k),
        lambda **k: st.pp.features(sdata, "intensity", **k),
    ]
    for use in calls:
        with refused("No shapes element named 'bins'", "`shapes_key`", "['spots', 'cells']", sdata=sdata):
            use(shapes_key="bins")
        with refused("No image named 'HE'", "`image_key`", "['he']", sdata=sdata):
            use(shapes_key="spots", image_key="HE")
        with refused("'mm'", "['he']", sdata=sdata):
            use(shapes_key="spots", coordinate_system="mm")
    with refused("No table named 'counts'", "`table_key`", "['spots_counts', 'cells_counts']", sdata=sdata):
        st.tl.train(sdata, "intensity", shapes_key="spots", table_key="counts")
    with refused("No shapes element named 'outline'", "`tissue_key`", "['spots', 'cells']", sdata=sdata):
        st.pp.grid(sdata, tissue_key="outline")


def test_labels_are_not_shapes(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild()
    sdata.labels["masks"] = Labels2DModel.parse(
        np.zeros((8, 8), np.int32), dims=("y", "x"), transformations={"um": Scale([50, 50], axes=("x", "y"))}
    )
    with refused("'masks' is a label image", "['spots', 'cells']", "to_polygons", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="masks")


def test_several_shapes_without_a_name(rebuild: Any, refused: Any, trained: Model) -> None:
    old = rebuild().shapes
    sdata = rebuild(shapes={"left": old["spots"], "right": old["cells"]}, tables={})
    for use in uses(sdata, trained):
        with refused("Several shapes elements", "['left', 'right']", "`shapes_key`", sdata=sdata):
            use()


def test_no_shapes_at_all(rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild(shapes={}, tables={})
    for use in uses(sdata, trained)[1:]:
        with refused("has no shapes", "stpred.pp.grid(sdata)", sdata=sdata):
            use()
    with refused("No shapes element named 'cells'", "available: []", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="cells")


def test_off_the_image(changed: Any, refused: Any, trained: Model) -> None:
    sdata = changed(lambda f: f.set_geometry(f.geometry.translate(5000, 0)))
    for use in uses(sdata, trained):
        with refused("100% of 'spots'", "image 'he'", "[0.0, 0.0, 320.0, 480.0]", "x and y", sdata=sdata):
            use()


def test_swapped_x_and_y(changed: Any, refused: Any, trained: Model) -> None:
    sdata = changed(lambda f: f.set_geometry([shapely.Point(p.y, p.x) for p in f.geometry]))
    for use in uses(sdata, trained):
        with refused("of 'spots'", "lie outside image 'he'", "x and y are not swapped", sdata=sdata):
            use()


def test_few_spots_off_the_image_are_left_out(changed: Any, trained: Model, caplog: pytest.LogCaptureFixture) -> None:
    def move_first(frame: gpd.GeoDataFrame) -> gpd.GeoDataFrame:
        points = [*frame.geometry]
        points[0] = shapely.Point(-500, 100)
        return frame.set_geometry(points)

    sdata = changed(move_first)
    st.tl.predict(sdata, trained)
    table = sdata.tables["spots_tiny"]
    assert table.n_obs == len(sdata.shapes["spots"]) - 1
    assert '"off_image": 1' in table.uns["stpred"]
    assert "1 of 'spots' in slide 'slide' are off the image" in caplog.text


@pytest.mark.parametrize("point", [shapely.Point(np.nan, np.nan), shapely.Point(np.nan, 50.0)])
def test_nan_coordinates(point: shapely.Point, changed: Any, refused: Any, trained: Model) -> None:
    sdata = changed(lambda f: f.set_geometry([point, *f.geometry[1:]]))
    first = str(sdata.shapes["spots"].index[0])
    for use in uses(sdata, trained):
        with refused("1 of the shapes 'spots' have no finite centre", first, sdata=sdata):
            use()


def test_empty_region(changed: Any, refused: Any, trained: Model) -> None:
    sdata = changed(lambda f: f)
    sdata.shapes["spots"].drop(index=list(sdata.shapes["spots"].index), inplace=True)
    for use in uses(sdata, trained):
        with refused("Shapes 'spots' are empty", sdata=sdata):
            use()


def test_repeated_ids(changed: Any, refused: Any, trained: Model) -> None:
    sdata = changed(lambda f: f.set_axis(["x", "x", *f.index[2:]]))
    for use in uses(sdata, trained):
        with refused("index of shapes 'spots' is not unique", "['x']", sdata=sdata):
            use()


@pytest.mark.parametrize("pitch", [0, -5, float("nan"), "wide", "50", True])
def test_pitch_that_is_no_length(pitch: Any, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("`pitch_um` must be a positive number of micrometres", repr(pitch), sdata=sdata):
        st.pp.grid(sdata, pitch_um=pitch)


def test_grids_without_a_point(rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("No grid point of pitch 1e+06 um", "'he'", sdata=sdata):
        st.pp.grid(sdata, pitch_um=1e6)
    with refused("`layout` must be one of ['square', 'hexagonal']", "'hex'", sdata=sdata):
        st.pp.grid(sdata, layout="hex")

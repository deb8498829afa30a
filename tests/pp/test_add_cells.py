from __future__ import annotations

import gzip
import json
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from shapely import Point, Polygon, box
from shapely.geometry import mapping

import stpred as st
from stpred import InputError


@pytest.fixture
def slide() -> Any:
    return st.datasets.toy(size_um=(300, 300), n_genes=5)


def feature(shape: Any, name: str | None = None, **more: Any) -> dict[str, Any]:
    properties = {} if name is None else {"classification": {"name": name, "color": [1, 2, 3]}}
    return {"type": "Feature", "geometry": mapping(shape), "properties": properties, **more}


CELLS = [Point(x, y).buffer(12) for x, y in ((100, 100), (200, 300), (500, 400))]


@pytest.mark.parametrize("form", ["collection", "list", "multi", "gz"])
def test_geojson(slide: Any, tmp_path: Path, form: str) -> None:
    features = [feature(c, n, id=f"id{k}") for k, (c, n) in enumerate(zip(CELLS, "aba", strict=True))]
    path = tmp_path / "cells.geojson"
    if form == "multi":  # one MultiPolygon per class, as CellViT writes them
        many = shapely.MultiPolygon([CELLS[0], CELLS[2]])
        features = [feature(many, "a"), feature(shapely.MultiPolygon([CELLS[1]]), "b")]
    data = features if form in ("list", "multi") else {"type": "FeatureCollection", "features": features}
    path.write_text(json.dumps(data))
    if form == "gz":
        path = tmp_path / "cells.geojson.gz"
        path.write_bytes(gzip.compress(json.dumps(data).encode()))
    st.pp.add_cells(slide, path, units="px")
    got = slide.shapes["nuclei"]
    at = {(round(c.x), round(c.y)): t for c, t in zip(got.centroid, got["cell_type"], strict=True)}
    assert at == {(50, 50): "a", (100, 150): "b", (250, 200): "a"}
    assert got["area_um2"].to_numpy() == pytest.approx(CELLS[0].area / 4)
    assert got["eccentricity"].to_numpy() == pytest.approx(0, abs=1e-3)
    assert form == "multi" or got.index.tolist() == ["id0", "id1", "id2"]


def test_geoparquet_and_frames_in_both_units(slide: Any, tmp_path: Path) -> None:
    frame = gpd.GeoDataFrame({"class": ["x", "y", "x"]}, geometry=CELLS, index=["p", "q", "r"])
    frame.to_parquet(tmp_path / "cells.parquet")
    st.pp.add_cells(slide, str(tmp_path / "cells.parquet"), units="px", key_added="one")
    half = frame.set_geometry(frame.scale(0.5, 0.5, origin=(0, 0)))
    st.pp.add_cells(slide, half, units="um", key_added="two")
    assert slide.shapes["one"].geom_equals_exact(slide.shapes["two"], 1e-9).all()
    assert slide.shapes["one"]["cell_type"].tolist() == ["x", "y", "x"]
    with pytest.raises(InputError, match="pass units='px' if they are those of the full-resolution image"):
        st.pp.add_cells(slide, frame)
    with pytest.raises(InputError, match=r"`units` must be one of \['um', 'px'\], got 'mm'"):
        st.pp.add_cells(slide, frame, units="mm")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cell_boundaries.parquet", "cell_boundaries.csv.gz"])
def test_xenium_boundaries_are_micrometres(slide: Any, tmp_path: Path, name: str) -> None:
    rows = [
        (f"c{k}-1", *p)
        for k, c in enumerate((CELLS[0], Point(200, 250).buffer(12)))
        for p in shapely.get_coordinates(c)
    ]
    table = pd.DataFrame(rows, columns=["cell_id", "vertex_x", "vertex_y"])
    if name.endswith("parquet"):
        table["cell_id"] = [c.encode() for c in table["cell_id"]]
        table.to_parquet(tmp_path / name)
    else:
        table.to_csv(tmp_path / name, index=False)
    st.pp.add_cells(slide, tmp_path / name)
    assert slide.shapes["nuclei"].index.tolist() == ["c0-1", "c1-1"]
    assert slide.shapes["nuclei"].geometry.area.to_numpy() == pytest.approx([CELLS[0].area] * 2)
    with pytest.raises(InputError, match="is in 'um' by its format"):
        st.pp.add_cells(slide, tmp_path / name, units="px")
    table.drop(columns="vertex_x").to_csv(tmp_path / "no.csv", index=False)
    with pytest.raises(InputError, match="'no.csv' has no column 'vertex_x'"):
        st.pp.add_cells(slide, tmp_path / "no.csv")


def test_label_images_become_polygons(slide: Any) -> None:
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import Scale, Sequence, Translation

    y, x = np.mgrid[:600, :600] + 0.5
    labels = np.zeros((600, 600), np.int32)
    labels[(y - 200) ** 2 + (x - 300) ** 2 < 400] = 7
    labels[(y - 400) ** 2 + (x - 100) ** 2 < 100] = 4000
    st.pp.add_cells(slide, labels, key_added="one")
    got = slide.shapes["one"]
    assert got.index.tolist() == [7, 4000]
    assert got["area_um2"].to_numpy() == pytest.approx([np.pi * 100, np.pi * 25], rel=0.04)
    assert got.centroid.x.to_numpy() == pytest.approx([150, 50], abs=0.1)
    place = Sequence([Scale([0.25, 0.25], axes=("x", "y")), Translation([20, 0], axes=("x", "y"))])
    slide.labels["mask"] = Labels2DModel.parse(labels, dims=("y", "x"), transformations={"um": place})
    st.pp.add_cells(slide, "mask", key_added="two")
    assert slide.shapes["two"].centroid.x.to_numpy() == pytest.approx([95, 45], abs=0.1)
    for wrong, message in (
        (labels[:500], r"shape \(500, 600\), the H&E image 'he' \(600, 600\)"),
        (labels * 0, "holds no cell"),
        (labels * 0.5, "must be a .* array of whole numbers"),
    ):
        with pytest.raises(InputError, match=message):
            st.pp.add_cells(slide, wrong)


def test_bad_polygons_are_repaired_dropped_or_merged_with_a_count(slide: Any) -> None:
    bow = Polygon([(10, 10), (30, 30), (30, 10), (10, 30)])
    line = shapely.LineString([(0, 0), (5, 5)])
    big = box(100, 100, 120, 120)
    frame = gpd.GeoDataFrame(
        geometry=[bow, Polygon(), line, big, big, box(101, 101, 110, 110), box(110, 100, 130, 120)],
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        st.pp.add_cells(slide, frame, units="um")
    got = slide.shapes["nuclei"]
    assert got.is_valid.all()
    assert got.index.tolist() == [0, 3, 6]
    assert got["area_um2"].tolist() == pytest.approx([100, 400, 400])
    said = " ".join(str(w.message) for w in caught)
    assert "2 of 7 cells" in said
    assert "2 of 5 cells" in said


def test_a_chain_of_overlaps_keeps_what_no_kept_cell_covers(slide: Any) -> None:
    frame = gpd.GeoDataFrame(geometry=[box(0, 50, 20, 70), box(4, 50, 23.9, 70), box(8, 50, 27.8, 70)])
    with pytest.warns(UserWarning, match="1 of 3 cells"):
        st.pp.add_cells(slide, frame, units="um")
    assert slide.shapes["nuclei"].index.tolist() == [0, 2]


def test_cells_off_the_image(slide: Any) -> None:
    inside = [Point(20 + 13 * k, 50).buffer(4) for k in range(20)]
    frame = gpd.GeoDataFrame(geometry=[*inside, Point(400, 50).buffer(4)])
    with pytest.warns(UserWarning, match="1 cells of the GeoDataFrame are off image 'he'"):
        st.pp.add_cells(slide, frame, units="um")
    assert len(slide.shapes["nuclei"]) == 20
    with pytest.raises(InputError, match=r"100% of the cells .*\[.*\] um, the image \[0.0, 0.0, 300.0, 300.0\] um"):
        st.pp.add_cells(slide, frame.translate(1000, 0).to_frame("geometry"), units="um")


def test_what_cannot_be_read_says_what_can(slide: Any, tmp_path: Path) -> None:
    (tmp_path / "a.geojson").write_text("{")
    (tmp_path / "b.geojson").write_text('{"features": 3}')
    (tmp_path / "c.parquet").write_bytes(b"nothing")
    (tmp_path / "d.shp").write_bytes(b"")
    (tmp_path / "e.geojson").write_text('[{"type": "Feature", "geometry": {"type": "Polygon"}}]')
    (tmp_path / "f.geojson").write_text("[]")
    for cells, message in (
        ("a.geojson", "is not valid JSON"),
        ("b.geojson", "is no GeoJSON"),
        ("c.parquet", "is neither GeoParquet nor a table with cell_id"),
        ("d.shp", "is no file of cells that is known"),
        ("e.geojson", "Feature 0 of 'e.geojson' has no geometry"),
        ("f.geojson", "There is no cell in 'f.geojson'"),
        ("absent.geojson", "is neither a file nor a labels element"),
    ):
        with pytest.raises(InputError, match=message):
            st.pp.add_cells(slide, tmp_path / cells, units="px")
    points = gpd.GeoDataFrame(geometry=[Point(1, 1)])
    with pytest.raises(InputError, match="give centres a radius with .buffer"):
        st.pp.add_cells(slide, points, units="um")
    with pytest.raises(InputError, match="`cells` must be a path.*got int"):
        st.pp.add_cells(slide, 3)


@pytest.mark.realdata
def test_a_real_xenium_bundle(real_data: Path) -> None:
    slide = st.datasets.toy(size_um=(1500, 1500), mpp=1.0, n_genes=5)
    for what in ("cell", "nucleus"):
        for form in ("parquet", "csv.gz"):
            st.pp.add_cells(slide, real_data / "xenium_toy" / f"{what}_boundaries.{form}", key_added=f"{what}-{form}")
    assert {len(slide.shapes[k]) for k in ("cell-parquet", "cell-csv.gz")} == {526}
    assert slide.shapes["nucleus-parquet"]["area_um2"].median() < slide.shapes["cell-parquet"]["area_um2"].median()


SQUARE = [[100, 100], [110, 100], [110, 110], [100, 110], [100, 100]]


@pytest.mark.parametrize(
    ("more", "name"),
    [
        ({"properties": [1]}, None),
        ({"properties": {"classification": {"names": [1, 2]}}}, "1 2"),
        ({"properties": {"classification": "{not json"}}, "{not json"),
        ({"properties": {"classification": "[" * 5000}}, "[" * 5000),
        ({"id": [1]}, None),
        ({"id": 2.5}, None),
    ],
)
def test_odd_features_are_read(slide: Any, tmp_path: Path, more: dict[str, Any], name: str | None) -> None:
    path = tmp_path / "cells.geojson"
    geometry = {"type": "Polygon", "coordinates": [SQUARE]}
    bad = {"type": "Polygon", "coordinates": [[[50, 50], [float("nan"), 60], [60, 60], [50, 50]]]}
    features = [{"type": "Feature", "properties": {}, "geometry": g, **more} for g in (geometry, bad)]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    with pytest.warns(UserWarning, match="1 of 2 cells of 'cells.geojson' have no valid outline"):
        st.pp.add_cells(slide, path, units="um")
    cells = slide.shapes["nuclei"]
    assert cells["area_um2"].tolist() == [100]
    assert (cells["cell_type"].tolist() if name else list(cells)) == (
        [name] if name else ["area_um2", "eccentricity", "geometry"]
    )


@pytest.mark.parametrize("form", ["feature", "geometry", "collection", "collections"])
def test_geojson_of_other_forms(slide: Any, tmp_path: Path, form: str) -> None:
    geometry = {"type": "Polygon", "coordinates": [SQUARE]}
    one = {"type": "Feature", "properties": None, "geometry": geometry}
    data: Any = {
        "feature": one,
        "geometry": geometry,
        "collection": {"type": "GeometryCollection", "geometries": [geometry]},
        "collections": [{"type": "FeatureCollection", "features": [one]}],
    }[form]
    (tmp_path / "a.geojson").write_text(json.dumps(data))
    st.pp.add_cells(slide, tmp_path / "a.geojson", units="um")
    assert slide.shapes["nuclei"]["area_um2"].tolist() == [100]


def test_annotations_of_qupath_are_no_cells(slide: Any, tmp_path: Path) -> None:
    features = [feature(c) for c in CELLS] + [feature(box(5, 5, 590, 590))]
    for f, kind in zip(features, ("cell", "cell", "detection", "annotation"), strict=True):
        f["properties"]["objectType"] = kind
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    st.pp.add_cells(slide, tmp_path / "a.geojson", units="px")
    assert len(slide.shapes["nuclei"]) == 3


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 100_000 + "}", "3", '{"features": [1]}'])
def test_json_that_is_no_geojson(slide: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(InputError, match="is not valid JSON|is no GeoJSON"):
        st.pp.add_cells(slide, tmp_path / "a.geojson", units="px")


def test_cells_larger_than_the_slide_are_refused(slide: Any) -> None:
    frame = gpd.GeoDataFrame(geometry=[box(-1e9, -1e9, 1e9, 1e9), box(-10, 20, 310, 30)])
    with pytest.raises(InputError, match="100% of the cells .* lie outside image 'he' or are larger"):
        st.pp.add_cells(slide, frame, units="um")

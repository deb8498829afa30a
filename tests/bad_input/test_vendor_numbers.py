"""Numbers and names in vendors' tables and JSON that cannot be: refused before they place anything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError
from stpred.io._tables.columns import names, numbers, truths
from stpred.io._tables.segments import read_segments

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("text", ["null", "[]", "[" * 100000, "3", '"x"', "\ufeffnull"])
def test_scale_factors_that_are_no_object(text: str, copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "scalefactors_json.json"
    path.write_text(text)
    with refused("scale factors", path.name):
        st.io.visium(path.parent.parent)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tissue_hires_scalef", v) for v in (0, NAN, INF, -1e308, 1e12, 1e-308, "0.25", [0.25], True, 10**400)),
        *(("tissue_lowres_scalef", v) for v in (0, -1, 1e9)),
        *(("spot_diameter_fullres", v) for v in (0, NAN, INF, -INF, -65, 1e12, "x", {"a": 1})),
    ],
)
def test_scale_factors_that_cannot_be(name: str, value: Any, copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with refused(f"state {name} as", "no number from", path.name):
        st.io.visium(path.parent.parent)


def test_spot_sizes_beyond_what_is_printed(copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "scalefactors_json.json"
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"spot_diameter_fullres": whole["spot_diameter_fullres"] * 20}))
    with refused("spot_diameter_fullres of", "1299 um", "Visium spots span 65 um"):
        st.io.visium(path.parent.parent)
    path.write_text(json.dumps(whole | {"spot_diameter_fullres": whole["spot_diameter_fullres"] * 3}))
    with pytest.warns(UserWarning, match="194.9 um .* the stated size is kept"):
        st.io.visium(path.parent.parent)


def test_copies_that_are_not_of_their_scale(copied: Any) -> None:
    path = copied("visium") / "spatial" / "scalefactors_json.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tissue_lowres_scalef": 1.0}))
    with pytest.warns(UserWarning, match="tissue_lowres_image.png is left out: its 64 x 96 px"):
        sdata = st.io.visium(path.parent.parent)
    assert "he_lowres" not in sdata.images


@pytest.mark.parametrize("file", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("array_row", INF, "infinite or beyond"),
        ("array_col", 1e308, "infinite or beyond"),
        ("array_row", "x", "have no number"),
        ("array_row", 0, "array_row or array_col is the same for all"),
        ("pxl_row_in_fullres", INF, "infinite or beyond"),
        ("pxl_col_in_fullres", 1e300, "infinite or beyond"),
        ("pxl_col_in_fullres", 7, "do not follow their array coordinates"),
        ("in_tissue", 0.5, "neither 0 nor 1: ['0.5']"),
        ("in_tissue", "inf", "neither 0 nor 1: ['inf']"),
        ("in_tissue", 0, "under tissue"),
        ("barcode", "A", "barcodes twice"),
    ],
)
def test_positions_that_cannot_be(file: str, column: str, value: Any, said: str, copied: Any, refused: Any) -> None:
    path = copied("visium") / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(path)
    frame[column] = value
    path.unlink()
    frame.to_csv(path, index=False) if file == "csv" else frame.to_parquet(path.with_suffix(".parquet"), index=False)
    with refused(said):
        st.io.visium(path.parent.parent)


def test_bytes_text_and_truth_values_are_read(copied: Any) -> None:
    folder = copied("visium")
    before = st.io.visium(folder)
    path = folder / "spatial" / "tissue_positions.csv"
    frame = pd.read_csv(path)
    path.unlink()
    frame["in_tissue"] = frame["in_tissue"].astype(bool)
    frame["barcode"] = frame["barcode"].str.encode("utf8")
    frame["pxl_row_in_fullres"] = frame["pxl_row_in_fullres"].astype(str).astype("category")
    frame.to_parquet(path.with_suffix(".parquet"), index=False)
    after = st.io.visium(folder)
    np.testing.assert_array_equal(after.tables["spots_counts"].obsm["spatial"], before["spots_counts"].obsm["spatial"])


@pytest.mark.parametrize("size", ["008", "016"])
def test_hd_bins_of_another_size_or_slide(size: str, copied: Any, refused: Any) -> None:
    folder = copied("visium_hd")
    path = folder / f"binned_outputs/square_{size}um/spatial/scalefactors_json.json"
    whole = path.read_text()
    for change, said in (
        ({"bin_size_um": 4.0}, "of bins of 4 um"),
        ({"microns_per_pixel": 1e-9}, "microns_per_pixel as"),
        ({"spot_diameter_fullres": 0.2}, "spot_diameter_fullres of 0.2 px"),
    ):
        path.write_text(json.dumps(json.loads(whole) | change))
        with refused(said):
            st.io.visium_hd(folder)
    tree = json.loads(whole)
    path.write_text(json.dumps(tree | {"microns_per_pixel": tree["microns_per_pixel"] * 1.4}))
    with refused("microns_per_pixel as", "same slide"):
        st.io.visium_hd(folder)


def test_hd_barcodes_without_a_position(copied: Any, refused: Any) -> None:
    folder = copied("visium_hd")
    path = folder / "binned_outputs/square_016um/spatial/tissue_positions.parquet"
    frame = pd.read_parquet(path)
    frame.iloc[: len(frame) // 2].to_parquet(path)
    with refused("barcodes of the counts in 'square_016um' have no position", "same slide"):
        st.io.visium_hd(folder)


def test_hd_cells_without_a_polygon_are_counted(copied: Any, refused: Any) -> None:
    folder = copied("visium_hd")
    path = folder / "segmented_outputs" / "cell_segmentations.geojson"
    right = st.io.visium_hd(folder)
    tree = json.loads(path.read_text())
    features = tree["features"]
    gone = {f["properties"]["cell_id"] for f in features[:3]}
    features[3]["geometry"] = {"type": "Polygon", "coordinates": [[[1, 1], [2, 2], [3, 3], [1, 1]]]}
    gone.add(features[3]["properties"]["cell_id"])
    ring = features[4]["geometry"]["coordinates"]
    small = [[[0, 0], [0.1, 0], [0.1, 0.1], [0, 0]]]
    features[4]["geometry"] = {"type": "MultiPolygon", "coordinates": [small, ring]}  # the largest part is taken
    path.write_text(json.dumps(tree | {"features": features[3:]}))
    with pytest.warns(UserWarning, match="have no polygon in .* are left out|are left out: they have no area"):
        sdata = st.io.visium_hd(folder)
    lost = {f"cellid_{n:09d}-1" for n in gone} & set(right.shapes["cells"].index)
    assert list(sdata.shapes["cells"].index) == [i for i in right.shapes["cells"].index if i not in lost]
    kept = right.shapes["cells"].loc[sdata.shapes["cells"].index]
    np.testing.assert_array_equal(sdata.shapes["cells"].geometry.to_wkb(), kept.geometry.to_wkb())
    assert sdata.tables["cells_counts"].n_obs == len(sdata.shapes["cells"])


@pytest.mark.parametrize(
    ("features", "said"),
    [
        (None, "no list of features"),
        ([], "no list of features"),
        ([3], "without a whole number as cell_id"),
        ([{"properties": {"cell_id": "x"}, "geometry": {}}], "without a whole number as cell_id"),
        (
            [{"properties": {"cell_id": 1}, "geometry": {"type": "Point", "coordinates": [1, 2]}}],
            "no polygon with an area",
        ),
        (
            [{"properties": {"cell_id": 1}, "geometry": {"type": "Polygon", "coordinates": [[[NAN, 1]] * 4]}}],
            "no polygon with an area",
        ),
        (
            [{"properties": {"cell_id": 1}, "geometry": {"type": "Polygon", "coordinates": [[["a", "b"]] * 4]}}],
            "no polygon with an area",
        ),
    ],
)
def test_segmentations_that_are_none(features: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "cells.geojson"
    path.write_text(json.dumps({"features": features}))
    with pytest.raises(InputError, match=said):
        read_segments(path)
    path.write_text('{"features":' + "[" * 200000)
    with pytest.raises(InputError, match="not valid JSON"):
        read_segments(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(x="inf"), "infinite or beyond"),
        (lambda f: f.assign(pixel_x=1e300), "infinite or beyond"),
        (lambda f: f.assign(selected="x"), "neither 0 nor 1: ['x']"),
        (lambda f: f.assign(selected=2), "neither 0 nor 1: ['2']"),
        (lambda f: f.assign(selected=np.nan), "no spot with selected = 1"),
    ],
)
def test_legacy_spots_that_cannot_be(
    change: Callable[[pd.DataFrame], pd.DataFrame], said: str, copied: Any, refused: Any
) -> None:
    path = copied("legacy_st") / "spots.tsv"
    frame = pd.read_csv(path, sep="\t")
    if "selected" not in frame:
        frame["selected"] = 1
    change(frame).to_csv(path, sep="\t", index=False)
    with refused(said):
        st.io.read(path.parent)


def test_legacy_counts_that_cannot_be(copied: Any, refused: Any) -> None:
    path = copied("legacy_st") / "counts.tsv.gz"
    frame = pd.read_csv(path, sep="\t", index_col=0)
    for change, said in (
        (lambda f: f.assign(**{f.columns[0]: 1e300}), "2147483647 or more"),
        (lambda f: f.rename(columns={f.columns[0]: ""}), "1 genes without a name"),
    ):
        change(frame.copy()).to_csv(path, sep="\t")
        with refused(said):
            st.io.read(path.parent)
    frame.iloc[0, :2] = 0
    frame.to_csv(path, sep="\t", header=False)  # the first spot becomes the line of names
    with refused("named by numbers", "line of names missing"):
        st.io.read(path.parent)
    twice = frame.copy()
    twice.columns = [frame.columns[1], *frame.columns[1:]]
    twice.to_csv(path, sep="\t")
    genes = list(st.io.read(path.parent).tables["spots_counts"].var_names)
    assert genes[:2] == [frame.columns[1], f"{frame.columns[1]}-1"]


def test_sections_that_hardly_share_spots(tmp_path: Path) -> None:
    folder = st.datasets.toy_legacy_st(tmp_path / "a", size_um=(1600, 1400), mpp=2.0, n_genes=5)
    path = folder / "counts.tsv.gz"
    frame = pd.read_csv(path, sep="\t", index_col=0)
    frame.iloc[: len(frame) // 2].to_csv(path, sep="\t")
    with pytest.warns(UserWarning, match="of the spots table have no counts .* same section"):
        st.io.read(folder)


def test_columns() -> None:
    frame = pd.DataFrame({"a": [1, 2], "b": ["3", "4.5"], "c": [[1], [2]], "d": pd.to_datetime(["2020", "2021"])})
    found = numbers(frame, ["a", "b"], what="table")
    assert found["a"].dtype.kind == "i"
    assert found["b"].tolist() == [3.0, 4.5]
    for column in "cd":
        with pytest.raises(InputError, match="no numbers? in"):
            numbers(frame, [column], what="table")
    doubled = pd.concat([frame["a"], frame["a"]], axis=1)
    with pytest.raises(InputError, match="hold the column 'a' 2 times"):
        numbers(doubled, ["a"], what="table")
    assert list(names(pd.Series([b"x", "y", 3], name="n"), what="table")) == ["x", "y", "3"]
    for odd in (None, NAN, [1], ""):
        with pytest.raises(InputError, match="no name but"):
            names(pd.Series(["x", odd], name="n"), what="table")
    assert truths(pd.Series(["TRUE", "0", "1.0"]), what="table").tolist() == [True, False, True]
    assert truths(pd.Series([1.0, NAN]), what="table", missing=False).tolist() == [True, False]

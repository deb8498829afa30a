"""Files for other programs, read back by these programs' own readers or the libraries that they build on."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import shapely
import tifffile
from anndata import AnnData
from spatialdata import SpatialData, deepcopy, read_zarr, transform
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Affine, Identity
from typer.testing import CliRunner

import stpred as st
from stpred import InputError
from stpred._core.elements import centroids
from stpred._core.tables import build_table, read_provenance
from stpred.cli import app
from stpred.io._tables.matrix import read_10x_h5
from stpred.rasters import Frame, element, note
from stpred.stores import light_copy

GENES = ["EPCAM", "KRT8", "COL1A1"]
MPP = 0.5


def predicted(shapes_key: str, sdata: SpatialData, *, scale: str = "log1p_cp10k", **more: Any) -> AnnData:
    """A table as `predict` writes it, of values that are known."""
    rng = np.random.default_rng(3)
    shapes = sdata.shapes[shapes_key]
    X = rng.gamma(1.0, 1.0, (len(shapes), len(GENES))).astype(np.float32)
    X[rng.random(X.shape) < 0.2] = 0
    um = centroids(sdata, shapes_key)[0]
    var = pd.DataFrame({"gene_id": [f"ENSG0000000000{k}" for k in range(len(GENES))]}, index=GENES)
    provenance = {"kind": "prediction", "model": "known", "output_scale": scale, "mpp": MPP} | more
    obs = {"ood_score": np.zeros(len(X), np.float32), "in_distribution": np.ones(len(X), bool)}
    return build_table(
        X, shapes_key=shapes_key, instances=shapes.index, var=var, spatial_um=um, obs=obs, provenance=provenance,
        layers={"std": X + 1},
    )  # fmt: skip


@pytest.fixture(scope="module")
def slide() -> SpatialData:
    sdata = st.datasets.toy(size_um=(500.0, 500.0), n_genes=20, mpp=MPP)
    for key in ("cells", "spots"):
        table = predicted(key, sdata)
        table.obs["kind"] = pd.Categorical(np.where(np.arange(table.n_obs) % 2, "tumour", "stroma"))
        table.obs.loc[table.obs_names[0], "kind"] = None
        sdata.tables[f"{key}_known"] = table
    frame = Frame(8.0, (3, 5), (64, 48))
    values = np.random.default_rng(0).gamma(1.0, 1.0, (len(GENES), 64, 48)).astype(np.float32)
    values[:, :4] = np.nan
    sdata.images["known_map"] = element(values, GENES, frame)
    note(sdata, "known_map", json.dumps({"model": "known", "output_scale": "log1p_cp10k"}))
    return sdata


def features(path: Path) -> list[dict[str, Any]]:
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    data = json.loads(text)
    assert data["type"] == "FeatureCollection"
    return data["features"]


def pixels(path: Path) -> np.ndarray:
    """Centres, as geopandas reads them; GeoJSON without a frame is taken for degrees."""
    centre = gpd.read_file(path).set_crs(None, allow_override=True).geometry.centroid
    return np.column_stack([centre.x, centre.y])


def test_geojson_of_cells_comes_back_from_its_readers(slide: SpatialData, tmp_path: Path) -> None:
    path = st.io.write_geojson(slide, "cells_known", tmp_path / "c.geojson", genes=["KRT8", "EPCAM"], groupby="kind")
    table, found = slide["cells_known"], features(path)
    first = found[1]["properties"]
    assert first["objectType"] == "cell"
    assert first["name"] == str(table.obs["instance_id"].iloc[1])
    assert first["classification"]["name"] == "tumour"
    assert len(first["classification"]["color"]) == 3
    assert "classification" not in found[0]["properties"]  # no kind, no class
    assert list(first["measurements"]) == ["KRT8", "EPCAM", "ood_score"]
    values = np.array([[f["properties"]["measurements"][g] for g in ("KRT8", "EPCAM")] for f in found])
    np.testing.assert_allclose(values, table[:, ["KRT8", "EPCAM"]].X, rtol=1e-6)
    # geopandas: pixels of the full-resolution image
    assert np.abs(pixels(path) * MPP - table.obsm["spatial"]).max() < 0.01
    # our own reader
    other = SpatialData(images={"he": slide["he"]})
    st.pp.add_cells(other, path, units="px", key_added="cells")
    back = other["cells"].set_index(other["cells"].index.map({f["id"]: f["properties"]["name"] for f in found}))
    own = transform(slide["cells"], to_coordinate_system="um")
    own = own.set_index(own.index.astype(str))
    both = own.index.intersection(back.index)
    assert len(both) > 0.97 * len(own)  # those whose centre is on the image, and that are not within others
    moved, there = own.loc[both].geometry, transform(back, to_coordinate_system="um").loc[both].geometry
    overlap = moved.intersection(there).area / moved.area
    assert overlap.min() > 0.98
    assert set(back["cell_type"].dropna()) == {"tumour", "stroma"}


def test_geojson_of_spots_is_of_circles(slide: SpatialData, tmp_path: Path) -> None:
    path = st.io.write_geojson(slide, "spots_known", tmp_path / "s.geojson.gz", layer="std")
    found, table = features(path), slide["spots_known"]
    assert {f["properties"]["objectType"] for f in found} == {"detection"}
    assert all(f["geometry"]["isEllipse"] for f in found)
    ring = shapely.polygons(np.array([f["geometry"]["coordinates"][0] for f in found]))
    x0, y0, x1, y1 = shapely.bounds(ring).T
    np.testing.assert_allclose(np.column_stack([x1 - x0, y1 - y0]) * MPP, 55.0, atol=0.02)
    np.testing.assert_allclose(np.column_stack([x1 + x0, y1 + y0]) / 2 * MPP, table.obsm["spatial"], atol=0.01)
    assert found[0]["properties"]["measurements"] == pytest.approx(
        dict(zip(GENES, table.layers["std"][0], strict=True))
    )


def test_geojson_is_of_the_full_image_also_where_the_object_has_a_small_one(slide: SpatialData, tmp_path: Path) -> None:
    def bounds(sdata: SpatialData, name: str, **how: Any) -> np.ndarray:
        path = st.io.write_geojson(sdata, "cells_known", tmp_path / name, genes=["EPCAM"], **how)
        return gpd.read_file(path).total_bounds

    full = bounds(slide, "full.geojson")
    small = deepcopy(light_copy(slide, max_px=250))
    np.testing.assert_allclose(bounds(small, "small.geojson"), full, atol=0.02)
    np.testing.assert_allclose(bounds(slide, "half.geojson", mpp=1.0), full / 2, atol=0.02)
    small.images["other"] = small.images.pop("he")
    small["cells_known"].uns["stpred"] = json.dumps({"mpp": MPP, "image_key": "he"})
    np.testing.assert_allclose(bounds(small, "other.geojson", image_key="other"), full / 4, atol=0.02)
    bare = SpatialData(shapes={"cells": slide["cells"]}, tables={"cells_known": slide["cells_known"]})
    np.testing.assert_allclose(bounds(bare, "bare.geojson", mpp=MPP), full, atol=0.02)
    with pytest.raises(InputError, match=r"no image.*pass `mpp`"):
        bounds(bare, "none.geojson")


def test_geojson_follows_a_turned_image(slide: SpatialData, tmp_path: Path) -> None:
    """An H&E image that is turned and shifted against um, as those of Xenium are."""
    turned = deepcopy(slide)
    a = np.array([[0.0, -0.4, 900.0], [0.4, 0.0, -70.0], [0, 0, 1]])
    image = Image2DModel.parse(
        np.zeros((3, 50, 50), np.uint8), dims=("c", "y", "x"), transformations={"um": Affine(a, ("x", "y"), ("x", "y"))}
    )
    turned.images["he"] = image
    path = st.io.write_geojson(turned, "cells_known", tmp_path / "t.geojson", genes=["EPCAM"], mpp=0.2)
    np.testing.assert_allclose(
        pixels(path) / 2 @ a[:2, :2].T + a[:2, 2], slide["cells_known"].obsm["spatial"], atol=0.02
    )


def many(n: int, n_genes: int) -> SpatialData:
    """Squares of 8 um with values, without an image."""
    edge = int(np.ceil(np.sqrt(n)))
    y, x = (v.ravel()[:n] * 8.0 for v in np.mgrid[:edge, :edge])
    frame = gpd.GeoDataFrame(geometry=shapely.box(x, y, x + 8, y + 8), index=np.arange(1, n + 1))
    shapes = ShapesModel.parse(frame, transformations={"um": Identity()})
    X = np.random.default_rng(0).random((n, n_genes), dtype=np.float32)
    var = pd.DataFrame(index=[f"g{k}" for k in range(n_genes)])
    table = build_table(X, shapes_key="bins", instances=shapes.index, var=var, spatial_um=np.column_stack([x, y]) + 4)
    return SpatialData(shapes={"bins": shapes}, tables={"t": table})


def test_what_is_written_is_never_in_memory_as_a_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stpred.io._export.chosen.BLOCK_VALUES", 2000)
    sdata = many(6000, 4)
    st.io.write_geojson(sdata, "t", tmp_path / "warm.geojson", mpp=1.0)
    tracemalloc.start()
    path = st.io.write_geojson(sdata, "t", tmp_path / "t.geojson", mpp=1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size  # 2.3 MB, of which 500 locations are a twelfth
    values = np.array([list(f["properties"]["measurements"].values()) for f in features(path)])
    np.testing.assert_allclose(values, sdata["t"].X, rtol=1e-6)  # many blocks, in order


def test_missing_values_are_left_out_of_geojson(slide: SpatialData, tmp_path: Path) -> None:
    sdata = SpatialData(
        images={"he": slide["he"]}, shapes={"spots": slide["spots"]}, tables={"t": slide["spots_counts"].copy()}
    )
    table = sdata["t"]
    table.layers["share"] = np.full(table.shape, 0.25)
    table.layers["share"][2, 1], table.layers["share"][3, 0] = np.nan, np.inf
    path = st.io.write_geojson(sdata, "t", tmp_path / "n.geojson", layer="share", mpp=MPP)
    found = [set(f["properties"]["measurements"]) for f in features(path)]
    names = set(table.var_names)
    assert [found[k] for k in (1, 2, 3)] == [names, names - {table.var_names[1]}, names - {table.var_names[0]}]


def read_10x(path: Path) -> AnnData:
    back = sc.read_10x_h5(path)
    assert set(back.var["feature_types"]) == {"Gene Expression"}
    return back


def test_10x_h5_comes_back_from_scanpy(slide: SpatialData, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stpred.io._export.chosen.BLOCK_VALUES", 30)  # many blocks
    path = st.io.write_10x_h5(slide, "cells_known", tmp_path / "c.h5", positions=tmp_path / "c.csv", genome="GRCh38")
    back, table = read_10x(path), slide["cells_known"]
    assert list(back.obs_names) == list(table.obs_names)
    assert list(back.var_names) == GENES
    assert list(back.var["gene_ids"]) == list(table.var["gene_id"])
    assert set(back.var["genome"]) == {"GRCh38"}
    np.testing.assert_array_equal(back.X.toarray(), table.X)
    places = pd.read_csv(tmp_path / "c.csv", dtype={"barcode": str})
    assert list(places["barcode"]) == list(back.obs_names)
    assert np.abs(places[["x_um", "y_um"]].to_numpy() - table.obsm["spatial"]).max() < 1e-3


def test_10x_h5_is_of_the_layout_that_seurat_reads(slide: SpatialData, tmp_path: Path) -> None:
    """Read10X_h5 takes every group at the top for a genome, and columns of (i, p, x) of doubles."""
    path = st.io.write_10x_h5(slide, "spots_known", tmp_path / "s.h5", genes=["COL1A1", "EPCAM"])
    with h5py.File(path) as file:
        assert list(file) == ["matrix"]
        matrix = file["matrix"]
        assert set(matrix) == {"barcodes", "data", "features", "indices", "indptr", "shape"}
        assert {"id", "name", "feature_type", "genome"} <= set(matrix["features"])
        n_genes, n = matrix["shape"][:]
        ends = matrix["indptr"][:]
        assert (n_genes, n) == (2, slide["spots_known"].n_obs)
        assert ends[0] == 0
        assert ends[-1] == len(matrix["data"])
        dense = np.zeros((n, n_genes))
        for k in range(n):  # as an R user would
            part = slice(ends[k], ends[k + 1])
            dense[k, matrix["indices"][part]] = matrix["data"][part]
    np.testing.assert_array_equal(dense, slide["spots_known"][:, ["COL1A1", "EPCAM"]].X)


def test_10x_h5_on_the_scale_of_counts(slide: SpatialData, tmp_path: Path) -> None:
    measured = st.io.write_10x_h5(slide, "spots_counts", tmp_path / "m.h5", counts=True)
    for back in (read_10x(measured), read_10x_h5(measured)):  # scanpy's reader, and that of our vendor formats
        np.testing.assert_array_equal(back.X.toarray(), slide["spots_counts"].X.toarray())
    logs = st.io.write_10x_h5(slide, "spots_known", tmp_path / "l.h5", counts=True, library_size=5000)
    expected = np.rint(np.expm1(slide["spots_known"].X.astype(float)) / 2)
    np.testing.assert_array_equal(read_10x(logs).X.toarray(), expected)
    with pytest.raises(InputError, match="does not say how large the libraries"):
        st.io.write_10x_h5(slide, "spots_known", tmp_path / "x.h5", counts=True)
    sdata = deepcopy(slide)
    sdata.tables["own"] = predicted("spots", slide, library={"median_size": 5000.0})
    own = st.io.write_10x_h5(sdata, "own", tmp_path / "o.h5", counts=True)
    np.testing.assert_array_equal(read_10x(own).X.toarray(), expected)
    sdata.tables["counts"] = predicted("spots", slide, scale="counts")
    counts = st.io.write_10x_h5(sdata, "counts", tmp_path / "n.h5", counts=True)
    np.testing.assert_array_equal(read_10x(counts).X.toarray(), np.rint(slide["spots_known"].X))
    sdata.tables["relative"] = predicted("spots", slide, scale="relative")
    with pytest.raises(InputError, match="scale 'relative', which does not become counts"):
        st.io.write_10x_h5(sdata, "relative", tmp_path / "x.h5", counts=True)


def ome(path: Path) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """Return what the OME metadata say of pixels, channels and planes."""
    found = tifffile.xml2dict(tifffile.TiffFile(path).ome_metadata)["OME"]["Image"]["Pixels"]
    channels, planes = ([v] if isinstance(v, dict) else list(v) for v in (found["Channel"], found["Plane"]))
    return found, [c["Name"] for c in channels], planes


def test_tiff_map_comes_back_from_tifffile(slide: SpatialData, tmp_path: Path) -> None:
    path = st.io.write_tiff_map(slide, "known_map", tmp_path / "m.ome.tif", genes=["COL1A1", "EPCAM"])
    values = slide["known_map"]["scale0"]["image"]
    with tifffile.TiffFile(path) as file:
        assert file.series[0].axes == "CYX"
        page = file.pages[0]
        assert len(file.pages) == 2
        assert page.is_tiled
        assert page.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
        per_cm, of = page.tags["XResolution"].value
        assert 1e4 * of / per_cm == pytest.approx(8.0, rel=1e-6)
        np.testing.assert_array_equal(file.asarray(), values.sel(c=["COL1A1", "EPCAM"]).values)
    pixels, names, planes = ome(path)
    assert names == ["COL1A1", "EPCAM"]
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"], pixels["PhysicalSizeXUnit"]) == (8.0, 8.0, "µm")
    assert [(p["PositionX"], p["PositionY"]) for p in planes] == [(24.0, 40.0)] * 2


def test_tiff_map_of_many_pixels_has_smaller_copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("stpred.io._export.write_tiff_map._PYRAMID_PX", 1000)
    values = np.arange(2 * 1200 * 700, dtype=np.float32).reshape(2, 1200, 700)
    sdata = SpatialData(images={"m": element(values, ["a", "b"], Frame(2.0, (0, 0), (1200, 700)))})
    path = st.io.write_tiff_map(sdata, "m", tmp_path / "m.ome.tif")
    with tifffile.TiffFile(path) as file:
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(2, 1200, 700), (2, 600, 350), (2, 300, 175)]
        np.testing.assert_array_equal(levels[0].asarray(), values)
        np.testing.assert_allclose(levels[1].asarray(), values.reshape(2, 600, 2, 350, 2).mean(axis=(2, 4)), rtol=1e-5)


@pytest.fixture(scope="module")
def store(slide: SpatialData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "slide.zarr"
    deepcopy(slide).write(path)
    return path


def linked(config: dict[str, Any]) -> None:
    """Every scope that a view or layer names is in the coordination space, and files name what exists."""
    space = config["coordinationSpace"]
    for view in config["layout"]:
        for kind, scope in view["coordinationScopes"].items():
            assert set([scope] if isinstance(scope, str) else scope) <= set(space[kind]), (view, kind)
    for layers in space["metaCoordinationScopes"].values():
        assert all(set(scopes) <= set(space[kind]) for kind, scopes in layers.items())
    for layers in space["metaCoordinationScopesBy"].values():
        for kind, fields in layers.items():
            for name, scopes in fields.items():
                assert set(scopes) <= set(space[kind])
                assert set(scopes.values()) <= set(space[name])
    assert not any(a is not b and _overlap(a, b) for a in config["layout"] for b in config["layout"])


def _overlap(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return all(a[o] < b[o] + b[n] and b[o] < a[o] + a[n] for o, n in (("x", "w"), ("y", "h")))


def paths(options: Any) -> list[str]:
    """All paths within the store that a file's options name."""
    if isinstance(options, dict):
        own = [v for k, v in options.items() if k in ("path", "tablePath")]
        return own + [p for v in options.values() for p in paths(v)]
    return [p for v in options for p in paths(v)] if isinstance(options, list) else []


@pytest.mark.parametrize(("key", "n_files"), [("spots_known", 1), ("cells_known", 2)])
def test_vitessce_configuration(store: Path, tmp_path: Path, key: str, n_files: int) -> None:
    sdata = read_zarr(store)
    out = st.io.write_vitessce(sdata, key, tmp_path / "v.json", genes=["KRT8"], groupby="kind", layer="std")
    config = json.loads(out.read_text())
    linked(config)
    files = config["datasets"][0]["files"]
    assert len(files) == n_files
    for file in files:
        place = (out.parent / file["url"]).resolve()
        assert all((place / p).exists() for p in paths(file["options"])), paths(file["options"])
    assert config["coordinationSpace"]["featureSelection"]["A"] == ["KRT8"]
    if key == "cells_known":
        radius = config["coordinationSpace"]["spatialSpotRadius"]["init_A_obsSpots_0"]
        area_um2 = np.median(transform(sdata["cells"], to_coordinate_system="um").geometry.area)
        assert np.pi * radius**2 == pytest.approx(area_um2, rel=1e-4)


def test_vitessce_takes_the_configuration(store: Path, tmp_path: Path) -> None:
    vitessce = pytest.importorskip("vitessce")  # it needs zarr 2, so it is rarely there
    for key in ("spots_known", "cells_known"):
        out = st.io.write_vitessce(read_zarr(store), key, tmp_path / f"{key}.json", groupby="kind")
        config = json.loads(out.read_text())
        assert vitessce.VitessceConfig.from_dict(config).to_dict() == config


def test_vitessce_needs_a_store(slide: SpatialData, store: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not on disk"):
        st.io.write_vitessce(slide, "spots_known", tmp_path / "v.json")
    sdata = read_zarr(store)
    sdata.tables["later"] = sdata["spots_known"].copy()
    with pytest.raises(InputError, match="has no tables/later yet"):
        st.io.write_vitessce(sdata, "later", tmp_path / "v.json")
    out = st.io.write_vitessce(sdata, "spots_known", tmp_path / "v.json", url="https://example.org/s.zarr")
    assert json.loads(out.read_text())["datasets"][0]["files"][0]["url"] == "https://example.org/s.zarr"


WRITERS: dict[str, tuple[Callable[..., Path], str]] = {
    "w.geojson": (st.io.write_geojson, "spots_known"),
    "w.h5": (st.io.write_10x_h5, "spots_known"),
    "w.ome.tif": (st.io.write_tiff_map, "known_map"),
    "w.json": (st.io.write_vitessce, "spots_known"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_bad_input_is_refused_and_nothing_is_left(store: Path, tmp_path: Path, name: str) -> None:
    write, key = WRITERS[name]
    sdata = read_zarr(store)
    path = tmp_path / name
    with pytest.raises(InputError, match=r"no gene \['NONE'\]; it has \['EPCAM'"):
        write(sdata, key, path, genes=["EPCAM", "NONE"])
    with pytest.raises(InputError, match="No (table|image) named 'gone'"):
        write(sdata, "gone", path)
    with pytest.raises(InputError, match=r"must end in \."):
        write(sdata, key, tmp_path / "w.txt")
    with pytest.raises(InputError, match="`genes` is empty"):
        write(sdata, key, path, genes=[])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file, not a folder"):
        write(sdata, key, tmp_path / "file" / name)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    path.write_text("mine")
    with pytest.raises(InputError, match="exists; name another"):
        write(sdata, key, path)
    assert path.read_text() == "mine"
    write(sdata, key, path, overwrite=True)
    assert path.stat().st_size > 100
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", name]


def test_a_broken_export_leaves_the_old_file(slide: SpatialData, tmp_path: Path) -> None:
    sdata = SpatialData(shapes={"spots": slide["spots"]}, tables={"t": slide["spots_known"].copy()})
    sdata["t"].layers["odd"] = np.full(sdata["t"].shape, np.nan)
    path = tmp_path / "t.h5"
    path.write_text("old")
    with pytest.raises(InputError, match="NaN or infinite"):
        st.io.write_10x_h5(sdata, "t", path, layer="odd", overwrite=True)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.h5"]
    lost = SpatialData(tables={"t": sdata["t"]})
    with pytest.raises(InputError, match="'spots', which is not among the shapes"):
        st.io.write_geojson(lost, "t", tmp_path / "t.geojson", mpp=1.0)
    few = slide["spots"].iloc[1:]
    with pytest.raises(InputError, match="1 rows of table 't' have no shape in 'spots'"):
        st.io.write_geojson(
            SpatialData(shapes={"spots": few}, tables={"t": sdata["t"]}), "t", tmp_path / "t.geojson", mpp=1.0
        )
    with pytest.raises(InputError, match="`object_type` must be one of"):
        st.io.write_geojson(sdata, "t", tmp_path / "t.geojson", object_type="spot", mpp=1.0)
    with pytest.raises(InputError, match="No column of obs of table 't' named 'type'"):
        st.io.write_geojson(sdata, "t", tmp_path / "t.geojson", groupby="type", mpp=1.0)
    with pytest.raises(InputError, match="is an H&E image, not a map"):
        st.io.write_tiff_map(slide, "he", tmp_path / "t.ome.tif")


def test_one_of_two_slides_is_written(slide: SpatialData, tmp_path: Path) -> None:
    from spatialdata import concatenate

    both = concatenate(
        {"a": deepcopy(slide), "b": deepcopy(slide)}, concatenate_tables=True, merge="same", uns_merge="first"
    )
    one = st.io.write_geojson(slide, "spots_known", tmp_path / "one.geojson", genes=["EPCAM"])
    two = st.io.write_geojson(both, "spots_known", tmp_path / "two.geojson", genes=["EPCAM"], coordinate_system="um-b")
    plain = [[(f["geometry"], f["properties"]["measurements"]) for f in features(p)] for p in (one, two)]
    assert plain[0] == plain[1]


def test_stpred_export(store: Path, tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["export", str(store), *(str(a) for a in arguments)])
        assert result.exit_code == code, result.output
        assert "Traceback" not in result.output
        return result.output

    names = list(WRITERS)
    outs = [a for n in names for a in ("-o", tmp_path / n)]
    said = run(*outs, "--table", "spots_known", "--genes", "EPCAM, KRT8", "--counts", "--library-size", 5000)
    assert all(str(tmp_path / n) in said for n in names)
    assert list(features(tmp_path / "w.geojson")[0]["properties"]["measurements"]) == ["EPCAM", "KRT8", "ood_score"]
    assert read_10x(tmp_path / "w.h5").X.dtype == np.float32  # what scanpy makes of whole numbers
    assert ome(tmp_path / "w.ome.tif")[1] == ["EPCAM", "KRT8"]
    assert "--overwrite" in run("-o", tmp_path / "w.h5", "--table", "spots_known", code=2)
    said = run("-o", tmp_path / "x.h5", code=2)
    assert "has 2 predicted tables; name one with `--table`" in said
    assert "spots_counts" not in said  # measured
    assert "ends in none of" in run("-o", tmp_path / "x.csv", code=2)
    assert "`--mpp` is for .geojson files" in run("-o", tmp_path / "x.h5", "--mpp", 1, code=2)
    assert "no gene ['NO']" in run("-o", tmp_path / "x.h5", "--table", "spots_known", "--genes", "NO", code=2)


def test_predictions_of_a_model_are_what_is_exported(kept_features: None, tmp_path: Path) -> None:
    """From an image to QuPath and back: values where they were predicted, in um."""
    slides = st.datasets.toy_cohort(2, size_um=(350.0, 350.0), n_genes=20, mpp=1.0)
    model = st.tl.train(
        slides["donor0"], encoder="intensity", genes=["EPCAM", "KRT8"], shapes_key="spots", intervals=False
    )
    sdata = slides["donor1"]
    st.tl.predict(sdata, model, shapes_key="spots", key_added="p")
    out = st.io.write_geojson(light_copy(sdata, max_px=100), "p", tmp_path / "p.geojson")
    centres = pixels(out) * read_provenance(sdata["p"])["mpp"]
    assert np.abs(centres - sdata["p"].obsm["spatial"]).max() < 0.02
    values = [[f["properties"]["measurements"][g] for g in sdata["p"].var_names] for f in features(out)]
    np.testing.assert_allclose(values, sdata["p"].X, rtol=1e-6)
    counts = st.io.write_10x_h5(sdata, "p", tmp_path / "p.h5", counts=True)
    size = model.record.library["median_size"]
    np.testing.assert_allclose(read_10x(counts).X.toarray(), np.rint(np.expm1(sdata["p"].X) * size / 1e4), atol=1)

"""Predicted maps: images with genes as channels, in memory and on disk."""

from __future__ import annotations

import copy
import json
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
import shapely
import torch
import zarr
from numpy.typing import NDArray
from spatialdata import SpatialData, concatenate, deepcopy, read_zarr
from spatialdata.models import Image2DModel, ShapesModel
from spatialdata.transformations import Identity, get_transformation

import stpred as st
from stpred import InputError, rasters
from stpred.inference import raster
from stpred.models import Model, Needs

KEY, PART = "tissue_student_map", "part_student_map"


@pytest.fixture(scope="module")
def original() -> SpatialData:
    """One slide with its tissue and squares of it; tests must not change what the object holds."""
    slide = st.datasets.toy(size_um=(400, 400), n_genes=12, bin_um=8)
    slide.shapes["part"] = box(88, 96, 216, 208)
    st.pp.tissue(slide)
    st.pp.subdivide(slide, "tissue", size_um=8)
    return slide


@pytest.fixture(scope="module")
def student(original: SpatialData) -> Model:
    config = st.models.Student.Config(hidden=(16,), epochs=2)
    return st.tl.train(original, config, genes="all", shapes_key="spots")


@pytest.fixture(scope="module")
def ridge(original: SpatialData) -> Model:
    return st.tl.train(original, "ridge", genes="all", shapes_key="spots", encoder="intensity")


@pytest.fixture(scope="module")
def table(original: SpatialData, student: Model) -> Any:
    """What is predicted on squares of the tissue, of the size of the student's patches."""
    return st.tl.predict(original, student, shapes_key="tissue_008um", inplace=False)


@pytest.fixture(scope="module")
def whole(original: SpatialData, student: Model) -> Any:
    """The map of the tissue."""
    return st.tl.predict_map(original, student, inplace=False)


@pytest.fixture(scope="module")
def part(original: SpatialData, student: Model) -> Any:
    """The map of a part of it, 16 x 14 pixels."""
    return st.tl.predict_map(original, student, shapes_key="part", inplace=False)


@pytest.fixture
def slide(original: SpatialData) -> SpatialData:
    """The slide as an object of its own that a test may add to."""
    return SpatialData(images=dict(original.images), shapes=dict(original.shapes), tables=dict(original.tables))


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a map of the part be made in four, that of the tissue in 36."""
    monkeypatch.setattr(rasters, "BLOCK", 8)


def plane(image: Any, gene: str | None = None, *, scale: int = 0) -> NDArray[np.float32]:
    """Return one gene, or all, of a level."""
    values = image[f"scale{scale}"].ds["image"]
    return np.asarray(values if gene is None else values.sel(c=gene))


def pixels_at(image: Any, points_um: NDArray[np.float64], coordinate_system: str = "um") -> tuple[NDArray, NDArray]:
    """Return rows and columns of the pixels that points lie in, as the transformation says."""
    affine = get_transformation(image, coordinate_system).to_affine_matrix(("x", "y"), ("x", "y"))
    at = np.column_stack([points_um, np.ones(len(points_um))]) @ np.linalg.inv(affine).T
    return np.floor(at[:, 1]).astype(int), np.floor(at[:, 0]).astype(int)


def centres(image: Any) -> NDArray[np.float64]:
    """Return the (h, w, 2) centres of pixels in micrometres."""
    affine = get_transformation(image, "um").to_affine_matrix(("x", "y"), ("x", "y"))
    h, w = plane(image).shape[1:]
    x, y = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    return np.stack([x, y, np.ones_like(x)], axis=-1) @ affine[:2].T


def assert_same(image: Any, table: Any, *, rtol: float = 2e-5, coordinate_system: str = "um") -> None:
    """Every square of a table is a pixel with its values, and no other pixel has any."""
    rows, columns = pixels_at(image, table.obsm["spatial"], coordinate_system)
    assert image["scale0"].ds.coords["c"].to_numpy().tolist() == table.var_names.tolist()
    np.testing.assert_allclose(plane(image)[:, rows, columns].T, table.X, rtol=rtol, atol=1e-6)
    assert np.isfinite(plane(image)).sum() == table.X.size
    assert len(set(zip(rows, columns, strict=True))) == len(rows)


def box(*bounds: float) -> Any:
    """Return a box in micrometres as shapes."""
    return ShapesModel.parse(gpd.GeoDataFrame(geometry=[shapely.box(*bounds)]), transformations={"um": Identity()})


def counting(model: Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the number of locations of every prediction."""
    seen: list[int] = []
    plain = model.predict

    def predict(batch: Any) -> Any:
        seen.append(len(batch.targets))
        return plain(batch)

    monkeypatch.setattr(model, "predict", predict)
    return seen


class Killed(Exception):
    """What ends a prediction half-way."""


def killed_after(n: int | None, *args: Any, **kwargs: Any) -> None:
    """Predict, and end it after so many blocks were written, or (None) just before all is put into place."""
    plain, done = rasters.Staging.put, []

    def put(self: Any, *where: Any, **noted: Any) -> None:
        if len(done) == n:
            raise Killed
        done.append(1)
        plain(self, *where, **noted)

    def commit(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rasters.Staging, "put", put)
        patch.setattr(rasters, "commit", commit)
        with pytest.raises(Killed):
            st.tl.predict_map(*args, **kwargs)


# Values and places.


def test_is_the_table_on_the_same_squares(original: SpatialData, whole: Any, table: Any) -> None:
    assert_same(whole, table)
    assert plane(whole).dtype == np.float32
    Image2DModel().validate(whole)
    nudged = np.moveaxis(centres(whole) + 1e-5, -1, 0)  # of centres on the border those count that lie left or above
    inside = shapely.contains_xy(original.shapes["tissue"].geometry.union_all(), *nudged)
    assert 0.5 < inside.mean() < 1
    assert (np.isfinite(plane(whole)) == inside).all()


def test_on_bins(slide: SpatialData, student: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasters, "BLOCK", 32)
    slide.shapes["some"] = slide.shapes["bins_008um"].iloc[::4]
    st.tl.predict_map(slide, student, shapes_key="some")
    st.tl.predict(slide, student, shapes_key="some")
    assert_same(slide.images["some_student_map"], slide.tables["some_student"])


def test_finer_and_coarser_pixels(slide: SpatialData, student: Model) -> None:
    slide.shapes["box"] = box(101, 99, 203, 161)
    for size in (5.0, 20.0):
        image = st.tl.predict_map(slide, student, shapes_key="box", resolution_um=size, inplace=False)
        st.pp.subdivide(slide, "box", size_um=size, key_added="squares")
        assert_same(image, st.tl.predict(slide, student, shapes_key="squares", inplace=False))
        del slide.shapes["squares"]


def test_some_genes(original: SpatialData, student: Model, whole: Any) -> None:
    genes = [student.record.genes[i] for i in (7, 2)]
    image = st.tl.predict_map(original, student, genes=genes, inplace=False)
    assert image["scale0"].ds.coords["c"].to_numpy().tolist() == genes
    np.testing.assert_allclose(plane(image), np.stack([plane(whole, g) for g in genes]), rtol=1e-6)


@pytest.mark.parametrize("corner", [(200.0, 160.0), (216.0, 216.0), (209.0, 161.0)])
def test_smaller_copies_are_means_of_what_is_there(corner: tuple[float, float]) -> None:
    """Whether the frame has an even or an odd number of pixels."""
    frame = rasters.Frame.around((88.0, 96.0, *corner), 8.0)
    rng = np.random.default_rng(0)
    fine = rng.random((2, *frame.shape)).astype(np.float32)
    fine[:, rng.random(frame.shape) < 0.3] = np.nan
    fine[:, 2:4, 6:8] = np.nan
    image = rasters.element(fine, ["a", "b"], frame)
    coarse = plane(image, scale=1)
    h, w = coarse.shape[1:]
    assert frame.shape == (2 * h, 2 * w)
    four = fine.reshape(-1, h, 2, w, 2).transpose(0, 1, 3, 2, 4).reshape(-1, h, w, 4)
    some = np.isfinite(four).any(axis=-1)
    assert not some[:, 1, 3].any()
    assert (np.isfinite(coarse) == some).all()
    np.testing.assert_allclose(coarse[some], np.nanmean(four[some], axis=-1), rtol=1e-5)
    place = get_transformation(image["scale1"].ds["image"], "um").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(place, [[16, 0, 88], [0, 16, 96], [0, 0, 1]])


@pytest.mark.parametrize("longest", [1, 511, 512, 513, 1023, 1025, 2047, 4100])
def test_frames_cover_their_box_and_halve_evenly(longest: int) -> None:
    frame = rasters.Frame.around((-3.5, 7.0, longest - 3.6, 10.0), 1.0)
    assert frame.first == (-4, 7)
    assert longest <= frame.shape[1] < longest + 16
    levels = rasters._halvings(*frame.shape)
    assert levels == rasters._halvings(3, longest)
    assert all(edge % 2**levels == 0 for edge in frame.shape)
    assert frame.shape[1] // 2**levels <= 512
    tiles = [(slice(0, 0), slice(0, 0)), *frame.blocks(5)]
    assert sum((r.stop - r.start) * (c.stop - c.start) for r, c in tiles) == np.prod(frame.shape)


def test_shapes_beyond_the_image_are_left_out(slide: SpatialData, student: Model) -> None:
    """A box over the border ends there, one beyond it has no pixel."""
    slide.shapes["over"] = box(330, 296, 470, 360)
    image = st.tl.predict_map(slide, student, shapes_key="over", inplace=False)
    at = centres(image)
    there = np.isfinite(plane(image)[0])
    assert (there == ((at > [330, 296]) & (at < [400, 360])).all(axis=-1)).all()
    assert there.sum() == 9 * 8
    bins = slide.shapes["bins_008um"].iloc[:400]
    moved = bins.copy()
    moved.geometry = [g if i >= 20 else shapely.affinity.translate(g, 400, 0) for i, g in enumerate(bins.geometry)]
    slide.shapes["moved"] = ShapesModel.parse(moved)
    image = st.tl.predict_map(slide, student, shapes_key="moved", inplace=False)
    left = st.tl.predict(slide, student, shapes_key="moved", inplace=False)
    assert left.n_obs == 380
    assert_same(image, left)


def test_nothing_on_the_image(slide: SpatialData, student: Model, tmp_path: Path) -> None:
    slide.shapes["thin"] = box(100.5, 100.5, 102, 102)
    with pytest.raises(InputError, match="No pixel of 8 um lies both in 'thin' and on image 'he'"):
        st.tl.predict_map(slide, student, shapes_key="thin", out=tmp_path / "m.zarr")
    assert not list(tmp_path.iterdir())


def test_without_tissue_it_is_found(slide: SpatialData, student: Model, whole: Any) -> None:
    del slide.shapes["tissue"], slide.shapes["tissue_008um"]
    before = set(slide.shapes)
    image = st.tl.predict_map(slide, student, inplace=False)
    assert set(slide.shapes) == before
    st.tl.predict_map(slide, student)
    assert "tissue" in slide.shapes
    for made in (image, slide.images[KEY]):
        np.testing.assert_allclose(plane(made), plane(whole), rtol=1e-6)


def test_slide_by_slide(original: SpatialData, student: Model, whole: Any) -> None:
    one = SpatialData(
        images=dict(original.images),
        shapes={k: original.shapes[k] for k in ("spots", "tissue")},
        tables={"spots_counts": original.tables["spots_counts"]},
    )
    both = concatenate({name: deepcopy(one) for name in "ab"})
    st.tl.predict_map(both, student, preserve="spots-b", genes=["EPCAM"], coordinate_system="um-b")
    rescaled = plane(both.images["tissue-b_student_map"])[0]
    found = sums_in_spots(original, centres(whole).reshape(-1, 2), np.nan_to_num(rescaled).reshape(-1, 1))
    np.testing.assert_allclose(found, measured(original, ["EPCAM"]), rtol=1e-4)
    st.tl.predict_map(both, student, coordinate_system="um-a")
    image = both.images["tissue-a_student_map"]
    assert set(get_transformation(image, get_all=True)) == {"um-a"}
    st.pp.subdivide(both, "tissue-a", size_um=8, coordinate_system="um-a")
    squares = "tissue-a_008um"
    table = st.tl.predict(both, student, shapes_key=squares, coordinate_system="um-a", inplace=False)
    assert_same(image, table, coordinate_system="um-a")
    assert (np.isfinite(plane(image)) == np.isfinite(plane(whole))).all()


def test_provenance_survives_the_disk(slide: SpatialData, student: Model, tmp_path: Path) -> None:
    slide.attrs["stpred"] = {"other": "{}"}
    st.tl.predict_map(slide, student, shapes_key="part", genes=student.record.genes[:2])
    slide.write(tmp_path / "slide.zarr")
    again = read_zarr(tmp_path / "slide.zarr")
    assert set(again.attrs["stpred"]) == {"other", PART}
    told = json.loads(again.attrs["stpred"][PART])
    assert (told["model"], told["model_id"]) == ("student", student.id)
    assert (told["output_scale"], told["resolution_um"], told["raster"]) == ("log1p_cp10k", 8.0, True)
    assert told["n_predicted"] == np.isfinite(plane(slide.images[PART])[0]).sum()
    assert 0 <= told["share_in_distribution"] <= 1
    np.testing.assert_array_equal(plane(again.images[PART]), plane(slide.images[PART]))
    assert get_transformation(again.images[PART], "um").to_affine_matrix(("x", "y"), ("x", "y")).tolist() == (
        get_transformation(slide.images[PART], "um").to_affine_matrix(("x", "y"), ("x", "y")).tolist()
    )


# On disk.


def test_written_to_a_new_store(
    slide: SpatialData, student: Model, part: Any, tmp_path: Path, small_blocks: None
) -> None:
    st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "maps" / "m.zarr")
    assert [p.name for p in (tmp_path / "maps").iterdir()] == ["m.zarr"]
    again = read_zarr(tmp_path / "maps" / "m.zarr")
    assert [name for _, name, _ in again.gen_elements()] == [PART]
    for image in (again.images[PART], slide.images[PART]):
        np.testing.assert_allclose(plane(image), plane(part), rtol=2e-5)
        np.testing.assert_allclose(plane(image, scale=1), plane(part, scale=1), rtol=2e-5)
        assert type(image["scale0"].ds["image"].data).__module__.startswith("dask")  # not read yet
    assert json.loads(again.attrs["stpred"][PART]) == json.loads(slide.attrs["stpred"][PART])
    levels = dict(zarr.open_group(tmp_path / "maps" / "m.zarr" / "images" / PART, mode="r").arrays())
    assert len(levels) == 2
    assert all(level.chunks[0] == 1 and level.dtype == np.float32 for level in levels.values())


def test_added_to_a_store(original: SpatialData, student: Model, part: Any, tmp_path: Path) -> None:
    store = tmp_path / "slide.zarr"
    SpatialData(
        images=dict(original.images), shapes=dict(original.shapes), tables=dict(original.tables), attrs={"mine": 1}
    ).write(store)

    def contents() -> dict[str, bytes]:
        found = {str(p.relative_to(store)): p for p in store.rglob("*") if p.is_file()}
        kept = {name: p.read_bytes() for name, p in found.items() if PART not in name}
        return {name: held for name, held in kept.items() if name not in ("zarr.json", "images/zarr.json")}

    before = contents()
    slide = read_zarr(store)
    st.tl.predict_map(slide, student, shapes_key="part", out=store)
    assert contents() == before
    assert [p.name for p in tmp_path.iterdir()] == ["slide.zarr"]
    again = read_zarr(store)
    assert set(again.images) == {"he", PART}
    assert (set(again.shapes), set(again.tables)) == (set(original.shapes), set(original.tables))
    assert (again.attrs["mine"], list(again.attrs["stpred"])) == (1, [PART])
    np.testing.assert_allclose(plane(again.images[PART]), plane(part), rtol=1e-6)
    members = zarr.open_consolidated(store, mode="r")
    assert f"images/{PART}/s0" in dict(members.members(max_depth=None))
    st.tl.predict_map(slide, student, shapes_key="part", out=store, genes=["EPCAM"], key_added="epcam")
    again = read_zarr(store)
    assert set(again.images) == {"he", PART, "epcam"}
    assert set(again.attrs["stpred"]) == {PART, "epcam"}


def test_added_to_a_store_without_images(slide: SpatialData, student: Model, tmp_path: Path) -> None:
    SpatialData(shapes={"tissue": slide.shapes["tissue"]}).write(tmp_path / "s.zarr")
    st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "s.zarr", genes=["EPCAM"])
    again = read_zarr(tmp_path / "s.zarr")
    assert (list(again.images), list(again.shapes)) == ([PART], ["tissue"])


def test_what_cannot_be_written_is_refused_before_any_work(
    slide: SpatialData, student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = counting(student, monkeypatch)
    SpatialData(shapes={PART: slide.shapes["tissue"]}).write(tmp_path / "taken.zarr")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for name, said in (
        ("taken.zarr", f"holds shapes/{PART} already; choose another `key_added`"),
        ("folder", "is no SpatialData store"),
        ("file", "is no SpatialData store"),
        ("taken.zarr/shapes", "is no SpatialData store"),
        ("file/m.zarr", "is a file, not a folder"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / name)
    assert not seen
    assert {p.name for p in tmp_path.iterdir()} == {"taken.zarr", "folder", "file"}


def test_killed_half_way_goes_on(
    slide: SpatialData, student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    monkeypatch.setattr(type(student.typical), "relative", lambda self, distance: np.asarray(distance) - 5.0)
    st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "at_once.zarr")
    seen = counting(student, monkeypatch)
    out = tmp_path / "m.zarr"
    killed_after(2, slide, student, shapes_key="part", out=out)
    assert not out.exists()
    first, n = len(seen), int(np.isfinite(plane(slide.images[PART])[0]).sum())
    assert 0 < sum(seen) < n
    again = SpatialData(images={"he": slide.images["he"]}, shapes=dict(slide.shapes), tables=dict(slide.tables))
    st.tl.predict_map(again, student, shapes_key="part", out=out)
    assert sum(seen) == n + seen[first - 1]  # the block that it was killed in is done twice
    np.testing.assert_array_equal(plane(again.images[PART]), plane(slide.images[PART]))
    assert json.loads(again.attrs["stpred"][PART]) == json.loads(slide.attrs["stpred"][PART])
    assert {p.name for p in tmp_path.iterdir()} == {"at_once.zarr", "m.zarr"}


def test_killed_at_the_end_only_writes(
    slide: SpatialData, student: Model, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_after(None, slide, student, shapes_key="part", out=tmp_path / "m.zarr")
    with next(tmp_path.glob(".*.part")).joinpath("done.txt").open("a") as done:
        done.write('0,256 {"unli')  # killed while it was noted
    (tmp_path / f".m.zarr-{PART}.writing" / "images").mkdir(parents=True)  # and then while it was written
    seen = counting(student, monkeypatch)
    st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "m.zarr")
    assert not seen
    np.testing.assert_allclose(plane(slide.images[PART]), plane(part), rtol=1e-6)
    assert json.loads(slide.attrs["stpred"][PART])["context"] == "spots"
    assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]


def test_what_was_left_of_another_prediction_is_not_used(
    slide: SpatialData, student: Model, part: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    out = tmp_path / "m.zarr"
    other = copy.deepcopy(student)
    with torch.no_grad():
        other.layers[1].bias += 1
    for model, changed in (
        (student, {"genes": ["EPCAM"]}),
        (student, {"stride_um": 56.0}),
        (student, {"resolution_um": 6.0}),
        (student, {"shapes_key": "tissue"}),
        (other, {}),
    ):
        killed_after(2, slide, model, out=out, **{"shapes_key": "part", "key_added": PART, **changed})
    seen = counting(student, monkeypatch)
    st.tl.predict_map(slide, student, shapes_key="part", out=out)
    assert sum(seen) == np.isfinite(plane(part)[0]).sum()
    np.testing.assert_allclose(plane(slide.images[PART]), plane(part), rtol=2e-5)


def test_larger_than_the_disk(
    slide: SpatialData, student: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    """Told with both numbers, before anything is done; what an interrupted call wrote does not count twice."""
    seen = counting(student, monkeypatch)
    frame = plane(st.tl.predict_map(slide, student, shapes_key="part", inplace=False)).shape
    needed = int(np.prod(frame) * 4 * 7 / 3)
    seen.clear()

    def left(free: float) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))

    left(needed - 2)
    said = f"12 genes on {frame[2]} x {frame[1]} pixels of 8 um needs up to {needed / 2**30:.3g} GB .* has .* GB free"
    with pytest.raises(InputError, match=said):
        st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "m.zarr")
    assert not seen
    assert not list(tmp_path.iterdir())
    left(needed + 2)
    with pytest.raises(InputError, match="GB free"):  # once more, rescaled
        st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "m.zarr", preserve="spots")
    killed_after(3, slide, student, shapes_key="part", out=tmp_path / "m.zarr")
    left(needed + 2 - sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file()))
    st.tl.predict_map(slide, student, shapes_key="part", out=tmp_path / "m.zarr")


def test_larger_than_memory(slide: SpatialData, student: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counting(student, monkeypatch)
    monkeypatch.setattr(rasters, "MOST_IN_MEMORY", 1e-9)
    said = r"The map of 12 genes on 128 x 112 pixels of 1 um takes 0.000854 GB, more than half of the [\d.]+ GB of this"
    with pytest.raises(InputError, match=said):
        st.tl.predict_map(slide, student, shapes_key="part", resolution_um=1)
    assert not seen


# Models of tiles.


def test_of_a_model_of_tiles(slide: SpatialData, ridge: Model, tmp_path: Path, small_blocks: None) -> None:
    st.pp.subdivide(slide, "tissue", size_um=50)
    table = st.tl.predict(slide, ridge, shapes_key="tissue_050um", inplace=False)
    st.tl.predict_map(slide, ridge, resolution_um=50, out=tmp_path / "m.zarr")
    assert_same(slide.images["tissue_ridge_map"], table)
    assert json.loads(slide.attrs["stpred"]["tissue_ridge_map"])["resolution_um"] == 50


def test_models_of_tiles_refuse(
    slide: SpatialData, ridge: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="'ridge', which is no model of patches, needs `resolution_um=`"):
        st.tl.predict_map(slide, ridge)
    monkeypatch.setattr(raster, "MAX_TILES", 10)
    with pytest.raises(InputError, match=r"A map of \d+ pixels through 'ridge' would embed as many tiles"):
        st.tl.predict_map(slide, ridge, resolution_um=50, out=tmp_path / "m.zarr")
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(type(ridge), "needs", property(lambda self: Needs(cells=True)))
    with pytest.raises(InputError, match="'ridge' sees cells, so it has no map; predict on the cells' shapes"):
        st.tl.predict_map(slide, ridge, resolution_um=50)


# Preserved sums.


def sums_in_spots(slide: SpatialData, points_um: NDArray[np.float64], values: NDArray) -> NDArray[np.float64]:
    """Add up (n, G) values of the points in each spot, by distance."""
    spots = slide.shapes["spots"]
    out = np.zeros((len(spots), values.shape[1]))
    for s, (point, radius) in enumerate(zip(spots.geometry, spots["radius"], strict=True)):
        away = np.linalg.norm(points_um - [point.x, point.y], axis=1)
        out[s] = values[away <= radius].sum(axis=0, dtype=np.float64)
    return out


def measured(slide: SpatialData, genes: list[str]) -> NDArray[np.float64]:
    table = slide.tables["spots_counts"]
    assert table.obs["instance_id"].tolist() == slide.shapes["spots"].index.tolist()
    return np.asarray(table[:, genes].X.todense(), dtype=np.float64)


@pytest.mark.parametrize("on_disk", [False, True])
def test_sums_of_spots_are_preserved(slide: SpatialData, student: Model, tmp_path: Path, on_disk: bool) -> None:
    genes = student.record.genes[::-2]
    counts = slide.tables["spots_counts"].copy()
    changed = counts.X.tolil()
    changed[2, counts.var_names.get_loc(genes[0])] = 0
    changed[4] = 0
    counts.X = changed.tocsr()
    slide.tables["spots_counts"] = counts
    out = tmp_path / "m.zarr" if on_disk else None
    st.tl.predict_map(slide, student, preserve="spots", genes=genes, out=out)
    image = slide.images[KEY]
    points, values = centres(image).reshape(-1, 2), plane(image).reshape(len(genes), -1).T
    there = np.isfinite(values).all(axis=1)
    wanted = measured(slide, genes)
    assert wanted[2, 0] == 0
    assert (wanted[4] == 0).all()
    np.testing.assert_allclose(sums_in_spots(slide, points[there], values[there]), wanted, rtol=1e-4)
    told = json.loads(slide.attrs["stpred"][KEY])
    assert (told["output_scale"], told["preserved"]) == ("counts", "spots")
    st.tl.predict(slide, student, shapes_key="tissue_008um", preserve="spots", genes=genes)
    table = slide.tables["tissue_008um_student"]
    assert "std" not in table.layers
    told = json.loads(table.uns["stpred"])
    assert (told["output_scale"], told["preserved"]) == ("counts", "spots")
    np.testing.assert_allclose(sums_in_spots(slide, table.obsm["spatial"], table.X), wanted, rtol=1e-4)
    assert_same(image, table, rtol=1e-4)
    if on_disk:
        assert [p.name for p in tmp_path.iterdir()] == ["m.zarr"]


def test_within_a_spot_proportions_are_those_predicted(slide: SpatialData, student: Model, table: Any) -> None:
    st.tl.predict(slide, student, shapes_key="tissue_008um", preserve="spots", genes=["EPCAM"])
    spot = slide.shapes["spots"].iloc[4]
    away = np.linalg.norm(table.obsm["spatial"] - [spot.geometry.x, spot.geometry.y], axis=1)
    before = np.expm1(np.asarray(table[away <= spot["radius"], "EPCAM"].X, dtype=np.float64)).ravel()
    after = slide.tables["tissue_008um_student"].X[away <= spot["radius"]].ravel()
    assert len(before) > 20
    np.testing.assert_allclose(after / after.sum(), before / before.sum(), rtol=1e-4)


def test_spots_without_a_pixel(slide: SpatialData, student: Model) -> None:
    """Of a map of some of the slide the spots in it add up, and the others keep their counts to themselves."""
    slide.shapes["upper"] = box(0, 0, 400, 240)
    image = st.tl.predict_map(slide, student, shapes_key="upper", preserve="spots", inplace=False)
    values = plane(image).reshape(12, -1).T
    found = sums_in_spots(slide, centres(image).reshape(-1, 2), np.nan_to_num(values))
    y = np.array([p.y for p in slide.shapes["spots"].geometry])
    radius = slide.shapes["spots"]["radius"].to_numpy()
    above, below = y + radius < 240, y - radius > 240
    assert above.any()
    assert below.any()
    np.testing.assert_allclose(found[above], measured(slide, student.record.genes)[above], rtol=1e-4)
    assert (found[below] == 0).all()
    slide.images["second"] = slide.images["he"]
    how = {"shapes_key": "upper", "preserve": "spots", "image_key": "he", "genes": ["EPCAM"]}
    named = st.tl.predict_map(slide, student, inplace=False, **how)
    np.testing.assert_allclose(plane(named)[0], plane(image, "EPCAM"), rtol=1e-5)
    del slide.images["second"]
    slide.shapes["between"] = box(0, 0, 20, 20)
    with pytest.raises(InputError, match="No predicted location lies in one of 'spots'"):
        st.tl.predict_map(slide, student, shapes_key="between", preserve="spots")


@pytest.mark.parametrize("verb", ["predict", "predict_map"])
def test_what_cannot_be_preserved(
    slide: SpatialData, student: Model, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    predict = partial(getattr(st.tl, verb), shapes_key="tissue_008um" if verb == "predict" else None)
    with pytest.raises(InputError, match=r"No shapes element named 'dots' \(`preserve`\)"):
        predict(slide, student, preserve="dots")
    with pytest.raises(InputError, match="tissue"):
        predict(slide, student, preserve="tissue")
    counts = slide.tables["spots_counts"]
    slide.tables["spots_counts"] = counts[:, counts.var_names != "EPCAM"].copy()
    with pytest.raises(InputError, match=r"`preserve`='spots' did not measure \['EPCAM'\]; name the genes"):
        predict(slide, student, preserve="spots")
    monkeypatch.setattr(student.record, "target", "relative")
    with pytest.raises(InputError, match="The predictions of 'student' are 'relative', without a scale"):
        predict(slide, student, preserve="spots", genes=["DCN"])


# What is asked wrongly.


def test_resolutions_that_are_none(slide: SpatialData, student: Model) -> None:
    for size in (0, -1, "8"):
        with pytest.raises(InputError, match="`resolution_um` must be a positive number of micrometres"):
            st.tl.predict_map(slide, student, resolution_um=size)  # type: ignore[arg-type]


def test_images_that_are_there(slide: SpatialData, student: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = counting(student, monkeypatch)
    for key, said in (("he", "is an image that stpred did not write"), ("spots", "is the name of the element 'spots'")):
        with pytest.raises(InputError, match=said):
            st.tl.predict_map(slide, student, key_added=key)
    assert not seen
    st.tl.predict_map(slide, student, shapes_key="part")
    with pytest.warns(UserWarning, match=f"Image '{PART}' existed and is overwritten in memory") as warned:
        st.tl.predict_map(slide, student, shapes_key="part")
    assert warned[0].filename == __file__

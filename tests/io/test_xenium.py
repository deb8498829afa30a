from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tifffile
from spatialdata.models import TableModel

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.testing import affine_to, apply_affine, centroids, mpp_of

Make = Callable[..., SimpleNamespace]


def check(sdata, truth: SimpleNamespace) -> None:
    table = sdata.tables["cells_counts"]
    TableModel().validate(table)
    assert table.uns["spatialdata_attrs"]["region"] == "cells"
    assert list(table.obs["instance_id"]) == truth.ids == list(table.obs_names)
    np.testing.assert_array_equal(table.X.toarray(), truth.counts)
    xy, index = centroids(sdata, "cells")
    where = pd.DataFrame(xy, index=index).loc[truth.ids].to_numpy()
    np.testing.assert_allclose(where, truth.centres, atol=1e-6)
    np.testing.assert_allclose(table.obsm["spatial"], truth.centres, atol=1e-6)
    np.testing.assert_allclose(affine_to(sdata.shapes["cells"]), np.eye(3))
    np.testing.assert_allclose(affine_to(sdata.shapes["cells"], "global"), np.diag([1 / truth.pixel_size] * 2 + [1]))


def alignment(*, mpp: float, angle: float, flip: bool, pixel_size: float = 0.2125) -> np.ndarray:
    """H&E pixels (of 700 x 600) to morphology pixels, such that the picture's middle covers the cells."""
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    linear = turn @ np.diag([-1.0 if flip else 1.0, 1.0]) * mpp / pixel_size
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([50, 39]) / pixel_size - linear @ [350, 300]
    return matrix


def write_he(path: Path) -> Path:
    tifffile.imwrite(path, np.full((600, 700, 3), 210, np.uint8), tile=(128, 128), photometric="rgb", metadata=None)
    return path


@pytest.mark.parametrize("tables", ["parquet", "csv"])
@pytest.mark.parametrize("pixel_size", [0.2125, None])
def test_incomplete_bundles_load(make_xenium: Make, tables: str, pixel_size: float | None) -> None:
    truth = make_xenium(tables=tables, pixel_size=pixel_size)
    sdata = st.io.xenium(truth.path)
    check(sdata, truth)
    assert not sdata.images
    nuclei = sdata.shapes["nuclei"]
    np.testing.assert_allclose(nuclei.geometry.area, 12.0)
    assert "cell_area" in sdata.tables["cells_counts"].obs


def test_pixel_size_is_taken_from_the_bundle_or_given(make_xenium: Make) -> None:
    truth = make_xenium(pixel_size=0.3)
    assert affine_to(st.io.xenium(truth.path).shapes["cells"], "global")[0, 0] == pytest.approx(1 / 0.3)
    assert affine_to(st.io.xenium(truth.path, pixel_size_um=0.25).shapes["cells"], "global")[0, 0] == 4
    (truth.path / "experiment.xenium").write_text("{}")
    with pytest.raises(InputError, match="does not state a pixel_size"):
        st.io.xenium(truth.path)


@pytest.mark.parametrize("angle", [0.0, 0.7, np.pi / 2])
@pytest.mark.parametrize("flip", [False, True])
def test_aligned_images_keep_rotation_flip_and_scale(make_xenium: Make, angle: float, flip: bool) -> None:
    truth = make_xenium()
    matrix = alignment(mpp=0.4, angle=angle, flip=flip)
    write_he(truth.path / "s_he_image.ome.tif")
    np.savetxt(truth.path / "s_he_imagealignment.csv", matrix, delimiter=",")
    sdata = st.io.xenium(truth.path)
    check(sdata, truth)
    to_um = affine_to(sdata.images["he"])
    points = np.array([[0.0, 0.0], [700, 600], [10, 333]])
    np.testing.assert_allclose(apply_affine(to_um, points), apply_affine(matrix, points) * 0.2125, atol=1e-9)
    np.testing.assert_allclose(
        apply_affine(affine_to(sdata.images["he"], "global"), points), apply_affine(matrix, points)
    )
    assert mpp_of(to_um) == pytest.approx(0.4)


def test_alignment_may_be_given_as_file_or_matrix(make_xenium: Make, tmp_path: Path) -> None:
    truth, image = make_xenium(), write_he(tmp_path / "post.tif")
    matrix = alignment(mpp=0.5, angle=0.1, flip=False)
    np.savetxt(tmp_path / "m.csv", matrix, delimiter=",")
    for given in (matrix, tmp_path / "m.csv"):
        sdata = st.io.xenium(truth.path, he_image=image, he_alignment=given)
        assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(0.5)
    with pytest.raises(InputError, match=r"'post.tif' has no alignment file.*he_alignment=.*mpp=.*pp\.register"):
        st.io.xenium(truth.path, he_image=image)
    sdata = st.io.xenium(truth.path, he_image=image, mpp=0.5)
    np.testing.assert_allclose(affine_to(sdata.images["he"]), np.diag([0.5, 0.5, 1]))


def test_contradicting_resolutions_are_told(make_xenium: Make, tmp_path: Path) -> None:
    truth = make_xenium()
    matrix = alignment(mpp=0.5, angle=0.1, flip=False)
    image = write_he(tmp_path / "a.tif")
    with pytest.raises(InputError, match=r"`mpp`=0\.25 contradicts the alignment of 'a\.tif', which makes it 0\.5"):
        st.io.xenium(truth.path, he_image=image, he_alignment=matrix, mpp=0.25)
    tifffile.imwrite(image, np.full((600, 700, 3), 210, np.uint8), photometric="rgb", metadata=None,
                     resolution=(17000, 17000), resolutionunit="CENTIMETER")  # fmt: skip
    with pytest.warns(UserWarning, match=r"the alignment says 0\.5 um per pixel and the TIFF .* 0\.5882"):
        st.io.xenium(truth.path, he_image=image, he_alignment=matrix)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(2), "3 x 3 affine matrix"),
        (np.array([[1, 0, 0], [0, 1, 0], [0.1, 0, 1.0]]), "last row 0, 0, 1"),
        (np.diag([1.0, 2.0, 1.0]), "not square"),
        (np.diag([0.0, 1.0, 1.0]), "singular"),
        (np.diag([0.01, 0.01, 1.0]), r"by its alignment` must be 0\.01 to 100 um, got 0\.002125"),
    ],
)
def test_unusable_alignments_are_refused(make_xenium: Make, tmp_path: Path, matrix: np.ndarray, message: str) -> None:
    image = write_he(tmp_path / "a.tif")
    with pytest.raises(InputError, match=message):
        st.io.xenium(make_xenium().path, he_image=image, he_alignment=matrix)


def test_bundles_without_he_say_so(make_xenium: Make, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="stpred"):
        st.io.xenium(make_xenium(pixel_size=None).path)
    assert "No H&E image in the bundle" in caplog.text
    assert "0.2125 um" in caplog.text
    assert "Incomplete bundle (no experiment.xenium, cells.zarr.zip)" in caplog.text


def test_cells_are_read_without_an_image_that_no_file_places(make_xenium: Make) -> None:
    truth = make_xenium()
    write_he(truth.path / "a_he_image.tif")
    write_he(truth.path / "b_he_image.tif")
    sdata = st.io.xenium(truth.path, he_image=False)
    assert "he" not in sdata.images
    assert "cells" in sdata.shapes
    with pytest.raises(InputError, match="`he_alignment` places the H&E image, which `he_image`=False leaves out"):
        st.io.xenium(truth.path, he_image=False, he_alignment=np.eye(3))


def test_missing_parts_are_named(make_xenium: Make) -> None:
    truth = make_xenium()
    with pytest.raises(
        InputError, match=r"\['labels'\] can be loaded from complete bundles only; this one lacks \['cells"
    ):
        st.io.xenium(truth.path, labels=True)
    with pytest.raises(InputError, match="`he_alignment` is given, but there is no H&E image"):
        st.io.xenium(truth.path, he_alignment=np.eye(3))
    write_he(truth.path / "a_he_image.tif")
    write_he(truth.path / "b_he_image.tif")
    with pytest.raises(InputError, match=r"Several images could be the H&E: \['a_he_image.tif', 'b_he_image.tif'\]"):
        st.io.xenium(truth.path)
    (truth.path / "cell_feature_matrix.h5").unlink()
    with pytest.raises(MissingFileError, match="has no counts"):
        st.io.xenium(truth.path)


def test_cells_without_boundaries_become_circles_or_are_left_out(make_xenium: Make) -> None:
    truth = make_xenium()
    path = truth.path / "cell_boundaries.parquet"
    frame = pd.read_parquet(path)
    frame[frame["cell_id"] != truth.ids[0]].to_parquet(path)
    with pytest.warns(UserWarning, match="1 of 30 cells have counts but no polygon; they are left out"):
        assert list(st.io.xenium(truth.path).tables["cells_counts"].obs_names) == truth.ids[1:]
    path.unlink()
    sdata = st.io.xenium(truth.path)
    check(sdata, truth)
    np.testing.assert_allclose(np.pi * sdata.shapes["cells"]["radius"] ** 2, 48.0)


def complete(truth: SimpleNamespace) -> SimpleNamespace:
    """Add to a bundle what the vendor's reader needs, of software version 2."""
    import zarr
    from spatialdata_io.readers.xenium import cell_id_str_from_prefix_suffix_uint32

    n = len(truth.ids)
    raw = np.column_stack([np.arange(n) * 77 + 5, np.ones(n)]).astype(np.uint32)
    new = dict(zip(truth.ids, cell_id_str_from_prefix_suffix_uint32(raw[:, 0], raw[:, 1]), strict=True))
    number = {old: i + 1 for i, old in enumerate(truth.ids)}
    for stem in ("cells", "cell_boundaries", "nucleus_boundaries"):
        path = truth.path / f"{stem}.parquet"
        frame = pd.read_parquet(path)
        frame["label_id"] = frame["cell_id"].map(number)
        frame["cell_id"] = frame["cell_id"].map(new)
        frame = frame.sort_values("label_id", kind="stable").reset_index(drop=True)
        (frame.drop(columns="label_id") if stem == "cells" else frame).to_parquet(path)
    import h5py

    with h5py.File(truth.path / "cell_feature_matrix.h5", "r+") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array([new[i] for i in truth.ids], dtype="S")
    with zarr.storage.ZipStore(truth.path / "cells.zarr.zip", mode="w") as store:
        group = zarr.group(store)
        group["cell_id"] = raw
        group["cell_summary"] = np.zeros((n, 2))
        group["cell_summary"].attrs["column_names"] = ["z_level", "nucleus_count"]
        for k in (0, 1):
            group[f"masks/{k}"] = np.zeros((40, 50), np.uint32)
            group[f"polygon_sets/{k}/cell_index"] = np.arange(n, dtype=np.uint32)
    specs = {"pixel_size": 0.2125, "analysis_sw_version": "xenium-2.0.0.6"}
    (truth.path / "experiment.xenium").write_text(json.dumps(specs))
    truth.ids = [str(new[i]) for i in truth.ids]
    return truth


@pytest.mark.parametrize("labels", [False, True])
def test_complete_bundles_annotate_cell_shapes(make_xenium: Make, labels: bool) -> None:
    truth = complete(make_xenium())
    sdata = st.io.xenium(truth.path, labels=labels)
    check(sdata, truth)
    assert len(sdata.shapes["nuclei"]) == len(truth.ids)
    if labels:
        assert list(sdata.tables["cells_counts"].obs["cell_labels"]) == list(range(1, len(truth.ids) + 1))
        assert affine_to(sdata.labels["cell_labels"])[0, 0] == pytest.approx(0.2125)


def edit(path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    change(pd.read_parquet(path)).to_parquet(path, index=False)


@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("version", ["xenium-2.0.0.6", "xenium-1.4.0.6", "R&D", None])
def test_polygons_are_those_of_their_cell_id(make_xenium: Make, archive: bool, version: str | None) -> None:
    truth = complete(make_xenium())
    rng = np.random.default_rng(1)

    def shuffled(frame: pd.DataFrame, stem: str) -> pd.DataFrame:
        order = dict(zip(frame["cell_id"].unique(), rng.permutation(frame["cell_id"].nunique()), strict=True))
        frame = frame.sort_values("cell_id", key=lambda c: c.map(order), kind="stable")
        if stem == "cell_boundaries":  # other labels, and the vertices of cells in turn
            frame["label_id"] = frame["label_id"].map(dict(enumerate(rng.permutation(len(truth.ids)) + 1, 1)))
            frame = frame.iloc[np.argsort(frame.groupby("cell_id").cumcount(), kind="stable")]
        return frame

    for stem in ("cells", "cell_boundaries", "nucleus_boundaries"):
        path = truth.path / f"{stem}.parquet"
        shuffled(pd.read_parquet(path), stem).to_parquet(path, index=False)
    specs = {"pixel_size": 0.2125} | ({} if version is None else {"analysis_sw_version": version})
    (truth.path / "experiment.xenium").write_text(json.dumps(specs))
    if not archive:
        (truth.path / "cells.zarr.zip").unlink()
    sdata = st.io.xenium(truth.path)
    check(sdata, truth)
    nuclei = sdata.shapes["nuclei"]
    cells = sdata.shapes["cells"].loc[nuclei["cell_id"]]
    np.testing.assert_allclose(nuclei.centroid.x, cells.centroid.x)


@pytest.mark.parametrize("kind", ["int32", "float64", "bytes", "csv"])
def test_ids_of_old_bundles_meet_the_barcodes(make_xenium: Make, kind: str) -> None:
    import h5py

    truth = make_xenium()
    number = {old: i + 1 for i, old in enumerate(sorted(truth.ids))}
    for stem in ("cells", "cell_boundaries", "nucleus_boundaries"):
        path = truth.path / f"{stem}.parquet"
        frame = pd.read_parquet(path)
        frame["cell_id"] = frame["cell_id"].map(number)
        if kind == "bytes":
            frame["cell_id"] = [str(i).encode() for i in frame["cell_id"]]
        elif kind != "csv":
            frame["cell_id"] = frame["cell_id"].astype(kind)
        if kind == "csv":
            path.unlink()
            frame.to_csv(path.with_suffix(".csv.gz"), index=False)
        else:
            frame.to_parquet(path)
    with h5py.File(truth.path / "cell_feature_matrix.h5", "r+") as file:
        del file["matrix/barcodes"]
        file["matrix/barcodes"] = np.array([str(number[i]) for i in truth.ids], dtype="S")
    truth.ids = [str(number[i]) for i in truth.ids]
    check(st.io.xenium(truth.path), truth)


def test_polygons_of_other_cells_are_refused_and_few_left_out(make_xenium: Make) -> None:
    truth = make_xenium()
    path = truth.path / "cell_boundaries.parquet"
    own = pd.read_parquet(path)
    names = list(own["cell_id"].unique())
    swapped = own.assign(cell_id=own["cell_id"].replace({names[0]: names[20], names[20]: names[0]}))
    swapped.to_parquet(path)
    with pytest.warns(UserWarning, match=r"2 lie up to \d+ um from their stated centroid.*left out|2 of 30 cells have"):
        sdata = st.io.xenium(truth.path)
    assert set(sdata.shapes["cells"].index) == set(truth.ids) - {names[0], names[20]}
    for wrong, count in (
        (own.assign(cell_id=own["cell_id"].map(dict(zip(names, names[1:] + names[:1], strict=True)))), "30 of 30"),
        (own.assign(vertex_x=own["vertex_x"] / 0.2125, vertex_y=own["vertex_y"] / 0.2125), "30 of 30"),
        (own.assign(vertex_x=own["vertex_x"] + 4), "0 of 30"),
    ):
        wrong.to_parquet(path)
        with pytest.raises(
            InputError, match=rf"are not those of their cells: {count} lie beyond .* \(median [\d.]+ um"
        ):
            st.io.xenium(truth.path)


def test_degenerate_and_multipart_polygons(make_xenium: Make) -> None:
    truth = make_xenium()
    path = truth.path / "cell_boundaries.parquet"
    own = pd.read_parquet(path)
    flat, several, name = truth.ids[0], truth.ids[1], truth.ids[2]
    rows = own[own["cell_id"] == several]
    piece = rows.assign(vertex_x=(rows["vertex_x"] - rows["vertex_x"].mean()) / 4 + 1, vertex_y=rows["vertex_y"] / 9)
    broken = own.copy()
    broken.loc[broken["cell_id"] == flat, "vertex_y"] = 3.0
    first = broken.index[broken["cell_id"] == name][0]
    broken.loc[first, "vertex_x"] = np.inf
    pd.concat([piece, broken]).to_parquet(path, index=False)
    (truth.path / "nucleus_boundaries.parquet").unlink()
    with pytest.warns(
        UserWarning, match="2 have no valid outline with an area|2 of 30 cells have counts but no polygon"
    ):
        sdata = st.io.xenium(truth.path)
    assert sdata.tables["cells_counts"].obs_names.tolist() == truth.ids[3:] or (
        sdata.tables["cells_counts"].obs_names.tolist() == [several, *truth.ids[3:]]
    )
    assert sdata.shapes["cells"].geometry[several].area == pytest.approx(48)


def test_nuclei_of_one_cell_stay_apart_without_labels(make_xenium: Make) -> None:
    truth = make_xenium()
    path = truth.path / "nucleus_boundaries.parquet"
    own = pd.read_parquet(path)
    rows = own[own["cell_id"] == truth.ids[0]]
    pd.concat([rows.assign(vertex_x=rows["vertex_x"] - 1.5), own]).to_parquet(path, index=False)
    nuclei = st.io.xenium(truth.path).shapes["nuclei"]
    assert len(nuclei) == 31
    assert nuclei.index.is_unique
    assert (nuclei["cell_id"] == truth.ids[0]).sum() == 2


def test_counts_in_an_archive_only_and_twofold_cells_are_told(make_xenium: Make) -> None:
    truth = make_xenium()
    edit(truth.path / "cells.parquet", lambda f: pd.concat([f, f.iloc[:1]]))
    with pytest.raises(InputError, match=r"'cells.parquet' has 31 rows of 30 cells"):
        st.io.xenium(truth.path)
    (truth.path / "cell_feature_matrix.h5").rename(truth.path / "cell_feature_matrix.zarr.zip")  # not looked into
    with pytest.raises(MissingFileError, match=r"'cell_feature_matrix.zarr.zip' is not read: copy the h5"):
        st.io.xenium(truth.path)


@pytest.mark.parametrize(
    "text", ["0", "-1", "NaN", "1e9", '"x"', "null", "[1]", "1e-9", "[" * 10_000, "9" * 10_000], ids=lambda t: t[:8]
)
def test_pixel_sizes_that_no_microscope_has(make_xenium: Make, text: str) -> None:
    truth = make_xenium()
    (truth.path / "experiment.xenium").write_text(f'{{"pixel_size": {text}}}')
    with pytest.raises(InputError, match="pixel_size of experiment.xenium|is not valid JSON"):
        st.io.xenium(truth.path)


@pytest.mark.parametrize(
    "text",
    [
        "1e300,0,0\n0,1e300,0\n0,0,1",
        "1e-300,0,0\n0,1e-300,0\n0,0,1",
        "1,0,1e9\n0,1,1e9\n0,0,1",
        "nan,0,0\n0,1,0\n0,0,1",
        "1j,0,0\n0,1,0\n0,0,1",
        "1,5,0\n0,1,0\n0,0,1",
        "1,0,0\n0,1,0",
        "1,1,0\n1,1,0\n0,0,1",
    ],
)
def test_alignments_beyond_sense(make_xenium: Make, tmp_path: Path, text: str) -> None:
    (tmp_path / "m.csv").write_text(text)
    with pytest.raises(InputError):
        st.io.xenium(make_xenium().path, he_image=write_he(tmp_path / "a.tif"), he_alignment=tmp_path / "m.csv")


@pytest.mark.realdata
def test_crop_without_specifications(real_data: Path) -> None:
    sdata = st.io.xenium(real_data / "xenium_toy")
    assert sdata.tables["cells_counts"].shape == (526, 27)
    table = sdata.tables["cells_counts"]
    stated = table.obs[["x_centroid", "y_centroid"]].to_numpy()
    assert np.median(np.linalg.norm(table.obsm["spatial"] - stated, axis=1)) < 1.0  # um
    assert set(sdata.shapes) == {"cells", "nuclei"}


def test_columns_that_no_table_can_hold_are_left_out(make_xenium: Make) -> None:
    truth = make_xenium()
    path = truth.path / "cells.parquet"
    frame = pd.read_parquet(path)
    odd = {"CELL_AREA": 1.0, "a b": 2, "__x": 3, "lists": [[1, 2]] * len(frame), "kept.1": 4}
    frame.assign(**odd).to_parquet(path)
    sdata = st.io.xenium(truth.path)
    obs = sdata.tables["cells_counts"].obs
    assert "kept.1" in obs
    assert "cell_area" in obs
    assert not set(odd) & set(obs) - {"kept.1"}
    sdata.write(truth.path / "out.zarr")

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
from PIL import Image
from scipy import sparse
from spatialdata.models import TableModel

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred._core.elements import affine_to, centroids, find_image, mpp_of
from stpred.io._images import flat, same_image

Make = Callable[..., SimpleNamespace]


def check(sdata, truth: SimpleNamespace) -> None:
    """Everything a reader promises, against what was written."""
    table, spots = sdata.tables["spots_counts"], sdata.shapes["spots"]
    assert list(spots.index) == truth.barcodes == list(table.obs_names) == list(table.obs["instance_id"])
    TableModel().validate(table)
    assert sparse.issparse(table.X)
    np.testing.assert_array_equal(table.X.toarray(), truth.counts)
    assert list(table.var_names) == ["EPCAM", "VIM", "CD3E", "TBCE", "TBCE-1", "ZERO"]
    assert table.var["gene_id"].iloc[4] == "ENSG00000000004"
    xy, index = centroids(sdata, "spots")
    np.testing.assert_allclose(xy, truth.xy * truth.mpp, rtol=1e-4)
    np.testing.assert_allclose(table.obsm["spatial"], xy)
    assert list(index) == truth.barcodes


@pytest.mark.parametrize("positions", ["tissue_positions_list.csv", "tissue_positions.csv", "tissue_positions.parquet"])
@pytest.mark.parametrize("matrix", ["h5", "mtx.gz", "mtx"])
def test_all_space_ranger_layouts_give_the_same_object(make_visium: Make, positions: str, matrix: str) -> None:
    truth = make_visium(positions=positions, matrix=matrix)
    sdata = st.io.visium(truth.outs)
    check(sdata, truth)
    assert set(sdata.images) == {"he", "he_hires", "he_lowres"}
    assert {"array_row", "array_col", "in_tissue"} <= set(sdata.tables["spots_counts"].obs)


def test_elements_lie_in_vendor_systems_and_only_one_image_in_um(make_visium: Make) -> None:
    truth = make_visium()
    sdata = st.io.visium(truth.outs)
    assert find_image(sdata) == "he"
    np.testing.assert_array_equal(affine_to(sdata.images["he"], "s1"), np.eye(3))
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(5.0)
    assert affine_to(sdata.images["he_hires"]) is None
    np.testing.assert_array_equal(affine_to(sdata.images["he_hires"], "s1_downscaled_hires"), np.eye(3))
    assert affine_to(sdata.images["he_hires"], "s1")[0, 0] == 4.0
    assert affine_to(sdata.shapes["spots"], "s1_downscaled_lowres")[0, 0] == 0.125
    np.testing.assert_array_equal(sdata.images["he"]["scale0"]["image"].values, truth.image.transpose(2, 0, 1))
    assert (sdata.shapes["spots"]["radius"] == 6.5).all()


def test_little_is_decoded_at_read_time(make_visium: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from stpred.io._images import tiff

    truth = make_visium()
    decoded = []
    read = tiff.TiffLevel.__getitem__

    def count(self, index):
        block = read(self, index)
        decoded.append(block[0].size)
        return block

    def refuse(*_args, **_kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(tiff.TiffLevel, "__getitem__", count)
    monkeypatch.setattr(flat, "_decode", refuse)
    monkeypatch.setattr(same_image, "MAX_WHOLE_PX", 100)  # as a slide of many pixels without a pyramid
    monkeypatch.setattr(same_image, "_WINDOW_PX", 2)
    st.io.visium(truth.outs)
    assert 0 < sum(decoded) < 0.3 * 400 * 480


@pytest.mark.parametrize("given", ["s1", "s1/outs"])
def test_path_may_be_outs_or_its_parent_and_names_the_slide(make_visium: Make, tmp_path: Path, given: str) -> None:
    make_visium()
    assert "s1" in st.io.visium(tmp_path / given).coordinate_systems


def test_prefixed_files_name_the_slide(make_visium: Make) -> None:
    truth = make_visium(name="download", prefix="GSM123_A1_")
    sdata = st.io.visium(truth.outs)
    check(sdata, truth)
    assert "GSM123_A1" in sdata.coordinate_systems
    assert "mine" in st.io.visium(truth.outs, dataset_id="mine").coordinate_systems


def test_without_full_image_hires_becomes_he_at_its_own_resolution(
    make_visium: Make, caplog: pytest.LogCaptureFixture
) -> None:
    truth = make_visium(fullres=None)
    with caplog.at_level(logging.INFO, logger="stpred"):
        sdata = st.io.visium(truth.outs)
    check(sdata, truth)
    assert set(sdata.images) == {"he", "he_lowres"}
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(20.0)
    assert "No full-resolution image: the hires image (20 um per pixel)" in caplog.text


@pytest.mark.parametrize(
    ("hires", "lowres", "expected"), [(False, True, 40.0), (True, False, 20.0), (False, False, None)]
)
def test_missing_small_images_are_no_obstacle(
    make_visium: Make, hires: bool, lowres: bool, expected: float | None
) -> None:
    sdata = st.io.visium(make_visium(fullres=None, hires=hires, lowres=lowres).outs)
    if expected is None:
        assert not sdata.images
    else:
        assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(expected)


def test_missing_scale_of_a_small_image_leaves_out_its_system(make_visium: Make) -> None:
    truth = make_visium(lowres=False)
    (truth.spatial / "scalefactors_json.json").write_text(
        json.dumps({"tissue_hires_scalef": 0.25, "spot_diameter_fullres": 13.0})
    )
    assert set(st.io.visium(truth.outs).coordinate_systems) == {"um", "s1", "s1_downscaled_hires"}


def test_full_image_is_found_beside_the_run_by_its_size(make_visium: Make) -> None:
    truth = make_visium(fullres="../microscope.btf")
    Image.new("RGB", (300, 200)).save(truth.outs / "qc_plot.png")
    Image.new("L", (480, 400)).save(truth.outs.parent / "dapi.png")
    check(st.io.visium(truth.outs), truth)
    tifffile.imwrite(truth.outs / "copy.tif", truth.image, photometric="rgb")
    with pytest.raises(InputError, match=r"Several images could be.*copy\.tif.*microscope\.btf.*fullres_image="):
        st.io.visium(truth.outs)
    check(st.io.visium(truth.outs, fullres_image=truth.outs / "copy.tif"), truth)


def test_without_small_images_none_is_taken_from_the_folder_above(make_visium: Make, tmp_path: Path) -> None:
    truth = make_visium(hires=False, lowres=False)  # the slide lies beside outs
    assert not st.io.visium(truth.outs).images
    assert "he" in st.io.visium(tmp_path / "s1").images


def test_hires_given_as_full_resolution_is_refused(make_visium: Make) -> None:
    truth = make_visium()
    with pytest.raises(
        InputError, match=r"not the full-resolution image: it has 120 x 100 px.*this is the hires image"
    ):
        st.io.visium(truth.outs, fullres_image=truth.spatial / "tissue_hires_image.png")


def test_spots_outside_the_image_are_refused_with_both_boxes(make_visium: Make) -> None:
    truth = make_visium(hires=False, lowres=False)
    tifffile.imwrite(truth.outs / "small.tif", truth.image[:120, :100], photometric="rgb")
    with pytest.raises(InputError, match=r"of the spots lie outside the image.*image x 0 to 100, y 0 to 120 px.*um"):
        st.io.visium(truth.outs, fullres_image=truth.outs / "small.tif")


def test_resolution_sources_that_disagree_are_named(make_visium: Make) -> None:
    truth = make_visium()
    slide = truth.outs.parent / "slide.tif"
    tifffile.imwrite(
        slide, truth.image, photometric="rgb", metadata=None, resolution=(1800, 1800), resolutionunit="CENTIMETER"
    )
    with pytest.warns(
        UserWarning, match=r"the spot pitch of 100 um says 5 um per pixel and the TIFF .* slide\.tif 5\.556"
    ):
        st.io.visium(truth.outs)
    tifffile.imwrite(
        slide, truth.image, photometric="rgb", metadata=None, resolution=(20000, 20000), resolutionunit="CENTIMETER"
    )
    with pytest.raises(InputError, match=r"slide 's1' is contradictory.*pass mpp="):
        st.io.visium(truth.outs)
    with pytest.warns(UserWarning, match="mpp= says 5"):
        check(st.io.visium(truth.outs, mpp=5.0), truth)


def test_few_spots_fall_back_to_the_nominal_spot_size(make_visium: Make) -> None:
    truth = make_visium()
    frame = truth.frame
    frame.loc[frame["barcode"].isin(truth.barcodes[3:]), "in_tissue"] = 0
    frame.to_csv(truth.spatial / "tissue_positions.csv", index=False)
    sdata = st.io.visium(truth.outs)
    assert list(sdata.shapes["spots"].index) == truth.barcodes[:3]
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(65 / 13)


def test_spots_not_under_tissue_are_left_out_of_a_raw_matrix(make_visium: Make) -> None:
    truth = make_visium()
    (truth.outs / "filtered_feature_bc_matrix.h5").rename(truth.outs / "raw_feature_bc_matrix.h5")
    frame = truth.frame
    frame.loc[frame["barcode"].isin(truth.barcodes[::2]), "in_tissue"] = 0
    frame.to_csv(truth.spatial / "tissue_positions.csv", index=False)
    assert list(st.io.visium(truth.outs).shapes["spots"].index) == truth.barcodes[1::2]


def test_missing_files_say_what_was_looked_for(make_visium: Make, tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no Visium folder"):
        st.io.visium(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="is no Visium output"):
        st.io.visium(tmp_path / "empty")
    truth = make_visium()
    with pytest.raises(MissingFileError, match="no counts file 'x.h5'"):
        st.io.visium(truth.outs, counts_file="x.h5")
    with pytest.raises(MissingFileError, match="no image file"):
        st.io.visium(truth.outs, fullres_image=tmp_path / "none.tif")
    (truth.spatial / "tissue_positions.csv").rename(truth.spatial / "gone")
    with pytest.raises(MissingFileError, match=r"No spot positions in .*tissue_positions_list\.csv"):
        st.io.visium(truth.outs)
    (truth.spatial / "scalefactors_json.json").write_text("{broken")
    with pytest.raises(InputError, match="not valid JSON"):
        st.io.visium(truth.outs)


def test_counts_and_positions_of_different_slides_are_refused(make_visium: Make) -> None:
    truth = make_visium()
    frame = truth.frame[truth.frame["barcode"] != truth.barcodes[0]]
    frame.to_csv(truth.spatial / "tissue_positions.csv", index=False)
    with pytest.raises(InputError, match=f"1 barcodes of the counts have no position, such as '{truth.barcodes[0]}'"):
        st.io.visium(truth.outs)
    pd.concat([truth.frame, truth.frame[:1]]).to_csv(truth.spatial / "tissue_positions.csv", index=False)
    with pytest.raises(InputError, match="hold barcodes twice"):
        st.io.visium(truth.outs)


def test_written_objects_come_back(make_visium: Make, tmp_path: Path) -> None:
    import spatialdata as sd

    truth = make_visium()
    st.io.visium(truth.outs).write(tmp_path / "v.zarr")
    again = sd.read_zarr(tmp_path / "v.zarr")
    check(again, truth)
    assert mpp_of(affine_to(again.images["he"])) == pytest.approx(5.0)


@pytest.mark.realdata
def test_breast_crop_has_only_a_coarse_image(real_data: Path) -> None:
    sdata = st.io.visium(real_data / "visium_breast_outs")
    assert sdata.tables["spots_counts"].shape == (338, 36_601)
    assert sdata.tables["spots_counts"].var_names.is_unique
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(25.45, rel=0.01)
    assert mpp_of(affine_to(sdata.shapes["spots"])) == pytest.approx(0.367, rel=0.01)
    hires = real_data / "visium_breast_outs" / "spatial" / "tissue_hires_image.png"
    with pytest.raises(InputError, match="not the full-resolution image"):
        st.io.visium(real_data / "visium_breast_outs", fullres_image=hires)

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tifffile
from spatialdata.models import TableModel

import stpred as st
from stpred._core.checks import InputError, MissingFileError
from stpred.testing import affine_to, centroids, mpp_of

Make = Callable[..., SimpleNamespace]


def check(sdata, truth: SimpleNamespace, size: int) -> None:
    key, expected = f"bins_{size:03d}um", truth.bins[size]
    table = sdata.tables[f"{key}_counts"]
    TableModel().validate(table)
    assert list(table.obs_names) == expected.barcodes == list(sdata.shapes[key].index)
    np.testing.assert_array_equal(table.X.toarray(), expected.counts)
    xy, _ = centroids(sdata, key)
    np.testing.assert_allclose(xy, expected.xy * truth.mpp)
    np.testing.assert_allclose(table.obsm["spatial"], xy)
    np.testing.assert_allclose(sdata.shapes[key].geometry.area * truth.mpp**2, size**2)


@pytest.mark.parametrize("feature_slice", [False, True])
def test_bins_images_and_frames(make_hd: Make, feature_slice: bool) -> None:
    truth = make_hd(feature_slice=feature_slice)
    sdata = st.io.visium_hd(truth.outs)
    for size in (8, 16):
        check(sdata, truth, size)
    name = "s7" if feature_slice else "colon"
    assert set(sdata.coordinate_systems) == {"um", name, f"{name}_downscaled_hires", f"{name}_downscaled_lowres"}
    assert mpp_of(affine_to(sdata.images["he"])) == 0.5
    assert affine_to(sdata.images["he_hires"]) is None
    np.testing.assert_array_equal(sdata.images["he"]["scale0"]["image"].values, truth.image.transpose(2, 0, 1))


@pytest.mark.parametrize("given", ["colon", "colon/outs", "colon/outs/binned_outputs"])
def test_path_may_be_any_of_the_nested_folders(make_hd: Make, tmp_path: Path, given: str) -> None:
    truth = make_hd()
    check(st.io.visium_hd(tmp_path / given), truth, 16)


def test_two_micrometres_only_when_asked_and_absent_sizes_are_listed(make_hd: Make) -> None:
    truth = make_hd(sizes=(2, 16))
    assert set(st.io.visium_hd(truth.outs).shapes) == {"bins_016um"}
    asked = st.io.visium_hd(truth.outs, bin_sizes=2)
    assert set(asked.shapes) == {"bins_002um"}
    check(asked, truth, 2)
    with pytest.raises(InputError, match=r"`bin_sizes`=\[8, 16\] are not all there; present \(um\): \[2, 16\]"):
        st.io.visium_hd(truth.outs, bin_sizes=(8, 16))


def test_default_sizes_that_are_all_absent_are_an_error(make_hd: Make) -> None:
    with pytest.raises(InputError, match=r"No bins of \(8, 16\) um; present: \[2\]"):
        st.io.visium_hd(make_hd(sizes=(2,)).outs)


def test_without_microscope_image_hires_becomes_he(make_hd: Make) -> None:
    sdata = st.io.visium_hd(make_hd(fullres=False).outs)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(2.0)


def test_scale_factors_that_contradict_the_bins_are_refused(make_hd: Make) -> None:
    truth = make_hd(sizes=(8,))
    path = truth.outs / "binned_outputs/square_008um/spatial/scalefactors_json.json"
    path.write_text(path.read_text().replace('"microns_per_pixel": 0.5', '"microns_per_pixel": 1.0'))
    with pytest.raises(InputError, match=r"microns_per_pixel of the scale factors says 1 .*the bin size of 8 um 0\.5"):
        st.io.visium_hd(truth.outs)


def test_a_downscaled_copy_is_refused(make_hd: Make, tmp_path: Path) -> None:
    truth = make_hd()
    tifffile.imwrite(tmp_path / "half.tif", truth.image[::2, ::2], photometric="rgb")
    with pytest.raises(InputError, match=r"copy scaled by 0\.5"):
        st.io.visium_hd(truth.outs, fullres_image=tmp_path / "half.tif")


def test_segmented_cells_and_nuclei(make_hd: Make) -> None:
    truth = make_hd(cells=True)
    sdata = st.io.visium_hd(truth.outs)
    names = [f"cellid_{i:09d}-1" for i in (3, 1, 7)]
    assert list(sdata.shapes["cells"].index) == names == list(sdata.tables["cells_counts"].obs["instance_id"])
    np.testing.assert_allclose(centroids(sdata, "cells")[0], [[65, 60], [45, 50], [105, 80]])
    np.testing.assert_allclose(sdata.tables["cells_counts"].obsm["spatial"], centroids(sdata, "cells")[0])
    assert set(names) < set(sdata.shapes["nuclei"].index)
    assert affine_to(sdata.shapes["nuclei"]) is not None
    assert "cells" not in st.io.visium_hd(truth.outs, segmentations=False).shapes


def test_missing_parts(make_hd: Make, tmp_path: Path) -> None:
    truth = make_hd()
    with pytest.raises(MissingFileError, match="`segmentations=True`, but"):
        st.io.visium_hd(truth.outs, segmentations=True)
    with pytest.raises(MissingFileError, match="is no Visium HD output"):
        st.io.visium_hd(truth.outs / "microscope_image")
    (truth.outs / "binned_outputs/square_016um/spatial/tissue_positions.parquet").unlink()
    with pytest.raises(MissingFileError, match="lacks 'spatial/tissue_positions.parquet'"):
        st.io.visium_hd(truth.outs)


@pytest.mark.realdata
def test_colon_crops(real_data: Path) -> None:
    sdata = st.io.visium_hd(real_data / "visium_hd_colon")
    assert set(sdata.tables) == {"bins_016um_counts"}
    assert sdata.tables["bins_016um_counts"].shape == (675, 18_085)
    assert mpp_of(affine_to(sdata.shapes["bins_016um"])) == pytest.approx(0.2738, rel=1e-3)
    assert mpp_of(affine_to(sdata.images["he"])) == pytest.approx(34.3, rel=0.01)

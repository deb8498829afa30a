from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import stpred as st
from stpred import InputError
from stpred._core.elements import affine_to, find_image


def write(path: Path, **options) -> Path:
    tifffile.imwrite(path, np.full((60, 80, 3), 200, np.uint8), photometric="rgb", metadata=None, **options)
    return path


def test_slide_is_placed_in_micrometres_by_its_own_header(tmp_path: Path) -> None:
    sdata = st.io.wsi(write(tmp_path / "a.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER"))
    assert list(sdata.images) == ["he"]
    assert find_image(sdata) == "he"
    np.testing.assert_allclose(affine_to(sdata.images["he"]), np.diag([0.5, 0.5, 1]))
    np.testing.assert_array_equal(affine_to(sdata.images["he"], "global"), np.eye(3))


def test_given_resolution_wins_and_a_contradiction_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", resolution=(20000, 20000), resolutionunit="CENTIMETER")
    with pytest.warns(UserWarning, match=r"mpp= says 0\.25 um per pixel and the TIFF resolution tags of a\.tif 0\.5"):
        sdata = st.io.wsi(path, mpp=0.25)
    assert affine_to(sdata.images["he"])[0, 0] == 0.25


def test_unknown_resolution_is_an_error_that_asks_for_it(tmp_path: Path) -> None:
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(tmp_path / "a.png", dpi=(72, 72))
    with pytest.raises(InputError, match=r"image 'a\.png' is stated nowhere; pass mpp="):
        st.io.wsi(tmp_path / "a.png")
    sdata = st.io.wsi(str(tmp_path / "a.png"), mpp=0.5)
    assert affine_to(sdata.images["he"])[1, 1] == 0.5


def test_written_slides_come_back(tmp_path: Path) -> None:
    import spatialdata as sd

    image = np.random.default_rng(0).integers(0, 256, (1200, 1500, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(256, 256), photometric="rgb")
    sdata = st.io.wsi(tmp_path / "a.tif", mpp=0.5)
    sdata.write(tmp_path / "a.zarr")
    again = sd.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.images["he"]["scale0"]["image"].values, image.transpose(2, 0, 1))
    np.testing.assert_allclose(affine_to(again.images["he"]), np.diag([0.5, 0.5, 1]))


@pytest.mark.realdata
def test_aperio_slide(real_data: Path) -> None:
    sdata = st.io.wsi(real_data / "wsi" / "CMU-1-Small-Region.svs")
    assert affine_to(sdata.images["he"])[0, 0] == pytest.approx(0.499)
    assert sdata.images["he"]["scale0"]["image"].shape == (3, 2967, 2220)


@pytest.mark.realdata
def test_ome_field(real_data: Path) -> None:
    sdata = st.io.wsi(real_data / "he_tiles" / "instanseg_HE_example.tif")
    assert affine_to(sdata.images["he"])[0, 0] == pytest.approx(0.5, rel=0.01)

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from spatialdata.models import Image2DModel
from spatialdata.transformations import Scale

import stpred as st
from stpred import InputError


@pytest.fixture(scope="module")
def slide() -> Any:
    return st.datasets.toy(size_um=(300, 300), n_genes=5)


def test_writes_shapes_that_carry_on(slide: Any, tmp_path: Any) -> None:
    from spatialdata import read_zarr

    st.pp.nuclei(slide)
    found = slide.shapes["nuclei"]
    assert len(found) == pytest.approx(len(slide.shapes["cells"]), rel=0.1)
    st.pp.features(slide, "intensity", shapes_key="nuclei")
    assert slide.tables["nuclei_feat_intensity"].n_obs > 0.95 * len(found)
    slide.write(tmp_path / "slide.zarr")
    assert len(read_zarr(tmp_path / "slide.zarr").shapes["nuclei"]) == len(found)
    with pytest.warns(UserWarning, match="existed and are overwritten"):
        st.pp.nuclei(slide)


def test_tissue_and_names(slide: Any) -> None:
    st.pp.tissue(slide)
    st.pp.nuclei(slide, tissue_key="tissue", key_added="inner")
    area = slide.shapes["tissue"].union_all()
    assert slide.shapes["inner"].centroid.within(area.buffer(0.1)).all()
    with pytest.raises(InputError, match=r"No shapes element named 'absent' \(`tissue_key`\)"):
        st.pp.nuclei(slide, tissue_key="absent")
    with pytest.raises(InputError, match="`key_added` must be a non-empty name"):
        st.pp.nuclei(slide, key_added="a/b")
    with pytest.raises(InputError, match="carry the measured table 'cells_counts'"):
        st.pp.nuclei(slide, key_added="cells")
    with pytest.raises(InputError, match="must be a SpatialData object"):
        st.pp.nuclei({"a": slide})


def test_another_frame_has_its_suffix(slide: Any) -> None:
    from spatialdata import SpatialData
    from spatialdata.transformations import get_transformation

    image = slide.images["he"]
    from stpred._core.elements import scale0

    plain = Image2DModel.parse(
        scale0(image).values, dims=("c", "y", "x"), transformations={"um-a": Scale([0.5, 0.5], axes=("x", "y"))}
    )
    other = SpatialData(images={"he-a": plain})
    st.pp.nuclei(other, coordinate_system="um-a")
    assert list(get_transformation(other.shapes["nuclei-a"], get_all=True)) == ["um-a"]


def one_image(pixels: np.ndarray, mpp: float) -> Any:
    from spatialdata import SpatialData

    image = Image2DModel.parse(
        np.moveaxis(pixels, -1, 0), dims=("c", "y", "x"), transformations={"um": Scale([mpp, mpp], axes=("x", "y"))}
    )
    return SpatialData(images={"he": image})


def test_no_nuclei_and_coarse_images_are_said() -> None:
    glass = one_image(np.full((300, 300, 3), 240, np.uint8), 0.5)
    with pytest.raises(InputError, match=r"No nucleus of 8 to 350 um2 was found on image 'he' \(0.5 um per pixel\)"):
        st.pp.nuclei(glass)
    assert "nuclei" not in glass.shapes
    coarse = one_image(np.full((300, 300, 3), 200, np.uint8), 1.5)
    with pytest.raises(InputError, match=r"Image 'he' has 1.5 um per pixel"):
        st.pp.nuclei(coarse)

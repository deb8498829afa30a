"""Maps, squares and students: strides, patches, areas and stores that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.models import Model, Student


@pytest.fixture(scope="module")
def student(cohort: dict[str, SpatialData]) -> Model:
    config = Student.Config(hidden=(8,), epochs=1)
    return st.tl.train({"a": cohort["a"]}, config, genes=["EPCAM", "COL1A2"], shapes_key="spots")


def test_strides_that_are_no_multiple_of_the_patch(student: Model, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    for stride in (20, 7.9, 120, 4):
        with refused("`stride_um` must be a multiple of the patch of 8 um", f"got {stride:g}", sdata=sdata):
            st.tl.predict(sdata, student, shapes_key="spots", stride_um=stride)
    with refused("`stride_um` must be a positive number", sdata=sdata):
        st.tl.predict(sdata, student, shapes_key="spots", stride_um=0)


def test_a_stride_for_a_model_of_tiles(trained: Model, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("`stride_um` is for models of tokens", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots", stride_um=56)


@pytest.mark.parametrize(
    ("token_um", "parts"),
    [
        (9, ("`token_um` must divide the tile of 112 um", "got 9")),
        (0.3, ("smaller than a pixel of the tile (0.5 um)",)),
    ],
)
def test_patches_that_the_tile_does_not_hold(
    token_um: float, parts: tuple[str, ...], rebuild: Any, refused: Any
) -> None:
    sdata = rebuild()
    with refused(*parts, sdata=sdata):
        st.tl.train(sdata, Student.Config(token_um=token_um, epochs=1), shapes_key="spots")


def test_maps_that_cannot_be(student: Model, trained: Model, rebuild: Any, refused: Any, tmp_path: Path) -> None:
    sdata = rebuild()
    with refused("needs `resolution_um=`", sdata=sdata):
        st.tl.predict_map(sdata, trained)
    with refused("Pixels of 0.1 um are smaller than those of image", sdata=sdata):
        st.tl.predict_map(sdata, student, resolution_um=0.1, shapes_key="spots")
    (tmp_path / "file").write_text("")
    with refused("is no SpatialData store", sdata=sdata):
        st.tl.predict_map(sdata, student, shapes_key="spots", out=tmp_path / "file")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_map_larger_than_the_disk(
    student: Model, rebuild: Any, refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sdata = rebuild()
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with refused("needs up to", "GB free", sdata=sdata):
        st.tl.predict_map(sdata, student, shapes_key="spots", out=tmp_path / "o.zarr")
    assert list(tmp_path.iterdir()) == []


def test_sums_that_cannot_be_kept(student: Model, cohort: dict[str, SpatialData], rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("No shapes element named 'dots' (`preserve`)", "'spots'", sdata=sdata):
        st.tl.predict(sdata, student, shapes_key="spots", preserve="dots")
    config = Student.Config(hidden=(8,), epochs=1, loss="pearson")
    relative = st.tl.train({"a": cohort["a"]}, config, genes=["EPCAM"], shapes_key="spots")
    with refused("without a scale that could add up to counts", sdata=sdata):
        st.tl.predict(sdata, relative, shapes_key="cells", preserve="spots")


def test_students_without_teachers(cohort: dict[str, SpatialData], refused: Any) -> None:
    with refused("Distillation needs two donors or more"):
        st.tl.distill({"a": cohort["a"]}, "ridge", shapes_key="spots")
    with refused("`teacher` is empty"):
        st.tl.distill(cohort, [], shapes_key="spots")
    with refused("must be a model of patches", "'ridge'"):
        st.tl.distill(cohort, "ridge", "ridge", shapes_key="spots")
    with refused("`measured_fraction` must be a number from 0 to below 1"):
        st.tl.distill(cohort, "ridge", measured_fraction=1, shapes_key="spots")


def test_surroundings_of_a_model_of_tiles(trained: Model, rebuild: Any, refused: Any) -> None:
    sdata = rebuild()
    with refused("is no model of patches", sdata=sdata):
        st.tl.surroundings(sdata, trained)


@pytest.mark.realdata
def test_bins_that_the_image_does_not_cover(real_data: Path, student: Model) -> None:
    """The colon's bins of 2 and 16 um are different places, and its image is 34 um per pixel."""
    sdata = st.io.visium_hd(real_data / "visium_hd_colon", bin_sizes=[2])
    with pytest.raises(InputError, match="lie outside image|um per pixel"):
        st.tl.predict(sdata, student, shapes_key="bins_002um")
    coarse = st.io.visium_hd(real_data / "visium_hd_colon")
    with (
        st.settings.override(max_upsampling=float("inf")),
        pytest.raises(InputError, match="smaller than a pixel"),
    ):
        st.tl.predict(coarse, student, shapes_key="bins_016um")


def test_bins_partly_off_the_image(student: Model, cohort: dict[str, SpatialData], rebuild: Any, refused: Any) -> None:
    from spatialdata.transformations import Translation, set_transformation

    sdata = rebuild()
    st.pp.subdivide(sdata, "spots", size_um=8, key_added="fine")
    set_transformation(sdata.shapes["fine"], Translation([12.0, 0.0], axes=("x", "y")), "um")
    table = st.tl.predict(sdata, student, shapes_key="fine", inplace=False)
    left_out = json.loads(table.uns["stpred"])["left_out"]["off_image"]
    assert table.n_obs + left_out == len(sdata.shapes["fine"])
    assert np.isfinite(table.X).all()
    set_transformation(sdata.shapes["fine"], Translation([200.0, 0.0], axes=("x", "y")), "um")
    with refused("lie outside image"):
        st.tl.predict(sdata, student, shapes_key="fine")

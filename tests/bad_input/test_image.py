"""The H&E image: none, several, not placed, not 8-bit RGB, too coarse, empty glass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from spatialdata import SpatialData
from spatialdata.transformations import Identity, Scale

import stpred as st
from stpred._core.checks import UnsafeResolutionError
from stpred.models import Model

USES: dict[str, Callable[[SpatialData, Model], Any]] = {
    "predict": lambda s, m: st.tl.predict(s, m, shapes_key="spots"),
    "train": lambda s, m: st.tl.train(s, "intensity", shapes_key="spots"),
    "features": lambda s, m: st.pp.features(s, "intensity", shapes_key="spots"),
    "select_genes": lambda s, m: st.pp.select_genes(s, shapes_key="spots"),
    "tissue": lambda s, m: st.pp.tissue(s),
    "grid": lambda s, m: st.pp.grid(s),
}


@pytest.mark.parametrize("use", [*USES, "calibrate"])
def test_no_image(use: str, rebuild: Any, refused: Any, trained: Model) -> None:
    sdata = rebuild(images={})
    with refused("has no image", "sdata.images", sdata=sdata):
        st.pp.calibrate(sdata) if use == "calibrate" else USES[use](sdata, trained)


@pytest.mark.parametrize("use", USES)
def test_two_images_in_the_frame(
    use: str, rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any
) -> None:
    sdata = rebuild()
    sdata = rebuild(images={**sdata.images, "he2": picture(pixels)})
    with refused("2 H&E images", "'um'", "['he', 'he2']", "`image_key`", sdata=sdata):
        USES[use](sdata, trained)


def test_two_images_of_one_size_cannot_be_calibrated(rebuild: Any, refused: Any, picture: Any, pixels: Any) -> None:
    sdata = rebuild(images={k: picture(pixels, {"global": Identity()}) for k in "ab"}, shapes={}, tables={})
    with refused("2 images could be the H&E slide", "['a', 'b']", "`image_key`", sdata=sdata):
        st.pp.calibrate(sdata, mpp=0.5)


@pytest.mark.parametrize("use", USES)
def test_image_that_is_not_calibrated(
    use: str, rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any
) -> None:
    sdata = rebuild(images={"he": picture(pixels, {"global": Identity()})})
    with refused("coordinate system 'um'", "['he']", "stpred.pp.calibrate(sdata)", sdata=sdata):
        USES[use](sdata, trained)
    with refused("Image 'he' is not placed", "'um'", "stpred.pp.calibrate(sdata)", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots", image_key="he")


def test_resolution_that_nothing_tells(rebuild: Any, refused: Any, picture: Any, pixels: Any) -> None:
    sdata = rebuild(images={"he": picture(pixels, {"global": Identity()})})
    with refused("resolution of image 'he' cannot be derived", "shapes that share its frame, []", "mpp=", sdata=sdata):
        st.pp.calibrate(sdata)


def test_shapes_that_are_not_calibrated(
    rebuild: Any, refused: Any, trained: Model, cohort: dict[str, SpatialData]
) -> None:
    from spatialdata.models import ShapesModel

    frame = cohort["a"].shapes["spots"].copy()
    frame.attrs = {}
    sdata = rebuild(shapes={"spots": ShapesModel.parse(frame, transformations={"global": Identity()})}, tables={})
    with refused("Shapes 'spots' are not placed", "'um'", "stpred.pp.calibrate(sdata)", sdata=sdata):
        st.tl.predict(sdata, trained)


NOT_RGB = {
    "greyscale": lambda he: he[:1],
    "RGBA": lambda he: np.concatenate([he, he[:1]]),
    "2 channels": lambda he: he[:2],
    "uint16": lambda he: he.astype(np.uint16) * 257,
    "float32": lambda he: he.astype(np.float32) / 255,
}


@pytest.mark.parametrize("kind", NOT_RGB)
def test_images_that_are_not_8_bit_rgb(
    kind: str, rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any
) -> None:
    sdata = rebuild(images={"scan": picture(NOT_RGB[kind](pixels))})
    with refused("no 8-bit RGB image", "'scan'", kind, sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots")
    with refused("Image 'scan' cannot be used", kind, "8-bit RGB with 3 channels", sdata=sdata):
        st.pp.tissue(sdata, image_key="scan")


def test_pixels_that_are_not_square(rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any) -> None:
    sdata = rebuild(images={"he": picture(pixels, {"um": Scale([0.5, 0.55], axes=("x", "y"))})})
    for use in USES.values():
        with refused("The pixels of image 'he' are not square", "0.55 by 0.5", "2% allowed", sdata=sdata):
            use(sdata, trained)


def test_singular_placement(rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any) -> None:
    sdata = rebuild(images={"he": picture(pixels, {"um": Scale([0.5, 0.0], axes=("x", "y"))})})
    with refused("transformation of image 'he' to micrometres is singular", sdata=sdata):
        st.tl.predict(sdata, trained, shapes_key="spots")


@pytest.mark.parametrize("shapes_key", ["spots", None])
def test_coarse_image_is_refused_unless_allowed(
    shapes_key: str | None, rebuild: Any, refused: Any, trained: Model, picture: Any, pixels: Any
) -> None:
    coarse = picture(pixels[:, ::40, ::40], {"um": Scale([20.0, 20.0], axes=("x", "y"))})
    sdata = rebuild(images={"he": coarse})
    if shapes_key is None:  # neither the tissue nor the grid that would be made is left behind
        sdata = SpatialData(images={"he": coarse})
    with refused(
        "'he'",
        "20 um per pixel",
        "40x coarser",
        "0.5 um per pixel",
        "stpred.settings.max_upsampling to 40 ",
        sdata=sdata,
        error=UnsafeResolutionError,
    ):
        st.tl.predict(sdata, trained, shapes_key=shapes_key)
    if shapes_key is not None:
        with refused("20 um per pixel", sdata=sdata, error=UnsafeResolutionError):
            st.tl.train(sdata, "intensity", shapes_key=shapes_key)
        with refused("20 um per pixel", sdata=sdata, error=UnsafeResolutionError):
            st.pp.features(sdata, "intensity", shapes_key=shapes_key)
        with st.settings.override(max_upsampling=40):
            st.tl.predict(sdata, trained, shapes_key=shapes_key)
        assert '"upsampled": true' in sdata.tables["spots_tiny"].uns["stpred"]


def test_glass_without_tissue(refused: Any, trained: Model, picture: Any, pixels: Any) -> None:
    sdata = SpatialData(images={"he": picture(np.full_like(pixels, 240))})
    for call in (lambda: st.tl.predict(sdata, trained), lambda: st.pp.tissue(sdata)):
        with refused("No tissue was found on image 'he'", sdata=sdata):
            call()
    with refused("No grid point of pitch 50 um", "image 'he'", sdata=sdata):
        st.pp.grid(sdata, pitch_um=50)


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "half", "0.5", True, [0.5]])
def test_resolutions_that_are_no_number(value: Any, rebuild: Any, refused: Any, picture: Any, pixels: Any) -> None:
    sdata = rebuild(images={"he": picture(pixels, {"global": Identity()})}, shapes={}, tables={})
    with refused("`mpp` must be a positive number of um per pixel", f"got {value!r}", sdata=sdata):
        st.pp.calibrate(sdata, mpp=value)
    with refused("`um_between_centers` must be a positive number", f"got {value!r}", sdata=sdata):
        st.pp.calibrate(sdata, um_between_centers=value)

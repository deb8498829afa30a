"""Several slides in one object, each in a frame of its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from spatialdata import SpatialData, concatenate, deepcopy
from spatialdata.models import TableModel
from spatialdata.transformations import get_transformation

import stpred as st
from stpred import InputError
from stpred.models import Model


@pytest.fixture(scope="module")
def slides(make_slide: Callable[..., SpatialData]) -> dict[str, SpatialData]:
    return {name: make_slide(donor, size_um=500.0) for donor, name in enumerate("ab")}


@pytest.fixture(scope="module")
def alone(slides: dict[str, SpatialData], model: Model) -> dict[str, np.ndarray]:
    """What is predicted for each slide before they are brought together."""
    return {s: st.tl.predict(d, model, shapes_key="spots", inplace=False).X for s, d in slides.items()}


@pytest.fixture
def together(slides: dict[str, SpatialData], alone: dict[str, np.ndarray]) -> SpatialData:
    """Both in one object; concatenate() renames the frames of what it is given, so it is given copies."""
    return concatenate({name: deepcopy(slide) for name, slide in slides.items()})


def test_predicts_slide_by_slide(together: SpatialData, alone: dict[str, np.ndarray], model: Model) -> None:
    for name, expected in alone.items():
        st.tl.predict(together, model, shapes_key=f"spots-{name}", coordinate_system=f"um-{name}")
        table = together.tables[f"spots-{name}_ridge"]
        TableModel().validate(table)
        assert table.obs["region"].unique().tolist() == [f"spots-{name}"]
        np.testing.assert_allclose(table.X, expected, rtol=1e-5)


def test_finds_image_and_region_of_the_frame(together: SpatialData, alone: dict[str, np.ndarray], model: Model) -> None:
    st.tl.predict(together, model, coordinate_system="um-b")  # the model's own region is `spots`: here `spots-b`
    np.testing.assert_allclose(together.tables["spots-b_ridge"].X, alone["b"], rtol=1e-5)


def test_no_frame_is_refused(together: SpatialData, model: Model) -> None:
    with pytest.raises(InputError, match="No H&E image is placed in the coordinate system 'um'"):
        st.tl.predict(together, model)


def test_trains_on_one_of_them(together: SpatialData, slides: dict[str, SpatialData], alone: dict) -> None:
    settings = {"genes": ["EPCAM", "COL1A2"], "encoder": "intensity"}
    one = st.tl.train(together, shapes_key="spots-a", coordinate_system="um-a", **settings)
    other = st.tl.train(slides["a"], shapes_key="spots", **settings)
    np.testing.assert_allclose(one.coef.numpy(), other.coef.numpy(), rtol=1e-5)


def test_slides_without_regions_get_their_own(together: SpatialData, model: Model) -> None:
    bare = SpatialData(images=dict(together.images))
    for name in "ab":
        st.tl.predict(bare, model, coordinate_system=f"um-{name}")
    assert set(bare.shapes) == {"tissue-a", "grid-a", "tissue-b", "grid-b"}
    assert set(bare.tables) == {"grid-a_ridge", "grid-b_ridge"}
    assert set(get_transformation(bare.shapes["grid-b"], get_all=True)) == {"um-b"}


def test_regions_are_made_in_the_frame(together: SpatialData) -> None:
    st.pp.tissue(together, coordinate_system="um-a")
    st.pp.grid(together, coordinate_system="um-a", pitch_um=80.0)
    assert {"tissue-a", "grid-a"} <= set(together.shapes)


def test_predicted_slides_can_be_brought_together(predicted: SpatialData) -> None:
    one = SpatialData(shapes={"spots": predicted["spots"]}, tables={"spots_ridge": predicted["spots_ridge"]})
    both = concatenate({name: deepcopy(one) for name in "ab"}, concatenate_tables=True)
    table = both.tables["spots_ridge"]
    assert set(table.obs["region"]) == {"spots-a", "spots-b"}
    np.testing.assert_array_equal(table.X, np.tile(predicted["spots_ridge"].X, (2, 1)))
    TableModel().validate(table)

"""What a model prints of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stpred as st

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model

HOW = {"genes": ["EPCAM", "COL1A2"], "shapes_key": "spots"}


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)


@pytest.fixture(scope="module")
def ridge(slides: dict[str, SpatialData]) -> Model:
    wide = st.encoders.get("intensity", tile=st.TileSpec(2.0, 224))
    return st.tl.train(slides, encoder=["intensity", wide], **HOW)


def lines(model: Model) -> dict[str, str]:
    head, *rest = str(model).splitlines()
    return {"": head} | dict(line.strip().split(": ", 1) for line in rest)


def test_encoders_of_one_name_are_one_with_all_their_tiles(ridge: Model) -> None:
    said = lines(ridge)
    assert said[""] == "Ridge 'ridge': 2 genes on the scale log1p_cp10k"
    assert said["encoder"] == "intensity, tiles of 112 and 448 um at 0.5 and 2 um per pixel"
    assert said["trained on"] == "2 slides (donors not stated), 18 spots"
    assert said["a value depends on"] == "448 um of tissue, and the mean and deviation of the slide's features"


def test_a_fine_tuned_model_names_its_base(ridge: Model) -> None:
    own = st.datasets.toy(size_um=(400, 400), n_genes=20, donor=3)
    said = lines(st.tl.finetune(ridge, {"own": own}, shapes_key="spots", name="ours"))
    assert said["fine-tuned"] == "from 'ridge', on 1 of these slides"
    assert said["trained on"].startswith("3 slides")
    assert said["cross-validation"] == "no gene was scored on held-out tissue, so none is trusted"


def test_members_and_teachers_are_counted(slides: dict[str, SpatialData], ridge: Model) -> None:
    mean = st.models.average([ridge, ridge])
    assert lines(mean)["members"] == "2 Ridge"
    assert "fine-tuned" not in lines(mean)
    config = st.models.Student.Config(hidden=(4,), epochs=1)
    student = st.tl.distill(slides, ["ridge"], config, **HOW)
    assert lines(student)["distilled"] == "from 1 ridge"
    assert lines(student)["a value depends on"].startswith("8 um of tissue")


def test_a_pixel_model_does_not_say_that_it_sees_one_pixel(slides: dict[str, SpatialData]) -> None:
    config = st.models.XFuse.Config(depth=2, width=4, epochs=1, features=False)
    said = lines(st.tl.train(slides["donor0"], config, **HOW))
    assert said["a value depends on"] == "a pixel of 8 um, and what is seen around it"


def test_the_slides_of_published_weights_are_not_known(ridge: Model) -> None:
    other = st.models.average([ridge, ridge])
    other.record.training = {"summary": "published weights of someone/model"}
    assert lines(other)["trained on"] == "slides that are not listed; published weights of someone/model"

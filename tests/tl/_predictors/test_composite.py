"""Models of several encoders at once: trained, saved, loaded, and applied to spots, cells, a grid and a map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import encoders, models
from stpred._core.checks import InputError
from stpred.testing import MeanColour, copy_slide, small_cohort

GENES = ["EPCAM", "COL1A1", "ACTB"]


def both() -> list[Any]:
    return ["colour", encoders.get("intensity", tile=st.TileSpec(1.0, 202))]


@pytest.fixture(scope="module")
def cohort() -> dict[str, SpatialData]:
    return small_cohort(3)


@pytest.fixture(scope="module")
def ridge(cohort: dict[str, SpatialData]) -> Any:
    config = st.models.Ridge.Config(context_um=150.0)
    return st.tl.train(cohort, config, genes="all", encoder=both(), shapes_key="spots")


def test_the_record_describes_the_members_and_the_largest_tile(ridge: Any) -> None:
    record = ridge.record
    assert record.encoder["name"] == "colour-112um+intensity-202um"
    assert [m["tile"] for m in record.encoder["members"]] == [
        {"mpp": 0.5, "size_px": 224},
        {"mpp": 1.0, "size_px": 202},
    ]
    assert record.tile == {"mpp": 1.0, "size_px": 202}
    assert ridge.support_um == 202 + 2 * 150


def test_a_loaded_model_rebuilds_its_encoders(ridge: Any, cohort: dict[str, SpatialData], tmp_path: Path) -> None:
    models.save(ridge, tmp_path / "model")
    again = models.load(tmp_path / "model")
    slide = copy_slide(cohort["donor1"])
    want = st.tl.predict(slide, ridge, shapes_key="spots", inplace=False)
    assert np.isfinite(want.X).all()
    for given in (None, both(), ["colour", "intensity"], encoders.get(both())):  # names take the recorded tiles
        found = st.tl.predict(slide, again, shapes_key="spots", encoder=given, inplace=False)
        assert np.array_equal(found.X, want.X)
        assert np.array_equal(found.obs["ood_score"], want.obs["ood_score"])
    provenance = json.loads(want.uns["stpred"])
    assert provenance["encoder"] == ridge.record.encoder
    assert not provenance["upsampled"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["record"]["encoder"]["members"][0]["tile"]["size_px"] = 100
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"colour-112um\+intensity-202um|trained with"):
        st.tl.predict(slide, models.load(tmp_path / "model"), shapes_key="spots")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("colour", r"name: trained with colour-112um\+intensity-202um, found colour"),
        (["intensity", "colour"], "name: trained with"),
        (
            ["colour", encoders.get("intensity", tile=st.TileSpec(0.5, 404))],
            r"intensity, tile: trained with \{'mpp': 1",
        ),
    ],
)
def test_other_encoders_are_refused(ridge: Any, cohort: dict[str, SpatialData], given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.tl.predict(cohort["donor1"], ridge, shapes_key="spots", encoder=given, inplace=False)


def test_cells_and_a_grid_take_their_context_at_the_training_pitch(ridge: Any, cohort: dict[str, SpatialData]) -> None:
    slide = copy_slide(cohort["donor1"])
    st.pp.grid(slide, pitch_um=80)
    slide.shapes["cells"] = slide.shapes["cells"].iloc[::8]
    for shapes in ("cells", "grid"):
        found = st.tl.predict(slide, ridge, shapes_key=shapes, inplace=False)
        assert np.isfinite(found.X).all()
        assert json.loads(found.uns["stpred"])["context"] in ("spots", "spots+grid", "grid")
        half = copy_slide(slide)
        half.shapes[shapes] = half.shapes[shapes].iloc[::3]
        part = st.tl.predict(half, ridge, shapes_key=shapes, inplace=False)
        np.testing.assert_allclose(part.X, found[part.obs_names].X, rtol=1e-5, atol=1e-6)


def test_a_finetuned_model_keeps_its_encoders(ridge: Any, cohort: dict[str, SpatialData]) -> None:
    own = {"own": copy_slide(cohort["donor2"])}
    tuned = st.tl.finetune(ridge, own, shapes_key="spots")
    assert tuned.record.encoder == ridge.record.encoder
    found = st.tl.predict(cohort["donor2"], tuned, shapes_key="spots", inplace=False)
    assert np.isfinite(found.X).all()
    assert np.isfinite(found.obs["ood_score"]).all()


def test_cross_validation_takes_a_list_and_names_it(cohort: dict[str, SpatialData], tmp_path: Path) -> None:
    def scores(encoder: Any, **how: Any) -> pd.DataFrame:
        how = {"groups": "slide", "genes": GENES, "shapes_key": "spots"} | how
        with st.settings.override(checkpoint_dir=tmp_path):
            return st.tl.cross_validate(cohort, ["ridge"], encoder=encoder, **how)

    joint = scores(both())
    pd.testing.assert_frame_equal(joint, scores(both()))  # taken from disk
    pd.testing.assert_frame_equal(joint, scores(encoders.get(both())))
    kept = len(list(tmp_path.glob("scores-*.csv")))
    alone = scores("colour")
    assert len(list(tmp_path.glob("scores-*.csv"))) == 2 * kept  # other scores than those of the list
    assert not joint[joint.model == "ridge"]["value"].equals(alone[alone.model == "ridge"]["value"])


def patched() -> list[Any]:
    return [MeanColour(st.TileSpec(mpp, px), n_patches=8) for mpp, px in ((0.5, 64), (1.0, 32))]


def test_a_student_of_several_encoders_adds_up_to_the_spots(cohort: dict[str, SpatialData], tmp_path: Path) -> None:
    config = st.models.Student.Config(hidden=(8,), epochs=1, batch_size=16)
    two = {name: cohort[name] for name in ("donor0", "donor2")}
    model = st.tl.distill(two, "ridge", config, encoder=patched(), genes=GENES, shapes_key="spots")
    assert model.record.encoder["name"] == "mean-colour-32um-64px+mean-colour-32um-32px"
    assert model.record.training["token_um"] == 4
    assert model.support_um == 4
    models.save(model, tmp_path / "student")
    again = models.load(tmp_path / "student")
    slide = copy_slide(cohort["donor1"])
    st.tl.predict_map(
        slide, again, shapes_key="spots", encoder=patched(), preserve="spots", genes=GENES, resolution_um=8
    )
    element = slide.images["spots_student_map"]
    total = float(next(iter(element["scale0"].ds.values())).sum())
    counts = slide.tables["spots_counts"]
    inside = counts[:, GENES].X.sum()
    assert total == pytest.approx(inside, rel=0.02)
    found = st.tl.surroundings(slide, again, shapes_key="spots", encoder=patched(), n_patches=6)
    assert np.isfinite(found["change"]).all()


def test_tokens_need_tiles_of_one_extent(cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match="incompatible tiles for a model of patch tokens"):
        st.tl.train(cohort, "student", encoder=both(), genes=GENES, shapes_key="spots")


def test_cells_and_parts_of_several_encoders(cohort: dict[str, SpatialData]) -> None:
    slides = {name: copy_slide(slide) for name, slide in cohort.items()}
    for slide in slides.values():
        slide.shapes["cells"] = slide.shapes["cells"].iloc[::4]
    for config in (
        st.models.SCellST.Config(epochs=1, hidden=(8,)),
        st.models.DeepSpot.Config(epochs=1, parts=2, width=8, n_phi=1, n_rho=1),
    ):
        model = st.tl.train(slides, config, encoder=["colour", MeanColour()], genes=GENES, shapes_key="spots")
        found = st.tl.predict(slides["donor1"], model, shapes_key="cells", inplace=False)
        assert np.isfinite(found.X).all()


def test_pixels_of_several_tiles_are_not_attributed(ridge: Any, cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match="are counted and measured"):
        st.tl.attribution(cohort["donor1"], ridge, genes=GENES[:1], instances=[0], shapes_key="spots")


def test_associations_and_probes_take_lists(cohort: dict[str, SpatialData]) -> None:
    slide = cohort["donor1"]
    found = st.tl.feature_associations(slide, "spots_counts", genes=GENES[:2], features=both())
    assert found["feature"].str.startswith(("colour-112um_", "intensity-202um_")).all()
    pair = [["intensity", MeanColour()], MeanColour()]
    probed = st.tl.probe_encoder(pair, slide, labels="type", shapes_key="cells", buffer_um=0, n_tiles=300)
    assert probed.index.tolist() == ["majority", "colour", "intensity-112um+mean-colour-32um", "mean-colour"]


def test_pretraining_takes_one_network(cohort: dict[str, SpatialData]) -> None:
    with pytest.raises(InputError, match="`backbone` must be the name of one network"):
        st.tl.pretrain_encoder(cohort, ["resnet18", "resnet34"])  # type: ignore[arg-type]

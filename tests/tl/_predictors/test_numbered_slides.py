"""Whole numbers as names of slides, donors and samples match themselves wherever a mapping by slide is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred import InputError
from stpred.tl._samples.sample_table import sample_groups, sample_values

HOW: dict[str, Any] = {"shapes_key": "spots", "encoder": "intensity"}


@pytest.fixture(scope="module")
def numbered() -> dict[int, SpatialData]:
    cohort = st.datasets.toy_cohort(4, size_um=(500, 500), n_genes=20, mpp=1.0)
    return dict(zip((1, 2, 10, 11), cohort.values(), strict=True))


@pytest.mark.parametrize("kind", [int, np.int64, float])
def test_training_by_numbers(numbered: dict[int, SpatialData], kind: Any) -> None:
    slides = {kind(k): v for k, v in numbered.items()}
    groups = {k: k // 10 for k in numbered}
    model = st.tl.train(slides, groups=groups, validation=[np.int32(10), 11], genes=["EPCAM"], **HOW)
    facts = model.record.training
    donors = {"1": "0", "2": "0", "10": "1", "11": "1"}
    assert {s: f["donor"] for s, f in facts["slides"].items()} == {s: donors[s] for s in facts["slides"]}
    assert sorted(facts["validation"]) == ["10", "11"]


def test_cross_validation_and_report_by_numbers(numbered: dict[int, SpatialData], tmp_path: Path) -> None:
    groups = pd.Series({1: 7, 2: 7, 10: 8, 11: 9})
    scores = st.tl.cross_validate(
        numbered, ["mean", "intensity"], groups=groups, genes=["EPCAM", "COL1A2"], key_added="oof", **HOW
    )
    donors = {"1": "7", "2": "7", "10": "8", "11": "9"}
    there = dict(zip(scores["slide"], scores["donor"], strict=True))
    assert {s: d for s, d in there.items() if not s.startswith("pooled")} == donors
    named = {str(k): v for k, v in numbered.items()}
    same = st.tl.cross_validate(
        named,
        ["mean", "intensity"],
        groups={"1": "7", "2": "7", "10": "8", "11": "9"},
        genes=["EPCAM", "COL1A2"],
        **HOW,
    )
    columns = [c for c in scores if c != "seconds"]
    pd.testing.assert_frame_equal(scores[columns], same[columns])
    scores.to_csv(tmp_path / "scores.csv", index=False)
    again = pd.read_csv(tmp_path / "scores.csv")  # slides and donors are numbers in it
    assert again["donor"].dtype.kind == "i"
    again = again[~again["slide"].str.startswith("pooled")].astype({"slide": int})
    page = st.report(tmp_path / "r.html", numbered, "spots_intensity_oof", scores=again, model="intensity", max_mb=2)
    assert page.exists()
    for frame in (scores, again):
        assert len(st.tl.summarise(frame)) > 0
        assert st.tl.rank_models(frame, over="slide").ranks.shape[0] == 2


def test_one_name_twice_is_refused(numbered: dict[int, SpatialData]) -> None:
    twice: dict[Any, SpatialData] = {1: numbered[1], "1": numbered[2]}
    for use in (
        lambda: st.tl.train(twice, genes=["EPCAM"], **HOW),
        lambda: st.tl.pseudobulk(twice, "spots_counts"),
        lambda: st.report("r.html", twice, "spots_counts"),
        lambda: st.tl.train(numbered, groups={1: 1, "1": 2, 2: 3, 10: 4, 11: 5}, genes=["EPCAM"], **HOW),
    ):
        with pytest.raises(InputError, match="two entries of the name '1'"):
            use()


def test_a_donor_that_was_trained_on_is_known_by_its_number(numbered: dict[int, SpatialData]) -> None:
    model = st.tl.train({1: numbered[1], 2: numbered[2]}, groups={1: 100, 2: 200}, genes=["EPCAM"], **HOW)
    with pytest.raises(InputError, match=r"was trained on \['11'\]"):
        st.tl.conformal(model, {10: numbered[10], 11: numbered[11]}, groups={10: 300, 11: 200}, shapes_key="spots")


def test_tables_of_samples_by_number(numbered: dict[int, SpatialData]) -> None:
    clinical = pd.DataFrame({"grade": [3, 1, 2, 4]}, index=[11, 1, 2, 10])
    bulk = st.tl.pseudobulk(numbered, "spots_counts", obs=clinical)
    assert bulk.obs["grade"].to_dict() == {"1": 1, "2": 2, "10": 4, "11": 3}
    assert sample_values(bulk, {11: 4, 10: 3, 1: 1, 2: 2}, name="time").tolist() == [1, 2, 3, 4]
    assert sample_values(bulk, clinical["grade"], name="event").tolist() == [1, 2, 4, 3]
    assert sample_groups(bulk, {1: 5.0, 2: 6.0, 10: 7, 11: "8"}).tolist() == ["5", "6", "7", "8"]
    with pytest.raises(InputError, match=r"`time` is missing for the samples \['2'\]"):
        sample_values(bulk, {1: 1, 10: 3, 11: 4}, name="time")
    risk = {k: np.arange(s["spots_counts"].n_obs) for k, s in numbered.items()}
    ranked = st.tl.differential_rank(
        numbered, "spots_counts", risk, n_top=5, groups={1: 1, 2: 1, 10: 2, 11: 2}, n_bootstrap=50
    )
    assert list(ranked.attrs["per_slide"]) == ["1", "2", "10", "11"]
    assert ranked["low"].notna().all()


def test_names_in_a_csv_stay_as_written(tmp_path: Path) -> None:
    for name in ("x", "y", "z"):
        st.datasets.toy_legacy_st(tmp_path / name, size_um=(600, 600), mpp=2.0)
    table = tmp_path / "slides.csv"
    table.write_text("# slides of the study\nslide,path,donor\n007,x,01\n7,y,1\nNA,z,A#2\n")
    slides, donors = st.io.read_cohort([table])
    assert list(slides) == ["007", "7", "NA"]
    assert donors == {"007": "01", "7": "1", "NA": "A#2"}
    slides, donors = st.io.read_cohort([{"slide": np.int64(3), "path": tmp_path / "x", "donor": 0}])
    assert (list(slides), donors) == (["3"], {"3": "0"})

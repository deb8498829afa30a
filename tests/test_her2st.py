"""The real-data test: HER2-positive breast cancer, sections C2-C5 of one donor, one left out at a time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import stpred as st

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def scores(real_data: Path) -> pd.DataFrame:
    slides, _ = st.io.read_cohort([real_data / "her2st"])
    assert sorted(slides) == ["C2", "C3", "C4", "C5"]
    pitch = 200.0
    grid = [st.models.Ridge.Config(context_um=c) for c in (None, 1.6 * pitch, 2.6 * pitch)]
    network = st.models.MLP.Config(
        hidden=(256,),
        context_um=2.6 * pitch,
        loss="pearson",
        input_dropout=0.5,
        dropout=0.5,
        lr=1e-3,
        weight_decay=1e-2,
        batch_size=1024,
        max_epochs=40,
    )
    models = {"tile": "ridge", "neighbours": grid[2], "best": grid, "any": [grid[2], network]}
    return st.tl.cross_validate(slides, models, groups="slide", genes=st.GeneRule("mean", n=250))


def mean_pearson(scores: pd.DataFrame, model: str) -> float:
    chosen = scores[(scores["model"] == model) & (scores["metric"] == "pearson")]
    return float(chosen.assign(value=chosen["value"].fillna(0.0)).groupby("slide")["value"].mean().mean())


def test_the_tile_alone(scores: pd.DataFrame) -> None:
    assert mean_pearson(scores, "tile") >= 0.28


def test_the_best_setting_chosen_inside_the_training_sections(scores: pd.DataFrame) -> None:
    assert mean_pearson(scores, "best") >= 0.30
    assert scores.loc[scores["model"] == "best", "chosen"].str.contains("context_um").all()


def test_the_best_family_chosen_inside_beats_ridge_with_neighbour_means(scores: pd.DataFrame) -> None:
    best, ridge = mean_pearson(scores, "any"), mean_pearson(scores, "neighbours")
    assert ridge >= 0.30
    assert best >= ridge + 0.01
    assert scores.loc[scores["model"] == "any", "chosen"].str.contains("family=").all()


def test_library_size_alone_is_reported_and_labelled(scores: pd.DataFrame) -> None:
    # About 0.13 on the log scale, as a direct computation on these sections gives.
    assert mean_pearson(scores, "library_size") == pytest.approx(0.132, abs=0.005)
    assert scores["donor_shared"].all()
    assert (scores.groupby("slide")["gene"].nunique() >= 245).all()

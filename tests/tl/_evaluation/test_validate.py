"""Trained models on other cohorts: the same frame, and the same numbers, as a cross-validation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError
from stpred.data._readers import tiles
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

    from stpred.models.batch import Batch

HOW = {"shapes_key": "spots"}
RULE = st.GeneRule("mean", n=15)


@pytest.fixture(scope="module")
def five() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(5, size_um=(600, 600), n_genes=40)


@pytest.fixture(scope="module")
def models(five: dict[str, SpatialData]) -> dict[str, st.models.Model]:
    learned = {s: five[s] for s in list(five)[:4]}
    donors = {s: s.upper() for s in learned}
    mlp = st.models.MLP.Config(hidden=(16,), epochs=3)
    return {
        "ridge": st.tl.train(learned, "ridge", genes=RULE, groups=donors, encoder="colour", **HOW),
        "mlp": st.tl.train(learned, mlp, genes=RULE, groups=donors, encoder="colour", **HOW),
    }


def test_it_equals_the_fold_of_a_cross_validation_to_the_last_bit(
    five: dict[str, SpatialData], models: dict[str, st.models.Model]
) -> None:
    donors = {s: s.upper() for s in five}
    mlp = st.models.MLP.Config(hidden=(16,), epochs=3)
    scales = ["log1p_cp10k", "counts"]
    folds = st.tl.cross_validate(
        five, {"ridge": "ridge", "mlp": mlp}, groups=donors, genes=RULE, encoder="colour", scored_on=scales, **HOW
    )
    expected = folds[(folds["fold"] == "DONOR4") & (folds["model"] != "training_mean")]
    found = st.tl.validate({"donor4": five["donor4"]}, models, groups={"donor4": "DONOR4"}, scored_on=scales, **HOW)
    assert list(found.columns) == list(folds.columns)
    key = ["model", "slide", "gene", "metric", "target"]
    both = expected.merge(found, on=key, suffixes=("", "_found"), validate="one_to_one")
    assert len(both) == len(expected) == len(found)
    np.testing.assert_array_equal(both["value"], both["value_found"])
    assert both["fold"].eq(both["fold_found"]).all()
    assert set(found["split"]) == {"external"}
    assert not found["donor_shared"].any()
    assert found.attrs["in_distribution"]["ridge"]["donor4"] > 0.5


def test_its_frame_is_taken_on(
    five: dict[str, SpatialData], models: dict[str, st.models.Model], tmp_path: Path
) -> None:
    train = {s: five[s] for s in list(five)[:2]}
    st.models.save(st.tl.train(train, "ridge", genes=RULE, encoder="colour", **HOW), tmp_path / "m")
    other = {s: five[s] for s in list(five)[2:]}
    found = st.tl.validate(other, {"a": tmp_path / "m", "b": tmp_path / "m"}, groups="slide", **HOW)
    assert found["donor_shared"].all()
    averages = st.tl.summarise(found)
    assert averages.loc[("log1p_cp10k", "a"), "mean"] == averages.loc[("log1p_cp10k", "b"), "mean"]
    ranks = st.tl.rank_models(found).ranks
    assert set(ranks.index) == {"a", "b"}
    gene = str(found["gene"].iloc[-1])
    some = st.tl.validate(other, tmp_path / "m", groups="slide", genes=[gene], **HOW)
    assert set(some["gene"]) == {gene}
    pd.testing.assert_series_equal(
        some[(some.model == "ridge") & (some.metric == "pearson")]["value"].reset_index(drop=True),
        found[(found.model == "a") & (found.metric == "pearson") & (found.gene == gene)]["value"].reset_index(
            drop=True
        ),
    )


def test_what_was_trained_on_is_refused(five: dict[str, SpatialData], models: dict[str, st.models.Model]) -> None:
    with pytest.raises(InputError, match=r"Model 'ridge' was trained on \['donor0'\]"):
        st.tl.validate({"donor0": five["donor0"]}, models["ridge"], groups={"donor0": "Z"}, **HOW)
    with pytest.raises(InputError, match=r"was trained on \['renamed'\]"):
        st.tl.validate({"renamed": five["donor0"]}, models["ridge"], groups="slide", **HOW)
    with pytest.raises(InputError, match=r"was trained on \['donor4'\] \(or on their donors\)"):
        st.tl.validate({"donor4": five["donor4"]}, models["ridge"], groups={"donor4": "DONOR1"}, **HOW)
    with pytest.raises(InputError, match=r"was trained on slides called \['donor1'\], if with other images"):
        st.tl.validate({"donor1": five["donor4"]}, models["ridge"], groups="slide", **HOW)


def test_bad_input_is_named(five: dict[str, SpatialData], models: dict[str, st.models.Model]) -> None:
    one, donors = {"donor4": five["donor4"]}, {"donor4": "Q"}
    with pytest.raises(InputError, match=r"Model 'ridge' does not predict \['NOTAGENE'\]"):
        st.tl.validate(one, models["ridge"], groups=donors, genes=["NOTAGENE"], **HOW)
    with pytest.raises(InputError, match=r"Two models are called 'ridge'"):
        st.tl.validate(one, [models["ridge"], models["ridge"]], groups=donors, **HOW)
    with pytest.raises(InputError, match=r"`scored_on` must be one of"):
        st.tl.validate(one, models["ridge"], groups=donors, scored_on="cpm", **HOW)
    with pytest.raises(InputError, match=r"`cells_key` is for models that see cells"):
        st.tl.validate(one, models["ridge"], groups=donors, cells_key="cells", **HOW)
    foreign = copy_slide(five["donor4"])
    foreign.tables["spots_counts"].var_names = [f"ENSG{i:011d}" for i in range(foreign.tables["spots_counts"].n_vars)]
    with pytest.raises(InputError, match=r"No gene of model 'ridge' .* was measured on all slides"):
        st.tl.validate({"donor4": foreign}, models["ridge"], groups=donors, **HOW)
    few = copy_slide(five["donor4"])
    table = few.tables["spots_counts"][:, few.tables["spots_counts"].var_names != models["ridge"].record.genes[0]]
    few.tables["spots_counts"] = table.copy()
    with pytest.warns(UserWarning, match="1 of 15 genes of model 'ridge' were not measured on every slide"):
        found = st.tl.validate({"donor4": few}, models["ridge"], groups=donors, **HOW)
    assert models["ridge"].record.genes[0] not in set(found["gene"])
    assert np.isfinite(found[(found.model == "ridge") & (found.metric == "r2")]["value"]).all()


def test_slides_are_read_in_blocks_as_in_prediction(
    five: dict[str, SpatialData], models: dict[str, st.models.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, model, sizes = {"donor4": five["donor4"]}, models["mlp"], []
    expected = st.tl.validate(one, model, groups="slide", **HOW)
    monkeypatch.setattr(tiles, "TILE_BYTES", 0)
    monkeypatch.setattr(tiles, "BLOCK_BYTES", 0)
    monkeypatch.setattr(tiles, "PIXEL_BLOCK", 10)
    predict = type(model).predict

    def counted(self: st.models.Model, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        sizes.append(len(batch.targets))
        return predict(self, batch)

    monkeypatch.setattr(type(model), "predict", counted)
    found = st.tl.validate(one, model, groups="slide", **HOW)
    assert sum(sizes) == five["donor4"]["spots_counts"].n_obs
    assert max(sizes) <= 10
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-5)


def test_neighbours_are_those_of_a_prediction(five: dict[str, SpatialData]) -> None:
    """On cells, context comes from points at the pitch of the training spots."""
    train = {s: five[s] for s in list(five)[:2]}
    model = st.tl.train(
        train, st.models.Ridge.Config(context_um=150, penalty=1.0), genes=RULE, encoder="colour", groups="slide", **HOW
    )
    slide = copy_slide(five["donor4"])
    found = st.tl.validate({"donor4": slide}, model, groups="slide", shapes_key="cells")
    st.tl.predict(slide, model, shapes_key="cells")
    expected = st.tl.compare(slide, "cells_ridge", "cells_counts")
    values = found[(found["model"] == "ridge") & (found["metric"] == "pearson") & (found["slide"] == "donor4")]
    values = values.set_index("gene")["value"]
    np.testing.assert_allclose(values, expected["pearson"][values.index], atol=1e-5)

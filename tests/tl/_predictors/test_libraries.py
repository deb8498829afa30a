"""Slides and tables of different genes: brought to one library where that is possible, and told where it is not."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import pytest
from spatialdata import SpatialData

import stpred as st
from stpred._core.expression.library import Library
from stpred._core.tables import read_provenance

pytestmark = pytest.mark.usefixtures("kept_features")

SMALL = {"size_um": (600, 600), "n_genes": 300}
PANEL = 40


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(4, **SMALL)


@pytest.fixture(scope="module")
def panel(slides: dict[str, SpatialData]) -> list[str]:
    """Forty genes of medium level, of 300: a few per cent of the counts."""
    table = slides["donor0"]["spots_counts"]
    order = np.argsort(np.asarray(table.X.sum(axis=0)).ravel())
    return sorted(table.var_names[order[100 : 100 + PANEL]])


@pytest.fixture(scope="module")
def model(slides: dict[str, SpatialData], panel: list[str]) -> Any:
    return st.tl.train(pick(slides, "donor0", "donor1"), genes=panel[:10], **HOW)


HOW: dict[str, Any] = {"shapes_key": "spots", "encoder": "intensity"}


def pick(slides: dict[str, SpatialData], *names: str) -> dict[str, SpatialData]:
    return {name: slides[name] for name in names}


def cut(sdata: SpatialData, genes: Any) -> SpatialData:
    """Return a slide of which only some genes were measured."""
    table = sdata["spots_counts"]
    return SpatialData(
        images=dict(sdata.images),
        shapes={"spots": sdata["spots"]},
        tables={"spots_counts": table[:, table.var_names.isin(list(genes))].copy()},
    )


def with_prediction(sdata: SpatialData, model: Any) -> SpatialData:
    st.tl.predict(sdata, model, shapes_key="spots")
    return sdata


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@contextmanager
def told_once(match: str = "librar") -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    said = [str(w.message) for w in caught if issubclass(w.category, UserWarning) and "librar" in str(w.message)]
    assert len(said) == 1, said
    assert match in said[0]
    assert len(said[0]) < 600
    assert [w.filename for w in caught if "librar" in str(w.message)] == [__file__]


def test_the_record_and_the_provenance_hold_the_library(slides: Any, model: Any, tmp_path: Any) -> None:
    record = st.models.load(st.models.save(model, tmp_path / "model")).record
    counts = np.concatenate([slides[s]["spots_counts"].X.toarray() for s in ("donor0", "donor1")])
    assert record.library["genes"] == slides["donor0"]["spots_counts"].var_names.tolist()
    np.testing.assert_allclose(record.library["share"], counts.sum(axis=0) / counts.sum(), rtol=1e-3)
    assert record.library["median_size"] == pytest.approx(np.median(counts.sum(axis=1)))
    table = st.tl.predict(slides["donor2"], model, shapes_key="spots", inplace=False)
    told = Library.parse(read_provenance(table)["library"])
    assert told is not None
    assert list(told.genes) == record.library["genes"]


def test_a_model_without_a_library_still_loads_and_compares(slides: Any, model: Any, tmp_path: Any) -> None:
    folder = st.models.save(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["record"]["library"]
    (folder / "config.json").write_text(json.dumps(config))
    old = st.models.load(folder)
    assert old.record.library == {}
    test = with_prediction(cut(slides["donor2"], slides["donor2"]["spots_counts"].var_names), old)
    with quiet():
        found = st.tl.compare(test, "spots_ridge", "spots_counts")
    assert "library" not in found.attrs["matching"]["cell"]


def test_equal_genes_are_compared_as_before(slides: Any, model: Any) -> None:
    test = with_prediction(cut(slides["donor2"], slides["donor2"]["spots_counts"].var_names), model)
    with quiet():
        found = st.tl.compare(test, "spots_ridge", "spots_counts")
    assert "same_library" not in found
    assert found.attrs["matching"]["cell"]["library"]["same"] is True
    counts = test["spots_counts"].to_df()
    truth = np.log1p(counts.div(counts.sum(axis=1), axis=0) * 1e4)[found.index].to_numpy()
    guess = test["spots_ridge"].to_df()[found.index].to_numpy()
    np.testing.assert_allclose(found["rmse"], np.sqrt(np.square(guess - truth).mean(axis=0)), rtol=1e-5)


def test_a_few_genes_less_change_nothing_and_are_not_told(slides: Any, model: Any) -> None:
    table = slides["donor2"]["spots_counts"]
    rare = table.var_names[np.argsort(np.asarray(table.X.sum(axis=0)).ravel())[:30]]
    kept = set(table.var_names) - (set(rare) - set(model.record.genes))
    test = with_prediction(cut(slides["donor2"], kept), model)
    with quiet():
        found = st.tl.compare(test, "spots_ridge", "spots_counts")
    assert "same_library" not in found


@pytest.mark.parametrize(
    "levels", [{}, {"bin_um": (100, 200)}, {"resolution": "cell", "bin_um": 100, "n_neighbors": 3}]
)
def test_a_panel_against_a_whole_transcriptome_is_told_once(slides: Any, panel: Any, model: Any, levels: Any) -> None:
    test = with_prediction(cut(slides["donor2"], panel), model)
    with told_once("RMSE"):
        found = st.tl.compare(test, "spots_ridge", "spots_counts", **levels)
    assert (~found["same_library"]).all()
    whole = with_prediction(cut(slides["donor2"], slides["donor2"]["spots_counts"].var_names), model)
    right = st.tl.compare(whole, "spots_ridge", "spots_counts", **levels)
    facts = next(iter(found.attrs["matching"].values()))["library"]
    assert (facts["n_genes_model"], facts["n_genes_measured"], facts["n_genes_shared"]) == (300, PANEL, PANEL)
    assert facts["share_measured"] == 1.0
    assert facts["share_model"] < 0.5
    assert found["rmse"].median() > 1.3 * right["rmse"].median()


def test_other_functions_tell_it_too(slides: Any, panel: Any, model: Any) -> None:
    test = with_prediction(cut(slides["donor2"], panel), model)
    with told_once():
        st.tl.correct(test, "spots_ridge", "spots_counts")
    with told_once():
        st.tl.recalibrate(test, "spots_ridge", "spots_counts")
    # What was brought to the measurement's scale is compared on it.
    with quiet():
        st.tl.compare(test, "spots_ridge_recalibrated", "spots_counts")
    left = test["spots"].index[: len(test["spots"]) // 2]
    test["spots_counts"].obs["half"] = pd.Categorical(
        np.where(test["spots_counts"].obs["instance_id"].isin(left), "left", "right")
    )
    with told_once():
        st.tl.within_regions(test, "spots_ridge", "spots_counts", groupby="half", min_locations=3)


def test_counts_and_relative_predictions_have_no_part_in_it(slides: Any, panel: Any, model: Any) -> None:
    test = with_prediction(cut(slides["donor2"], panel), model)
    with quiet():
        found = st.tl.compare(test, "spots_ridge", "spots_counts", target="counts")
    assert "same_library" not in found
    assert found["rmse"].isna().all()


def test_a_wider_measurement_is_counted_over_the_models_genes(slides: Any, panel: Any) -> None:
    small = {s: cut(slides[s], panel) for s in ("donor0", "donor1")}
    with quiet():
        model = st.tl.train(small, genes=panel[:10], **HOW)
    first = with_prediction(cut(slides["donor2"], panel), model)
    second = with_prediction(cut(slides["donor2"], slides["donor2"]["spots_counts"].var_names), model)
    with quiet():
        right = st.tl.compare(first, "spots_ridge", "spots_counts", resolution="cell", bin_um=200)
    with told_once("counted over"):
        found = st.tl.compare(second, "spots_ridge", "spots_counts", resolution="cell", bin_um=200)
    # Scored just as if the panel alone had been measured.
    pd.testing.assert_frame_equal(found, right)


def mixed(slides: Any, panel: Any) -> dict[str, SpatialData]:
    return pick(slides, "donor0", "donor1") | {"donor2": cut(slides["donor2"], panel)}


def test_training_slides_of_different_genes_are_brought_to_one_library(slides: Any, panel: Any) -> None:
    cohort = mixed(slides, panel)
    with told_once("share"):
        found = st.tl.train(cohort, genes=panel[:10], **HOW)
    with quiet():
        right = st.tl.train({s: cut(sdata, panel) for s, sdata in cohort.items()}, genes=panel[:10], **HOW)
    assert found.id == right.id
    assert set(found.record.library["genes"]) == set(panel)
    told = found.record.training["shared_library"]
    assert told["n_genes"] == PANEL
    assert told["share"]["donor2"] == 1.0
    assert told["share"]["donor0"] < 0.5


def test_training_slides_that_differ_by_few_counts_keep_their_libraries(slides: Any, model: Any, panel: Any) -> None:
    table = slides["donor1"]["spots_counts"]
    rare = table.var_names[np.argsort(np.asarray(table.X.sum(axis=0)).ravel())[:30]]
    kept = set(table.var_names) - (set(rare) - set(panel))
    cohort = {"donor0": slides["donor0"], "donor1": cut(slides["donor1"], kept)}
    with quiet():
        found = st.tl.train(cohort, genes=panel[:10], **HOW)
    assert "shared_library" not in found.record.training
    assert set(found.record.library["genes"]) == kept


def test_cross_validation_counts_over_shared_genes(slides: Any, panel: Any) -> None:
    cohort = mixed(slides, panel)
    how = {"groups": {s: s for s in cohort}, "genes": panel[:5], "shapes_key": "spots", "encoder": "intensity"}
    with told_once("share"):
        found = st.tl.cross_validate(cohort, "ridge", key_added="cv", **how)
    with quiet():
        right = st.tl.cross_validate({s: cut(sdata, panel) for s, sdata in cohort.items()}, "ridge", **how)
    assert found.attrs["library"]["n_genes"] == PANEL
    pd.testing.assert_frame_equal(found, right, check_like=True)
    # Out-of-fold tables know their library, too.
    with told_once("counted over"):
        st.tl.compare(cohort["donor0"], "spots_ridge_cv", "spots_counts")
    with quiet():
        st.tl.compare(cohort["donor2"], "spots_ridge_cv", "spots_counts")
    for sdata in cohort.values():
        del sdata.tables["spots_ridge_cv"]


@pytest.mark.parametrize("check", ["withheld_spots", "withheld_sections"])
def test_withheld_spots_and_sections_are_scored_on_one_library(slides: Any, panel: Any, check: str) -> None:
    cohort = mixed(slides, panel)
    options = {"genes": panel[:5], "encoder": "intensity"}
    how: dict[str, Any] = {"n_genes": 5, "shapes_key": "spots", "train_options": options}
    with told_once("share"):
        found = getattr(st.tl, check)(cohort, "ridge", **how)
    with quiet():
        right = getattr(st.tl, check)({s: cut(sdata, panel) for s, sdata in cohort.items()}, "ridge", **how)
    pd.testing.assert_frame_equal(found, right)


def test_intervals_of_panels_are_told(slides: Any, panel: Any, model: Any, tmp_path: Any) -> None:
    folder = st.models.save(model, tmp_path / "model")
    fresh = st.models.load(folder)
    test = pick(slides, "donor2", "donor3")
    with quiet():
        found = st.tl.conformal(fresh, test, shapes_key="spots")
    assert "same_library" not in found
    assert found.attrs["library"]["donor2"]["share_model"] == 1.0
    with told_once("intervals"):
        other = st.tl.conformal(fresh, {s: cut(sdata, panel) for s, sdata in test.items()}, shapes_key="spots")
    assert (~other["same_library"]).all()
    assert (other["width"] > found["width"])[2:].all()
    assert fresh.record.intervals["other_library"] == ["donor2", "donor3"]


def test_pseudobulk_of_different_genes_sums_over_shared_ones(slides: Any, panel: Any) -> None:
    cohort = mixed(slides, panel)
    with told_once("share"):
        found = st.tl.pseudobulk(cohort, "spots_counts")
    with quiet():
        right = st.tl.pseudobulk({s: cut(sdata, panel) for s, sdata in cohort.items()}, "spots_counts")
    np.testing.assert_array_equal(found.X, right.X)
    np.testing.assert_array_equal(found.obs, right.obs)

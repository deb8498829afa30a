"""What a prediction says of itself: intervals, likeness to training, scores with their context, recalibration."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from spatialdata import SpatialData, read_zarr

import stpred as st
from stpred import InputError, metrics, training
from stpred.inference.intervals import LEVELS
from stpred.models import Batch, Ridge
from stpred.models.ood import TrainingDistribution, ood_scores, slide_ood_score
from stpred.testing import copy_slide
from stpred.tl._trust.recalibrate import shrunken_lines

if TYPE_CHECKING:
    from pathlib import Path

    from stpred.models import Model

pytestmark = pytest.mark.usefixtures("kept_features")

HOW: dict[str, Any] = {"shapes_key": "spots", "genes": "all"}


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(6, size_um=(600, 600), n_genes=40)


@pytest.fixture(scope="module")
def model(slides: dict[str, SpatialData]) -> Model:
    return st.tl.train({s: slides[s] for s in list(slides)[:4]}, **HOW)


@pytest.fixture
def new(slides: dict[str, SpatialData]) -> SpatialData:
    return copy_slide(slides["donor5"])


def truth(slide: SpatialData, genes: pd.Index) -> NDArray[np.float64]:
    counts = slide.tables["spots_counts"]
    values = counts.to_df()
    return np.log1p(values.div(values.sum(axis=1), axis=0) * 1e4)[list(genes)].to_numpy()


def test_closed_forms_come_with_intervals(model: Model, new: SpatialData, tmp_path: Path) -> None:
    assert model.record.intervals["scale"] == "identity"
    assert [i["level"] for i in model.record.intervals["levels"]] == list(LEVELS)
    st.models.save(model, tmp_path / "m")
    st.tl.predict(new, tmp_path / "m", shapes_key="spots", interval=0.9)
    table = new.tables["spots_ridge"]
    low, high = table.layers["lower"], table.layers["upper"]
    assert low.dtype == high.dtype == np.float32
    assert (low >= 0).all()
    assert (low <= high).all()
    np.testing.assert_allclose(
        high, np.maximum(table.X + table.var["interval_high"].to_numpy(), 0), rtol=1e-4, atol=1e-5
    )
    facts = json.loads(table.uns["stpred"])["intervals"]
    assert facts["slides"] == ["donor0", "donor1", "donor2", "donor3"]
    assert 0.7 < facts["levels"][2]["coverage"] < 1
    found = st.tl.coverage(new, "spots_ridge", "spots_counts")
    y = truth(new, table.var_names)
    want = ((y >= low) & (y <= high)).mean(axis=0)
    by_gene = found[found["level"] == 0.9].set_index("gene")["coverage"]
    np.testing.assert_allclose(by_gene.loc[table.var_names], want, atol=0.03)  # float32 borders
    means = found.groupby("level")["coverage"].mean()
    assert means.is_monotonic_increasing
    assert 0.8 < means[0.9] < 0.98
    new.write(tmp_path / "s.zarr")
    back = read_zarr(tmp_path / "s.zarr")
    pd.testing.assert_frame_equal(st.tl.coverage(back, "spots_ridge", "spots_counts"), found, check_dtype=False)


def test_genes_keep_their_own_intervals(model: Model, new: SpatialData) -> None:
    some = [model.record.genes[i] for i in (7, 2)]
    table = st.tl.predict(new, model, shapes_key="spots", genes=some, interval=0.5, inplace=False)
    whole = st.tl.predict(new, model, shapes_key="spots", interval=0.5, inplace=False)
    for name in ("lower", "upper"):
        np.testing.assert_array_equal(table.layers[name], whole[:, some].layers[name])
    np.testing.assert_array_equal(table.varm["interval_offsets"], whole[:, some].varm["interval_offsets"])


def test_intervals_from_slides_that_were_left_out(slides: dict[str, SpatialData]) -> None:
    two = {s: slides[s] for s in ("donor0", "donor1")}
    model = st.tl.train(two, **HOW)
    assert not model.record.intervals  # two donors leave one: nothing was calibrated
    table = st.tl.predict(slides["donor5"], model, shapes_key="spots", inplace=False)
    assert "interval_low" not in table.var
    with pytest.raises(InputError, match="has no calibrated intervals; give it some with stpred.tl.conformal"):
        st.tl.predict(slides["donor5"], model, shapes_key="spots", interval=0.9)
    held = {s: slides[s] for s in ("donor2", "donor3", "donor4")}
    found = st.tl.conformal(model, held, shapes_key="spots")
    assert found["level"].tolist() == list(LEVELS)
    assert found["width"].is_monotonic_increasing
    assert (found["n_slides"] == 3).all()
    assert found["coverage"].between(0.3, 1).all()
    with pytest.raises(InputError, match=r"`interval` must be one of the calibrated levels .*0.9.*, got 0.7"):
        st.tl.predict(slides["donor5"], model, shapes_key="spots", interval=0.7)
    with pytest.raises(InputError, match=r"was trained on \['donor1'\] .*slides outside its training"):
        st.tl.conformal(model, {"x": slides["donor2"], "donor1": slides["donor1"]}, shapes_key="spots")
    with pytest.raises(InputError, match=r"two slides or more, got \['donor2'\]"):
        st.tl.conformal(model, {"donor2": slides["donor2"]}, shapes_key="spots")


def test_intervals_of_counts_are_of_their_roots(slides: dict[str, SpatialData], new: SpatialData) -> None:
    four = {s: slides[s] for s in list(slides)[:4]}
    model = st.tl.train(four, "ridge", target="counts", **HOW)
    assert model.record.intervals["scale"] == "sqrt"
    table = st.tl.predict(new, model, shapes_key="spots", interval=0.9, inplace=False)
    stable = np.sqrt(np.maximum(table.X, 0)) + table.varm["interval_offsets"][:, 5]
    np.testing.assert_allclose(table.layers["upper"], np.square(np.maximum(stable, 0)), rtol=1e-4)
    counts = new.tables["spots_counts"].to_df()[list(table.var_names)].to_numpy()
    assert 0.75 < ((counts >= table.layers["lower"]) & (counts <= table.layers["upper"])).mean() < 0.99


def test_what_has_no_intervals(slides: dict[str, SpatialData], new: SpatialData) -> None:
    three = {s: slides[s] for s in list(slides)[:3]}
    relative = st.models.MISO.Config(width=8, inner=8, n_heads=2, epochs=1)
    model = st.tl.train(three, relative, **HOW)
    assert not model.record.intervals
    with pytest.raises(InputError, match="can have no intervals: its predictions are relative"):
        st.tl.conformal(model, {s: slides[s] for s in ("donor3", "donor4")}, shapes_key="spots")
    two = {s: slides[s] for s in ("donor0", "donor1")}
    with pytest.raises(InputError, match="`intervals`: model 'mlp' can have none: slides of 2 donors"):
        st.tl.train(two, st.models.MLP.Config(hidden=(4,), epochs=1), intervals=True, **HOW)
    st.tl.predict(new, model, shapes_key="spots")
    with pytest.raises(InputError, match="'spots_miso' has no intervals"):
        st.tl.coverage(new, "spots_miso", "spots_counts")
    network = st.tl.train(three, st.models.MLP.Config(hidden=(8,), epochs=2), intervals=True, **HOW)
    assert len(network.record.intervals["slides"]) == 3


def test_trusted_genes_do_better_on_unseen_slides() -> None:
    rng = np.random.default_rng(0)
    n, n_features, n_genes = 120, 10, 60
    for _ in range(5):
        weights = rng.normal(size=(n_features, n_genes)) * np.linspace(0, 0.6, n_genes)
        batches = []
        for k in range(6):
            x = rng.normal(size=(n, n_features)).astype(np.float32)
            y = (x @ weights + rng.normal(0, 1, (n, n_genes)) + rng.normal(0, 0.5, n_genes)).astype(np.float32)
            batches.append(Batch.of(x, slide=f"s{k}", y=y, scale="log1p_cp10k"))
        train, test = batches[:4], batches[4:]
        held = training.held_out_scores(Ridge, Ridge.Config(), train, groups=[b.slide for b in train])
        trusted = held.columns()["trusted"]
        model, _ = training.fit(Ridge, Ridge.Config(), train, groups=[b.slide for b in train])
        realised = np.mean([metrics.pearson(model.predict(b)[0], b.y) for b in test], axis=0)
        better = realised[trusted][:, None] > realised[~trusted]
        assert better.mean() > 0.8  # the area under the curve


def test_a_slide_is_judged_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    train = [
        rng.normal(size=(200, 12)).astype(np.float32) + rng.normal(0, 0.1, 12).astype(np.float32) for _ in range(4)
    ]
    typical = TrainingDistribution(12)
    limit = typical.fit(train)
    assert limit is not None
    assert 0 < limit < 1
    usual = rng.normal(size=(200, 12)).astype(np.float32)
    relative = typical.relative(typical.distance(usual))
    assert slide_ood_score(relative, limit) == 0
    spoilt = typical.relative(typical.distance(1.5 * usual))
    assert np.mean(spoilt > 1) < 0.5  # no tile by itself is far out ...
    assert (slide_ood_score(spoilt, limit) or 0) > 0  # ... but their median is
    assert (ood_scores(spoilt, limit) > 0).all()
    np.testing.assert_allclose(ood_scores(spoilt, None), np.maximum(spoilt - 1, 0), rtol=1e-6)
    assert slide_ood_score(spoilt[:19], limit) is None  # too few tiles to judge a slide by
    assert TrainingDistribution(12).fit(train[:2]) is None  # too few donors


def test_sections_of_a_donor_are_left_out_together() -> None:
    rng = np.random.default_rng(1)
    donors = [rng.normal(0, 1.5, 8) for _ in range(3)]
    train = [(rng.normal(size=(150, 8)) + d).astype(np.float32) for d in donors for _ in range(2)]
    by_slide, by_donor = TrainingDistribution(8), TrainingDistribution(8)
    near, far = by_slide.fit(train), by_donor.fit(train, ["a", "a", "b", "b", "c", "c"])
    new = (rng.normal(size=(150, 8)) + rng.normal(0, 1.5, 8)).astype(np.float32)
    assert near is not None
    assert far is not None
    assert far * float(by_donor.limit) > near * float(
        by_slide.limit
    )  # one more donor differs more than one more section
    assert by_donor.limit > by_slide.limit
    assert (by_donor.relative(by_donor.distance(new)) < by_slide.relative(by_slide.distance(new))).all()


def test_a_slide_of_another_stain_is_flagged(model: Model, new: SpatialData) -> None:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    table = st.tl.predict(new, model, shapes_key="spots", inplace=False)
    assert json.loads(table.uns["stpred"])["slide"] == {
        "score": 0.0,
        "in_distribution": True,
        "share_unlike": pytest.approx(0, abs=0.15),
    }
    image = new.images["he"]
    pixels = (image["scale0"]["image"] if hasattr(image, "keys") else image).transpose("c", "y", "x").to_numpy()
    dark = np.clip(255 * (pixels / 255.0) ** 2.2, 0, 255).astype(np.uint8)
    at = get_transformation(image, get_all=True)
    new.images["he"] = Image2DModel.parse(dark, dims=("c", "y", "x"), transformations=at)
    with pytest.warns(UserWarning, match="are out of distribution for model 'ridge'"):
        table = st.tl.predict(new, model, shapes_key="spots", inplace=False)
    facts = json.loads(table.uns["stpred"])["slide"]
    assert not facts["in_distribution"]
    assert facts["share_unlike"] == 1
    assert not table.obs["in_distribution"].any()


def test_recalibration_mends_scale_and_offset(model: Model, new: SpatialData) -> None:
    st.tl.predict(new, model, shapes_key="spots")
    table = new.tables["spots_ridge"]
    table.X = np.asarray(table.X) * 1.8 + 0.7
    ids = table.obs["instance_id"].to_numpy()
    rng = np.random.default_rng(0)
    learn = rng.choice(ids, 12, replace=False)
    st.tl.recalibrate(new, "spots_ridge", "spots_counts", instances=learn)
    fixed = new.tables["spots_ridge_recalibrated"]
    rest = ~np.isin(ids, learn)
    y = truth(new, table.var_names)[rest]
    before, after = (metrics.rmse(np.asarray(t.X)[rest], y) for t in (table, fixed))
    assert np.median(after / before) < 0.5
    direct = metrics.rmse(np.asarray(st.tl.predict(new, model, shapes_key="spots", inplace=False).X)[rest], y)
    assert np.median(after / direct) < 1.1  # as good as if nothing had been spoilt
    assert np.median(metrics.pearson(fixed.X, table.X)) > 0.99
    assert (np.asarray(fixed.X) >= 0).all()
    assert json.loads(fixed.uns["stpred"])["recalibrated"]["n_locations"] == 12
    assert (fixed.var["interval_low"] < fixed.var["interval_high"]).all()
    st.tl.compare(new, "spots_ridge_recalibrated", "spots_counts")
    with pytest.raises(InputError, match="needs 5 measured locations or more, got 4"):
        st.tl.recalibrate(new, "spots_ridge", "spots_counts", instances=ids[:4])
    with pytest.raises(InputError, match="None of the 1 `instances` is both"):
        st.tl.recalibrate(new, "spots_ridge", "spots_counts", instances=["nowhere"])


def test_lines_are_drawn_towards_what_genes_share() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(0.6, 0.05, 200)
    x = rng.normal(size=(8, 200))
    y = 0.4 + slopes * x + rng.normal(0, 0.5, (8, 200))
    own = np.array([np.polyfit(x[:, g], y[:, g], 1)[0] for g in range(200)])
    slope, offset = shrunken_lines(x, y)
    assert np.square(slope - slopes).mean() < 0.3 * np.square(own - slopes).mean()
    assert np.square(offset - 0.4).mean() < 0.02
    x, y = rng.normal(size=(3000, 5)), None
    exact = np.array([0.2, 0.5, 1.0, 1.5, 3.0])
    slope, offset = shrunken_lines(x, x * exact - 1 + rng.normal(0, 0.5, x.shape))
    np.testing.assert_allclose(slope, exact, atol=0.05)  # many locations decide for themselves
    np.testing.assert_allclose(offset, -1, atol=0.05)
    slope, _ = shrunken_lines(np.zeros((6, 3)), rng.normal(size=(6, 3)))  # constant predictions have no line
    assert np.isfinite(slope).all()


def test_a_relative_prediction_gets_a_scale(slides: dict[str, SpatialData], new: SpatialData) -> None:
    three = {s: slides[s] for s in list(slides)[:3]}
    model = st.tl.train(three, st.models.MISO.Config(width=16, inner=16, n_heads=2, epochs=15), **HOW)
    st.tl.predict(new, model, shapes_key="spots")
    with_scale = st.tl.recalibrate(new, "spots_miso", "spots_counts", inplace=False)
    assert json.loads(with_scale.uns["stpred"])["output_scale"] == "log1p_cp10k"
    new.tables["scaled"] = with_scale
    scores = st.tl.compare(new, "scaled", "spots_counts")
    assert scores["rmse"].notna().all()
    assert st.tl.compare(new, "spots_miso", "spots_counts")["rmse"].isna().all()
    assert (scores["r2"] > -0.05).all()


@pytest.mark.slow
def test_intervals_are_of_locations_of_their_size(model: Model, new: SpatialData, tmp_path: Path) -> None:
    table = st.tl.predict(new, model, shapes_key="cells", inplace=False)
    assert "interval_low" not in table.var  # a cell is measured with far more noise than a spot
    assert "interval_offsets" not in table.varm
    assert "intervals" not in json.loads(table.uns["stpred"])
    with pytest.raises(InputError, match=r"are of locations .* um wide, and those of 'cells' are finer"):
        st.tl.predict(new, model, shapes_key="cells", interval=0.9)


def test_predicted_counts_are_not_negative(slides: dict[str, SpatialData], new: SpatialData) -> None:
    four = {s: slides[s] for s in list(slides)[:4]}
    model = st.tl.train(four, st.models.Ridge.Config(penalty=1e-3), target="counts", **HOW)
    table = st.tl.predict(new, model, shapes_key="spots", interval=0.5, inplace=False)
    assert (table.X >= 0).all()
    assert (table.layers["lower"] <= table.X + 1e-3).mean() > 0.7


def test_one_measured_gene_cannot_be_normalised(model: Model, new: SpatialData) -> None:
    st.tl.predict(new, model, shapes_key="spots")
    gene = new.tables["spots_ridge"].var_names[0]
    new.tables["alone"] = new.tables["spots_counts"][:, [gene]].copy()
    for verb in (st.tl.recalibrate, st.tl.coverage, st.tl.correct, st.tl.compare):
        with pytest.raises(InputError, match="'alone' measured a single gene"):
            verb(new, "spots_ridge", "alone")
    assert np.isfinite(st.tl.compare(new, "spots_ridge", "alone", target="counts")["pearson"]).all()


def test_nothing_of_a_slide_is_in_what_its_own_table_says_of_genes(slides: dict[str, SpatialData]) -> None:
    three = {
        s: SpatialData(images=dict(v.images), shapes=dict(v.shapes), tables=dict(v.tables))
        for s, v in list(slides.items())[:3]
    }
    scores = st.tl.cross_validate(three, "intensity", groups="slide", key_added="cv", **HOW)
    pearson = scores[(scores["model"] == "intensity") & (scores["metric"] == "pearson")]
    for name, sdata in three.items():
        table = sdata.tables["spots_intensity_cv"]
        others = pearson[pearson["slide"] != name].groupby("gene")["value"].mean()
        np.testing.assert_allclose(table.var["cv_pearson"], others.loc[table.var_names], rtol=1e-9)
        assert (table.var["n_slides"] == 2).all()
        mine = st.tl.compare(sdata, "spots_intensity_cv", "spots_counts")["pearson"]
        want = pearson[pearson["slide"] == name].set_index("gene")["value"]
        np.testing.assert_allclose(mine.loc[want.index], want, atol=1e-6)  # the table is what was scored

"""Held-out checks: what is withheld stays unseen, what is changed is what is said, and coverage is honest."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

import stpred as st
from stpred import InputError, metrics
from stpred._core.places import Place
from stpred.testing import centroids
from stpred.tiles import Pyramid
from stpred.tl._robustness import engine
from stpred.tl._robustness.calibration import calibration
from stpred.tl._robustness.misaligned_spots import misaligned_spots
from stpred.tl._robustness.occluded_tiles import occluded_tiles
from stpred.tl._robustness.posterior import interval_coverage, ranks_among
from stpred.tl._robustness.restarts import restarts
from stpred.tl._robustness.transforms import paint_squares
from stpred.tl._robustness.withheld_sections import withheld_sections
from stpred.tl._robustness.withheld_spots import withheld_spots

if TYPE_CHECKING:
    from spatialdata import SpatialData

pytestmark = pytest.mark.usefixtures("kept_features")

COARSE = st.TileSpec(mpp=4, size_px=16)
OPTIONS: dict[str, Any] = {"encoder": "intensity", "tile": COARSE}
HOW: dict[str, Any] = {"shapes_key": "spots", "train_options": OPTIONS}
RIDGE = st.models.Ridge.Config(penalty=1.0)
GENES = st.GeneRule("mean", n=4)
XFUSE = st.models.XFuse.Config(depth=2, width=4, epochs=2)
PIXELS: dict[str, Any] = {"tile": st.TileSpec(mpp=16, size_px=32)}
SCENE: dict[str, Any] = {"shapes_key": "spots", "train_options": PIXELS}
SCORED = ["slide", "gene", "metric", "value", "target"]

Slides = dict[str, "SpatialData"]
Trainings = list[tuple[Slides, Any]]


@pytest.fixture(scope="module")
def slides() -> Slides:
    return st.datasets.toy_cohort(2, size_um=(700, 700), n_genes=12, mpp=1.0)


@pytest.fixture(scope="module")
def xfuse(slides: Slides) -> Any:
    return st.tl.train({"donor0": slides["donor0"]}, XFUSE, shapes_key="spots", **PIXELS)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """What was trained on, and the models that came of it."""
    seen: Trainings = []
    original = st.tl.train

    @functools.wraps(original)
    def train(slides: Slides, *args: Any, **kwargs: Any) -> Any:
        seen.append((slides, original(slides, *args, **kwargs)))
        return seen[-1][1]

    monkeypatch.setattr(engine, "train", train)
    return seen


def altered(
    sdata: SpatialData, change: Callable[[NDArray[Any]], NDArray[Any]], key: str = "spots_counts"
) -> SpatialData:
    """Return a copy with other counts."""
    from spatialdata import SpatialData as Object

    table = sdata.tables[key].copy()
    table.X = csr_matrix(change(table.X.toarray()))
    return Object(images=dict(sdata.images), shapes=dict(sdata.shapes), tables={key: table})


def kept_rows(before: SpatialData, after: SpatialData) -> NDArray[np.bool_]:
    """Return which rows of the table are still there."""
    names = before.tables["spots_counts"].obs["instance_id"]
    return names.isin(after.tables["spots_counts"].obs["instance_id"]).to_numpy()


# What is withheld.


def test_scores_are_those_of_spots_that_training_did_not_have(slides: Slides, trainings: Trainings) -> None:
    found = withheld_spots(slides, "ridge", fraction=0.3, n_genes=4, **HOW)
    (seen, model), *_ = trainings
    counts = np.concatenate(
        [s.tables["spots_counts"][kept_rows(s, seen[k]), model.record.genes].X.toarray() for k, s in slides.items()]
    )
    highest = set(np.array(model.record.genes)[np.argsort(-counts.mean(axis=0))[:4]])
    assert set(found["gene"]) == highest
    assert set(found["target"]) == {"log1p_cp10k"}
    for name, sdata in slides.items():
        held = ~kept_rows(sdata, seen[name])
        assert held.sum() == round(0.3 * len(held))
        predicted = st.tl.predict(sdata, model, shapes_key="spots", genes=sorted(highest), inplace=False)
        table = sdata.tables["spots_counts"]
        rows = predicted.obs["instance_id"].reset_index(drop=True)
        at = pd.Index(rows).get_indexer(table.obs["instance_id"][held])
        total = table.X.toarray()[held].sum(axis=1, keepdims=True)
        truth = np.log1p(table[held, sorted(highest)].X.toarray() / total * 1e4)
        one = (
            found[found["slide"] == name]
            .pivot_table(index="gene", columns="metric", values="value")
            .loc[sorted(highest)]
        )
        for metric in ("pearson", "spearman", "r2"):
            np.testing.assert_allclose(one[metric], getattr(metrics, metric)(predicted.X[at], truth), atol=1e-5)


def test_withheld_counts_are_seen_neither_by_training_nor_by_the_choice_of_genes(
    slides: Slides, trainings: Trainings
) -> None:
    how = HOW | {"train_options": OPTIONS | {"genes": st.GeneRule("mean", n=5)}, "n_genes": 3}
    first = withheld_spots(slides, "ridge", **how)
    kept = {k: kept_rows(s, trainings[0][0][k]) for k, s in slides.items()}
    rng = np.random.default_rng(0)

    def others(counts: NDArray[Any], rows: NDArray[np.bool_]) -> NDArray[Any]:
        counts = counts.copy()
        counts[rows] = rng.poisson(1000 / (1 + counts.mean(axis=0)), size=counts[rows].shape)
        return counts

    second = withheld_spots(
        {k: altered(s, lambda c, k=k: others(c, ~kept[k])) for k, s in slides.items()}, "ridge", **how
    )
    withheld_spots({k: altered(s, lambda c, k=k: others(c, kept[k])) for k, s in slides.items()}, "ridge", **how)
    ids = [model.id for _, model in trainings]
    assert ids[0] == ids[1] != ids[2]
    assert first["gene"].tolist() == second["gene"].tolist()
    assert not np.allclose(first["value"], second["value"])
    # A withheld spot that turns out to be empty changes nothing about which others are withheld.
    empty = {
        k: altered(s, lambda c, k=k: c * (kept[k] | (np.cumsum(~kept[k]) > 1))[:, None]) for k, s in slides.items()
    }
    withheld_spots(empty, "ridge", **how)
    assert trainings[3][1].id == ids[0]


def test_which_spots_are_withheld_depends_on_the_seed_and_not_on_other_slides(
    slides: Slides, trainings: Trainings
) -> None:
    one = {"donor1": slides["donor1"]}
    withheld_spots(slides, "mean", **HOW)
    withheld_spots(one, "mean", **HOW)
    withheld_spots(one, "mean", seed=1, **HOW)
    rows = [kept_rows(slides["donor1"], seen["donor1"]) for seen, _ in trainings]
    assert (rows[0] == rows[1]).all()
    assert (rows[1] != rows[2]).any()


def test_shuffled_expression_cannot_be_predicted() -> None:
    slide = st.datasets.toy(n_genes=40, mpp=1.0, shuffled=True)
    found = withheld_spots(slide, RIDGE, fraction=0.5, **HOW)
    assert abs(found.loc[found["metric"] == "pearson", "value"].median()) < 0.2


def test_nothing_that_is_given_changes(slides: Slides) -> None:
    own = {k: altered(s, lambda c: c) for k, s in slides.items()}
    before = {k: (sorted(map(str, s.elements_paths_in_memory())), s.tables["spots_counts"].copy(), s["spots"].copy(),
                  s["he"]["scale0"].ds["image"].data) for k, s in own.items()}  # fmt: skip
    one = {"donor0": own["donor0"]}
    misaligned_spots(one, "mean", radii=(1,), **HOW)
    occluded_tiles(one, "mean", fractions=(0.5,), **HOW)
    withheld_sections(own, "mean", **HOW)
    restarts(one, "mean", n_restarts=2, **HOW)
    for k, s in own.items():
        paths, table, shapes, pixels = before[k]
        assert sorted(map(str, s.elements_paths_in_memory())) == paths
        assert (table.X != s.tables["spots_counts"].X).nnz == 0
        pd.testing.assert_frame_equal(table.obs, s.tables["spots_counts"].obs)
        pd.testing.assert_frame_equal(pd.DataFrame(shapes), pd.DataFrame(s["spots"]))
        assert s["he"]["scale0"].ds["image"].data is pixels


def test_cells_are_predicted_among_all_cells(trainings: Trainings) -> None:
    config = st.models.DeepCell.Config(n_neighbors=4, width=8, epochs=1)
    own = {"donor0": st.datasets.toy(size_um=(400, 400), n_genes=12, mpp=1.0)}
    found = withheld_spots(own, config, fraction=0.5, shapes_key="cells", train_options=OPTIONS | {"genes": GENES})
    (seen, model), *_ = trainings
    tables = [o["donor0"].tables["cells_counts"] for o in (own, seen)]
    held = ~tables[0].obs["instance_id"].isin(tables[1].obs["instance_id"]).to_numpy()
    total = tables[0].X.toarray().sum(axis=1)
    table, total = tables[0][held & (total > 0)], total[held & (total > 0)]
    predicted = st.tl.predict(own["donor0"], model, shapes_key="cells", inplace=False)
    at = pd.Index(predicted.obs["instance_id"]).get_indexer(table.obs["instance_id"])
    names = found["gene"].drop_duplicates().tolist()
    slow = metrics.pearson(predicted[at, names].X, np.log1p(table[:, names].X.toarray() / total[:, None] * 1e4))
    np.testing.assert_allclose(found.loc[found["metric"] == "pearson", "value"], slow, atol=1e-4)


# Sections.


def test_sections_score_as_cross_validation_does_and_come_with_what_is_to_be_beaten(slides: Slides) -> None:
    options = {"encoder": "intensity", "genes": st.GeneRule("mean", n=6)}
    how: dict[str, Any] = {"shapes_key": "spots", "train_options": options}
    donors = {"donor0": "A", "donor1": "B"}
    found = withheld_sections(slides, "ridge", groups=donors, **how)
    folds = st.tl.cross_validate(
        slides, ["mean", "intensity", "colour", "ridge"], groups=donors, shapes_key="spots", **options
    )
    index = ["model", "fold", "slide", "gene", "metric", "target"]
    shared = folds["model"].isin(found["model"].unique()) & folds["metric"].isin(["pearson", "spearman", "r2"])
    folds = folds[shared].set_index(index)["value"].sort_index()
    np.testing.assert_allclose(found.set_index(index)["value"].sort_index().loc[folds.index], folds, atol=2e-4)
    assert len(found) == len(folds)
    assert not found["donor_shared"].any()
    assert found["model"].unique().tolist() == ["ridge", "mean", "intensity", "colour"]
    alone = withheld_sections(slides, "ridge", baselines=False, **how)
    assert alone["donor_shared"].all()
    assert alone["model"].unique().tolist() == ["ridge"]


# Misalignment.


def test_spots_are_moved_by_radii_in_one_direction_and_scored_in_their_places(
    slides: Slides, trainings: Trainings
) -> None:
    from spatialdata.transformations import Affine, set_transformation

    # Shapes in units of a quarter micrometre, turned by a right angle.
    own = {k: altered(s, lambda c: c) for k, s in slides.items()}
    for s in own.values():
        shapes = s["spots"].copy()
        shapes.geometry = shapes.geometry.affine_transform([0, 4, -4, 0, 0, 0])
        shapes["radius"] *= 4
        turn = [[0, -0.25, 0], [0.25, 0, 0], [0, 0, 1]]
        set_transformation(shapes, Affine(turn, ("x", "y"), ("x", "y")), "um")
        s.shapes["spots"] = shapes
    found = misaligned_spots(own, RIDGE, radii=(0, 1, 2), **HOW)
    plain = withheld_spots(own, RIDGE, **HOW)
    still = found[found["shift_radii"] == 0].reset_index(drop=True)
    pd.testing.assert_frame_equal(still[SCORED], plain[SCORED])
    assert (found.groupby("shift_radii").size() == len(plain)).all()
    directions = []
    for k, s in own.items():
        true, _ = centroids(s, "spots")
        away = [centroids(seen[k], "spots")[0] - true for seen, _ in trainings[:3]]
        np.testing.assert_allclose(away[0], 0)
        np.testing.assert_allclose(np.linalg.norm(away[1], axis=1), 27.5, atol=1e-6)
        np.testing.assert_allclose(away[2], 2 * away[1], atol=1e-6)
        np.testing.assert_allclose(away[1], np.tile(away[1][0], (len(true), 1)), atol=1e-6)
        directions.append(away[1][0])
        assert (kept_rows(s, trainings[0][0][k]) == kept_rows(s, trainings[2][0][k])).all()
    assert not np.allclose(*directions)


# Occlusion.


def test_a_share_of_squares_is_painted_at_every_scale_when_it_is_read(slides: Slides, trainings: Trainings) -> None:
    import dask.array as da

    one = {"donor0": slides["donor0"]}
    some = HOW | {"train_options": OPTIONS | {"genes": GENES}}
    found = occluded_tiles(one, RIDGE, fractions=(0, 0.25, 0.5), tile_um=100, **some)
    plain = withheld_spots(one, RIDGE, **some)
    pd.testing.assert_frame_equal(found[found["occluded_share"] == 0].reset_index(drop=True)[SCORED], plain[SCORED])
    for k, s in one.items():
        colour = np.array(Pyramid.from_image(s["he"]).background).reshape(3, 1, 1)
        masks = []
        for seen, _ in trainings[1:3]:
            for scale, edge in (("scale0", 100), ("scale1", 50)):
                after, before = (o["he"][scale].ds["image"] for o in (seen[k], s))
                assert isinstance(after.data, da.Array)
                assert after.dtype == np.uint8
                assert after.attrs.keys() == before.attrs.keys()
                is_, was = after.data.compute().astype(int), before.data.compute().astype(int)
                middle = np.arange(7) * edge + edge // 2
                masks.append((is_ == colour).all(axis=0)[np.ix_(middle, middle)])
                wanted = np.where(masks[-1].repeat(edge, axis=0).repeat(edge, axis=1), colour, was)
                wrong = np.abs(is_ - wanted)
                if scale == "scale0":  # the last bits of the first pixels tell the image from others
                    assert wrong[:, 0, :32].max() == 1
                    wrong[:, 0, :32] = 0
                assert (wrong == 0).all()
        assert [m.sum() for m in masks] == [12, 12, 24, 24]
        assert (masks[0] == masks[1]).all()
        assert masks[2][masks[0]].all()


@pytest.mark.parametrize("turned", [False, True])
def test_squares_lie_in_the_slides_frame_and_no_painted_image_passes_for_another(*, turned: bool) -> None:
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Affine

    rng = np.random.default_rng(0)
    pixels = rng.integers(10, 200, size=(3, 90, 120), dtype=np.uint8)
    angle = 0.3 if turned else 0.0
    turn = 2 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    place = Affine([[*turn[0], 5], [*turn[1], 7], [0, 0, 1]], ("x", "y"), ("x", "y"))
    image = Image2DModel.parse(pixels, dims=("c", "y", "x"), chunks=(3, 50, 50), transformations={"um": place})
    pyramid = Pyramid.from_image(image)
    x0, y0, x1, y1 = pyramid.bounds_um
    shape = int(np.ceil((y1 - y0) / 60)), int(np.ceil((x1 - x0) / 60))
    prints = {pyramid.fingerprint}
    n = shape[0] * shape[1]
    for k in range(n):
        new = paint_squares(
            image, np.arange(n).reshape(shape) == k,
            colour=(255, 255, 255), corner_um=(x0, y0), tile_um=60, coordinate_system="um",
        )  # fmt: skip
        prints.add(Pyramid.from_image(new).fingerprint)
        found = new.data.compute().astype(int)
        for y, x in rng.integers(0, [90, 120], size=(40, 2)):
            um = turn @ (x + 0.5, y + 0.5) + (5, 7)
            column, row = np.floor((um - (x0, y0)) / 60).astype(int)
            wanted = 255 if row * shape[1] + column == k else pixels[:, y, x].astype(int)
            assert np.abs(found[:, y, x] - wanted).max() <= (1 if y == 0 and x < 32 else 0)
    assert len(prints) == 1 + n


# Restarts.


def test_restarts_compare_all_pairs_of_seeds(slides: Slides, trainings: Trainings) -> None:
    same = restarts(slides, RIDGE, n_restarts=3, **HOW)
    assert same[["first", "second"]].to_numpy().tolist() == [[0, 1], [0, 2], [1, 2]]
    np.testing.assert_allclose(same[["pooled", "median_gene"]], 1, atol=1e-6)
    config = st.models.MLP.Config(hidden=(8,), epochs=2)
    found = restarts(
        slides,
        config,
        n_restarts=2,
        seed=5,
        n_genes=4,
        shapes_key="spots",
        train_options=OPTIONS | {"target": "counts"},
    )
    models = [model for _, model in trainings[3:]]
    assert [m.record.training["seed"] for m in models] == [5, 6]
    counts = np.concatenate([s.tables["spots_counts"][:, models[0].record.genes].X.toarray() for s in slides.values()])
    genes = np.array(models[0].record.genes)[np.sort(np.argsort(-counts.mean(axis=0), kind="stable")[:4])]
    first, second = (
        np.log1p(
            np.concatenate(
                [st.tl.predict(s, m, shapes_key="spots", genes=genes, inplace=False).X for s in slides.values()]
            ).clip(0)
        )
        for m in models
    )
    assert found["pooled"][0] == pytest.approx(np.corrcoef(first.ravel(), second.ravel())[0, 1], abs=1e-4)
    assert found["median_gene"][0] == pytest.approx(
        np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(first.T, second.T, strict=True)]), abs=1e-4
    )


def test_restarts_in_regions_anywhere_on_the_tissue_against_what_runs_state(
    slides: Slides, trainings: Trainings
) -> None:
    config = st.models.Ensemble.Config(st.models.MLP.Config(hidden=(8,), epochs=2), n_members=3)
    one = {"donor0": slides["donor0"]}
    how = {"n_restarts": 2, "n_regions": 30, "n_genes": 3, **HOW}
    each = restarts(one, config, by="value", **how)
    assert len(each) == 30 * 3
    models = [model for _, model in trainings]
    # By hand: the same circles as an element of their own.
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    centres = each.drop_duplicates(["x_um", "y_um"])[["x_um", "y_um"]].to_numpy()
    circles = ShapesModel.parse(centres, geometry=0, radius=27.5, transformations={"um": Identity()})
    sdata = altered(slides["donor0"], lambda c: c)
    sdata.shapes["circles"] = circles
    genes = list(dict.fromkeys(each["gene"]))
    tables = [st.tl.predict(sdata, m, shapes_key="circles", genes=genes, inplace=False) for m in models]
    np.testing.assert_allclose(each["mean_first"].to_numpy().reshape(30, 3), tables[0].X, atol=1e-5)
    stated = np.sqrt(tables[0].layers["std"] ** 2 + tables[1].layers["std"] ** 2)
    np.testing.assert_allclose(each["stated_sd"].to_numpy().reshape(30, 3), stated, atol=1e-5)
    difference = (tables[0].X - tables[1].X).astype(float)
    row = restarts(one, config, **how).iloc[0]
    assert row["rms_difference"] == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-3)
    assert row["rms_ratio"] == pytest.approx(np.sqrt(((difference / stated) ** 2).mean()), rel=1e-3)
    assert row["within_95"] == pytest.approx((np.abs(difference / stated) <= 1.96).mean(), abs=0.02)
    # Uniformly, on the tissue, the same for every run and seed of the same slide.
    from stpred.regions import on_tissue

    assert on_tissue(Pyramid.from_image(sdata["he"]), centres).all()
    np.testing.assert_allclose(centres.mean(axis=0), 350, atol=120)
    assert np.ptp(centres, axis=0).min() > 350
    plain = restarts(one, RIDGE, n_restarts=2, n_regions=5, **HOW).iloc[0]
    assert plain["rms_difference"] == 0
    assert np.isnan(plain[["rms_stated", "rms_ratio", "within_95"]].astype(float)).all()


@pytest.mark.slow
def test_restarts_of_a_generative_model_are_compared_with_its_posterior(
    slides: Slides, xfuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stpred import data
    from stpred.inference.predictor import Predictor

    monkeypatch.setattr(engine.Trial, "train", lambda *_, **__: xfuse)
    how: dict[str, Any] = {"n_restarts": 2, "n_genes": 2, "n_samples": 20, "shapes_key": "spots"}
    one = {"donor0": slides["donor0"]}
    each = restarts(one, XFUSE, by="value", **how)
    region = data.read_region(one["donor0"], Place(shapes_key="spots"), slide="donor0")
    genes = list(dict.fromkeys(each["gene"]))
    predictor = Predictor.of(xfuse, genes=genes, posterior=st.Posterior(n_samples=20))
    std = np.zeros((len(region.coords_um), 2))
    for rows, batch in predictor.batches(region):
        for some, columns, values in predictor.draw(batch).of_genes(predictor.columns).expected():
            std[rows[some], columns] = values.std(axis=0)
    np.testing.assert_allclose(each["stated_sd"].to_numpy().reshape(std.shape), np.sqrt(2) * std, rtol=1e-4)
    assert (each["difference"] == 0).all()
    row = restarts(one, XFUSE, n_regions=4, **how).iloc[0]
    assert row[["rms_difference", "rms_ratio", "within_95"]].tolist() == [0, 0, 1]
    assert row["rms_stated"] > 0


# Posterior-predictive intervals.


def test_ranks_are_uniform_however_few_the_counts_and_draws() -> None:
    rng = np.random.default_rng(0)
    for rate in (0.05, 1.0, 50.0):
        for n_draws in (3, 50):
            values = rng.poisson(rate, size=(n_draws + 1, 4000, 2))
            ranks = ranks_among(values[1:], values[0], rng)
            for level in (0.5, 0.9):
                np.testing.assert_allclose(interval_coverage(ranks, level), level, atol=0.03)
    draws = np.array([0, 0, 1, 3]).reshape(4, 1, 1)
    many = np.array([ranks_among(draws, np.array([[0]]), rng)[0, 0] for _ in range(300)])
    assert 0 < many.min() < 0.05
    assert 0.55 < many.max() < 0.6  # two of four are equal: up to (0 + 3) / 5
    assert ranks_among(draws, np.array([[9]]), rng)[0, 0] > 0.8


def test_calibration_knows_its_own_counts_from_more_scattered_ones(slides: Slides, xfuse: Any) -> None:
    from stpred import Posterior, data
    from stpred.inference.predictor import Predictor

    sdata = slides["donor0"]
    region = data.read_region(sdata, Place(shapes_key="spots"), slide="donor0", measured=True)
    n = len(region.coords_um)
    own = np.zeros((n, len(xfuse.record.genes)))
    predictor = Predictor.of(xfuse, posterior=Posterior(n_samples=n, seed=77))
    for rows, batch in predictor.batches(region):
        reading = predictor.draw(batch)
        for some, genes, values in reading.counts():  # every location from a draw of its own
            own[rows[some], genes] = values[np.arange(n)[rows[some]], np.arange(len(rows))[some]]
    table = sdata.tables["spots_counts"]
    order = pd.Index(table.obs["instance_id"]).get_indexer(region.instances)
    columns = table.var_names.get_indexer(xfuse.record.genes)

    def replaced(counts: NDArray[Any]) -> SpatialData:
        def change(old: NDArray[Any]) -> NDArray[Any]:
            old = old.copy()
            old[np.ix_(order, columns)] = counts
            return old

        return altered(sdata, change)

    right = calibration(replaced(own), xfuse, shapes_key="spots", posterior=st.Posterior(40, seed=3))
    assert right.columns.tolist() == ["gene", "level", "coverage", "n_locations"]
    assert len(right) == 4 * len(xfuse.record.genes)
    assert (right["n_locations"] == n).all()
    mean = right.groupby("level")["coverage"].mean()
    np.testing.assert_allclose(mean, mean.index, atol=0.06)
    rng = np.random.default_rng(0)
    wide = np.round(own * rng.lognormal(0, 1.5, size=own.shape))
    narrow = np.round((own + 2 * np.median(own, axis=0)) / 3)
    scattered = calibration(replaced(wide), xfuse, shapes_key="spots", levels=[0.8], posterior=st.Posterior(40))
    close = calibration(replaced(narrow), xfuse, shapes_key="spots", levels=[0.8], posterior=st.Posterior(40))
    assert scattered["coverage"].mean() < 0.8 - 0.1
    assert close["coverage"].mean() > 0.8 + 0.05
    how: dict[str, Any] = {"shapes_key": "spots", "posterior": st.Posterior(40, seed=3)}
    some = calibration(replaced(own), xfuse, genes=xfuse.record.genes[3:5], **how)
    assert some["gene"].unique().tolist() == xfuse.record.genes[3:5]


@pytest.mark.slow
def test_generative_models_are_scored_on_counts_and_by_their_intervals(slides: Slides, trainings: Trainings) -> None:
    from spatialdata import SpatialData as Object

    image_only = Object(images=dict(slides["donor1"].images))
    both = {"donor0": slides["donor0"], "image": image_only}
    found = withheld_spots(both, XFUSE, n_genes=5, levels=(0.5, 0.9), n_samples=10, **SCENE)
    assert set(found["target"]) == {"counts"}
    assert set(found["slide"]) == {"donor0"}
    assert set(found["metric"]) == {"pearson", "spearman", "r2", "coverage_50", "coverage_90"}
    wide, half = (found.loc[found["metric"] == m, "value"].to_numpy() for m in ("coverage_90", "coverage_50"))
    assert (wide >= half).all()
    (seen, model), *_ = trainings
    held = ~kept_rows(slides["donor0"], seen["donor0"])
    predicted = st.tl.predict(slides["donor0"], model, shapes_key="spots", posterior=st.Posterior(10), inplace=False)
    table = slides["donor0"].tables["spots_counts"][held]
    names = found["gene"].drop_duplicates().tolist()
    at = pd.Index(predicted.obs["instance_id"]).get_indexer(table.obs["instance_id"])
    slow = metrics.pearson(predicted[at, names].X, table[:, names].X.toarray())
    np.testing.assert_allclose(found.loc[found["metric"] == "pearson", "value"], slow, atol=1e-4)


def test_a_slide_that_was_painted_over_keeps_its_level(slides: Slides, monkeypatch: pytest.MonkeyPatch) -> None:
    from stpred.models.xfuse import posterior

    given: list[Any] = []
    original = posterior.draw_posterior
    monkeypatch.setattr(posterior, "draw_posterior", lambda m, b, p: (given.append(p.covariates), original(m, b, p))[1])
    config = st.models.XFuse.Config(depth=2, width=4, epochs=1, covariates={"donor0": {"patient": "a"}})
    found = occluded_tiles(
        {"donor0": slides["donor0"]}, config, fractions=(0.5,), levels=(), n_genes=2, n_samples=2, **SCENE
    )
    assert given == [{"patient": "a"}]
    assert not found["metric"].str.startswith("coverage").any()


# What is refused.


@pytest.mark.parametrize(
    ("check", "wrong", "said"),
    [
        (withheld_spots, {"fraction": 0}, "`fraction` must be between 0 and 1"),
        (withheld_spots, {"fraction": 1.0}, "`fraction` must be between 0 and 1"),
        (withheld_spots, {"fraction": True}, "`fraction` must be between 0 and 1"),
        (withheld_spots, {"fraction": 0.02}, "1 would be withheld"),
        (withheld_spots, {"n_genes": 0}, "`n_genes` must be a positive whole number"),
        (withheld_spots, {"levels": (0.5, 1)}, "`levels` must be between 0 and 1"),
        (withheld_spots, {"seed": -1}, "`seed` must be a whole number"),
        (withheld_spots, {"train_options": {"sead": 1}}, r"`train_options` takes no \['sead'\]"),
        (withheld_spots, {"model": "nothing"}, "No model family named 'nothing'"),
        (withheld_spots, {"shapes_key": "nothing"}, "No shapes element named 'nothing'"),
        (withheld_spots, {"table_key": "nothing"}, "No table named 'nothing'"),
        (withheld_spots, {"table_key": "cells_counts"}, "annotates"),
        (misaligned_spots, {"radii": (0, -1)}, "`radii` must be a number of at least 0"),
        (misaligned_spots, {"radii": ()}, "`radii` is empty"),
        (occluded_tiles, {"fractions": (0, 1)}, "`fractions` must be at least 0 and below 1"),
        (occluded_tiles, {"fractions": (0.5,), "tile_um": 5000}, "choose a smaller `tile_um`"),
        (occluded_tiles, {"tile_um": 0}, "`tile_um` must be a positive number"),
        (withheld_sections, {"groups": {"donor0": "a", "donor1": "a"}}, "at least two groups"),
        (withheld_sections, {"groups": {"donor0": "a"}}, "names no donor"),
        (withheld_sections, {"train_options": {"groups": {}}}, "takes no 'groups'"),
        (restarts, {"n_restarts": 1}, "`n_restarts` must be at least 2"),
        (restarts, {"n_regions": 0}, "`n_regions` must be a positive whole number"),
        (restarts, {"by": "gene"}, "`by` must be one of"),
    ],
)
def test_what_cannot_be_done_is_refused(slides: Slides, check: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        check(slides, **({"model": "mean"} | HOW | wrong))


def test_calibration_is_of_generative_models(slides: Slides, xfuse: Any) -> None:
    mean = st.tl.train(slides, "mean", shapes_key="spots", **OPTIONS)
    with pytest.raises(InputError, match="has no posterior"):
        calibration(slides["donor0"], mean, shapes_key="spots")
    with pytest.raises(InputError, match="`levels` must be between 0 and 1"):
        calibration(slides["donor0"], xfuse, shapes_key="spots", levels=(0.5, 95))
    with pytest.raises(InputError, match="No table named"):
        calibration(slides["donor0"], xfuse, shapes_key="spots", table_key="nothing")

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray

import stpred as st
from stpred import InputError
from stpred._core.tables import read_provenance
from stpred.tl._samples.bags import Bags
from stpred.tl._samples.tile_network import Network, first_within


@dataclass(frozen=True)
class TileCohort:
    """Features of the tiles of each slide, which of them are of high risk, and the slides' follow-up."""

    tiles: dict[str, NDArray[np.float32]]
    risky: list[NDArray[np.bool_]]
    time: NDArray[np.float64]
    event: NDArray[np.bool_]

    def tile_auroc(self, risks: Any) -> float:
        """Area under the ROC curve of the risks of all slides' tiles, together."""
        from sklearn.metrics import roc_auc_score

        return float(roc_auc_score(np.concatenate(self.risky), np.concatenate([risks[s] for s in self.tiles])))


def tile_cohort(
    seed: int = 0,
    *,
    n_slides: int = 200,
    n_tiles: tuple[int, int] = (200, 400),
    n_features: int = 64,
    share: float = 0.1,
    shift: float = 3.0,
    hazard: float = 1.0,
    offset: float = 0.0,
    n_tissues: int = 0,
) -> TileCohort:
    """Return slides with a varying share of tiles that are shifted in one direction, by which patients die earlier.

    `share`: mean share of these tiles. `shift`: in standard deviations of a feature's noise. `hazard`: logarithm of the
    hazard ratio per standard deviation of the share. `offset`: standard deviation of what all tiles of a slide have
    in common, per feature (stain and scanner). `n_tissues`: kinds of tiles, in other shares on each slide, that have
    nothing to do with risk. About 40 % of the patients are censored.
    """
    rng = np.random.default_rng(seed)
    n = rng.integers(*n_tiles, size=n_slides)
    of_slide = rng.beta(0.7, 0.7 * (1 - share) / share, n_slides)
    direction = rng.normal(size=n_features)
    direction *= shift / np.linalg.norm(direction)
    tissues = rng.normal(size=(max(n_tissues, 1), n_features)) * (n_tissues > 0)
    tiles, risky = {}, []
    for i in range(n_slides):
        risky.append(rng.random(n[i]) < of_slide[i])
        kind = rng.choice(len(tissues), n[i], p=rng.dirichlet(np.ones(len(tissues))))
        x = rng.normal(size=(n[i], n_features)) + tissues[kind] + offset * rng.normal(size=n_features)
        tiles[f"s{i}"] = (x + risky[-1][:, None] * direction).astype(np.float32)
    burden = np.array([r.mean() for r in risky])
    died = rng.exponential(np.exp(-hazard * (burden - burden.mean()) / burden.std())) + 1e-3
    left = rng.exponential(1.5 * np.quantile(died, 0.6), n_slides) + 1e-3
    return TileCohort(tiles, risky, np.minimum(died, left), died <= left)


CHEAP = st.TileRisk(n_top=10, n_inner=2, n_epochs=3, level=None)
SMALL: dict[str, Any] = {"n_slides": 30, "n_tiles": (30, 60), "n_features": 6, "share": 0.3}


@pytest.fixture(scope="module")
def cohort() -> TileCohort:
    return tile_cohort(0)


@pytest.fixture(scope="module")
def small() -> TileCohort:
    return tile_cohort(1, **SMALL)


def test_planted_risk_tiles_are_found_on_slides_that_were_not_trained_on(cohort: TileCohort) -> None:
    found = st.tl.tile_survival(cohort.tiles, cohort.time, cohort.event, n_folds=3, model=st.TileRisk(n_inner=3))
    assert cohort.tile_auroc(found.attrs["tile_risk"]) > 0.93
    assert found.attrs["concordance_interval"][0] > 0.6
    assert found.attrs["above_chance"]
    assert found["n_tiles"].tolist() == [len(t) for t in cohort.tiles.values()]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shuffled_outcomes_tell_no_tile(cohort: TileCohort) -> None:
    areas, concordances = [], []
    for seed in range(2):
        order = np.random.default_rng(seed).permutation(200)
        found = st.tl.tile_survival(
            cohort.tiles, cohort.time[order], cohort.event[order], n_folds=3, seed=seed,
            model=st.TileRisk(n_inner=3, n_epochs=5),
        )  # fmt: skip
        areas.append(cohort.tile_auroc(found.attrs["tile_risk"]))
        concordances.append(found.attrs["concordance"])
    assert np.abs(np.array(areas) - 0.5).max() < 0.1
    assert abs(np.mean(concordances) - 0.5) < 0.1


def test_shuffled_outcomes_point_either_way_where_no_evidence_is_asked_for(small: TileCohort) -> None:
    """Without the rule that gives no risks: each shuffle points somewhere, and all of them together nowhere."""
    areas, concordances = [], []
    for seed in range(10):
        order = np.random.default_rng(seed).permutation(30)
        found = st.tl.tile_survival(
            small.tiles, small.time[order], small.event[order], n_folds=2, seed=seed, model=CHEAP
        )
        areas.append(small.tile_auroc(found.attrs["tile_risk"]))
        concordances.append(found.attrs["concordance"])
    assert np.std(areas) > 0.02
    assert abs(np.mean(areas) - 0.5) < 0.2
    assert abs(np.mean(concordances) - 0.5) < 0.15


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("made", "n_features", "least"),
    [
        ({"share": 0.05}, 256, 0.9),
        ({"n_tissues": 5}, 64, 0.9),
        # 256 features that each differ between slides by more than the mean tile does for its risk.
        ({"offset": 0.3}, 256, 0.8),
    ],
)
def test_planted_risk_tiles_are_found_in_many_cohorts(made: dict[str, Any], n_features: int, least: float) -> None:
    cohort = tile_cohort(7, n_features=n_features, **made)
    found = st.tl.tile_survival(cohort.tiles, cohort.time, cohort.event)
    assert cohort.tile_auroc(found.attrs["tile_risk"]) > least


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_shuffled_outcomes_tell_no_tile_by_many_seeds() -> None:
    areas, concordances = [], []
    for seed in range(4):
        cohort = tile_cohort(seed, n_tiles=(100, 150))
        order = np.random.default_rng(seed).permutation(200)
        found = st.tl.tile_survival(cohort.tiles, cohort.time[order], cohort.event[order], n_folds=3, seed=seed)
        areas.append(cohort.tile_auroc(found.attrs["tile_risk"]))
        concordances.append(found.attrs["concordance"])
    assert abs(np.mean(areas) - 0.5) < 0.05
    assert abs(np.mean(concordances) - 0.5) < 0.07


def test_results_depend_on_the_seed_alone(small: TileCohort) -> None:
    follow = {"time": small.time, "event": small.event, "n_folds": 2, "model": CHEAP}
    one, two, other = (st.tl.tile_survival(small.tiles, **follow, seed=s) for s in (3, 3, 4))
    pd.testing.assert_frame_equal(one, two)
    assert one.attrs["tile_risk"] == two.attrs["tile_risk"]
    assert one.attrs["tile_risk"] != other.attrs["tile_risk"]
    # Tiles of a slide are a set.
    turned = {s: t[::-1] for s, t in small.tiles.items()}
    found = st.tl.tile_survival(turned, **follow, seed=3).attrs["tile_risk"]
    np.testing.assert_allclose(found["s4"][::-1], one.attrs["tile_risk"]["s4"], atol=1e-3)


def test_a_slide_does_not_judge_its_own_tiles(small: TileCohort) -> None:
    # Other follow-up of one fold's slides changes nothing for their own risks.
    splits = st.Splits(folds=[[f"s{i}" for i in range(15)], [f"s{i}" for i in range(15, 30)]])
    options: dict[str, Any] = {"splits": splits, "model": CHEAP}
    one = st.tl.tile_survival(small.tiles, small.time, small.event, **options)
    time = small.time.copy()
    time[:15] = time[:15][::-1] * 3
    two = st.tl.tile_survival(small.tiles, time, small.event, **options)
    assert one["fold"].tolist() == [0] * 15 + [1] * 15
    for slide in ("s0", "s14"):
        assert one.attrs["tile_risk"][slide] == two.attrs["tile_risk"][slide]
    assert one.attrs["tile_risk"]["s20"] != two.attrs["tile_risk"]["s20"]


def test_patients_are_in_one_fold_and_further_slides_get_the_mean(small: TileCohort) -> None:
    groups = {s: f"p{i // 2}" for i, s in enumerate(small.tiles)}
    new = {"new": small.tiles["s0"]}
    model = st.TileRisk(n_top=10, n_inner=2, n_epochs=2, level=None, n_repeats=2)
    found = st.tl.tile_survival(
        small.tiles, small.time, small.event, groups=groups, n_folds=2, model=model, apply_to=new
    )
    assert (found.groupby("group")["fold"].nunique() == 1).all()
    assert len(found.attrs["concordance_per_repeat"]) == 2
    risks = found.attrs["tile_risk"]
    assert np.corrcoef(risks["new"], risks["s0"])[0, 1] > 0.9


def test_slides_of_few_tiles_repeat_theirs_and_are_named(small: TileCohort) -> None:
    bags = Bags.of([np.arange(7.0)[:, None], np.arange(3.0)[:, None]], 4)
    values = bags.extremes(torch.cat([bags.features.T, -bags.features.T]))
    assert values[0, 0].tolist() == [6, 5, 4, 3, 3, 2, 1, 0]  # 3 is among both
    assert values[0, 1].tolist() == [2, 1, 1, 0, 2, 1, 1, 0]
    assert values[1, 0].tolist() == [0, -1, -2, -3, -3, -4, -5, -6]
    few = {**small.tiles, "s0": small.tiles["s0"][:2]}
    with pytest.warns(UserWarning, match=r"1 of 30 slides have fewer than 20 tiles.*'s0'"):
        found = st.tl.tile_survival(few, small.time, small.event, n_folds=2, model=CHEAP)
    assert len(found.attrs["tile_risk"]["s0"]) == 2


def test_the_network_rises_with_every_score() -> None:
    bags = Bags.of([np.random.default_rng(0).normal(size=(30, 3)) for _ in range(4)], 5)
    start, ones = np.ones((2, 3)), np.ones((2, 3))
    network = Network(bags, start, 0 * ones, ones, hidden=4, seed=0)
    extremes = bags.extremes(network.scores()).detach().requires_grad_()
    network.risks(extremes).sum().backward()
    assert (extremes.grad > 0).all()
    assert network.scores().std(dim=1).tolist() == pytest.approx([1, 1], rel=1e-5)


def test_the_simplest_of_equal_settings_is_taken() -> None:
    assert first_within(np.array([-9.0, -4.0, -3.0, -2.5, -8.0])) == 1


def test_without_evidence_risks_are_zero_and_said_to_be(small: TileCohort) -> None:
    order = np.random.default_rng(0).permutation(30)
    with pytest.warns(UserWarning, match="all tiles get the risk 0"):
        found = st.tl.tile_survival(
            small.tiles, small.time[order], small.event[order], n_folds=2,
            model=st.TileRisk(n_top=10, n_inner=2, n_epochs=2, level=1e-6),
        )  # fmt: skip
    assert not np.concatenate(list(found.attrs["tile_risk"].values())).any()
    assert not found.attrs["above_chance"]


@pytest.fixture(scope="module")
def slides() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    found = {}
    for i in range(12):
        slide = st.datasets.toy(size_um=(500, 500), n_genes=12, mpp=1.0, seed=0)
        slide["spots_counts"].X = slide["spots_counts"].X.copy()
        st.pp.features(slide, "intensity", shapes_key="spots", key_added="own")
        risky = rng.random(slide["own"].n_obs) < (i + 1) / 24
        slide["own"].X = (rng.normal(size=slide["own"].shape) + 4 * risky[:, None]).astype(np.float32)
        found[f"p{i}"] = slide
    return found


FOLLOW: dict[str, Any] = {"time": np.arange(12.0, 0, -1), "event": np.ones(12), "n_folds": 2}


def test_risks_are_a_table_that_ranks_genes(slides: dict[str, Any], tmp_path: Any) -> None:
    model = st.TileRisk(n_top=5, n_inner=2, n_epochs=1, level=None)
    found = st.tl.tile_survival(slides, table_key="own", model=model, **FOLLOW)
    assert "tile_risk" not in found.attrs
    table = slides["p3"]["spots_risk"]
    facts = read_provenance(table)
    assert facts["kind"] == "tile_risk"
    assert facts["out_of_fold"]
    assert facts["fold"] == found.loc["p3", "fold"]
    assert facts["model"]["n_top"] == 5
    assert table.var_names.tolist() == ["risk"]
    two = {s: slides[s] for s in ("p3", "p4")}
    by_table = st.tl.differential_rank(two, "spots_counts", "spots_risk", n_top=5, n_bootstrap=10)
    values = {s: np.asarray(x["spots_risk"].X)[:, 0] for s, x in two.items()}
    by_array = st.tl.differential_rank(two, "spots_counts", values, n_top=5, n_bootstrap=10)
    pd.testing.assert_frame_equal(by_table, by_array)
    # Joined by instance, not by place: rows in another order, and one that has no risk.
    two["p3"].tables["spots_risk"] = table[np.arange(1, table.n_obs)[::-1]].copy()
    again = st.tl.differential_rank(two, "spots_counts", "spots_risk", n_top=5, n_bootstrap=10)
    assert again.attrs["n_locations"]["p3"] == by_table.attrs["n_locations"]["p3"] - 1
    slides["p4"].write(tmp_path / "p4.zarr")
    import spatialdata as sd

    assert np.array_equal(sd.read_zarr(tmp_path / "p4.zarr")["spots_risk"].X, slides["p4"]["spots_risk"].X)


def test_features_are_computed_or_read_as_for_training(slides: dict[str, Any]) -> None:
    model = st.TileRisk(n_top=5, n_inner=2, n_epochs=1, level=None)
    options: dict[str, Any] = {"encoder": "intensity", "shapes_key": "spots", "model": model, **FOLLOW}
    copies = {s: st.datasets.toy(size_um=(300, 300), n_genes=5, mpp=1.0, seed=i) for i, s in enumerate(slides)}
    one = st.tl.tile_survival(copies, key_added="one", **options)
    for slide in copies.values():
        st.pp.features(slide, "intensity", shapes_key="spots")
    two = st.tl.tile_survival(copies, key_added="two", **options)
    pd.testing.assert_frame_equal(one, two)
    assert read_provenance(copies["p0"]["one"])["encoder"]["name"] == "intensity"


def test_bad_input_is_named(small: TileCohort, slides: dict[str, Any]) -> None:
    tiles, t, e = small.tiles, small.time, small.event
    missing = {s: v for s, v in zip(tiles, t, strict=True) if s != "s3"}
    pairs = {s: f"p{i // 2}" for i, s in enumerate(tiles)}
    half = st.Splits(folds=[["s0", "s2"], ["s1"]])
    for x, time, event, more, said in (
        (tiles, t, np.zeros(30), {}, "None of the 30 samples has an event"),
        (tiles, np.ones(30), e, {}, "`time` is 1 for all 30 samples"),
        (tiles, t, np.eye(30)[0], {}, "1 events in 30 slides are too few for 5 folds"),
        (tiles, missing, e, {}, r"`time` is missing for the samples \['s3'\]"),
        (tiles, np.where(np.arange(30) == 2, np.nan, t), e, {}, r"`time` is missing for the samples \['s2'\]"),
        (tiles, "time", e, {}, "`time` must have one value per slide"),
        (tiles, t, e * 2.0, {}, "`event` must be 0 or 1"),
        (
            tiles,
            t,
            e,
            {"groups": pairs, "splits": half},
            r"Fold 'fold 0' would train and test on donors \['p0', 'p1'\]",
        ),
        (tiles, t, e, {"splits": half}, "No fold holds out the slides"),
        (tiles, t, e, {"splits": st.Splits(test_fraction=0.2)}, "`splits` must be a stpred.Splits with `folds`"),
        (tiles, t, e, {"groups": dict.fromkeys(tiles, "one")}, "5 folds need at least as many groups"),
        (tiles, t, e, {"apply_to": {"s0": tiles["s0"]}}, r"Patients of the slides \['s0'\] of `apply_to` are in"),
        (
            tiles,
            t,
            e,
            {"apply_to": {"x": tiles["s0"]}, "groups": {**pairs, "x": "p3"}},
            r"Patients of the slides \['x'\]",
        ),
        ({**tiles, "s9": tiles["s9"][:, :4]}, t, e, {}, r"features of 's0' \(6\) and 's9' \(4\) differ"),
        ({**tiles, "s9": tiles["s9"][:0]}, t, e, {}, "Features of 's9' must be numbers of shape"),
        ({**tiles, "s9": tiles["s9"] * np.nan}, t, e, {}, "Features of 's9' hold .* NaN"),
        ([], t, e, {}, "`slides` must be a mapping of names"),
        ({**tiles, "s9": slides["p0"]}, t, e, {}, "must map names to SpatialData"),
        (tiles, t, e, {"model": "chowder"}, "`model` must be a stpred.TileRisk"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.tile_survival(x, time, event, **more)  # type: ignore[arg-type]
    other = dict(slides)
    other["p1"] = st.datasets.toy(size_um=(500, 500), n_genes=12, mpp=1.0, seed=0)
    st.pp.features(other["p1"], "colour", shapes_key="spots", key_added="own")
    with pytest.raises(InputError, match="differ or have other names"):
        st.tl.tile_survival(other, table_key="own", **FOLLOW)
    with pytest.raises(InputError, match="holds 'features', no risk of stpred.tl.tile_survival"):
        st.tl.differential_rank({"p0": slides["p0"]}, "spots_counts", "own", n_top=5)
    for wrong, said in (
        ({"n_top": 0}, "TileRisk.n_top"),
        ({"n_inner": 1}, "at least 2"),
        ({"level": 2}, "TileRisk.level"),
    ):
        with pytest.raises(InputError, match=said):
            st.TileRisk(**wrong)

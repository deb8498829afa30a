from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import stpred as st
from stpred import InputError
from stpred.tl._samples.sample_folds import class_pairs, folds, resampled, share_of_pairs, survival_pairs
from stpred.tl._samples.survival import score_statistics

lifelines = pytest.importorskip("lifelines")


def cohort(n: int = 80, g: int = 12, *, effect: float = 1.5, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, g))
    obs = pd.DataFrame(
        {"time": rng.exponential(np.exp(-effect * X[:, 3])) + 0.01, "event": rng.random(n) < 0.7},
        index=[f"s{i}" for i in range(n)],
    )
    obs["donor"] = [f"d{i // 2}" for i in range(n)]
    return AnnData(X, obs=obs, var=pd.DataFrame(index=[f"G{j}" for j in range(g)]))


def test_concordance_equals_that_of_lifelines() -> None:
    rng = np.random.default_rng(0)
    time, event, risk = rng.exponential(size=60), rng.random(60) < 0.6, rng.normal(size=60).round(1)
    found = share_of_pairs(survival_pairs(time, event, risk, np.zeros(60)))
    assert found == pytest.approx(lifelines.utils.concordance_index(time, -risk, event), abs=1e-12)
    tied = np.round(time, 1) + 0.1
    event[:] = np.arange(60) % 2 == 0
    assert 0.3 < share_of_pairs(survival_pairs(tied, event, risk, np.zeros(60))) < 0.7


def test_class_pairs_equal_the_area_under_the_curve() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    y, score = rng.random(50) < 0.4, rng.normal(size=50).round(1)
    assert share_of_pairs(class_pairs(y, score, np.zeros(50))) == pytest.approx(roc_auc_score(y, score), abs=1e-12)
    times = resampled(np.arange(50), n=3, seed=0)
    for w in times:
        drawn = np.repeat(np.arange(50), w)
        expected = roc_auc_score(y[drawn], score[drawn])
        assert share_of_pairs(class_pairs(y, score, np.zeros(50)), w) == pytest.approx(expected, abs=1e-12)


def test_pairs_within_folds_are_not_fooled_by_offsets_of_folds() -> None:
    y = np.array([True, False] * 20 + [True] * 5)
    fold = np.random.default_rng(0).integers(0, 5, 45)
    # What a model without knowledge says of a fold is the share of positives among all others.
    blind = np.array([y[fold != k].mean() for k in fold])
    assert share_of_pairs(class_pairs(y, blind, np.zeros(45))) < 0.5
    assert share_of_pairs(class_pairs(y, blind, fold)) == 0.5


def test_score_statistic_equals_that_of_lifelines() -> None:
    made = cohort(60, 4)
    found = score_statistics(made.X, made.obs["time"].to_numpy(), made.obs["event"].to_numpy())
    split = (made.X[:, 0] > 0).astype(float)[:, None]
    test = lifelines.statistics.logrank_test(
        *(made.obs["time"][split[:, 0] == k] for k in (0, 1)),
        *(made.obs["event"][split[:, 0] == k] for k in (0, 1)),
    )
    # Of two groups, the score test of a Cox model is the log-rank test.
    one = score_statistics(split, made.obs["time"].to_numpy(), made.obs["event"].to_numpy())
    assert one[0] == pytest.approx(test.test_statistic, rel=1e-6)
    assert found.argmax() == 3


def test_a_planted_gene_is_found_and_shuffled_survival_is_not() -> None:
    made = cohort(80, 6)
    found = st.tl.survival(made, "time", "event", n_folds=3, penalizer=(0.05, 0.3))
    best = lifelines.utils.concordance_index(made.obs["time"], -made.X[:, 3], made.obs["event"])
    assert found.attrs["concordance"] > best - 0.08
    low, high = found.attrs["concordance_interval"]
    assert low < found.attrs["concordance"] < high
    assert low > 0.5
    assert all("G3" in genes for genes in found.attrs["genes"][0])
    assert np.corrcoef(found["risk"], made.X[:, 3])[0, 1] > 0.8
    rng = np.random.default_rng(0)
    nothing = []
    for _ in range(4):
        made.obs[["time", "event"]] = made.obs[["time", "event"]].to_numpy()[rng.permutation(80)]
        made.obs["time"] = made.obs["time"].astype(float)
        made.obs["event"] = made.obs["event"].astype(bool)
        nothing.append(st.tl.survival(made, "time", "event", n_folds=3, penalizer=0.1).attrs["concordance"])
    assert 0.4 < np.mean(nothing) < 0.6


def test_screening_sees_only_training_samples() -> None:
    # Of 300 genes without any meaning, those that are chosen on all samples would look predictive.
    leaky, honest = [], []
    for seed in range(3, 7):
        made = cohort(60, 300, effect=0.0, seed=seed)
        time, event = made.obs["time"].to_numpy(), made.obs["event"].to_numpy()
        best = np.argsort(-score_statistics(made.X, time, event))[:5]
        leaky.append(st.tl.survival(made[:, best].copy(), "time", "event", n_folds=3, penalizer=0.1))
        honest.append(st.tl.survival(made, "time", "event", n_folds=3, penalizer=0.1, n_screened=5))
    assert np.mean([found.attrs["concordance"] for found in leaky]) > 0.65
    assert np.mean([found.attrs["concordance"] for found in honest]) < 0.59


def test_donors_are_never_shared_and_repeats_are_others() -> None:
    made = cohort(80, 4)
    found = st.tl.survival(made, "time", "event", groups="donor", n_folds=4, n_repeats=2, penalizer=0.1)
    assert (found.groupby("group")["fold"].nunique() == 1).all()
    first, second = found.attrs["concordance_per_repeat"]
    assert first != second
    again = st.tl.survival(made, "time", "event", groups="donor", n_folds=4, n_repeats=2, penalizer=0.1)
    pd.testing.assert_frame_equal(found, again)
    assert len(set(folds([0, 1] * 10, [0] * 2 + [1] * 2 + list(range(2, 18)), n=3, seed=0)[:2])) == 1


def test_bad_input_is_named() -> None:
    made = cohort(30, 4)
    few = np.zeros(30)
    few[:5] = 1
    time = made.obs["time"].to_numpy()
    for t, e, more, said in (
        ("time", few, {}, "5 events in 30 samples are too few for 5 folds"),
        ("none", "event", {}, "obs has no column 'none' \\(`time`\\)"),
        (-time, "event", {}, "`time` must be above 0"),
        (time[:4], "event", {}, "`time` must have one value per sample: got 4 for 30"),
        ("time", np.arange(30), {}, "`event` must be 0 or 1"),
        ("donor", "event", {}, "`time` must hold numbers"),
        (pd.Series(time[:9], index=made.obs_names[:9]), "event", {}, "`time` is missing for the samples"),
        ("time", "event", {"genes": ["G0", "Q"]}, "lacks 1 of 2 genes"),
        ("time", "event", {"l1_ratio": 2}, "`l1_ratio` must be between"),
        ("time", "event", {"penalizer": 0}, "`penalizer` must be a positive"),
        ("time", "event", {"n_folds": 3, "groups": ["a", "b"] * 15}, "3 folds need at least as many groups"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.survival(made, t, e, **more)  # type: ignore[arg-type]
    made.X[:] = 1
    with pytest.raises(InputError, match="None of the 4 genes varies"):
        st.tl.survival(made, "time", "event")

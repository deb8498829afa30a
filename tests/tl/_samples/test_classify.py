from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import balanced_accuracy_score, f1_score

import stpred as st
from stpred import InputError
from stpred.tl._samples.classify import rates


def cohort(n: int = 60, g: int = 10, *, n_classes: int = 2, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, g))
    kind = np.arange(n) % n_classes
    X[np.arange(n), kind] += 2.5
    obs = pd.DataFrame({"kind": [f"k{k}" for k in kind], "donor": [f"d{i // (2 * n_classes)}" for i in range(n)]})
    return AnnData(X, obs=obs.set_axis([f"s{i}" for i in range(n)]))


def test_rates_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth, guess, times = rng.integers(0, 3, 80), rng.integers(0, 3, 80), rng.integers(0, 4, 80)
    drawn = np.repeat(np.arange(80), times)
    f1, accuracy = rates(truth, guess, times, n=3)
    assert f1 == pytest.approx(f1_score(truth[drawn], guess[drawn], average="macro"))
    assert accuracy == pytest.approx(balanced_accuracy_score(truth[drawn], guess[drawn]))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_planted_classes_are_found_and_shuffled_ones_are_not(n_classes: int) -> None:
    made = cohort(n_classes=n_classes)
    found = st.tl.classify(made, "kind", n_folds=4, strength=(0.03, 0.3))
    assert found.attrs["auroc"] > 0.9
    assert found.attrs["balanced_accuracy"] > 0.75
    low, high = found.attrs["auroc_interval"]
    assert 0.5 < low < found.attrs["auroc"] <= high + 1e-9
    np.testing.assert_allclose(found.filter(like="p_").sum(axis=1), 1)
    rng, nothing = np.random.default_rng(1), []
    for _ in range(6):
        shuffled = rng.permutation(made.obs["kind"].to_numpy())
        nothing.append(st.tl.classify(made, shuffled, n_folds=4, strength=0.1).attrs["auroc"])
    assert 0.4 < np.mean(nothing) < 0.6


def test_donors_are_never_shared_and_rows_may_be_in_any_order() -> None:
    made = cohort()
    found = st.tl.classify(made, "kind", groups="donor", n_folds=3, n_repeats=2, strength=0.1)
    assert (found.groupby("group")["fold"].nunique() == 1).all()
    once = st.tl.classify(made, "kind", groups="donor", n_folds=3, strength=0.1)
    assert len(found.attrs["auroc_per_repeat"]) == 2
    assert not np.allclose(once["p_k0"], found["p_k0"])  # other folds, other models
    labels = made.obs["kind"].iloc[::-1]  # a Series is joined by name
    again = st.tl.classify(made, labels, groups="donor", n_folds=3, n_repeats=2, strength=0.1)
    pd.testing.assert_frame_equal(found, again)


def test_what_only_marks_a_donor_is_worth_nothing_on_others() -> None:
    # Each donor has a profile of its own and one label: on donors left out, the profile says nothing.
    rng = np.random.default_rng(2)
    donor = np.repeat(np.arange(16), 5)
    made = AnnData(rng.normal(size=(16, 20))[donor] + 0.1 * rng.normal(size=(80, 20)))
    label = np.where(donor % 2 == 0, "a", "b")
    leaky = st.tl.classify(made, label, n_folds=4, strength=1.0).attrs["auroc"]
    honest = st.tl.classify(made, label, groups=donor.astype(str), n_folds=4, strength=1.0).attrs["auroc"]
    assert leaky > 0.95
    assert honest < 0.75


def test_bad_input_is_named() -> None:
    made = cohort(20, 3)
    for label, more, said in (
        (["a"] * 20, {}, r"got donors per class {'a': 20}"),
        (["a"] * 18 + ["b"] * 2, {}, r"got donors per class {'a': 18, 'b': 2}"),
        ("kind", {"groups": "donor", "n_folds": 6}, "at least as many donors as there are folds \\(6"),
        ("none", {}, "obs has no column 'none' \\(`label`\\)"),
        ([None] + ["a", "b"] * 9 + ["a"], {}, "`label` is missing for the samples \\['s0'\\]"),
        ("kind", {"strength": -1}, "`strength` must be a positive"),
        ("kind", {"l1_ratio": -0.1}, "`l1_ratio` must be between"),
        ("kind", {"n_folds": 1}, "no fewer than 2"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.classify(made, label, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`pseudobulk` must be an AnnData"):
        st.tl.classify(made.X, "kind")  # type: ignore[arg-type]

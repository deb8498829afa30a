"""Folds other than one per donor, and the criterion that settings are chosen by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import scipy.stats

import stpred as st
from stpred import InputError
from stpred.training import HeldOut

if TYPE_CHECKING:
    from spatialdata import SpatialData

DONORS = {"a1": "A", "a2": "A", "b": "B", "c": "C", "d": "D"}
HOW: dict[str, Any] = {"shapes_key": "spots", "genes": st.GeneRule("mean", n=8), "encoder": "colour"}


@pytest.fixture(scope="module")
def five() -> dict[str, SpatialData]:
    slides = st.datasets.toy_cohort(5, size_um=(500, 500), n_genes=20)
    return dict(zip(DONORS, slides.values(), strict=True))


def test_explicit_folds_hold_out_what_they_name() -> None:
    splits = st.Splits(folds={"x": ["A"], "y": ["b", "C"]}, discarded={"x": ["D"]})
    assert splits.of(DONORS) == [
        ("x", ["b", "c"], ["a1", "a2"]),
        ("y", ["a1", "a2", "d"], ["b", "c"]),
    ]
    assert st.Splits(folds=[["A"], ["B"]]).of(DONORS)[1] == ("fold 1", ["a1", "a2", "c", "d"], ["b"])
    assert st.Splits().of(DONORS) is None


def test_random_splits_never_share_a_donor_and_repeat_with_their_seed() -> None:
    found = st.Splits(test_fraction=0.4, repeats=25, seed=3).of(DONORS)
    assert len(found) == 25
    assert len({tuple(test) for _, _, test in found}) > 3
    for _, train, test in found:
        assert not {DONORS[s] for s in train} & {DONORS[s] for s in test}
        assert len({DONORS[s] for s in test}) == 2
        assert sorted(train + test) == sorted(DONORS)
    assert found == st.Splits(test_fraction=0.4, repeats=25, seed=3).of(DONORS)
    assert found != st.Splits(test_fraction=0.4, repeats=25, seed=4).of(DONORS)
    alone = st.Splits(train_on_one=True).of(DONORS)
    assert [train for _, train, _ in alone] == [["a1", "a2"], ["b"], ["c"], ["d"]]


def test_repeats_are_scored_and_their_p_values_are_twice_the_median(five: dict[str, SpatialData]) -> None:
    splits = st.Splits(test_fraction=0.75, repeats=3)
    found = st.tl.cross_validate(five, "ridge", groups=DONORS, splits=splits, **HOW)
    pd.testing.assert_frame_equal(found, st.tl.cross_validate(five, "ridge", groups=DONORS, splits=splits, **HOW))
    assert sorted(found["repeat"].unique()) == [0, 1, 2]
    genes = st.tl.summarise(found, groupby="gene")
    gene = genes.index.get_level_values("gene")[0]
    rows = found[(found.model == "ridge") & (found.metric == "pearson") & (found.gene == gene)]
    p = []
    for _, part in rows.groupby("repeat"):
        z = np.arctanh(part.groupby("donor")["value"].mean())
        p.append(scipy.stats.ttest_1samp(z, 0, alternative="greater").pvalue)
    expected = min(1.0, 2 * np.median(p))
    assert genes.loc[("log1p_cp10k", "ridge", gene), "p_t"] == pytest.approx(expected, rel=1e-9)


def test_an_explicit_fold_equals_the_one_per_donor(five: dict[str, SpatialData]) -> None:
    usual = st.tl.cross_validate(five, "ridge", groups=DONORS, **HOW)
    given = st.tl.cross_validate(five, "ridge", groups=DONORS, splits=st.Splits(folds={"B": ["B"]}), **HOW)
    pd.testing.assert_frame_equal(given, usual[usual["fold"] == "B"].reset_index(drop=True))


def test_top_genes_is_the_area_under_the_curve_of_medians() -> None:
    rng = np.random.default_rng(0)
    pearson = rng.uniform(-0.2, 0.8, (3, 230))
    held = HeldOut(pearson, pearson**2, np.full(3, 50))
    mean = pearson.mean(axis=0)
    medians = [np.median(mean[:n]) for n in (100, 150, 200, 230)]
    assert held.quality("top_genes") == pytest.approx(np.trapezoid(medians, [100, 150, 200, 230]) / 130)
    assert held.quality("pearson") == pytest.approx(pearson.mean())
    assert held.quality("spearman") == pytest.approx((pearson**2).mean())
    few = HeldOut(pearson[:, :7], pearson[:, :7], np.full(3, 50))
    assert few.quality("top_genes") == pytest.approx(np.median(mean[:7]))


def test_the_criterion_decides_between_settings(five: dict[str, SpatialData]) -> None:
    grid = {"ridge": [st.models.Ridge.Config(penalty=1e-3), st.models.Ridge.Config(penalty=1e9)]}
    for criterion in ("spearman", "top_genes"):
        splits = st.Splits(folds=[["A"]], criterion=criterion)
        found = st.tl.cross_validate(five, grid, groups=DONORS, splits=splits, **HOW)
        assert found[found.model == "ridge"]["chosen"].str.contains("penalty=").all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": [["A"]], "test_fraction": 0.2}, "takes one of `folds`, `test_fraction` and `train_on_one`"),
        ({"repeats": 3}, "is of random splits: give `test_fraction`"),
        ({"criterion": "accuracy"}, "`Splits.criterion` must be one of"),
        ({"folds": ["A", "B"]}, "must have a list of donors or slides for 'fold 0', got 'A'"),
        ({"folds": "A"}, "must be a list of lists of donors"),
        ({"folds": {}}, "is empty"),
        ({"folds": {"x": ["A"]}, "discarded": {"y": ["B"]}}, r"names folds \['y'\] that `folds` does not have"),
        ({"test_fraction": 1.5}, "test_fraction"),
    ],
)
def test_splits_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.Splits(**options)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([["a1"]], r"Fold 'fold 0' would train and test on donors \['A'\]"),
        ([["Z"]], r"names \['Z'\], neither donors \(\['A', 'B', 'C', 'D'\]\) nor slides"),
        ([["A"], ["a1", "a2"]], r"Slides \['a1', 'a2'\] are held out in folds 'fold 0' and 'fold 1'"),
        ([["A", "B", "C", "D"]], "leaves no slide to train on"),
    ],
)
def test_folds_that_share_donors_are_refused(folds: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.Splits(folds=folds).of(DONORS)


def test_what_splits_do_not_go_with_is_refused(five: dict[str, SpatialData]) -> None:
    splits = st.Splits(test_fraction=0.4, repeats=2)
    for more, message in (
        ({"n_folds": 2}, "leave `n_folds` out"),
        ({"key_added": "cv"}, "leave `key_added` out"),
        ({"splits": "kfold"}, "must be a stpred.Splits"),
    ):
        with pytest.raises(InputError, match=message):
            st.tl.cross_validate(five, "ridge", groups=DONORS, **({"splits": splits} | more), **HOW)
    with pytest.raises(InputError, match="makes its own folds"):
        st.tl.cross_validate(five, "ridge", groups="blocks", splits=splits, **HOW)

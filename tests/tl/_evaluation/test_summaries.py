"""Scores of a cross-validation, averaged and tested, against SciPy and by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError
from stpred.comparison.scoring import Measured, context, scores, unit_range


def frame(values: dict[str, np.ndarray], donors: list[str], **more: Any) -> pd.DataFrame:
    """A tidy frame of one metric: {model: (slides, genes)}."""
    rows = [
        {"model": m, "slide": f"s{i}", "donor": donors[i], "gene": f"g{j}", "value": v[i, j]}
        for m, v in values.items()
        for i in range(v.shape[0])
        for j in range(v.shape[1])
    ]
    return pd.DataFrame(rows).assign(metric="pearson", target="log1p_cp10k", fold="", chosen="", **more)


def test_means_in_both_orders_with_missing_scores() -> None:
    values = np.array([[0.2, 0.4, np.nan], [0.6, np.nan, np.nan]])
    tidy = frame({"a": values}, ["x", "y"])
    row = st.tl.summarise(tidy).loc[("log1p_cp10k", "a")]
    assert row["mean"] == pytest.approx(np.mean([0.3, 0.6]))
    assert row["mean_over_slides_first"] == pytest.approx(np.mean([0.4, 0.4]))
    assert row["n_missing"] == 3
    row = st.tl.summarise(tidy, nan="zero").loc[("log1p_cp10k", "a")]
    assert row[["mean", "mean_over_slides_first"]].tolist() == pytest.approx([0.2, 0.2])
    assert (row["n_genes"], row["n_slides"], row["n_donors"]) == (3, 2, 2)


def test_pearson_stands_beside_itself_given_the_library_size() -> None:
    rng = np.random.default_rng(0)
    plain, given = (rng.normal(0.3, 0.1, (3, 4)) for _ in range(2))
    given[1] = np.nan
    donors = ["x", "y", "z"]
    tidy = pd.concat(
        [
            frame({"a": plain, "library_size": plain}, donors),
            frame({"a": given}, donors).assign(metric="pearson_given_library_size"),
        ]
    )
    found = st.tl.summarise(tidy).loc["log1p_cp10k"]
    assert found.loc["a", "given_library_size"] == pytest.approx(given[[0, 2]].mean())
    assert np.isnan(found.loc["library_size", "given_library_size"])
    found = st.tl.summarise(tidy, nan="zero").loc["log1p_cp10k"]
    assert found.loc["a", "given_library_size"] == pytest.approx(given[[0, 2]].mean() * 2 / 3)
    alone = st.tl.summarise(tidy, metric="pearson_given_library_size")
    assert "given_library_size" not in alone
    assert alone.iloc[0]["mean"] == pytest.approx(given[[0, 2]].mean())


def test_intervals_draw_donors_with_all_their_slides() -> None:
    rng = np.random.default_rng(0)
    donors = [d for d in "abcdef" for _ in range(4)]
    values = rng.normal(0.3, 0.02, (24, 30)) + np.repeat(rng.normal(0, 0.1, 6), 4)[:, None]
    by_donor = st.tl.summarise(frame({"m": values}, donors)).iloc[0]
    by_slide = st.tl.summarise(frame({"m": values}, [f"d{i}" for i in range(24)])).iloc[0]
    assert by_donor["high"] - by_donor["low"] > 1.5 * (by_slide["high"] - by_slide["low"])
    alone = st.tl.summarise(frame({"m": values}, ["a"] * 24)).iloc[0]
    assert np.isnan(alone["low"])


def test_genes_predicted_consistently_as_published() -> None:
    donors = [f"p{i}" for i in range(23)]
    values = -np.full((23, 250), 0.1)
    n_positive = np.repeat([23, 20, 19, 12], [60, 42, 48, 100])
    for g, n in enumerate(n_positive):
        values[:n, g] = 0.2
    found = st.tl.summarise(frame({"m": values}, donors), groupby="gene").droplevel([0, 1])
    by_hand = stats.binom.sf(n_positive - 1, 23, 0.5)
    p = found["p_sign"].reindex([f"g{j}" for j in range(250)]).to_numpy()
    np.testing.assert_allclose(p, by_hand, rtol=1e-9)
    # Holm: the smallest is multiplied by 250, the next by 249, ...; 20 of 23 pass at rank 102 and 19 of 23 do not.
    assert by_hand[60] * (250 - 60) < 0.05 < by_hand[102] * (250 - 102)
    assert found["consistent"].sum() == 102
    assert set(found.index[found["consistent"]]) == {f"g{j}" for j in range(102)}


def test_t_tests_are_over_donors() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 0.1, (8, 5))
    donors = list("aabbccdd")
    found = st.tl.summarise(frame({"m": values}, donors), groupby="gene").droplevel([0, 1])
    per_donor = np.arctanh(values.reshape(4, 2, 5).mean(axis=1))
    want = stats.ttest_1samp(per_donor, 0, alternative="greater").pvalue
    np.testing.assert_allclose(found.loc[[f"g{j}" for j in range(5)], "p_t"], want, rtol=1e-9)


def test_repeated_splits_combine_by_twice_the_median() -> None:
    rng = np.random.default_rng(2)
    runs = [frame({"m": rng.normal(0.1, 0.1, (6, 4))}, list("abcdef"), repeat=r) for r in range(5)]
    each = [st.tl.summarise(r.drop(columns="repeat"), groupby="gene").droplevel([0, 1])["p_t"] for r in runs]
    found = st.tl.summarise(pd.concat(runs), groupby="gene").droplevel([0, 1])["p_t"]
    want = np.minimum(1, 2 * np.median([p.loc[found.index] for p in each], axis=0))
    np.testing.assert_allclose(found, want, rtol=1e-9)


def test_two_donors_have_no_p_value_and_it_says_why() -> None:
    values = np.full((4, 3), 0.3)
    found = st.tl.summarise(frame({"m": values}, list("aabb")), groupby="gene")
    assert found["p_t"].isna().all()
    assert "2 donors leave a single degree of freedom" in found.attrs["p_values"]
    with pytest.raises(InputError, match="over three donors or more, `scores` has 2"):
        st.tl.rank_models(frame({"m": values, "n": values / 2}, list("aabb")))


def test_too_few_donors_leave_consistency_open(caplog: pytest.LogCaptureFixture) -> None:
    """Three donors of one sign have a p-value of 1/8: no gene could pass, so none is said to have failed."""
    found = st.tl.summarise(frame({"m": np.full((3, 4), 0.9)}, list("abc")), groupby="gene")
    assert found["consistent"].isna().all()
    assert "none could pass the sign test at 0.05" in found.attrs["consistent"]
    assert "7 donors or more can tell" in found.attrs["consistent"]  # 4 / 2**7 < 0.05 < 4 / 2**6
    assert found.attrs["consistent"] in caplog.text
    enough = st.tl.summarise(frame({"m": np.full((7, 4), 0.9)}, list("abcdefg")), groupby="gene")
    assert enough["consistent"].all()
    assert "consistent" not in enough.attrs


def test_a_model_without_a_score_does_not_ask_for_donors(caplog: pytest.LogCaptureFixture) -> None:
    values = {"m": np.full((3, 4), 0.9), "n": np.full((3, 4), 0.8), "mean": np.full((3, 4), np.nan)}
    found = st.tl.summarise(frame(values, list("abc")), groupby="gene")
    assert found["consistent"].isna().all()
    assert found.attrs["consistent"].startswith("consistent is not determined for m, n: of 4 genes over 3 donors")
    assert "of 1 genes" not in caplog.text
    assert "mean" not in found.attrs["consistent"]


def test_a_comparison_prints_as_tables() -> None:
    rng = np.random.default_rng(3)
    values = {m: rng.normal(0.3, 0.1, (5, 8)) for m in ("good", "other")}
    said = str(st.tl.rank_models(frame(values, list("abcde"))))
    assert said.startswith("2 models over 5 blocks: Friedman p = ")
    for word in ("mean_rank", "wilcoxon_p", "good", "other"):
        assert word in said


def test_models_are_ranked_on_the_same_donors() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(0.3, 0.1, (10, 20))
    values = {"b": base, "a": base + 0.05, "noise": base + rng.normal(0, 0.2, base.shape), "library_size": base + 1}
    found = st.tl.rank_models(frame(values, [f"d{i}" for i in range(10)]))
    assert found.ranks.index.tolist()[0] == "a"
    assert "library_size" not in found.ranks.index  # context is no competitor
    pair = found.pairs[(found.pairs["first"] == "a") & (found.pairs["second"] == "b")].iloc[0]
    means = {m: v.mean(axis=1) for m, v in values.items()}
    assert pair["wilcoxon_p"] == pytest.approx(stats.wilcoxon(means["a"], means["b"]).pvalue)
    assert found.friedman_p == pytest.approx(stats.friedmanchisquare(*(means[m] for m in ("a", "b", "noise"))).pvalue)
    with pytest.raises(InputError, match="no pearson of the models"):
        st.tl.rank_models(frame(values, [f"d{i}" for i in range(10)]), models=["a", "c"])


def test_bad_frames() -> None:
    good = frame({"m": np.full((3, 2), 0.2)}, list("abc"))
    with pytest.raises(InputError, match="`metric` must be one of .*pearson.*, got 'nope'"):
        st.tl.summarise(good, metric="nope")
    with pytest.raises(InputError, match="it lacks .*slide"):
        st.tl.summarise(good.drop(columns="slide"))
    with pytest.raises(InputError, match="is empty"):
        st.tl.summarise(good.iloc[:0])
    with pytest.raises(InputError, match="a missing rmse is no rmse of 0"):
        st.tl.summarise(good.assign(metric="rmse"), metric="rmse", nan="zero")
    with pytest.raises(InputError, match="`groupby` must be one of"):
        st.tl.summarise(good, groupby="slide")  # type: ignore[arg-type]


def grid(n: int = 12, *, seed: int = 0) -> tuple[Measured, np.ndarray]:
    """A slide on a square grid whose genes are smooth fields, and the noiseless rates."""
    rng = np.random.default_rng(seed)
    xy = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1).reshape(-1, 2) * 100.0
    rates = np.exp(1.5 + np.sin(xy[:, :1] / 300 + np.arange(6)) + np.cos(xy[:, 1:] / 250 + np.arange(6)))
    counts = rng.poisson(rates)
    measured = Measured(counts, np.arange(6), counts.astype(np.float32), "counts", xy)
    return measured, rates


def test_maps_are_compared_as_scikit_image_does() -> None:
    from skimage.metrics import structural_similarity

    measured, rates = grid()
    found = scores(rates.astype(np.float32), measured, comparable=True)
    for g in range(6):
        a, b = (unit_range(v)[:, g].reshape(12, 12) for v in (rates.astype(np.float32), measured.observed))
        want = structural_similarity(a, b, win_size=3, data_range=1.0, use_sample_covariance=True)
        assert found["ssim"][g] == pytest.approx(want, abs=1e-6)


def test_context_of_smooth_and_of_shuffled_tissue() -> None:
    measured, rates = grid()
    found = context(measured)
    assert (found["neighbour_average"] > 0.7).all()
    np.testing.assert_allclose(found["reliability"], found["rmax"], atol=0.06)  # both estimate the same on counts
    perfect = scores(rates.astype(np.float32), measured, comparable=True)
    np.testing.assert_allclose(perfect["pearson"], found["rmax"], atol=0.06)
    assert (perfect["pearson_smoothed"] > perfect["pearson"]).all()  # the mean of nine is less noisy
    order = np.random.default_rng(0).permutation(len(rates))
    shuffled = Measured(
        measured.counts[order], measured.columns, measured.observed[order], "counts", measured.coords_um
    )
    assert (np.abs(context(shuffled)["neighbour_average"]) < 0.25).all()
    assert np.abs(scores(rates.astype(np.float32), shuffled, comparable=True)["pearson"]).max() < 0.3


def test_relative_predictions_have_no_errors_in_units() -> None:
    measured, rates = grid()
    found = scores(rates.astype(np.float32), measured, comparable=False)
    assert all(np.isnan(found[name]).all() for name in ("r2", "rmse", "mae"))
    assert all(np.isfinite(found[name]).all() for name in ("pearson", "spearman", "auroc", "ssim"))


def test_where_there_are_no_rings_there_are_no_scores_of_them() -> None:
    measured, rates = grid()
    nowhere = Measured(measured.counts, measured.columns, measured.observed, "counts", None)
    found = scores(rates.astype(np.float32), nowhere, comparable=True)
    assert np.isnan(found["ssim"]).all()
    assert np.isnan(context(nowhere)["neighbour_average"]).all()


def test_a_model_without_errors_does_not_win_by_them() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.random((5, 4)), "relative": np.full((5, 4), np.nan)}
    tidy = frame(values, list("abcde")).assign(metric="rmse")
    with pytest.raises(InputError, match=r"Models \['relative'\] have no rmse"):
        st.tl.rank_models(tidy, metric="rmse")
    values["b"] = values["a"] + 0.5
    del values["relative"]
    tidy = frame(values, list("abcde")).assign(metric="rmse")
    assert st.tl.rank_models(tidy, metric="rmse").ranks.index.tolist() == ["a", "b"]  # the lowest first
    assert st.tl.summarise(tidy, metric="rmse").index.get_level_values("model").tolist() == ["a", "b"]
    with pytest.raises(InputError, match=r"lacks \['donor'\]"):
        st.tl.rank_models(tidy.drop(columns="donor"), metric="rmse")


def test_genes_that_a_fold_did_not_choose_are_not_missing() -> None:
    tidy = frame({"m": np.full((3, 4), 0.5)}, list("abc"))
    tidy = tidy[~((tidy["slide"] == "s0") & (tidy["gene"] == "g3"))]  # not chosen where s0 was left out
    tidy.loc[tidy.index[0], "value"] = np.nan  # chosen, and constant
    row = st.tl.summarise(tidy, nan="zero").iloc[0]
    assert row["n_missing"] == 1
    assert row["mean"] == pytest.approx(np.mean([1.0 / 3, 0.5, 0.5]))  # s0: 0, 0.5, 0.5
    assert st.tl.summarise(tidy).iloc[0]["mean"] == pytest.approx(0.5)

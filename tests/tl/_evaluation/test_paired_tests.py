"""Pairs of models and of conditions, curves of the first genes, and bootstrap intervals over donors, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError
from stpred.training import HeldOut


def frame(models: dict[str, np.ndarray], donors: list[str], **more: Any) -> pd.DataFrame:
    """A tidy frame of (slides, genes) values."""
    parts = [
        pd.DataFrame({"model": m, "slide": f"s{i}", "donor": donors[i], "gene": [f"g{j}" for j in range(v.shape[1])]})
        .assign(value=v[i])
        for m, v in models.items()
        for i in range(len(v))
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True).assign(metric="pearson", target="log1p_cp10k", fold="", **more)


@pytest.fixture(scope="module")
def three() -> tuple[dict[str, np.ndarray], list[str], pd.DataFrame]:
    rng = np.random.default_rng(0)
    gene = rng.normal(0.3, 0.1, 25)
    models = {m: gene + d + rng.normal(0, 0.1, (8, 25)) for m, d in {"a": 0.05, "b": 0.0, "c": -0.2}.items()}
    donors = [d for d in "wxyz" for _ in range(2)]
    return models, donors, frame(models, donors)


def test_tests_equal_scipy_on_the_same_numbers(three: Any) -> None:
    models, donors, tidy = three
    found = st.tl.paired_tests(tidy)
    assert found[["first", "second"]].to_numpy().tolist() == [["a", "b"], ["a", "c"], ["b", "c"]]
    for row in found.itertuples():
        first, second = (models[m].mean(axis=0) for m in (row.first, row.second))
        assert row.n == 25
        assert row.p_value == pytest.approx(stats.wilcoxon(first, second).pvalue)
        assert row.difference == pytest.approx(np.median(first - second))
    np.testing.assert_allclose(found["p_holm"], st.metrics.holm(found["p_value"]))
    by_slide = st.tl.paired_tests(tidy, groupby="slide", reference="c", alternative="less")
    assert len(by_slide) == 16
    assert set(by_slide["first"]) == {"c"}
    for row in by_slide.itertuples():
        i = int(row.slide[1:])
        expected = stats.wilcoxon(models["c"][i], models[row.second][i], alternative="less").pvalue
        assert row.p_value == pytest.approx(expected)
    np.testing.assert_allclose(by_slide["p_holm"], st.metrics.holm(by_slide["p_value"]))
    over = st.tl.paired_tests(tidy, over="donor", reference="a")
    each = {m: v.mean(axis=1).reshape(4, 2).mean(axis=1) for m, v in models.items()}
    assert over["p_value"].tolist() == pytest.approx([stats.wilcoxon(each["a"], each[m]).pvalue for m in "bc"])
    assert donors[0] == donors[1]


def test_conditions_of_one_model_and_missing_scores(three: Any) -> None:
    models, donors, _ = three
    parts = [frame({"ridge": models[m]}, donors, shift_radii=r) for r, m in ((0.0, "a"), (1.0, "b"), (2.0, "c"))]
    tidy = pd.concat(parts, ignore_index=True)
    found = st.tl.paired_tests(tidy, "shift_radii", reference=0, alternative="greater")
    assert found["second"].tolist() == [1.0, 2.0]
    assert found.loc[1, "p_value"] < 1e-6
    holes = tidy.assign(value=tidy["value"].where(tidy["gene"] != "g0"))
    assert st.tl.paired_tests(holes, "shift_radii", reference=0)["n"].tolist() == [25, 25]
    dropped = st.tl.paired_tests(holes, "shift_radii", reference=0, nan="drop")
    assert dropped["n"].tolist() == [24, 24]
    assert dropped.loc[0, "p_value"] == pytest.approx(
        stats.wilcoxon(models["a"].mean(axis=0)[1:], models["b"].mean(axis=0)[1:]).pvalue
    )
    few = st.tl.paired_tests(tidy[tidy["gene"].isin(["g1", "g2"])], "shift_radii")
    assert few["p_value"].isna().all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"column": "nope"}, "No column of `scores` named 'nope'"),
        ({"column": "donor"}, r"`scores` is of the models \['a', 'b', 'c'\]; keep the rows of one"),
        ({"reference": "nope"}, r"`reference` must be one of \['a', 'b', 'c'\] of 'model'"),
        ({"metric": "rmse"}, "`metric` must be one of"),
        ({"over": "spot"}, "`over` must be one of"),
        ({"groupby": "gene"}, "one value is no sample"),
        ({"alternative": "more"}, "`alternative` must be one of"),
    ],
)
def test_bad_arguments_of_tests(three: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        st.tl.paired_tests(three[2], **given)
    with pytest.raises(InputError, match="one value of 'model' alone"):
        st.tl.paired_tests(three[2][three[2]["model"] == "a"])


def test_intervals_of_differences_draw_donors_for_both_models_at_once(three: Any) -> None:
    models, donors, tidy = three
    found = st.tl.rank_models(tidy, n_bootstrap=500, seed=3)
    each = {m: v.mean(axis=1).reshape(4, 2).mean(axis=1) for m, v in models.items()}
    drawn = np.random.default_rng(3).multinomial(4, np.full(4, 0.25), size=500)
    for row in found.pairs.itertuples():
        difference = each[row.first] - each[row.second]
        slow = [np.repeat(difference, n).mean() for n in drawn]
        np.testing.assert_allclose([row.low, row.high], np.quantile(slow, [0.025, 0.975]))
        assert row.low <= row.difference <= row.high
    slides = st.tl.rank_models(tidy, over="slide", n_bootstrap=500, seed=3).pairs.iloc[0]
    first, second = (models[m].mean(axis=1) for m in (slides["first"], slides["second"]))
    slow = [np.repeat((first - second).reshape(4, 2), n, axis=0).mean() for n in drawn]
    np.testing.assert_allclose([slides["low"], slides["high"]], np.quantile(slow, [0.025, 0.975]))
    one = tidy.assign(donor="w")
    assert st.tl.rank_models(one, over="slide").pairs[["low", "high"]].isna().all(axis=None)
    # The difference is known far better than either model where donors differ by more than models do.
    rng = np.random.default_rng(1)
    donor = rng.normal(0, 0.2, (12, 1))
    hard = frame(
        {m: donor + d + rng.normal(0, 0.02, (12, 10)) for m, d in (("a", 0.05), ("b", 0.0))}, list("abcdefghijkl")
    )
    with pytest.raises(InputError, match="no rmse|`metric`"):
        st.tl.rank_models(hard, metric="rmse")
    three_models = pd.concat([hard, hard[hard.model == "a"].assign(model="c")])
    pair = st.tl.rank_models(three_models).pairs.query("first == 'a' and second == 'b'").iloc[0]
    assert 0.03 < pair["low"] < pair["high"] < 0.07


def test_the_coverage_of_the_paired_bootstrap_is_near_its_level() -> None:
    rng = np.random.default_rng(0)
    inside = []
    for k in range(200):
        donor = rng.normal(0, 0.3, (20, 1))
        values = donor + rng.normal(0, 0.1, (20, 2)) + [0.04, 0.0]
        found = st.metrics.compare_models(values, ["a", "b"], n_bootstrap=400, seed=k).pairs.iloc[0]
        sign = 1 if found["first"] == "a" else -1
        inside.append(found["low"] <= 0.04 * sign <= found["high"])
    assert 0.89 <= np.mean(inside) <= 0.98


def test_curves_of_the_first_genes_follow_the_gene_rule_and_average_donors(three: Any) -> None:
    models, donors, tidy = three
    found = st.tl.top_gene_curve(tidy, n_genes=[5, 25], n_bootstrap=50)
    assert found["model"].tolist() == ["a", "a", "b", "b", "c", "c"]
    each = {m: v.reshape(4, 2, -1).mean(axis=1) for m, v in models.items()}
    for m in models:
        rows = found[found["model"] == m]
        np.testing.assert_allclose(rows["value"], [np.median(each[m].mean(axis=0)[:n]) for n in (5, 25)])
        assert rows["area"].nunique() == 1
    area = st.tl.top_gene_curve(tidy)["area"].iloc[0]
    assert area == pytest.approx(HeldOut(models["a"], models["a"], np.full(8, 9)).quality("top_genes"))
    best = st.tl.top_gene_curve(tidy, n_genes=[5], order="score", statistic="mean")
    np.testing.assert_allclose(best["value"].iloc[0], np.sort(each["a"].mean(axis=0))[-5:].mean())
    given = st.tl.top_gene_curve(tidy, n_genes=[1], order=["g7", "g3"])
    np.testing.assert_allclose(given["value"].iloc[0], each["a"].mean(axis=0)[7])
    # Folds that chose other genes: by their mean position.
    swapped = tidy[tidy["slide"] != "s0"]
    first = tidy[tidy["slide"] == "s0"].iloc[::-1].assign(fold="other")
    both = pd.concat([first[first["model"] == "a"], swapped[swapped["model"] == "a"]])
    turned = st.tl.top_gene_curve(both, n_genes=[1], n_bootstrap=10)["value"].iloc[0]
    assert turned == pytest.approx(each["a"].mean(axis=0)[0])
    for given_, message in (
        ({"order": "nope"}, "`order` must be 'rule', 'score' or a list"),
        ({"order": ["nope"]}, r"names genes \['nope'\]"),
        ({"metric": "rmse"}, "less is better"),
        ({"n_genes": [99]}, "up to the 25 genes"),
    ):
        with pytest.raises(InputError, match=message):
            st.tl.top_gene_curve(tidy, **given_)

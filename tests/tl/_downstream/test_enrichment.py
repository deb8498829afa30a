from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError

GENES = [f"G{i}" for i in range(200)]


def _scores(seed: int = 0, *, raised: int = 20, by: float = 1.5) -> pd.Series:
    values = np.random.default_rng(seed).standard_normal(200)
    values[:raised] += by
    return pd.Series(values, index=GENES)


def test_over_representation_counts_every_draw() -> None:
    """Of all ways to draw 4 of 8 genes, so many take at least as many of the set."""
    background, members = GENES[:8], GENES[:3]
    found = st.tl.enrichment(["G0", "G1", "G5", "G6"], {"s": members}, background=background, min_size=2)
    drawn = [len(set(d) & set(members)) for d in combinations(background, 4)]
    assert found.p[0] == pytest.approx(np.mean(np.array(drawn) >= 2))
    assert found.loc[0, ["size", "n_genes", "expected", "genes"]].tolist() == [3, 2, 1.5, "G0;G1"]


def test_over_representation_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    sets = {f"s{i}": rng.choice([*GENES, "not measured"], 30, replace=False).tolist() for i in range(20)}
    chosen = rng.choice(GENES, 40, replace=False).tolist()
    found = st.tl.enrichment(chosen, sets, background=GENES).set_index("set")
    for name, row in found.iterrows():
        members = set(sets[name]) & set(GENES)
        a = len(members & set(chosen))
        table = [[a, len(members) - a], [40 - a, 160 - len(members) + a]]
        assert row.p == pytest.approx(stats.fisher_exact(table, alternative="greater").pvalue, rel=1e-9)
    assert found.p_adj.to_numpy() == pytest.approx(stats.false_discovery_control(found.p))
    assert found.p.is_monotonic_increasing
    assert found.p_adj.min() > 0.05  # chosen at random


def test_the_background_decides() -> None:
    """A panel of immune genes is not enriched in immune genes."""
    sets = {"immune": GENES[:50]}
    assert st.tl.enrichment(GENES[:10], sets, background=GENES[:50]).p[0] == pytest.approx(1.0)
    assert st.tl.enrichment(GENES[:10], sets, background=GENES).p[0] < 1e-5


def _running_sum(scores: pd.Series, members: set[str]) -> tuple[float, list[str]]:
    ranked = scores.sort_values(ascending=False)
    total = sum(abs(v) for g, v in ranked.items() if g in members)
    at, best, where = 0.0, 0.0, 0
    for i, (gene, value) in enumerate(ranked.items()):
        at += abs(value) / total if gene in members else -1 / (len(ranked) - len(members))
        if abs(at) > abs(best):
            best, where = at, i
    part = ranked.index[: where + 1] if best > 0 else ranked.index[where:]
    return best, [g for g in part if g in members]


def test_gsea_equals_a_running_sum_and_finds_what_was_raised() -> None:
    rng = np.random.default_rng(3)
    sets = {"raised": GENES[:20], "lowered": GENES[20:40]} | {
        f"s{i}": rng.choice(GENES[40:], 20, replace=False).tolist() for i in range(30)
    }
    scores = _scores()
    scores.iloc[20:40] -= 1.5
    found = st.tl.enrichment(scores, sets, n_permutations=500).set_index("set")
    for name in sets:
        es, leading = _running_sum(scores, set(sets[name]))
        assert found.es[name] == pytest.approx(es, abs=1e-9)
        assert sorted(found.genes[name].split(";")) == sorted(leading)
    assert set(found.index[:2]) == {"raised", "lowered"}
    assert found.nes["raised"] > 1.5
    assert found.nes["lowered"] < -1.5
    assert found.p.iloc[:2].max() < 0.01
    assert found.p.min() >= 1 / 501
    assert found.p_adj.iloc[2:].min() > 0.05


def test_gsea_p_values_are_uniform_without_signal_also_with_seed_zero() -> None:
    rng = np.random.default_rng(5)
    sets = {f"s{i}": rng.choice(GENES, 15, replace=False).tolist() for i in range(200)}
    found = st.tl.enrichment(_scores(7, by=0.0), sets, n_permutations=300)
    assert 0.01 < (found.p < 0.05).mean() < 0.11
    assert 0.4 < found.p.mean() < 0.6
    again = st.tl.enrichment(_scores(7, by=0.0), sets, n_permutations=300, seed=0)
    pd.testing.assert_frame_equal(found, again)


def test_markers_are_asked_about_group_by_group() -> None:
    frame = pd.DataFrame({
        "group": ["a"] * 200 + ["b"] * 200,
        "gene": GENES * 2,
        "score": [*_scores(1), *-_scores(1)],
    })  # fmt: skip
    frame.attrs["stpred"] = {"genes": GENES}
    sets = {"raised": GENES[:20], "other": GENES[100:130]}
    ranked = st.tl.enrichment(frame, sets, method="gsea").set_index(["group", "set"])
    assert ranked.nes["a", "raised"] > 1.5
    assert ranked.nes["b", "raised"] < -1.5
    top = frame.sort_values("score", ascending=False).groupby("group").head(20)
    top.attrs = frame.attrs
    found = st.tl.enrichment(top, sets).set_index(["group", "set"])
    assert found.p["a", "raised"] < 1e-4
    assert found.p["b", "raised"] > 0.5
    with pytest.raises(InputError, match="n_genes=None"):
        st.tl.enrichment(top, sets, method="gsea")
    with pytest.raises(InputError, match="no set can stand out"):
        st.tl.enrichment(frame.assign(score=1.0), sets)
    top.attrs = {}
    with pytest.raises(InputError, match="needs `background`"):
        st.tl.enrichment(top, sets)


@pytest.mark.parametrize(
    ("genes", "options", "said"),
    [
        (["G1"], {}, "needs `background`.*whole genome"),
        (["G1"], {"background": "G1"}, "must be a table"),
        ([], {"background": GENES}, "is empty"),
        (["g1", "g2"], {"background": GENES}, "None of the 2 genes .*'g1'.*case"),
        ("G1", {"background": GENES}, "must be a list"),
        (["G1"], {"background": GENES, "method": "fisher"}, "'ora', 'gsea'"),
        (["G1"], {"background": GENES, "method": "gsea"}, "Series of scores"),
        (["G1"], {"background": GENES, "min_size": 50}, "No gene set has at least 50"),
        (_scores(), {"method": "ora"}, "list of genes, not scores"),
        (_scores(), {"background": GENES}, "no `background`"),
        (_scores() * np.nan, {}, "200 of 200 scores are NaN"),
        (_scores() * 0, {}, "All scores are 0"),
        (_scores().rename({"G1": "G0"}), {}, "more than one score: \\['G0'\\]"),
        (pd.DataFrame({"gene": GENES}), {}, "lacks \\['group', 'score'\\]"),
    ],
)
def test_bad_input(genes: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        st.tl.enrichment(genes, {"s": GENES[:20]}, **options)


def test_a_set_of_all_genes_is_refused_in_a_ranking() -> None:
    with pytest.raises(InputError, match="every gene that has a score: \\['all'\\]"):
        st.tl.enrichment(_scores(), {"all": GENES, "some": GENES[:10]})

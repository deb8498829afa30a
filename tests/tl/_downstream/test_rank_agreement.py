from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError
from stpred.tl._downstream.rank_agreement import shared_top


def frame(scores: np.ndarray, *, scale: str = "counts", genes: list[str] | None = None) -> pd.DataFrame:
    """As stpred.tl.differential_rank makes of (slides, genes) scores."""
    names = np.array(genes or [f"G{i}" for i in range(scores.shape[1])])
    order = np.argsort(-scores.mean(axis=0), kind="stable")
    made = pd.DataFrame({"gene": names[order], "score": scores.mean(axis=0)[order]})
    made.attrs = {"per_slide": {f"s{i}": row[order].tolist() for i, row in enumerate(scores)}, "scale": scale}
    return made


def pair(noise: float, *, n: int = 10, g: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = 0.4 * rng.normal(size=g) + 0.1 * rng.normal(size=(n, g))
    return truth + noise * rng.normal(size=g), truth


def test_agreement_equals_that_of_scipy_whatever_the_order_of_rows() -> None:
    x, y = pair(0.3)
    found = st.tl.rank_agreement(frame(x), frame(y), n_bootstrap=50, n_permutations=200).iloc[0]
    rho, p = stats.spearmanr(x.mean(axis=0), y.mean(axis=0))
    assert found["spearman"] == pytest.approx(rho, abs=1e-12)
    assert found["pearson"] == pytest.approx(np.corrcoef(x.mean(axis=0), y.mean(axis=0))[0, 1])
    assert p < 0.01
    assert found["p_value"] == pytest.approx(1 / 201)
    assert found["spearman_low"] < rho < found["spearman_high"]
    tops = [set(np.argsort(-v.mean(axis=0))[:20]) for v in (x, y)]
    assert found["top_shared"] == len(tops[0] & tops[1])
    assert found["top_expected"] == pytest.approx(20 * 20 / 60)
    assert found["top_p_value"] == pytest.approx(stats.hypergeom(60, 20, 20).sf(found["top_shared"] - 1))
    assert len(shared_top(x[0], x[0], 7)) == 7


def test_unrelated_scores_agree_by_chance_only() -> None:
    p = []
    for seed in range(40):
        x, _ = pair(0, seed=seed)
        y, _ = pair(0, seed=1000 + seed)
        p.append(st.tl.rank_agreement(frame(x), frame(y), n_bootstrap=5, n_permutations=99, seed=seed)["p_value"][0])
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_subtypes_have_rows_of_their_own_and_donors_are_drawn_together() -> None:
    x, y = pair(0.2, n=6)
    kinds = {f"s{i}": "her2" if i < 3 else "luminal" for i in range(6)}
    donors = {f"s{i}": f"d{i // 3}" for i in range(6)}
    found = st.tl.rank_agreement(frame(x), frame(y), n_top=5, by=kinds, groups=donors, n_bootstrap=50)
    assert found["group"].tolist() == ["all", "her2", "luminal"]
    assert found["n_slides"].tolist() == [6, 3, 3]
    assert found["n_donors"].tolist() == [2, 1, 1]
    assert found["spearman_low"].isna().tolist() == [False, True, True]
    alone = st.tl.rank_agreement(frame(x[:3]), frame(y[:3]), n_top=5, n_bootstrap=50)
    assert found["spearman"][1] == alone["spearman"][0]
    assert set(found.attrs["top"]) == {"all", "her2", "luminal"}
    genes = pd.DataFrame(found.attrs["genes"]).set_index("gene")
    rho = stats.spearmanr(x[:, 7], y[:, 7], alternative="greater")
    assert genes.loc["G7", "correlation"] == pytest.approx(rho.statistic)
    assert genes.loc["G7", "p_value"] == pytest.approx(rho.pvalue)


def test_bad_input_is_named() -> None:
    x, y = pair(0.1)
    good = frame(x)
    for one, two, more, said in (
        (good, pd.DataFrame({"gene": ["A"]}), {}, "`measured` must be a frame of stpred.tl.differential_rank"),
        (good, frame(y[:4]), {}, "both must be of the same"),
        (good, frame(y, scale="log1p_cp10k"), {}, "`predicted` ranks 'counts' and `measured` 'log1p_cp10k'"),
        (good, frame(y, genes=[f"H{i}" for i in range(60)]), {}, "share 0 genes"),
        (good, frame(y), {"n_top": 61}, "the `n_top`=61 of a list"),
        (good, frame(y), {"by": {"s0": "a"}}, "`by` lacks"),
        (good, frame(y), {"by": {f"s{i}": "all" for i in range(10)}}, "is called 'all'"),
    ):
        options: dict[str, Any] = {"n_bootstrap": 5, "n_permutations": 5, **more}
        with pytest.raises(InputError, match=said):
            st.tl.rank_agreement(one, two, **options)
    cut = good.head(5)
    cut.attrs = good.attrs
    with pytest.raises(InputError, match="has other rows than when it was made"):
        st.tl.rank_agreement(cut, good)

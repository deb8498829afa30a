from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError

RNG = np.random.default_rng(0)
PAIRS = [("a", "b"), ("a", "c"), ("b", "c")]


def made(statistic: list[float], null: float = 0.0, *, turned: bool = False) -> pd.DataFrame:
    pairs = [p[::-1] for p in PAIRS] if turned else PAIRS
    return pd.DataFrame(pairs, columns=["first", "second"]).assign(statistic=statistic, null_mean=null)


def sides(
    n: int, shift: float = 0.0
) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame], np.ndarray, np.ndarray]:
    x = RNG.normal(size=(n, 3)) + shift
    y = RNG.normal(size=(n, 3))
    frames = [{f"s{i}": made(list(r), turned=t) for i, r in enumerate(v)} for v, t in ((x, False), (y, True))]
    return frames[0], frames[1], x, y


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_the_test_is_that_of_scipy(alternative: str) -> None:
    first, second, x, y = sides(8, 1.0)
    found = st.tl.paired_colocalization(first, second, alternative=alternative)  # type: ignore[arg-type]
    found = found.set_index(["first", "second"]).loc[PAIRS]
    expected = stats.ttest_rel(x, y, alternative=alternative)
    np.testing.assert_allclose(found["t"], expected.statistic)
    np.testing.assert_allclose(found["p_value"], expected.pvalue)
    interval = stats.ttest_rel(x, y).confidence_interval(0.95)
    np.testing.assert_allclose(found[["low", "high"]], np.stack(interval, axis=1))
    assert (found["n_patients"] == 8).all()


def test_without_a_second_side_the_null_of_each_slide_is_subtracted() -> None:
    x = RNG.normal(size=(6, 3))
    found = st.tl.paired_colocalization({f"s{i}": made(list(r), null=0.2) for i, r in enumerate(x)})
    found = found.set_index(["first", "second"]).loc[PAIRS]
    np.testing.assert_allclose(found["t"], stats.ttest_1samp(x - 0.2, 0).statistic)
    assert found["mean_second"].tolist() == [0, 0, 0]


def test_slides_of_a_patient_are_one_value() -> None:
    first, second, x, y = sides(8)
    groups = {f"s{i}": i // 2 for i in range(8)}
    found = st.tl.paired_colocalization(first, second, groups=groups).set_index(["first", "second"]).loc[PAIRS]  # type: ignore[arg-type]
    means = [v.reshape(4, 2, 3).mean(axis=1) for v in (x, y)]
    np.testing.assert_allclose(found["t"], stats.ttest_rel(*means).statistic)
    assert (found["n_patients"] == 4).all()


def test_the_test_keeps_its_level_over_patients_with_slides_alike() -> None:
    p = []
    for _ in range(40):
        of_patient = np.repeat(RNG.normal(size=(6, 3)), 3, axis=0)
        first = {f"s{i}": made(list(r)) for i, r in enumerate(of_patient)}
        groups = {f"s{i}": f"p{i // 3}" for i in range(18)}
        p += st.tl.paired_colocalization(first, groups=groups)["p_value"].tolist()
    assert np.mean(np.array(p) < 0.05) < 0.13


def test_gaps_are_left_out_and_bad_input_is_named() -> None:
    first, second, _, _ = sides(4)
    first["s0"].loc[0, "statistic"] = np.nan
    found = st.tl.paired_colocalization(first, {k: v for k, v in second.items() if k != "s3"} | {"z": second["s3"]})
    assert found.attrs["left_out"] == ["s3", "z"]
    assert sorted(found["n_patients"]) == [2, 3, 3]
    assert found["p_value"].isna().sum() == 1
    two = {k: first[k] for k in ("s1", "s2")}
    for one, other, more, said in (
        (two, second, {}, "2 patients have a value on both sides"),
        (first, second, {"groups": dict.fromkeys(first, "p")}, "1 patients have a value"),
        (first, {"q": second["s1"]}, {}, "share no slide"),
        (first, {"s0": pd.DataFrame()}, {}, "`second` of 's0' is no frame"),
        ([], None, {}, "`first` must be a mapping"),
        (first, second, {"groups": {"s0": "p"}}, "`groups` lacks"),
        (first, second, {"alternative": "both"}, "`alternative` must be one of"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.paired_colocalization(one, other, **more)  # type: ignore[arg-type]

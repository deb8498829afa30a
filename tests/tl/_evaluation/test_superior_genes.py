"""Model against model, gene by gene: the test's size, its power, and what it is asked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import stpred as st
from stpred import InputError, metrics

N = 120


def correlations(first: float, second: float, *, shared: float = 0.0, n_pairs: int = 4000) -> np.ndarray:
    """Correlations of two predictions with a measurement each, and with each other, in simulated pairs."""
    rng = np.random.default_rng(0)
    y = rng.normal(size=(n_pairs, N))
    common, own1, own2 = rng.normal(size=(3, n_pairs, N))
    noise = [np.sqrt(shared) * common + np.sqrt(1 - shared) * own for own in (own1, own2)]
    x1, x2 = (r * y + np.sqrt(1 - r**2) * e for r, e in zip((first, second), noise, strict=True))
    return np.array([[metrics.pearson(a.T, b.T)] for a, b in ((x1, y), (x2, y), (x1, x2))])[:, 0]


def independent(first: float, second: float, *, n_pairs: int = 4000) -> np.ndarray:
    """Correlations of two predictions, each with a measurement of its own."""
    both = [correlations(r, r, n_pairs=2 * n_pairs)[0] for r in (first, second)]
    return np.array([both[0][:n_pairs], both[1][n_pairs:]])


def test_its_size_is_nominal_and_its_power_that_of_normal_theory() -> None:
    _, p = metrics.correlation_difference_test(*independent(0.4, 0.4), N)
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.012)
    _, p = metrics.correlation_difference_test(*independent(0.5, 0.3), N)
    power = stats.norm.sf(stats.norm.isf(0.05) - (np.arctanh(0.5) - np.arctanh(0.3)) * np.sqrt((N - 3) / 2))
    assert (p < 0.05).mean() == pytest.approx(power, abs=0.03)


def test_models_that_agree_make_it_cautious_unless_that_is_known() -> None:
    r1, r2, between = correlations(0.4, 0.4, shared=0.8)
    _, cautious = metrics.correlation_difference_test(r1, r2, N)
    _, p = metrics.correlation_difference_test(r1, r2, N, between=between)
    assert (cautious < 0.05).mean() < 0.02
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=0.012)


def scores(values: dict[str, list[float]], *, repeat: int | None = None) -> pd.DataFrame:
    rows = [
        {"model": m, "slide": "s", "gene": f"g{i}", "metric": "pearson", "value": v, "target": "log1p_cp10k",
         "donor": "d", "fold": "d"} | ({} if repeat is None else {"repeat": repeat})
        for m, column in values.items() for i, v in enumerate(column)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_repeats_are_combined_and_genes_corrected() -> None:
    repeats = [scores({"a": [0.6 - 0.02 * k, 0.2], "b": [0.2, 0.2]}, repeat=k) for k in range(5)]
    found = st.tl.superior_genes(pd.concat(repeats), "a", "b", n_locations={"s": 120}).set_index("gene")
    z = [(np.arctanh(0.6 - 0.02 * k) - np.arctanh(0.2)) * np.sqrt(117 / 2) for k in range(5)]
    assert found.loc["g0", "p_value"] == pytest.approx(2 * np.median(stats.norm.sf(z)))
    assert found.loc["g1", "p_value"] == 1.0
    np.testing.assert_allclose(found["p_adjusted"], stats.false_discovery_control(found["p_value"]))
    assert found["superior"].tolist() == [True, False]
    once = st.tl.superior_genes(scores({"a": [0.5], "b": [0.5]}), "a", "b", n_locations={"s": 50})
    assert once["p_value"].item() == pytest.approx(0.5)


def test_bad_input() -> None:
    frame = scores({"a": [0.5], "b": [0.4]})
    with pytest.raises(InputError, match=r"numbers of locations of slides \['s'\] are not known"):
        st.tl.superior_genes(frame, "a", "b")
    with pytest.raises(InputError, match=r"no pearson of the models \['c'\]; it has \['a', 'b'\]"):
        st.tl.superior_genes(frame, "a", "c", n_locations={"s": 9})
    with pytest.raises(InputError, match="got 'a' twice"):
        st.tl.superior_genes(frame, "a", "a", n_locations={"s": 9})
    with pytest.raises(InputError, match="`metric` must be one of"):
        st.tl.superior_genes(frame, "a", "b", metric="r2", n_locations={"s": 9})
    with pytest.raises(InputError, match="4 locations or more, got 3"):
        metrics.correlation_difference_test(0.5, 0.1, 3)
    with pytest.raises(InputError, match="between -1 and 1"):
        metrics.correlation_difference_test(1.5, 0.1, 10)

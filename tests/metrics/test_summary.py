from __future__ import annotations

import numpy as np
import pytest

from stpred import InputError, metrics


def test_summarise_states_its_nan_rule() -> None:
    scores = [0.4, np.nan, 0.2, -0.3]
    assert metrics.summarise(scores) == {
        "mean": pytest.approx(0.1), "median": pytest.approx(0.2), "n": 3, "n_nan": 1,
    }  # fmt: skip
    assert metrics.summarise(scores, nan="zero")["mean"] == pytest.approx(0.3 / 4)
    assert metrics.summarise(scores, nan="zero")["median"] == pytest.approx(0.1)
    assert np.isnan(metrics.summarise([np.nan])["mean"])
    with pytest.raises(InputError, match=r"`nan` must be one of \['drop', 'zero'\], got 'keep'"):
        metrics.summarise(scores, nan="keep")  # type: ignore[arg-type]


def test_both_orders_agree_where_all_is_defined() -> None:
    scores = np.random.default_rng(0).normal(size=(5, 40))
    genes, slides = (metrics.average(scores, order=order) for order in ("genes", "slides"))
    assert genes["mean"] == pytest.approx(slides["mean"])
    assert genes["mean"] == pytest.approx(scores.mean())
    assert (genes["n"], slides["n"]) == (5, 40)
    assert genes["sd"] == pytest.approx(scores.mean(axis=1).std(ddof=1))
    assert slides["sd"] == pytest.approx(scores.mean(axis=0).std(ddof=1))


def test_orders_and_rules_differ_where_scores_are_missing() -> None:
    nan = np.nan
    scores = [[0.2, 0.4, nan], [0.6, nan, nan], [nan, nan, nan]]
    # Genes first: slides 0.3 and 0.6, the third has none. Slides first: genes 0.4 and 0.4.
    assert metrics.average(scores, order="genes")["mean"] == pytest.approx(0.45)
    assert metrics.average(scores, order="slides")["mean"] == pytest.approx(0.4)
    assert [metrics.average(scores, order=o)["n"] for o in ("genes", "slides")] == [2, 2]
    for order in ("genes", "slides"):
        zero = metrics.average(scores, order=order, nan="zero")
        assert zero["mean"] == pytest.approx(1.2 / 9)
        assert (zero["n"], zero["n_nan"]) == (3, 6)


def test_averages_of_nothing_and_of_one() -> None:
    assert np.isnan(metrics.average(np.full((2, 3), np.nan))["mean"])
    one = metrics.average([[0.1, 0.3]])
    assert one["mean"] == pytest.approx(0.2)
    assert np.isnan(one["sd"])
    with pytest.raises(InputError, match=r"\(slides, genes\) matrix, got shape \(2,\)"):
        metrics.average([0.1, 0.2])
    with pytest.raises(InputError, match="`order` must be one of"):
        metrics.average([[0.1]], order="both")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="`nan` must be one of"):
        metrics.average([[0.1]], nan="keep")  # type: ignore[arg-type]

from __future__ import annotations

from collections.abc import Iterator

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred import InputError

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def draws(values: dict[int, list[float]], metric: str = "concordance") -> pd.DataFrame:
    return pd.DataFrame(
        [{"n_train": n, "draw": i, metric: v} for n, found in values.items() for i, v in enumerate(found)]
    )


def test_cohort_size_draws_means_and_their_standard_errors() -> None:
    one = draws({50: [0.6, 0.7, 0.8], 80: [0.7, 0.7, 0.76]})
    ax = st.pl.cohort_size({"one": one, "two": one})
    bars = ax.containers
    assert [b.get_label() for b in bars] == ["one", "two"]
    np.testing.assert_allclose(bars[0].lines[0].get_ydata(orig=False), [0.7, 0.72])
    ends = bars[0].lines[2][0].get_segments()[0]
    assert ends[1, 1] - ends[0, 1] == pytest.approx(2 * np.std([0.6, 0.7, 0.8], ddof=1) / np.sqrt(3))
    assert ax.get_xticks().tolist() == [50, 80]
    assert "AUROC" in st.pl.cohort_size(draws({9: [0.5, 0.6]}, "auroc")).get_ylabel()
    for wrong, said in (
        ({}, "`frames` is empty"),
        ({"a": one, "b": draws({9: [0.5]}, "auroc")}, "must all have the column"),
        (pd.DataFrame({"x": [1]}), "lacks the columns"),
    ):
        with pytest.raises(InputError, match=said):
            st.pl.cohort_size(wrong)


def test_rank_agreement_draws_each_gene_and_the_lists_that_agree() -> None:
    names = [f"G{i}" for i in range(30)]
    score = np.linspace(1, -1, 30)
    frame = pd.DataFrame({"gene": names, "score": score})
    frame.attrs = {"per_slide": {"a": score.tolist(), "b": score.tolist()}, "scale": "counts"}
    ax = st.pl.rank_agreement(st.tl.rank_agreement(frame, frame, n_top=5, n_bootstrap=5), n_labels=3)
    assert [len(c.get_offsets()) for c in ax.collections] == [30, 5, 5]
    assert {t.get_text() for t in ax.texts} == {"G0", "G1", "G2", "G27", "G28", "G29"}
    assert "Spearman 1.00" in ax.get_title()
    with pytest.raises(InputError, match="lacks the columns"):
        st.pl.rank_agreement(frame)
    bare = pd.DataFrame({"group": ["all"], "spearman": [1.0]})
    with pytest.raises(InputError, match="with its attrs"):
        st.pl.rank_agreement(bare)


def test_labels_keep_their_distance_and_order() -> None:
    from stpred.pl.labels import spaced

    heights = np.array([0.0, 0.0, 0.01, 1.0])
    found = spaced(heights, 0.1)
    assert (np.diff(found) >= 0.1 - 1e-12).all()
    np.testing.assert_allclose(found.mean(), heights.mean())
    np.testing.assert_allclose(spaced(np.array([0.0, 1.0]), 0.1), [0.0, 1.0])

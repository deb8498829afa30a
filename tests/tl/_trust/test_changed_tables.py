"""A predicted table that was changed after it was written is told by all that reads it, once."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
from spatialdata import SpatialData

import stpred as st

CALLS: dict[str, Callable[[SpatialData], Any]] = {
    "compare": lambda s: st.tl.compare(s, "spots_ridge", "spots_counts", resolution="cell", bin_um=200),
    "correct": lambda s: st.tl.correct(s, "spots_ridge", "spots_counts", inplace=False),
    "recalibrate": lambda s: st.tl.recalibrate(s, "spots_ridge", "spots_counts", inplace=False),
    "pseudobulk": lambda s: st.tl.pseudobulk(s, "spots_ridge"),
    "markers": lambda s: st.tl.markers(s, "spots_ridge", "half"),
    "spatial": lambda s: st.pl.spatial(s, "spots_ridge", s["spots_ridge"].var_names[0]),
}


@pytest.fixture(scope="module")
def predicted() -> SpatialData:
    slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    test = slides.pop("donor2")
    model = st.tl.train(slides, genes="all", shapes_key="spots", encoder="intensity")
    st.tl.predict(test, model, shapes_key="spots")
    table = test["spots_ridge"]
    table.obs["half"] = ["a" if i % 2 else "b" for i in range(table.n_obs)]
    table.obs["half"] = table.obs["half"].astype("category")
    return test


def told(sdata: SpatialData, call: Callable[[SpatialData], Any]) -> list[str]:
    import matplotlib.pyplot as plt

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(sdata)
    plt.close("all")
    return [w.filename for w in caught if "was changed since stpred wrote it" in str(w.message)]


def with_table(sdata: SpatialData, table: Any) -> SpatialData:
    return SpatialData(
        images=dict(sdata.images),
        shapes={"spots": sdata["spots"]},
        tables={"spots_counts": sdata["spots_counts"], "spots_ridge": table},
    )


@pytest.mark.parametrize("name", CALLS)
def test_what_was_normalised_is_told_once_and_what_was_cut_is_not(predicted: SpatialData, name: str) -> None:
    import scanpy as sc

    table = predicted["spots_ridge"]
    for same in (table.copy(), table[::-1, 3:15].copy(), table[5:].copy()):
        assert told(with_table(predicted, same), CALLS[name]) == []
    changed = table.copy()
    sc.pp.log1p(changed)
    assert told(with_table(predicted, changed), CALLS[name]) == [__file__]


def test_recalibrated_and_corrected_tables_have_a_fingerprint_of_their_own(predicted: SpatialData) -> None:
    sdata = with_table(predicted, predicted["spots_ridge"].copy())
    st.tl.recalibrate(sdata, "spots_ridge", "spots_counts")
    st.tl.correct(sdata, "spots_ridge", "spots_counts")
    for key in ("spots_ridge_recalibrated", "spots_corrected"):
        assert told(sdata, lambda s, key=key: st.tl.pseudobulk(s, key)) == []
        sdata[key].X = sdata[key].X * 2
        assert told(sdata, lambda s, key=key: st.tl.pseudobulk(s, key)) == [__file__]


def test_the_page_says_it(predicted: SpatialData, tmp_path: Any) -> None:
    changed = predicted["spots_ridge"].copy()
    changed.X = changed.X + 1
    page = tmp_path / "page.html"
    st.report(page, with_table(predicted, changed), "spots_ridge")
    assert "was changed since stpred wrote it" in page.read_text().replace("&#x27;", "'")

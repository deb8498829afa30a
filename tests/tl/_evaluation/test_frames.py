"""Frames of every kind of scores go through every function and picture that takes scores."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import stpred as st
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from pathlib import Path

    from spatialdata import SpatialData

plt.switch_backend("Agg")

pytestmark = pytest.mark.usefixtures("kept_features")

COARSE: dict[str, Any] = {"encoder": "intensity", "tile": st.TileSpec(mpp=4, size_px=16)}
WHERE: dict[str, Any] = {"shapes_key": "spots"}
KINDS = ("cross_validate", "validate", "withheld_sections", "withheld_spots")


@pytest.fixture(scope="module")
def slides() -> dict[str, SpatialData]:
    return st.datasets.toy_cohort(5, size_um=(600, 600), n_genes=12, mpp=1.0)


@pytest.fixture(scope="module")
def frames(slides: dict[str, SpatialData]) -> dict[str, pd.DataFrame]:
    some = {s: slides[s] for s in list(slides)[:3]}
    donors = dict(zip(some, "PQR", strict=True))
    stress: dict[str, Any] = {**WHERE, "n_genes": 6, "context": True}
    options: dict[str, Any] = {**COARSE, "genes": "all"}
    alone = ["model", "slide", "gene", "metric", "target"]
    sections = [
        st.tl.withheld_sections(some, m, groups=donors, baselines=False, train_options=options, **stress)
        for m in ("ridge", "mean")
    ]
    spots = [
        st.tl.withheld_spots(some, m, train_options={**options, "groups": donors}, **stress) for m in ("ridge", "mean")
    ]
    rest = {s: slides[s] for s in list(slides)[3:]}
    trained = {m: st.tl.train(rest, m, genes="all", **COARSE, **WHERE) for m in ("ridge", "mean")}
    return {
        "cross_validate": st.tl.cross_validate(some, ["ridge", "mean"], groups=donors, genes="all", **COARSE, **WHERE),
        "validate": st.tl.validate(some, trained, groups=donors, **WHERE),
        "withheld_sections": pd.concat(sections).drop_duplicates(alone),
        "withheld_spots": pd.concat(spots).drop_duplicates(alone),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_taken_by_tables_and_tests(frames: dict[str, pd.DataFrame], kind: str) -> None:
    found = frames[kind]
    columns = [c for c in frames["cross_validate"].columns if c in found]
    assert columns == list(frames["cross_validate"].columns)
    assert set(found["donor"]) - {"withheld spots"} == set("PQR")
    means = st.tl.summarise(found).droplevel(0)
    by_hand = found[(found["model"] == "ridge") & (found["metric"] == "pearson")].groupby("slide")["value"].mean()
    assert means.loc["ridge", "mean"] == pytest.approx(by_hand.mean())
    assert means.loc["ridge", "n_donors"] == 3
    assert {"library_size"} < set(means.index)
    genes = st.tl.summarise(found, groupby="gene").droplevel(0)
    assert genes.loc["ridge", "p_t"].notna().any()  # of genes that every fold scored
    ranked = st.tl.rank_models(found)
    assert ranked.ranks.index[0] == "ridge"
    assert ranked.n_blocks == 3
    assert ranked.pairs["low"].notna().all()
    tests = st.tl.paired_tests(found, groupby="slide", reference="ridge", alternative="greater")
    assert set(tests["second"]) == {"mean"}
    assert (tests["difference"] > 0).mean() > 0.5
    curve = st.tl.top_gene_curve(found, n_genes=[2, 4], n_bootstrap=20)
    assert (curve.loc[curve["model"] == "ridge", "value"] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_drawn_and_reported(
    frames: dict[str, pd.DataFrame], slides: dict[str, SpatialData], kind: str, tmp_path: Path
) -> None:
    found = frames[kind]
    st.pl.models(found, comparison=st.tl.rank_models(found), save=tmp_path / "a.png")
    tests = st.tl.paired_tests(found, groupby="donor", reference="ridge")
    st.pl.boxes(found, groupby="donor", tests=tests, context=True, save=tmp_path / "b.png")
    st.pl.donors_per_gene(found, model="ridge", n_samples=20, save=tmp_path / "c.png")
    shown = {s: copy_slide(slides[s]) for s in list(slides)[:2]}
    model = st.tl.train({"donor4": slides["donor4"]}, "ridge", genes="all", **COARSE, **WHERE)
    for sdata in shown.values():
        st.tl.predict(sdata, model, **WHERE)
    page = st.report(tmp_path / "r.html", shown, "spots_ridge", scores=found, n_maps=1).read_text()
    assert "library size alone" in page
    assert ("Slides of one donor are on both sides" in page) == (kind == "withheld_spots")


def test_spots_are_read_against_their_own_library_size(
    frames: dict[str, pd.DataFrame], slides: dict[str, SpatialData]
) -> None:
    found = frames["withheld_spots"]
    size = found[(found["model"] == "library_size") & (found["slide"] == "donor0")].set_index("gene")["value"]
    counts = slides["donor0"].tables["spots_counts"].to_df()
    everywhere = st.metrics.library_size_baseline(counts.to_numpy(), target="log1p_cp10k")
    whole = pd.Series(everywhere, index=counts.columns).reindex(size.index)
    assert not np.allclose(size, whole)  # of the withheld spots alone
    assert "neighbour_average" not in set(found["model"])  # few of a withheld spot's neighbours are withheld, too
    held = frames["withheld_sections"]
    own = held[(held["model"] == "library_size") & (held["slide"] == "donor0")].set_index("gene")["value"]
    np.testing.assert_allclose(own, pd.Series(everywhere, index=counts.columns).reindex(own.index), atol=1e-5)
    assert {"neighbour_average", "ceiling"} < set(held["model"])

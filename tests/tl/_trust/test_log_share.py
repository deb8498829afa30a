"""ST-Net's scale: what it holds, what it is scored as, and when it becomes log1p CP10k."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

import stpred as st
from stpred import InputError, metrics
from stpred._core import keys, tables, targets
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

N_GENES, SHOWN = 15_000, 250


@pytest.fixture(scope="module")
def deep(cohort: dict[str, SpatialData]) -> SpatialData:
    """A slide of 15 000 genes whose library sizes vary about 3 400 counts, as spots' do."""
    slide = copy_slide(cohort[list(cohort)[0]])
    old = slide.tables["spots_counts"]
    rng = np.random.default_rng(0)
    level = np.exp(rng.normal(0, 2, N_GENES))
    shares = level * np.exp(rng.normal(0, 0.5, (old.n_obs, N_GENES)))
    shares /= shares.sum(axis=1, keepdims=True)
    counts = csr_matrix(rng.poisson(shares * rng.lognormal(np.log(3400), 0.6, (old.n_obs, 1))).astype(np.float32))
    order = np.argsort(-counts.sum(axis=0).A1, kind="stable")
    from anndata import AnnData
    from spatialdata.models import TableModel

    del slide.tables["spots_counts"]
    table = AnnData(counts[:, order], obs=old.obs.copy(), obsm={"spatial": old.obsm["spatial"]})
    table.var_names = [f"G{i}" for i in range(N_GENES)]
    attrs = old.uns["spatialdata_attrs"]
    slide.tables["spots_counts"] = TableModel.parse(
        table, region=attrs["region"], region_key=attrs["region_key"], instance_key=attrs["instance_key"]
    )
    slide.tables["told"] = perfect(slide)
    return slide


def perfect(slide: SpatialData) -> AnnData:
    """Return the true log shares as a prediction's table."""
    measured = slide.tables["spots_counts"]
    values = targets.transform(measured.X[:, :SHOWN], targets.totals(measured.X), target="log_share", n_measured=26_949)
    return tables.build_table(
        values,
        shapes_key="spots",
        instances=pd.Index(measured.obs["instance_id"]),
        var=measured.var.iloc[:SHOWN][[]],
        spatial_um=measured.obsm["spatial"],
        provenance={"kind": "prediction", "output_scale": "log_share", "training": {"n_measured": 26_949}},
    )


def truth(slide: SpatialData) -> tuple[np.ndarray, np.ndarray]:
    counts = slide.tables["spots_counts"].X
    library = targets.totals(counts)
    return targets.transform(counts[:, :SHOWN], library, target="log1p_cp10k"), library


def test_one_library_size_leaves_the_library_in_and_the_own_one_is_exact(deep: SpatialData) -> None:
    expected, library = truth(deep)
    told = np.asarray(deep.tables["told"].X, dtype=np.float64)
    at_median = targets.from_log_share(told, np.full(len(told), np.median(library)), n_measured=26_949)
    assert np.nanmedian(metrics.r2(at_median, expected)) < 0.9
    sizes = np.broadcast_to(np.log(library)[:, None], expected.shape)
    drift = [np.nanmedian(metrics.pearson(v, sizes)) for v in (at_median, expected)]
    assert abs(drift[0]) > abs(drift[1]) + 0.1
    np.testing.assert_allclose(targets.from_log_share(told, library, n_measured=26_949), expected, atol=2e-3)


def test_a_perfect_prediction_is_perfect_on_its_own_scale(deep: SpatialData) -> None:
    own = st.tl.compare(deep, "told", "spots_counts")
    assert own["r2"].min() > 0.9999
    other = st.tl.compare(deep, "told", "spots_counts", target="log1p_cp10k")
    assert other["r2"].isna().all()
    assert other["pearson"].notna().all()


def test_a_known_library_gives_log1p_cp10k(deep: SpatialData) -> None:
    expected, library = truth(deep)
    by_counts = st.tl.to_log1p_cp10k(deep, "told", measured_key="spots_counts", inplace=False)
    np.testing.assert_allclose(by_counts.X, expected, atol=2e-3)
    given = st.tl.to_log1p_cp10k(deep, "told", library_size=library, inplace=False)
    np.testing.assert_array_equal(by_counts.X, given.X)
    st.tl.to_log1p_cp10k(deep, "told", library_size=3400)
    flat = deep.tables["told_log1p_cp10k"]
    assert json.loads(flat.uns[keys.UNS])["converted"] == {"of": "told", "library_size": "3400 for all"}
    bulk = st.tl.pseudobulk({"a": deep}, "told")
    np.testing.assert_allclose(bulk.X[0], np.log(np.exp(deep.tables["told"].X.astype(float)).mean(axis=0)), rtol=1e-5)


def test_recalibration_keeps_negative_log_shares(deep: SpatialData) -> None:
    found = st.tl.recalibrate(deep, "told", "spots_counts", inplace=False)
    np.testing.assert_allclose(found.X, deep.tables["told"].X, atol=0.05)


def test_what_cannot_be_converted_is_refused(deep: SpatialData, unseen: SpatialData) -> None:
    for how in ({}, {"measured_key": "spots_counts", "library_size": 1.0}):
        with pytest.raises(InputError, match=r"known library sizes only: pass either `measured_key`"):
            st.tl.to_log1p_cp10k(deep, "told", **how)
    with pytest.raises(InputError, match=r"must be \d+ numbers above 0, one for each location, got int64 of shape"):
        st.tl.to_log1p_cp10k(deep, "told", library_size=[1, 2])
    with pytest.raises(InputError, match=r"'log_share'; only those .* see stpred\.tl\.to_log1p_cp10k"):
        st.tl.correct(deep, "told", "spots_counts")
    table = deep.tables["told"].copy()
    tables.write_provenance(table, {"kind": "prediction", "output_scale": "counts"})
    deep.tables["other"] = table
    with pytest.raises(InputError, match=r"holds predictions as 'counts', not as 'log_share'"):
        st.tl.to_log1p_cp10k(deep, "other", library_size=3400)


def test_all_slides_share_one_number_of_genes(cohort: dict[str, SpatialData]) -> None:
    slides = {s: copy_slide(cohort[s]) for s in list(cohort)[:2]}
    first = next(iter(slides.values()))
    few = first.tables["spots_counts"][:, :-1].copy()
    del first.tables["spots_counts"]
    first.tables["spots_counts"] = few
    how = {"genes": st.GeneRule("mean", n=10), "shapes_key": "spots", "target": "log_share"}
    model = st.tl.train(slides, "ridge", **how)
    assert model.record.n_measured == max(s.tables["spots_counts"].n_vars for s in slides.values())
    scores = st.tl.cross_validate(slides, "ridge", genes=how["genes"], shapes_key="spots", groups="slide",
                                  target="log_share", key_added="out")  # fmt: skip
    assert set(scores["target"]) == {"log_share"}
    r2 = scores[(scores.model == "ridge") & (scores.metric == "r2")]["value"]
    assert np.isfinite(r2).all()
    kept = json.loads(first.tables["spots_ridge_out"].uns[keys.UNS])
    assert kept["output_scale"] == "log_share"
    assert kept["training"]["n_measured"] == model.record.n_measured


def test_networks_reach_log_shares_or_are_refused(cohort: dict[str, SpatialData]) -> None:
    slides = {s: cohort[s] for s in list(cohort)[:2]}
    how = {"genes": st.GeneRule("mean", n=10), "shapes_key": "spots", "target": "log_share", "encoder": "colour"}
    for config in (
        st.models.MLP.Config(hidden=(16,), epochs=3),
        st.models.Retrieval.Config(width=8, k=5, epochs=2, n_reference=50),
    ):
        model = st.tl.train(slides, config, **how)
        found = st.tl.predict(slides[list(slides)[0]], model, shapes_key="spots", inplace=False).X
        assert (found < 0).all()
        assert found.std(axis=0).min() > 0
    for config in (st.models.MLP.Config(loss="cosine"), st.models.MLP.Config(scale_genes=False, output="softplus")):
        with pytest.raises(InputError, match="Log shares are negative, which 'mlp' with these settings cannot predict"):
            st.tl.train(slides, config, **how)

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.stats import pearsonr, spearmanr

import stpred as st
from stpred import InputError
from stpred.tl._samples.compare_bulk import positive_p


def samples(rng: np.random.Generator, *, n: int = 30, g: int = 40, link: float = 0.7) -> tuple[AnnData, pd.DataFrame]:
    """A pseudo-bulk of log1p CP10k and bulk counts that share per-sample levels of every gene."""
    names, genes = [f"p{i}" for i in range(n)], [f"G{j}" for j in range(g)]
    gene_mean, level = rng.normal(3, 1, g), rng.normal(size=(n, g))
    noise = rng.normal(size=(n, g))
    share = np.exp(gene_mean + 0.5 * (link * level + np.sqrt(1 - link**2) * noise))
    x = np.log1p(share / share.sum(axis=1, keepdims=True) * 1e4)
    truth = np.exp(gene_mean + 0.5 * level)
    bulk = rng.poisson(truth / truth.sum(axis=1, keepdims=True) * rng.uniform(1e5, 1e6, (n, 1)))
    made = AnnData(x.astype(np.float32), obs=pd.DataFrame(index=names), var=pd.DataFrame(index=genes))
    made.uns["stpred"] = json.dumps({"kind": "pseudobulk", "output_scale": "log1p_cp10k"})
    return made, pd.DataFrame(bulk, index=names, columns=genes)


def test_planted_agreement_is_found_and_shuffled_samples_have_none() -> None:
    ours, bulk = samples(np.random.default_rng(0))
    found = st.tl.compare_bulk(ours, bulk)
    assert 0.5 < found["correlation"].median() < 0.8
    assert found.attrs["n_positive"] == 40
    assert found.attrs["n_significant"] > 35
    assert np.mean(list(found.attrs["per_sample"].values())) > 0.8
    mixed = bulk.set_axis(np.random.default_rng(1).permutation(bulk.index))
    nothing = st.tl.compare_bulk(ours, mixed)
    assert abs(nothing["correlation"].median()) < 0.1
    assert nothing.attrs["n_significant"] <= 2
    assert nothing["p_value"].between(0.3, 0.7).mean() > 0.2  # about uniform
    # Genes differ more than samples do, so shuffled samples still correlate over genes: hence the mean's own value.
    assert np.mean(list(nothing.attrs["per_sample"].values())) > 0.6
    assert np.mean(list(nothing.attrs["per_sample_of_mean"].values())) > 0.6


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_values_equal_scipy(method: str) -> None:
    ours, bulk = samples(np.random.default_rng(2), n=12, g=8)
    found = st.tl.compare_bulk(ours, bulk, method=method).set_index("gene")  # type: ignore[arg-type]
    y = np.log1p(bulk.div(bulk.sum(axis=1), axis=0) * 1e6)
    x = pd.DataFrame(np.log1p(np.expm1(ours.X.astype(float)) * 100), index=bulk.index, columns=bulk.columns)
    score = {"pearson": pearsonr, "spearman": spearmanr}[method]
    for gene in bulk.columns:
        r, p = score(x[gene], y[gene], alternative="greater")
        assert found.loc[gene, "correlation"] == pytest.approx(r, abs=1e-6)
        assert found.loc[gene, "p_value"] == pytest.approx(p, abs=1e-6)


def test_few_samples_have_exact_p_values() -> None:
    ours, bulk = samples(np.random.default_rng(3), n=3, g=30)
    found = st.tl.compare_bulk(ours, bulk)
    assert found["p_value"].min() == pytest.approx(1 / 6)  # no Spearman of three samples says more
    x = np.arange(5.0)[:, None]
    p = positive_p(np.hstack([x, x]), np.hstack([x, -x]), np.array([1.0, -1.0]), exact=True)
    np.testing.assert_allclose(p, [1 / 120, 1])


def test_samples_are_joined_by_name_and_scales_agree() -> None:
    ours, bulk = samples(np.random.default_rng(4), n=10)
    whole = st.tl.compare_bulk(ours, bulk)
    extra = pd.DataFrame(5, index=["other"], columns=bulk.columns)
    again = st.tl.compare_bulk(ours, pd.concat([extra, bulk.iloc[::-1, ::-1]]))
    pd.testing.assert_frame_equal(whole, again, check_exact=False)
    assert again.attrs["joined"]["n_samples_bulk"] == 11
    assert again.attrs["joined"]["n_samples"] == 10
    cpm = bulk.div(bulk.sum(axis=1), axis=0) * 1e6
    for given, scale in ((cpm, "linear"), (np.log1p(cpm), "log"), (AnnData(bulk.astype(float)), "counts")):
        pd.testing.assert_frame_equal(whole, st.tl.compare_bulk(ours, given, bulk_scale=scale))  # type: ignore[arg-type]
    ours.uns["stpred"] = json.dumps({"kind": "pseudobulk", "output_scale": "relative"})
    assert st.tl.compare_bulk(ours, bulk).attrs["per_sample"] is None


def test_a_constant_gene_is_nan() -> None:
    ours, bulk = samples(np.random.default_rng(5), n=10, g=5)
    ours.X[:, 2] = 1.0
    found = st.tl.compare_bulk(ours, bulk).set_index("gene")
    assert found.loc["G2", ["correlation", "p_value", "p_bh"]].isna().all()
    assert found.attrs["n_tested"] == 4


def test_bad_input_is_named() -> None:
    ours, bulk = samples(np.random.default_rng(6), n=5, g=5)
    twice = bulk.set_axis([*bulk.index[:-1], bulk.index[0]])
    for given, more, said in (
        (bulk.iloc[:2], {}, "2 samples are in the pseudo-bulk .* needs 3"),
        (bulk.set_axis([f"H{i}" for i in range(5)], axis=1), {}, "share no gene"),
        (bulk.set_axis([g.lower() for g in bulk.columns], axis=1), {}, "upper and lower case"),
        (bulk / 3, {}, "say with `bulk_scale`"),
        (-bulk / 3, {"bulk_scale": "linear"}, "negative values, so it is not 'linear'"),
        (bulk, {"bulk_scale": "tpm"}, "`bulk_scale` must be one of"),
        (bulk, {"method": "kendall"}, "`method` must be one of"),
        (twice, {}, "Samples of the bulk are not unique"),
        (bulk.astype(float).mask(bulk == bulk.iloc[0, 0]), {}, "NaN or infinite"),
        (bulk.assign(G0="x"), {}, "numbers only"),
        (bulk.to_numpy(), {}, "must be an AnnData or a DataFrame"),
        (bulk * 0, {}, "without any count"),
    ):
        with pytest.raises(InputError, match=said):
            st.tl.compare_bulk(ours, given, **more)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pseudo-bulk was not written by stpred"):
        st.tl.compare_bulk(AnnData(bulk.astype(float)), bulk)

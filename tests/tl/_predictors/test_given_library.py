"""Training on what the library size does not explain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import stpred as st
from stpred import InputError
from stpred._core.targets import transform, without_library
from stpred.metrics import partial_pearson, pearson
from stpred.models import registry

TARGET = "log1p_cp10k_given_library"


def test_residuals_of_a_regression_about_the_mean() -> None:
    rng = np.random.default_rng(0)
    totals = rng.integers(100, 10_000, 60).astype(float)
    counts = rng.poisson(totals[:, None] * rng.uniform(0.001, 0.05, 7))
    plain = np.log1p(counts / totals[:, None] * 1e4)
    design = np.column_stack([np.ones(60), np.log(totals)])
    expected = plain - design @ np.linalg.lstsq(design, plain, rcond=None)[0] + plain.mean(axis=0)
    found = transform(counts, totals, target=TARGET)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean(axis=0), plain.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(pearson(found, np.repeat(np.log(totals)[:, None], 7, axis=1)), 0, atol=1e-4)
    half = transform(counts, totals, target="log1p_cp10k_half_library")
    np.testing.assert_allclose(half, (plain + expected) / 2, rtol=1e-4, atol=1e-4)
    same = without_library(plain, np.full(60, 500.0), share=1.0)
    np.testing.assert_array_equal(same, plain)  # a library size that does not vary explains nothing


@pytest.fixture(scope="module")
def confounded() -> dict[str, Any]:
    """Slides on which the library size follows the tissue's colour, and genes that follow either."""
    import pandas as pd
    from scipy.sparse import csr_matrix

    slides = {}
    for donor in range(3):
        slide = st.datasets.toy(size_um=(500, 500), n_genes=5, donor=donor)
        table = slide.tables["spots_counts"]
        rng = np.random.default_rng(donor)
        st.pp.features(slide, "colour", shapes_key="spots")
        x = np.asarray(slide.tables["spots_feat_colour"].X, dtype=float)
        x = (x - x.mean(axis=0)) / x.std(axis=0)
        del slide.tables["spots_feat_colour"]
        # on the last donor it follows nothing that is seen
        totals = np.exp(8 + 0.8 * (rng.normal(size=len(x)) if donor == 2 else x[:, 0]) + 0.2 * rng.normal(size=len(x)))
        rates = np.exp(-4 + 0.5 * x[:, [3]] + 0.7 * (np.log(totals)[:, None] - 8) * np.array([1, -1, 1, -1, 0]))
        counts = rng.poisson(totals[:, None] * rates)
        rest = rng.poisson(np.maximum(totals - counts.sum(axis=1), 1))
        names = [*(f"g{i}" for i in range(5)), "rest"]
        import anndata

        new = anndata.AnnData(
            csr_matrix(np.column_stack([counts, rest]).astype(np.float32)),
            obs=table.obs.copy(),
            var=pd.DataFrame(index=names),
            obsm=dict(table.obsm),
            uns=dict(table.uns),
        )
        del slide.tables["spots_counts"]
        slide.tables["spots_counts"] = new
        slides[f"d{donor}"] = slide
    return slides


def partial(slide: Any, key: str) -> float:
    table, counts = slide.tables[key], slide.tables["spots_counts"]
    X = np.asarray(counts.X.todense())
    totals = X.sum(axis=1)
    observed = transform(X[:, :5], totals, target="log1p_cp10k")
    return float(np.mean(partial_pearson(np.asarray(table[:, counts.var_names[:5]].X), observed, np.log(totals))))


def test_predictions_hold_on_a_donor_whose_library_size_follows_other_tissue(confounded: Any, tmp_path: Any) -> None:
    training = {k: confounded[k] for k in ("d0", "d1")}
    found = {}
    for target in (None, TARGET):
        model = st.tl.train(
            training, "ridge", encoder="colour", shapes_key="spots", genes=[f"g{i}" for i in range(5)], target=target
        )
        st.models.save(model, tmp_path / str(target))
        model = st.models.load(tmp_path / str(target))
        assert model.record.target == "log1p_cp10k"
        assert model.record.training["target"] == (target or "log1p_cp10k")
        st.tl.predict(confounded["d2"], model, shapes_key="spots", key_added=f"p_{target}")
        found[target] = partial(confounded["d2"], f"p_{target}")
    assert found[TARGET] > found[None] + 0.05
    means = [np.asarray(confounded["d2"].tables[f"p_{t}"].X).mean() for t in (None, TARGET)]
    assert means[0] == pytest.approx(means[1], abs=0.5)


def test_cross_validation_scores_on_the_plain_scale(confounded: Any) -> None:
    scores = st.tl.cross_validate(
        confounded, ["ridge"], groups={k: k for k in confounded}, target=TARGET, encoder="colour", shapes_key="spots",
        genes=["g0", "g1"],
    )  # fmt: skip
    ridge = scores[scores["model"] == "ridge"]
    assert set(ridge["target"]) == {"log1p_cp10k"}
    assert set(ridge["trained_on"]) == {TARGET}


def test_bad_input(confounded: Any) -> None:
    with pytest.raises(InputError, match="'log1p_cp10k_given_library'"):
        st.tl.train(confounded, "ridge", target="residual", shapes_key="spots")
    for family, message in (("xfuse", "XFuse models raw counts"), ("deepspot2cell", "not on 'log1p_cp10k_given")):
        with pytest.raises(InputError, match=message):
            registry.resolve(family).training_target(TARGET)

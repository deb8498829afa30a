"""Imputation on real sections: what is expected of genes is what is found of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from anndata import concat

import stpred as st

pytestmark = [pytest.mark.realdata, pytest.mark.slow]


def test_genes_trusted_without_a_measurement_agree_with_it(real_data: Path) -> None:
    base = real_data / "her2st"
    slides = {
        c: st.io.legacy_st(base / f"{c}.counts.tsv.gz", base / f"{c}.jpg", base / f"{c}.spots.tsv")
        for c in ("C2", "C3", "C4")
    }
    shared = sorted(set.intersection(*(set(s["spots_counts"].var_names) for s in slides.values())))
    reference = concat([slides[c]["spots_counts"][:, shared] for c in ("C3", "C4")], index_unique="-")
    total = np.asarray(reference.X.sum(axis=0)).ravel()
    genes = [shared[i] for i in np.argsort(-total)[:400]]
    slide = slides.pop("C2")
    model = st.tl.train(slides, "ridge", genes=genes, groups="slide", shapes_key="spots")
    st.tl.predict(slide, model, shapes_key="spots")
    hidden = np.random.default_rng(0).permutation(400)[:200]
    names = slide["spots_ridge"].var_names
    slide.tables["panel"] = slide["spots_ridge"][:, np.setdiff1d(np.arange(400), hidden)].copy()
    frames = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for measured in (None, "spots_counts"):
            table = st.tl.impute_genes(
                slide, "panel", reference, genes=list(names[hidden]), measured_key=measured, inplace=False
            )
            assert table is not None
            frames.append(table.var[table.var["imputed"].to_numpy()])
    stated, found = frames[0], frames[1]["measured_pearson"]
    assert found.median() > 0.2  # these genes were predicted directly with 0.27
    assert found[stated["trusted"]].median() > 0.25 > 0.15 > found[~stated["trusted"]].median()
    assert (found[stated["trusted"]] > 0.1).mean() > 0.8
    assert stated["expected_pearson"].corr(found) > 0.5

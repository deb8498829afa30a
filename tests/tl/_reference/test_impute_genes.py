from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat
from scipy.sparse import csr_matrix
from spatialdata import SpatialData

import stpred as st
from stpred.testing import build_table, refused
from stpred.tl._reference.imputation import Cells, correlations, impute
from stpred.tl._reference.imputed_scores import expectation
from stpred.tl._reference.reading import log_over

GENES, PANEL = 60, 40


@pytest.fixture(scope="module")
def slides() -> list[SpatialData]:
    found = []
    for donor in range(3):
        tissue = st.datasets.make_tissue(size_um=(400, 400), n_genes=GENES, donor=donor)
        found.append(st.datasets.toy(tissue=tissue))
        found[-1].tables["cells_counts"].layers["expected"] = tissue.expected
    return found


@pytest.fixture(scope="module")
def reference(slides: list[SpatialData]) -> AnnData:
    cells = [slide["cells_counts"] for slide in slides[:2]]
    return concat({"a": cells[0], "b": cells[1]}, index_unique="-", merge="same")


def predicted(slide: SpatialData, *, seed: int = 0) -> SpatialData:
    """Predict the panel's genes: drawn to the mean, with errors; the last ten are nothing but errors."""
    rng = np.random.default_rng(seed)
    measured = slide["cells_counts"]
    log = log_over(measured.layers["expected"])
    log = log.mean(axis=0) + 0.4 * (log - log.mean(axis=0)) + rng.normal(0, 0.25, log.shape)
    log[:, PANEL - 10 : PANEL] = 2 + rng.normal(0, 0.3, (len(log), 10))
    score = np.where(np.arange(PANEL) < PANEL - 10, 0.5, 0.0)
    table = build_table(
        log[:, :PANEL].clip(min=0).astype(np.float32),
        shapes_key="cells",
        instances=pd.Index(measured.obs["instance_id"]),
        var=pd.DataFrame({"cv_pearson": score, "trusted": score > 0.1}, index=measured.var_names[:PANEL]),
        spatial_um=measured.obsm["spatial"],
        provenance={"kind": "prediction", "output_scale": "log1p_cp10k", "model": "made"},
    )
    return SpatialData(
        images=dict(slide.images), shapes=dict(slide.shapes), tables={"cells_counts": measured, "cells_made": table}
    )


def imputed(sdata: SpatialData, reference: AnnData, **how: Any) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = st.tl.impute_genes(sdata, "cells_made", reference, **({"inplace": False} | how))
    assert found is not None
    return found


@pytest.mark.parametrize("method", ["ridge", "knn"])
def test_unmeasured_genes_are_imputed_and_scored_as_they_turn_out(
    slides: list[SpatialData], reference: AnnData, method: str
) -> None:
    sdata = predicted(slides[2])
    truth = log_over(slides[2]["cells_counts"].X)
    table = imputed(sdata, reference, method=method)
    new = table.var["imputed"].to_numpy()
    assert list(table.var_names) == list(slides[2]["cells_counts"].var_names)
    assert new.sum() == GENES - PANEL
    assert np.array_equal(table.X[:, ~new], sdata["cells_made"].X)
    real = correlations(table.X[:, new].astype(float), truth[:, new])
    assert np.median(real) > 0.3
    own = table.var.loc[~new]
    assert own["hidden_pearson"].iloc[: PANEL - 10].median() > 0.35
    assert abs(own["hidden_pearson"].iloc[PANEL - 10 :]).max() < 0.25  # what is error is not found again
    expected = table.var["expected_pearson"].to_numpy()[new]
    assert np.median(np.abs(expected - real)) < 0.3
    assert np.median(expected) < np.median(real)  # the table has genes that are not predicted at all
    scored = imputed(sdata, reference, method=method, measured_key="cells_counts")
    np.testing.assert_allclose(scored.var["measured_pearson"].to_numpy()[new], real, atol=0.02)
    assert np.corrcoef(scored.var["measured_pearson"][:30], own["hidden_pearson"][:30])[0, 1] > 0.3
    assert (scored.var["trusted"].to_numpy()[new] == (real > 0.1)).mean() > 0.85
    means = np.expm1(table.X[:, new]).mean(axis=0), np.expm1(truth[:, new]).mean(axis=0)
    assert np.corrcoef(np.log(means[0]), np.log(means[1]))[0, 1] > 0.8  # on the table's own library
    stated = json.loads(table.uns["stpred"])
    assert stated["model"] == "made"
    assert len(stated["imputed"]["given"]) == PANEL - 10


@pytest.mark.parametrize("method", ["ridge", "knn"])
def test_a_shuffled_reference_imputes_nothing(slides: list[SpatialData], reference: AnnData, method: str) -> None:
    rng = np.random.default_rng(0)
    other = reference.copy()
    other.X = csr_matrix(np.stack([rng.permutation(c) for c in reference.X.toarray().T], axis=1))
    sdata = predicted(slides[2])
    with pytest.warns(UserWarning, match="of 20 imputed genes are trusted"):
        table = st.tl.impute_genes(
            sdata, "cells_made", other, method=method, measured_key="cells_counts", inplace=False
        )
    assert table is not None
    for score in ("reference_pearson", "hidden_pearson", "measured_pearson"):
        assert abs(table.var[score].mean()) < 0.05
        assert table.var[score].abs().median() < 0.05
    assert table.var["trusted"][PANEL:].sum() <= 2


def test_without_evidence_no_gene_is_trusted_and_few_genes_are_chosen(
    slides: list[SpatialData], reference: AnnData
) -> None:
    sdata = predicted(slides[2])
    sdata["cells_made"].var = sdata["cells_made"].var[[]]
    table = imputed(sdata, reference, n_genes=7)
    assert table.var["imputed"].sum() == 7
    assert not table.var["trusted"].any()
    assert table.var["expected_pearson"].isna().all()
    asked = list(slides[2]["cells_counts"].var_names[[50, 45]])
    assert list(imputed(sdata, reference, genes=asked).var_names[PANEL:]) == asked


def test_the_table_is_put_into_the_object_and_the_order_of_rows_is_kept(
    slides: list[SpatialData], reference: AnnData, tmp_path: Any
) -> None:
    sdata = predicted(slides[2])
    first = imputed(sdata, reference)
    order = np.random.default_rng(0).permutation(first.n_obs)
    made = sdata["cells_made"][order].copy()
    del sdata.tables["cells_made"]
    sdata.tables["cells_made"] = made
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        st.tl.impute_genes(sdata, "cells_made", reference)
        sdata.write(tmp_path / "s.zarr")
    again = sdata["cells_made_imputed"]
    np.testing.assert_allclose(again.X, first.X[order], atol=1e-5)
    # What is predicted and imputed is compared and cut as any prediction.
    scores = st.tl.compare(sdata, "cells_made_imputed", "cells_counts")
    assert scores["pearson"].notna().sum() > 50
    assert st.tl.trusted(again).n_vars == again.var["trusted"].sum()


def test_bad_input_is_refused(slides: list[SpatialData], reference: AnnData) -> None:
    sdata = predicted(slides[2])
    names = list(sdata["cells_made"].var_names)
    for parts, arguments in (
        (("`method` must be one of",), {"method": "magic"}),
        (("no gene", "NOTHING"), {"genes": ["NOTHING"]}),
        (("already", names[0]), {"genes": [names[0]]}),
        (("AnnData of raw counts",), {"reference": sdata}),
        (("raw counts are needed", "`layer`"), {"reference": AnnData(log_over(reference.X), var=reference.var)}),
        (("no gene that is expressed",), {"reference": reference[:, names]}),
    ):
        with refused(*parts):
            imputed(sdata, **({"reference": reference} | arguments))


def test_ridge_equals_the_normal_equations_and_knn_the_slow_loop() -> None:
    rng = np.random.default_rng(0)
    given = rng.normal(2, 1, (300, 6)) * [1, 2, 3, 1, 1, 1]
    wanted = given @ rng.normal(0, 1, (6, 3)) + rng.normal(0, 0.5, (300, 3))
    cells = Cells(given, wanted, np.arange(300) % 2 == 0)
    new = rng.normal(2, 1, (40, 6)) * [1, 2, 3, 1, 1, 1] + 5  # another level
    found = impute(cells, new, method="ridge")
    z = (given - given.mean(axis=0)) / given.std(axis=0)
    best = np.inf
    for penalty in 10.0 ** np.arange(-3, 3):
        slope = np.linalg.solve(z.T @ z / 300 + penalty * np.eye(6), z.T @ (wanted - wanted.mean(axis=0)) / 300)
        guess = (new - new.mean(axis=0)) / given.std(axis=0) @ slope + wanted.mean(axis=0)
        best = min(best, np.abs(guess - found.values).max())
    assert best < 1e-8
    assert (found.pearson > 0.8).all()
    near = impute(cells, new, method="knn", n_neighbors=5).values
    y = (new - new.mean(axis=0)) / new.std(axis=0)
    for i in (0, 17):
        order = np.argsort(((z - y[i]) ** 2).sum(axis=1))[:5]
        np.testing.assert_allclose(near[i], wanted[order].mean(axis=0))


def test_expectations_come_from_hidden_genes_of_like_scores() -> None:
    hidden, evidence = np.linspace(0, 0.95, 20), np.linspace(0, 0.95, 20) / 2
    middle, least = expectation(np.array([0.0, 0.95]), hidden, evidence)
    assert middle[0] < 0.15 < 0.3 < middle[1]
    assert (least < middle).all()
    assert np.isnan(expectation(np.array([0.5]), hidden[:5], evidence[:5])[0]).all()

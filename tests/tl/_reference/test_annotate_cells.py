from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat
from scipy.sparse import csr_matrix, hstack
from spatialdata import SpatialData

import stpred as st
from stpred.testing import build_table, refused
from stpred.tl._reference.count_types import CountClasses
from stpred.tl._reference.reading import at_depth, log_over, profiles, pseudo_cells, read_reference, relog
from stpred.tl._reference.value_types import fit_values, reliability

GENES = 40


@pytest.fixture(scope="module")
def tissues() -> list[Any]:
    return [st.datasets.make_tissue(size_um=(450, 450), n_genes=GENES, donor=d) for d in range(3)]


def cells_of(tissue: Any, name: str = "") -> AnnData:
    table = AnnData(csr_matrix(tissue.counts.astype(np.float32)), obs=tissue.cells[["type"]].copy(), var=tissue.genes)
    table.obs_names = [f"{name}{i}" for i in range(table.n_obs)]
    return table


@pytest.fixture(scope="module")
def reference(tissues: list[Any]) -> AnnData:
    return concat([cells_of(t, f"d{i}-") for i, t in enumerate(tissues[:2])], merge="same")


@pytest.fixture(scope="module")
def cells(tissues: list[Any]) -> AnnData:
    return cells_of(tissues[2])


def predicted(values: np.ndarray, like: AnnData, scale: str = "log1p_cp10k", **var: Any) -> AnnData:
    return build_table(
        values.astype(np.float32),
        shapes_key="cells",
        instances=pd.Index(np.arange(len(values))),
        var=pd.DataFrame(var, index=like.var_names),
        spatial_um=np.zeros((len(values), 2)),
        provenance={"kind": "prediction", "output_scale": scale},
    )


def shrunk(tissue: Any, like: AnnData, *, seed: int = 0) -> AnnData:
    """Predictions as they come: drawn to the mean gene by gene, of another level, with errors that genes share."""
    rng = np.random.default_rng(seed)
    log = log_over(tissue.expected)
    away = log - log.mean(axis=0)
    error = rng.standard_normal((len(log), 4)) @ rng.standard_normal((4, GENES)) * 0.12
    slope, level = rng.uniform(0.1, 0.6, GENES), rng.normal(0, 0.3, GENES)
    return predicted((log.mean(axis=0) + level + slope * away + error).clip(min=0), like)


def quiet(table: AnnData) -> SpatialData:
    """Return an object of a table alone, whose shapes nobody needs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SpatialData(tables={"t": table})


def annotated(table: AnnData, reference: AnnData, **how: Any) -> tuple[np.ndarray, AnnData, dict[str, Any]]:
    sdata = quiet(table.copy())
    found = st.tl.annotate_cells(sdata, "t", reference, **({"groupby": "type", "inplace": False} | how))
    assert found is not None
    text = found.uns.get("stpred_cell_types")
    stated = json.loads(text) if text else json.loads(found.uns["stpred"])["cell_types"]
    return found.obs["cell_type"].astype(str).to_numpy(), found, stated


def types_of(cells: AnnData) -> np.ndarray:
    return cells.obs["type"].astype(str).to_numpy()


def bayes(cells: AnnData, tissue: Any) -> float:
    """Accuracy of the likelihood of each type's true shares of the counts."""
    truth = types_of(cells)
    names = np.unique(truth)
    true = np.stack([tissue.expected[truth == n].sum(axis=0) for n in names])
    columns = [list(tissue.genes.index).index(g) for g in cells.var_names]
    true = true[:, columns] / true[:, columns].sum(axis=1, keepdims=True)
    return float((names[np.asarray(cells.X @ np.log(true).T).argmax(axis=1)] == truth).mean())


@pytest.mark.parametrize("n_genes", [8, 16, GENES])
def test_counts_are_named_about_as_well_as_with_the_true_profiles(
    tissues: list[Any], reference: AnnData, cells: AnnData, n_genes: int
) -> None:
    part = cells[:, np.random.default_rng(n_genes).permutation(GENES)[:n_genes]].copy()
    labels, table, stated = annotated(part, reference)
    truth = types_of(cells)
    known = labels != "unknown"
    # Unknown cells count as wrong: with few genes, some have no class of a probability of a half.
    assert (labels == truth).mean() > bayes(part, tissues[2]) - (0.06 if n_genes < 10 else 0.03)
    assert (labels == truth)[known].mean() > bayes(part, tissues[2]) - 0.03
    assert set(stated["recall"]) == set(truth)
    assert table.obs["cell_type_score"].between(0, 1).all()
    assert stated["n_unknown"] == (~known).sum()


def test_unknown_is_as_rare_and_as_frequent_as_stated(reference: AnnData, cells: AnnData) -> None:
    truth = types_of(cells)
    labels, _, stated = annotated(cells, reference, level=0.05)
    assert 0.01 < (labels == "unknown").mean() < 0.1
    for kind in ("tumour", "lymphocyte"):
        labels, _, _ = annotated(cells, reference[reference.obs["type"] != kind], level=0.05)
        share = (labels[truth == kind] == "unknown").mean()
        assert share > stated["unknown_if_absent"][kind] - 0.05 > 0.8
        assert (labels == truth)[truth != kind].mean() > 0.88


def test_shrunken_predictions_are_named_and_their_order_does_not_matter(
    tissues: list[Any], reference: AnnData, cells: AnnData
) -> None:
    table, truth = shrunk(tissues[2], cells), types_of(cells)
    labels, found, stated = annotated(table, reference)
    names = np.unique(truth)
    # The best there is with these values: linear discriminants of the true types.
    values = relog(np.asarray(table.X, dtype=np.float64))
    codes = np.searchsorted(names, truth)
    means = profiles(values, codes, len(names))
    inverse = np.linalg.inv(np.cov((values - means[codes]).T) + 1e-4 * np.eye(GENES))
    best = (values @ inverse @ means.T - 0.5 * np.einsum("kg,gh,kh->k", means, inverse, means)).argmax(axis=1)
    known = labels != "unknown"
    assert (labels == truth)[known].mean() > (best == codes).mean() - 0.03
    assert known.mean() > 0.85
    assert 0.1 < stated["slope"] < 0.7
    for kind in ("tumour", "lymphocyte"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            without, _, _ = annotated(table, reference[reference.obs["type"] != kind])
        share = (without[truth == kind] == "unknown").mean()
        assert abs(share - stated["unknown_if_absent"][kind]) < 0.15
        assert (without[truth != kind] == "unknown").mean() < 0.2
    assert stated["explained"] > stated["explained_by_chance"]
    assert json.loads(found.uns["stpred"])["output_scale"] == "log1p_cp10k"
    order = np.random.default_rng(0).permutation(len(truth))
    again, _, _ = annotated(table[order].copy(), reference)
    assert (again == labels[order]).mean() > 0.99


def test_nothing_is_named_where_nothing_is_known(tissues: list[Any], reference: AnnData, cells: AnnData) -> None:
    rng = np.random.default_rng(0)
    table = shrunk(tissues[2], cells)
    other = reference.copy()
    other.obs["type"] = rng.permutation(types_of(reference))
    mixed = table.copy()
    mixed.X = np.stack([rng.permutation(column) for column in np.asarray(table.X).T], axis=1)
    mixed.uns["stpred"] = json.dumps({"kind": "prediction", "output_scale": "log1p_cp10k"})
    exchanged = mixed.copy()
    exchanged.X = np.asarray(table.X)[:, rng.permutation(GENES)]
    for values, by, why in (
        (table, other, "tells none of its classes apart"),
        (cells, other, "tells none of its classes apart"),
        (mixed, reference, "than one of other genes could"),
        (exchanged, reference, "than one of other genes could"),
    ):
        with pytest.warns(UserWarning, match=why):
            labels, _, stated = annotated(values, by)
        assert set(labels) == {"unknown"}
        assert not stated["related"]


def test_another_platform_is_taken_out_by_the_tables_centre(reference: AnnData, cells: AnnData) -> None:
    truth = types_of(cells)
    for least, expected in ((0.1, 0.15), (0.002, 0.5)):
        rng = np.random.default_rng(1)
        kept = np.exp(rng.uniform(np.log(least), 0, GENES)) if least < 0.1 else rng.uniform(least, 1, GENES)
        other = cells.copy()
        other.X = csr_matrix(rng.binomial(cells.X.toarray().astype(int), kept).astype(np.float32))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            absolute, _, _ = annotated(other, reference)
        assert (absolute == "unknown").mean() > expected
        assert any("center='table'" in str(w.message) for w in caught) == (expected == 0.5)
        labels, _, _ = annotated(other, reference, center="table")
        assert (labels == "unknown").mean() < (absolute == "unknown").mean() / 2
        assert (labels == truth)[labels != "unknown"].mean() > 0.9


def test_genes_are_matched_by_id_and_only_trusted_ones_used(reference: AnnData, cells: AnnData) -> None:
    by_id = reference.copy()
    by_id.var_names = [f"ENSG{g:011d}.2" for g in range(GENES)]
    table = cells.copy()
    table.var["gene_id"] = [f"ENSG{g:011d}" for g in range(GENES)]
    table.var["trusted"] = np.arange(GENES) < 20
    labels, _, stated = annotated(table, by_id)
    same, _, _ = annotated(table, reference)
    assert (labels == same).all()
    assert stated["genes"] == list(cells.var_names[:20])
    assert len(annotated(table, by_id, trusted_only=False)[2]["genes"]) == GENES


def test_of_many_genes_those_that_tell_classes_apart_are_taken(reference: AnnData, cells: AnnData) -> None:
    rng = np.random.default_rng(0)
    noise = [csr_matrix(rng.poisson(0.5, (part.n_obs, 100)).astype(np.float32)) for part in (reference, cells)]
    names = [*reference.var_names, *(f"N{i}" for i in range(100))]
    parts = [
        AnnData(csr_matrix(hstack([part.X, more])), obs=part.obs, var=pd.DataFrame(index=names))
        for part, more in zip((reference, cells), noise, strict=True)
    ]
    labels, _, stated = annotated(parts[1], parts[0], n_genes=20)
    assert len(stated["genes"]) == 20
    assert not any(g.startswith("N") and g[1:].isdigit() for g in stated["genes"])
    assert (labels == types_of(cells)).mean() > 0.95
    check = st.tl.check_reference(parts[0], parts[1], "type", n_genes=20)
    assert check.attrs["stpred"]["genes"] == stated["genes"]


def test_empty_cells_are_unknown_and_a_second_call_and_storage_work(
    reference: AnnData, cells: AnnData, tmp_path: Any
) -> None:
    table = cells[:60].copy()
    table.X = table.X.toarray()
    table.X[3] = 0
    sdata = SpatialData(tables={"t": table})
    for _ in range(2):
        assert st.tl.annotate_cells(sdata, "t", reference, groupby="type") is None
    obs = sdata["t"].obs
    assert obs["cell_type"].iloc[3] == "unknown"
    assert np.isnan(obs["cell_type_distance"].iloc[3])
    sdata.write(tmp_path / "s.zarr")


def test_bad_input_is_refused(reference: AnnData, cells: AnnData) -> None:
    def call(table: AnnData = cells, by: Any = reference, **how: Any) -> None:
        annotated(table, by, **how)

    log = reference.copy()
    log.X = csr_matrix(np.log1p(log.X.toarray()))
    log.layers["counts"] = reference.X.copy()
    call(by=log, layer="counts")
    renamed = reference.copy()
    renamed.var_names = [g.lower() for g in renamed.var_names]
    untrusted = cells.copy()
    untrusted.var["trusted"] = False
    values = np.ones(cells.shape)
    for parts, arguments in (
        (("AnnData of raw counts", "dict"), {"by": {}}),
        (("raw counts are needed", "`layer`"), {"by": log}),
        (("no layer 'raw'", "counts"), {"by": log, "layer": "raw"}),
        (("no column obs['kind']", "'type'"), {"groupby": "kind"}),
        (("share 0 of 40 genes", "upper and lower case"), {"by": renamed}),
        (("is trusted", "trusted_only=False"), {"table": untrusted}),
        (("'relative'", "recalibrate"), {"table": predicted(values, cells, "relative")}),
        (("'log_share'", "to_log1p_cp10k"), {"table": predicted(values, cells, "log_share")}),
        (("no raw counts", "put raw counts into X"), {"table": AnnData(values * 0.5, var=cells.var)}),
        (("`center` must be one of",), {"center": "slide"}),
        (("`level` must be between 0 and 1",), {"level": 1.5}),
        (("two are needed", "tumour"), {"by": reference[types_of(reference) == "tumour"]}),
    ):
        with refused(*parts):
            call(**arguments)


def test_thinning_and_sums_have_the_depth_and_the_mean() -> None:
    rng = np.random.default_rng(0)
    counts = csr_matrix(rng.poisson(5.0, (400, 30)).astype(float))
    thin = at_depth(counts, 60.0, rng=rng)
    assert abs(np.asarray(thin.sum(axis=1)).mean() - 60) < 1.5
    assert (thin.toarray() <= counts.toarray()).all()
    assert (at_depth(counts, 1e6, rng=rng) != counts).nnz == 0
    adata = AnnData(counts, obs=pd.DataFrame({"k": np.repeat(["a", "b"], 200)}, index=map(str, range(400))))
    one = read_reference(adata, None, genes=list(map(str, range(30))), groupby="k", layer=None, min_in_group=5)
    deep, codes = pseudo_cells(one, 1500.0, rng=rng)
    assert np.bincount(codes).tolist() == [20, 20]
    assert deep.std() < 0.4 * log_over(counts).std()
    assert np.allclose(np.expm1(relog(np.log1p(counts.toarray()))).sum(axis=1), 1e4)


def test_likelihood_and_dispersion_equal_the_slow_loop() -> None:
    from scipy.special import gammaln

    rng = np.random.default_rng(1)
    mean, dispersion = 20 * rng.dirichlet(np.full(12, 3.0), 2)[np.repeat([0, 1], 500)], 0.4
    counts = rng.negative_binomial(1 / dispersion, 1 / (1 + dispersion * mean))
    adata = AnnData(
        csr_matrix(counts), obs=pd.DataFrame({"k": np.repeat(["a", "b"], 500)}, index=map(str, range(1000)))
    )
    one = read_reference(adata, None, genes=list(map(str, range(12))), groupby="k", layer=None, min_in_group=5)
    classes = CountClasses.of(one)
    assert 0.2 < np.median(classes.dispersion) < 0.5
    some = counts[:5]
    r = 1 / classes.dispersion
    expected = np.zeros((5, 2))
    for i, k, g in np.ndindex(5, 2, 12):
        mean, c = some[i].sum() * classes.shares[k, g], some[i, g]
        choose = gammaln(c + r[g]) - gammaln(r[g]) - gammaln(c + 1)
        expected[i, k] += choose + r[g] * np.log(r[g] / (r[g] + mean)) + c * np.log(mean / (r[g] + mean))
    found = classes.log_likelihood(csr_matrix(some))
    np.testing.assert_allclose(found[:, 0] - found[:, 1], expected[:, 0] - expected[:, 1], rtol=1e-6)


def test_slopes_and_composition_are_recovered() -> None:
    rng = np.random.default_rng(2)
    typical = rng.normal(3, 1, (4, 25))
    codes = rng.choice(4, 1500, p=[0.5, 0.25, 0.15, 0.1])
    slope = rng.uniform(0.2, 0.9, 25)
    values = 1.0 + slope * (typical[codes] - typical.mean(axis=0)) + rng.normal(0, 0.3, (1500, 25))
    found = fit_values(values, typical, centred=True)
    assert (found.posterior(values).argmax(axis=1) == codes).mean() > 0.98
    assert np.corrcoef(found.slope, slope)[0, 1] > 0.9  # drawn towards what the genes have in common
    assert np.abs(found.slope - slope).mean() < 0.06
    assert np.abs(found.prior - [0.5, 0.25, 0.15, 0.1]).max() < 0.03


def test_reliability_is_a_cautious_kappa() -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(4)
    typical = rng.normal(3, 1, (4, 30))
    codes = rng.integers(0, 4, 3000)
    for share in (0.0, 0.4, 0.9):  # of locations that look like what they are
        shown = np.where(rng.random(3000) < share, codes, rng.permutation(codes))
        values = 0.6 * typical[shown] + rng.normal(0, 0.25, (3000, 30))
        truth = typical[codes] + rng.normal(0, 1, (3000, 30))
        pearson = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(values.T, truth.T, strict=True)])
        classes = fit_values(values, typical, centred=True)
        best = classes.posterior(values).argmax(axis=1)
        found = reliability(classes, values, best, cells=(truth, codes), pearson=pearson)
        assert -0.25 < found - cohen_kappa_score(codes, best) < 0.05


def test_scores_are_no_higher_than_what_the_model_was_scored(
    tissues: list[Any], reference: AnnData, cells: AnnData
) -> None:
    table = shrunk(tissues[2], cells)
    sure, found, _ = annotated(table, reference)
    table.var["cv_pearson"] = 0.05
    with pytest.warns(UserWarning, match="little beyond chance"):
        labels, drawn, stated = annotated(table, reference)
    assert stated["reliability"] < 0.3
    assert (labels == "unknown").mean() > 0.5 > (sure == "unknown").mean()
    assert (drawn.obs["cell_type_score"] <= found.obs["cell_type_score"] + 1e-9).all()

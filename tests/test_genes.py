from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stpred import GeneRule, InputError, genes


def lattice(n: int = 12) -> np.ndarray:
    row, col = np.mgrid[:n, :n].reshape(2, -1)
    return 100.0 * np.column_stack([col + 0.5 * (row % 2), row * np.sqrt(3) / 2])


@pytest.fixture(scope="module")
def slides() -> dict[str, np.ndarray]:
    """Two slides of 144 spots x 60 genes: G07 follows space, G11 is overdispersed, G20 is silent."""
    rng = np.random.default_rng(0)
    xy = lattice()
    made = {}
    for slide, scale in (("a", 1.0), ("b", 1.6)):
        counts = rng.poisson(scale * np.linspace(0.5, 6, 60), size=(len(xy), 60))
        counts[:, 7] = rng.poisson(2 + 6 * (np.sin(xy[:, 0] / 250) > 0))
        counts[:, 11] = rng.poisson(rng.gamma(0.2, 30, size=len(xy)))
        counts[:, 20] = 0
        made[slide] = counts
    return made


NAMES = [f"G{i:02d}" for i in range(60)]


def test_rmax_matches_a_loop_and_the_oracle() -> None:
    rng = np.random.default_rng(0)
    rates = rng.gamma(1.0, 3.0, size=(20000, 3))
    counts = rng.poisson(rates)
    found = genes.rmax(counts)
    for g in range(3):
        x = counts[:, g].astype(float)
        assert found[g] == pytest.approx(np.sqrt(1 - x.mean() / x.var(ddof=1)))
        assert found[g] == pytest.approx(np.corrcoef(rates[:, g], x)[0, 1], abs=0.01)
    np.testing.assert_allclose(genes.rmax(sparse.csr_matrix(counts)), found)
    np.testing.assert_allclose(genes.rmax(sparse.csc_array(counts.astype(np.float32))), found)


def test_rmax_edges() -> None:
    counts = np.zeros((6, 4), dtype=int)
    counts[0, 1] = 1  # no more variable than Poisson
    counts[:, 2] = 5  # constant
    counts[3, 3] = 40
    assert np.isnan(genes.rmax(counts)[0])
    np.testing.assert_allclose(genes.rmax(counts)[1:3], 0, atol=1e-6)
    assert 0.9 < genes.rmax(counts)[3] < 1
    assert np.isnan(genes.rmax(counts[:1])[0])


def test_mean_counts_weights_rows_not_slides(slides) -> None:
    both = np.vstack([slides["a"][:10], slides["b"]])
    np.testing.assert_allclose(genes.mean_counts([slides["a"][:10], sparse.csr_matrix(slides["b"])]), both.mean(0))


def test_planted_genes_come_first(slides) -> None:
    coords = {s: lattice() for s in slides}
    for method, best in (("svg", "G07"), ("rmax", "G11"), ("hvg", "G11")):
        found = genes.select(GeneRule(method, n=5), slides, NAMES, coords_um=coords)
        assert found.index[0] == best, method
        assert len(found) == 5
        assert "G20" not in genes.select(GeneRule(method), slides, NAMES, coords_um=coords).index


def test_hvg_agrees_with_scanpy_batch_key() -> None:
    import scanpy as sc
    from anndata import AnnData

    rng = np.random.default_rng(1)
    shape = rng.gamma(1, 2, size=400)
    batches = [rng.poisson(rng.gamma(0.7, 1, size=(n, 400)) * shape) for n in (120, 90, 150)]
    adata = AnnData(sparse.csr_matrix(np.vstack(batches).astype(np.float32)))
    adata.obs["slide"] = np.repeat(["x", "y", "z"], [len(b) for b in batches])
    reference = sc.pp.highly_variable_genes(adata, flavor="seurat_v3", n_top_genes=50, batch_key="slide", inplace=False)
    scores = genes.hvg(batches, n_top=50)
    np.testing.assert_array_equal(np.isfinite(scores), reference["highly_variable_rank"].notna())
    assert set(np.argsort(-np.nan_to_num(scores, nan=-1e9))[:50]) == set(np.flatnonzero(reference["highly_variable"]))


@pytest.mark.parametrize(("n", "g"), [(5, 3), (5, 10), (10, 100), (3, 500), (2, 4), (40, 8)])
def test_hvg_survives_small_slides(n, g) -> None:
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.5, size=(n, g))
    counts[0, 1] = 60
    assert np.nanargmax(genes.hvg([counts])) == 1
    assert np.isnan(genes.hvg([np.zeros((n, g), dtype=int)])).all()


def test_morans_i_matches_a_loop() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(0, 1000, size=(60, 2))
    counts = rng.poisson(3, size=(60, 4)) + (xy[:, :1] > 500) * np.array([0, 5, 0, 0])
    counts[:, 3] = 0
    values = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    found = genes.morans_i(sparse.csr_matrix(counts), xy)
    for g in range(3):
        z = values[:, g] - values[:, g].mean()
        near = [np.argsort(np.linalg.norm(xy - p, axis=1))[1:7] for p in xy]
        assert found[g] == pytest.approx(sum(z[i] * z[near[i]].mean() for i in range(60)) / (z @ z), abs=1e-4)
    assert np.isnan(found[3])


def test_svg_is_a_geometric_mean_with_a_floor(monkeypatch) -> None:
    values = iter([np.array([0.4, -0.2, 0.3, np.nan]), np.array([0.1, 0.5, np.nan, np.nan])])
    monkeypatch.setattr(genes, "morans_i", lambda counts, coords: next(values))
    found = genes.svg([None, None], [None, None])
    np.testing.assert_allclose(found, [0.2, np.sqrt(0.5 * genes.MORAN_FLOOR), 0.3, np.nan])


def test_svg_survives_tiny_slides() -> None:
    assert np.isnan(genes.morans_i(np.ones((1, 2)), np.zeros((1, 2)))).all()
    assert genes.morans_i(np.array([[1, 9], [9, 1], [5, 5], [2, 8]]), lattice()[:4]).shape == (2,)


def test_select_orders_filters_and_reports(slides) -> None:
    sparse_slides = {s: sparse.csr_matrix(c) for s, c in slides.items()}
    found = genes.select(GeneRule("mean", n=10), sparse_slides, NAMES)
    total = slides["a"].sum(0) + slides["b"].sum(0)
    assert found.index.tolist() == [NAMES[i] for i in np.argsort(-total, kind="stable")[:10]]
    assert found.columns.tolist() == ["score", "rmax", "mean", "n_slides"]
    assert (found["n_slides"] == 2).all()
    everything = genes.select(GeneRule("all"), slides, NAMES)
    assert len(everything) == 59  # all but the silent one, which is below min_total
    assert len(genes.select(GeneRule("all", min_total=0), slides, NAMES)) == 59  # a gene without counts is never chosen
    floor = float(np.sort(total)[30])
    assert len(genes.select(GeneRule("all", min_total=floor), slides, NAMES)) == (total >= floor).sum()
    each = np.array([genes.rmax(c) for c in slides.values()])
    np.testing.assert_allclose(found["rmax"], each.mean(0)[[NAMES.index(g) for g in found.index]])


def test_select_does_not_depend_on_gene_or_slide_order(slides) -> None:
    tied = {s: np.hstack([c, c]) for s, c in slides.items()}  # every score occurs twice
    names = NAMES + [f"H{i:02d}" for i in range(60)]
    order = np.random.default_rng(0).permutation(120)
    for method in ("mean", "rmax", "hvg", "svg"):
        coords = {s: lattice() for s in slides}
        a = genes.select(GeneRule(method, n=20), tied, names, coords_um=coords)
        shuffled = {s: tied[s][:, order] for s in reversed(list(tied))}
        b = genes.select(GeneRule(method, n=20), shuffled, [names[i] for i in order], coords_um=coords)
        pd.testing.assert_frame_equal(a, b, rtol=1e-4)


def test_all_zero_on_one_slide_counts_the_other_only(slides) -> None:
    counts = {s: c.copy() for s, c in slides.items()}
    counts["b"][:, 11] = 0
    row = genes.select(GeneRule("rmax"), counts, NAMES).loc["G11"]
    assert row["n_slides"] == 1
    assert row["rmax"] == pytest.approx(genes.rmax(counts["a"])[11])


def test_list_keeps_its_order_and_names_what_is_missing(slides) -> None:
    assert genes.select(GeneRule("list", genes=("G20", "G03")), slides, NAMES).index.tolist() == ["G20", "G03"]
    with pytest.raises(
        InputError, match=r"1 of the 2 listed genes .*\['EPCAM'\].*for example \['G00', 'G01', 'G02'\]\.$"
    ):
        genes.select(GeneRule("list", genes=("G20", "EPCAM")), slides, NAMES)
    with pytest.raises(InputError, match="only by upper and lower case"):
        genes.select(GeneRule("list", genes=("g20",)), slides, NAMES)
    with pytest.raises(InputError, match="first look like Ensembl ids and the second like symbols"):
        genes.select(GeneRule("list", genes=("ENSG00000119888",)), slides, NAMES)


def test_select_refuses_what_it_cannot_use(slides) -> None:
    with pytest.raises(InputError, match=r"'svg' needs coordinates; `coords_um` lacks the slides \['a', 'b'\]"):
        genes.select(GeneRule("svg"), slides, NAMES)
    with pytest.raises(InputError, match=r"lacks the slides \['b'\]"):
        genes.select(GeneRule("svg"), slides, NAMES, coords_um={"a": lattice()})
    with pytest.raises(InputError, match=r"must be \(144, 2\), one row per row of counts, got \(3, 2\)"):
        genes.select(GeneRule("svg"), slides, NAMES, coords_um={"a": np.zeros((3, 2)), "b": lattice()})
    with pytest.raises(InputError, match="Slide 'a' has 60 genes, but there are 59 gene names"):
        genes.select(GeneRule("mean"), slides, NAMES[:-1])
    with pytest.raises(InputError, match=r"1 gene names occur more than once in `var_names`: \['G00'\]"):
        genes.select(GeneRule("mean"), slides, ["G00", "G00", *NAMES[2:]])
    with pytest.raises(InputError, match="No training slide"):
        genes.select(GeneRule("mean"), {}, NAMES)
    with pytest.raises(InputError, match="None of the 60 shared genes can be chosen by 'mean' with at least 1e"):
        genes.select(GeneRule("mean", min_total=1e9), slides, NAMES)
    with pytest.raises(InputError, match="counts of slide 'a' hold .* not whole numbers"):
        genes.select(GeneRule("mean"), {"a": slides["a"] * 0.3}, NAMES)


@pytest.mark.realdata
def test_rules_on_her2st(real_data) -> None:
    tables = {s: pd.read_csv(real_data / f"her2st/{s}.counts.tsv.gz", sep="\t", index_col=0) for s in ("C2", "C3")}
    shared, columns = genes.shared_genes({s: t.columns.tolist() for s, t in tables.items()})
    assert len(shared) > 14000
    counts = {s: sparse.csr_matrix(t.to_numpy()[:, columns[s]]) for s, t in tables.items()}
    coords = {s: np.array([i.split("x") for i in t.index], dtype=float) * 200 for s, t in tables.items()}
    for method in ("mean", "rmax", "hvg", "svg"):
        found = genes.select(GeneRule(method, n=200), counts, shared, coords_um=coords)
        assert len(found) == 200
        assert found["score"].is_monotonic_decreasing
        assert len(found.index.intersection(["FABP7", "SCGB2A2", "KRT86", "MUC6", "IGLC3"])) >= 3, method

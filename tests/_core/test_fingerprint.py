"""A table's fingerprint: what leaves the values as they are passes, and what changes them is seen."""

from __future__ import annotations

import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData, concat, read_h5ad
from scipy.sparse import csc_matrix, csr_matrix

from stpred._core import tables
from stpred._core.disk.fingerprint import MAX_VALUES, difference, fingerprint

SIZES = [(3000, 250), (400, 2000), (150, 18000), (40, 3), (1, 5)]


def values(n: int, n_genes: int, seed: int = 0) -> np.ndarray:
    """Return predictions as log1p CP10k, most of them small."""
    rng = np.random.default_rng(seed)
    return np.log1p(rng.gamma(2.0, rng.lognormal(0, 1.5, n_genes), (n, n_genes))).astype(np.float32)


def barcodes(n: int) -> np.ndarray:
    return np.array([f"ACGT{i:06d}-1" for i in range(n)])


def genes(n: int) -> list[str]:
    return [f"GENE{i}" for i in range(n)]


@pytest.mark.parametrize(("n", "n_genes"), SIZES)
@pytest.mark.parametrize("ids", [barcodes, np.arange])
def test_rows_and_genes_may_be_left_out_and_reordered(n: int, n_genes: int, ids: Any) -> None:
    X, names = values(n, n_genes), genes(n_genes)
    kept = json.loads(json.dumps(fingerprint(X, ids(n), names)))
    rng = np.random.default_rng(1)
    for rows, columns in [
        (rng.permutation(n), rng.permutation(n_genes)),
        (rng.permutation(n)[: n // 2 + 1], rng.permutation(n_genes)[: n_genes // 2 + 1]),
        (rng.permutation(n)[: n // 20 + 1], np.arange(n_genes)),
        (np.arange(n), rng.permutation(n_genes)[:5]),
    ]:
        part, some = X[rows][:, columns], [names[k] for k in columns]
        for stored in (part, part.astype(np.float64), part.astype(np.float16), csr_matrix(part), csc_matrix(part)):
            assert difference(kept, stored, ids(n)[rows], some) is None


CHANGES = {
    "log1p": np.log1p,
    "expm1": np.expm1,
    "scaled": lambda X: (X - X.mean(axis=0)) / (X.std(axis=0) + 1e-12),
    "normalised": lambda X: X / X.sum(axis=1, keepdims=True) * np.median(X.sum(axis=1)),
    "twice": lambda X: 2 * X,
    "one per cent more": lambda X: 1.01 * X,
    "shifted": lambda X: X - 0.2,
    "rows exchanged": lambda X: X[::-1],
    "NaN": lambda X: X * np.nan,
}


@pytest.mark.parametrize(("n", "n_genes"), SIZES[:3])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_values_are_seen(n: int, n_genes: int, change: str) -> None:
    X = values(n, n_genes)
    kept = fingerprint(X, barcodes(n), genes(n_genes))
    changed = CHANGES[change](X.astype(np.float64))
    found = difference(kept, changed, barcodes(n), genes(n_genes))
    assert found is not None
    assert found.n_changed > 0.1 * found.n_compared
    # A tenth of the rows, and of the genes, still say so.
    assert difference(kept, changed[::10, ::10], barcodes(n)[::10], genes(n_genes)[::10]) is not None


def test_a_single_gene_that_was_changed_is_seen() -> None:
    X = values(500, 250)
    kept = fingerprint(X, barcodes(500), genes(250))
    X[:, 17] = 0.0
    found = difference(kept, X, barcodes(500), genes(250))
    assert found is not None
    assert found.n_changed < 0.05 * found.n_compared
    assert found.now == 0.0


def test_renamed_genes_and_other_ids_say_nothing() -> None:
    X = values(300, 18000)
    kept = fingerprint(X, barcodes(300), genes(18000))
    assert difference(kept, X, barcodes(300), [f"ENSG{i:011d}" for i in range(18000)]) is None
    assert difference(kept, X, [f"spot{i}" for i in range(300)], genes(18000)) is None
    assert difference({"of": "another version"}, X, barcodes(300), genes(18000)) is None
    assert difference(fingerprint(X, np.arange(300), genes(18000)), X, np.zeros(300), genes(18000)) is None


def test_it_is_small() -> None:
    for n, n_genes in [(5000, 250), (1000, 2000), (1000, 18000)]:
        size = len(json.dumps(fingerprint(np.zeros((n, n_genes), np.float32), barcodes(n), genes(n_genes))))
        assert size < 200_000
    assert MAX_VALUES * 4 * 4 / 3 < 100_000


def table(n: int = 60, n_genes: int = 20) -> AnnData:
    return tables.build_table(
        values(n, n_genes),
        shapes_key="spots",
        instances=pd.Index(barcodes(n)),
        var=pd.DataFrame(index=genes(n_genes)),
        spatial_um=np.zeros((n, 2)),
        provenance={"kind": "prediction", "output_scale": "log1p_cp10k"},
    )


def test_a_changed_table_is_told_where_it_is_used(tmp_path: Any) -> None:
    import scanpy as sc

    written = table()
    written.write_h5ad(tmp_path / "table.h5ad")
    written.write_zarr(tmp_path / "table.zarr")
    backed = read_h5ad(tmp_path / "table.h5ad", backed="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for same in (written, written[::-3, 5:9], read_h5ad(tmp_path / "table.h5ad"), backed, concat([written[:9]])):
            if "stpred" in same.uns:
                tables.read_prediction(same)
    for change in (sc.pp.log1p, sc.pp.scale, lambda t: sc.pp.normalize_total(t, target_sum=1e4)):
        changed = written.copy()
        change(changed)
        with pytest.warns(UserWarning, match="table 'spots_ridge' was changed since stpred wrote it") as caught:
            facts = tables.read_prediction(changed, what="table 'spots_ridge'")
        assert facts["output_scale"] == "log1p_cp10k"
        assert caught[0].filename == __file__
        assert len(str(caught[0].message)) < 600


def test_rows_of_another_region_are_not_those_of_the_facts() -> None:
    first, second = table(), table()
    second.X = second.X * 3
    second.obs["region"] = pd.Categorical(["others"] * second.n_obs)
    joined = concat([first, second], uns_merge="first", index_unique="-")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tables.read_prediction(joined)
        tables.read_prediction(joined[60:])
    joined.X[:60] += 1
    with pytest.warns(UserWarning, match="was changed"):
        tables.read_prediction(joined)


def test_tables_of_earlier_versions_pass() -> None:
    old = table()
    facts = tables.read_provenance(old)
    del facts["fingerprint"]
    old.uns["stpred"] = json.dumps(facts)
    old.X = old.X * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tables.read_prediction(old)

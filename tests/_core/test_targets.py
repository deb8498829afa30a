from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stpred._core.checks import InputError
from stpred._core.targets import check_counts, totals, transform


def test_log1p_cp10k_matches_scanpy_and_uses_the_whole_library() -> None:
    import scanpy as sc
    from anndata import AnnData

    counts = np.random.default_rng(0).poisson(2.0, size=(20, 30)).astype(np.float32)
    counts[3] = 0
    adata = AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    for given in (counts, sparse.csr_matrix(counts)):
        values = transform(given[:, 5:9], totals(given), target="log1p_cp10k")
        np.testing.assert_allclose(values, adata.X[:, 5:9], rtol=1e-5)
        assert values.dtype == np.float32
    assert (transform(counts, totals(counts), target="counts") == counts).all()


def test_bad_targets_are_refused() -> None:
    with pytest.raises(InputError, match=r"`target` must be one of \['log1p_cp10k', 'counts'\], got 'cpm'"):
        transform(np.zeros((2, 2)), np.zeros(2), target="cpm")
    with pytest.raises(InputError, match=r"one value per row of `counts`: got \(3,\) for \(2, 2\)"):
        transform(np.zeros((2, 2)), np.zeros(3), target="counts")


@pytest.mark.parametrize(
    ("bad", "message"),
    [(np.nan, "hold NaN"), (-1.0, r"negative values \(lowest -1\)"), (0.5, r"not whole numbers \(0.5 is among them\)")],
)
def test_counts_that_are_none_are_refused(bad, message) -> None:
    counts = np.array([[1.0, bad], [0.0, 3.0]])
    for given in (counts, sparse.csr_matrix(counts)):
        with pytest.raises(InputError, match=f"counts of table 'x' .*{message}"):
            check_counts(given, what="table 'x'")
    check_counts(np.array([[1.0, 2.0]]), what="table 'x'")
    check_counts(sparse.csr_matrix((3, 3)), what="table 'x'")

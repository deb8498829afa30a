from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from stpred import InputError
from stpred._core.targets import totals, transform


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
    with pytest.raises(InputError, match=r"`target` must be one of \['log1p_cp10k', 'counts', .*\], got 'cpm'"):
        transform(np.zeros((2, 2)), np.zeros(2), target="cpm")
    with pytest.raises(InputError, match=r"one value per row of `counts`: got \(3,\) for \(2, 2\)"):
        transform(np.zeros((2, 2)), np.zeros(3), target="counts")

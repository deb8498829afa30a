"""Sketches of residuals, from which a training's intervals are made."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from scipy.sparse import csr_array

from stpred.inference.intervals import as_stable, residual_sketch
from stpred.metrics import intervals as _intervals


@pytest.mark.parametrize("scale", ["counts", "log1p_cp10k"])
@pytest.mark.parametrize("sparse", [False, True])
def test_sketches_are_those_of_all_residuals_at_a_part_of_their_memory(
    scale: str, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    observed = rng.poisson(0.3, (3000, 300)).astype(np.float32)
    predicted = rng.normal(0.3, 0.2, observed.shape).astype(np.float32)
    (expected,) = _intervals.sketch([as_stable(observed, scale) - as_stable(predicted, scale)])
    given = csr_array(observed) if sparse else observed
    monkeypatch.setattr(_intervals, "_BLOCK_VALUES", 3000 * 8)
    tracemalloc.start()
    found = residual_sketch(given, predicted, scale)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert peak < 0.8 * observed.size * 8  # less than one copy in double precision

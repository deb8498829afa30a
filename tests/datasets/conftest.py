from __future__ import annotations

import pytest

from stpred.datasets import Tissue, make_tissue


@pytest.fixture(scope="session")
def tissue() -> Tissue:
    """A small slide for tests that only read it."""
    return make_tissue(size_um=(400, 336), n_genes=40, seed=3, donor=1)

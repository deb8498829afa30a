from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import stpred as st
from stpred.testing import copy_slide

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


@pytest.fixture(scope="session")
def cohort() -> dict[str, SpatialData]:
    """Three donors of synthetic tissue; tests must not change what the objects hold."""
    return st.datasets.toy_cohort(3, size_um=(800, 800), n_genes=60)


@pytest.fixture(scope="session")
def ridge(cohort: dict[str, SpatialData]) -> Model:
    """Ridge with context on the first two donors."""
    train = {s: cohort[s] for s in list(cohort)[:2]}
    return st.tl.train(train, st.models.Ridge.Config(context_um=120.0), genes="all", shapes_key="spots")


@pytest.fixture
def unseen(cohort: dict[str, SpatialData]) -> SpatialData:
    """Return the third donor as an object of its own that a test may change."""
    return copy_slide(cohort[list(cohort)[2]])

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from anndata import AnnData
from spatialdata import SpatialData

import stpred as st
from stpred.models import Model

EVERY = 4
"""One cell of so many is kept: enough for statistics of neighbourhoods, and quick."""


@pytest.fixture(scope="session")
def make_slide() -> Callable[..., SpatialData]:
    """Make a toy with all of its spots and a share of its cells."""

    def make(donor: int, *, size_um: float = 700.0) -> SpatialData:
        slide = st.datasets.toy(seed=5, donor=donor, size_um=(size_um, size_um), n_genes=30)
        cells = slide.tables["cells_counts"][::EVERY].copy()
        shapes = {"spots": slide.shapes["spots"], "cells": slide.shapes["cells"].loc[cells.obs["instance_id"]]}
        tables = {"spots_counts": slide.tables["spots_counts"], "cells_counts": cells}
        return SpatialData(images=dict(slide.images), shapes=shapes, tables=tables)

    return make


@pytest.fixture(scope="session")
def slide(make_slide: Callable[..., SpatialData]) -> SpatialData:
    """A slide as it is before prediction; tests must not change it."""
    return make_slide(0)


@pytest.fixture(scope="session")
def model(slide: SpatialData) -> Model:
    """Ridge on channel intensities of the slide's own spots: what is tested is the table, not how good it is."""
    return st.tl.train(slide, "ridge", encoder="intensity", genes="all", shapes_key="spots")


@pytest.fixture(scope="session")
def predicted(slide: SpatialData, model: Model) -> SpatialData:
    """The slide with ``spots_ridge`` and ``cells_ridge``, uncertainty included; tests must not change it."""
    done = SpatialData(images=dict(slide.images), shapes=dict(slide.shapes), tables=dict(slide.tables))
    plain = model.predict

    def with_uncertainty(batch: Any) -> tuple[np.ndarray, np.ndarray]:
        mean, _ = plain(batch)
        return mean, 0.1 + 0.2 * np.abs(mean)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "predict", with_uncertainty)
        for shapes_key in ("spots", "cells"):
            st.tl.predict(done, model, shapes_key=shapes_key)
    return done


@pytest.fixture(params=["spots", "cells"])
def region(request: pytest.FixtureRequest) -> str:
    """Name of the region predicted on."""
    return request.param


@pytest.fixture
def table(predicted: SpatialData, region: str) -> AnnData:
    """A predicted table that a test may change."""
    return predicted.tables[f"{region}_ridge"].copy()

"""Training on spots through their cells: seconds of an epoch, and what the simulation study finds."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from stpred import training
from stpred.links import Links
from stpred.models import Batch, SCellST

SPOTS, CELLS_PER_SPOT, WIDTH, GENES = 5000, 20, 2048, 100


class Epoch:
    """5 000 spots of 20 cells with 2 048 features, 100 genes."""

    timeout = 600

    def setup(self) -> None:
        rng = np.random.default_rng(0)
        n = SPOTS * CELLS_PER_SPOT
        cells = Links(np.arange(SPOTS + 1) * CELLS_PER_SPOT, rng.permutation(n))
        y = rng.random((SPOTS, GENES), dtype=np.float32)
        features = rng.standard_normal((n, WIDTH), dtype=np.float32)
        self.batch = Batch.of(features, cells=cells, y=y, scale="log1p_cp10k")
        self._train(1)  # compilation and imports

    def _train(self, epochs: int) -> float:
        start = time.perf_counter()
        training.fit(SCellST, SCellST.Config(epochs=epochs), [self.batch], groups=["a"], typical=False)
        return time.perf_counter() - start

    def track_epoch(self) -> float:
        """Return seconds of one epoch: what four epochs take more than one, a third of it."""
        return (self._train(4) - self._train(1)) / 3

    track_epoch.unit = "s"  # type: ignore[attr-defined]


class Simulation:
    """The study of the sCellST publication on synthetic cells and a synthetic reference: mean Pearson."""

    timeout = 3600
    params = (("centroid", "cell", "random"), ("spots", "cells"))
    param_names = ("scenario", "supervision")

    def setup_cache(self) -> Any:
        import stpred as st

        slide = st.datasets.toy(size_um=(1600, 1600), n_genes=8)
        st.pp.features(slide, shapes_key="cells", tile=SCellST.Config.default_tile)
        return np.asarray(slide.tables["cells_feat_morphology"].X)

    def setup(self, embeddings: Any, scenario: str, supervision: str) -> None:
        import stpred as st

        self.found = st.tl.simulation_study(
            embeddings,
            st.datasets.toy_reference(),
            scenarios=[scenario],
            supervision=[supervision],
            inputs=["learned"],
            n_spots=1000,
        )

    def _mean(self, level: str, **which: bool) -> float:
        rows = self.found[self.found.level == level]
        for column, value in which.items():
            rows = rows[rows[column] == value]
        return float(rows.pearson.mean())

    def track_spots(self, *_: Any) -> float:
        return self._mean("spot")

    def track_cells(self, *_: Any) -> float:
        return self._mean("cell")

    def track_spots_markers(self, *_: Any) -> float:
        return self._mean("spot", marker=True)

    def track_spots_other_genes(self, *_: Any) -> float:
        return self._mean("spot", marker=False)

"""Cells and the tile around them in closed form: ridge regression on the mean features of a location's cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.parts.sample import Scaling, scaling_of
from stpred.models.ridge import Ridge

BLOCK = 8192
"""Locations that are predicted at a time."""


class CellRidge(Model):
    """A linear map of standardised features of cells, and locations as the mean over their cells.

    Features that all cells of a location share are those of its tile. The mean of linear predictions is the prediction
    of the mean, so that locations are a ridge regression in closed form. Its settings have ``standardize``,
    ``penalty``, ``block_weights`` and ``location_weights``.
    """

    coef: Tensor
    intercept: Tensor
    config: Any

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        if self.config.standardize == "train":
            self.register_buffer("feature_mean", torch.zeros(n_features))
            self.register_buffer("feature_std", torch.ones(n_features))
        self.register_buffer("coef", torch.zeros(n_features, n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))

    def scaling(self, batch: Batch) -> Scaling | None:
        """Return the standardisation of a slide's cells."""
        if self.config.standardize == "none":
            return None
        if self.config.standardize == "slide":
            return Scaling.of_slide(batch)
        mean, std = (getattr(self, f"feature_{k}").cpu().numpy() for k in ("mean", "std"))
        return Scaling(mean, std)

    def pooled(self, batch: Batch, scaling: Scaling | None) -> NDArray[np.float64]:
        """Return the (n, n_features) mean of each location's standardised cells."""
        if batch.cells is None:
            x = batch.own
            return np.asarray(x if scaling is None else scaling.apply(x), dtype=np.float64)
        used, place = np.unique(batch.cells.indices, return_inverse=True)
        x = batch.features[used]
        x = np.asarray(x if scaling is None else scaling.apply(x), dtype=np.float64)
        return replace(batch.cells, indices=place.ravel()).mean(x)

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Choose the weights of the blocks and the penalty, and solve."""
        if self.config.standardize == "train":
            found = scaling_of(batches)
            self.set_buffer("feature_mean", found.mean)
            self.set_buffer("feature_std", found.std)
        designs = [self.pooled(b, self.scaling(b)) for b in batches]
        scale = spread_of_blocks(designs, batches[0].blocks)
        c = self.config
        solver = _Solver(
            Ridge.Config(
                penalty=c.penalty,
                block_weights=c.block_weights,
                location_weights=c.location_weights,
                standardize="train",
            ),
            n_features=self.n_features,
            n_genes=self.n_genes,
        )
        rows = [
            Batch.of((x / scale).astype(np.float64), y=b.y, totals=b.totals, blocks=b.blocks, slide=b.slide)
            for x, b in zip(designs, batches, strict=True)
        ]
        chosen = solver.fit(rows, groups=groups)
        self.set_buffer("coef", solver.weights.double().numpy() / scale[:, None])
        self.set_buffer("intercept", solver.intercept)
        return chosen

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Apply the linear map to cells, or to the mean of a location's cells."""
        coef, intercept = (t.cpu().numpy().astype(np.float64) for t in (self.coef, self.intercept))
        scaling = self.scaling(batch)
        out = np.empty((len(batch.targets), self.n_genes), dtype=np.float32)
        for first in range(0, len(out), BLOCK):
            rows = np.arange(first, min(first + BLOCK, len(out)))
            out[rows] = self.pooled(batch.take(rows), scaling) @ coef + intercept
        return out, None


class _Solver(Ridge):
    """Ridge on columns that are prepared already."""

    def set_scaling(self, batches: Sequence[Batch]) -> None:
        """Leave them."""

    def design(self, batch: Batch) -> NDArray[np.float64]:
        """Return them."""
        return np.asarray(batch.features, dtype=np.float64)


def spread_of_blocks(designs: Sequence[NDArray[np.float64]], blocks: Sequence[int] | None) -> NDArray[np.float64]:
    """Return (width,) root mean variance of each block's columns over all rows, so that blocks start out alike."""
    variance = np.concatenate(designs).var(axis=0)
    ends = np.cumsum(blocks or (len(variance),))
    parts = np.split(variance, ends[:-1])
    return np.concatenate([np.full(len(v), np.sqrt(v.mean()) if v.mean() > 1e-12 else 1.0) for v in parts])

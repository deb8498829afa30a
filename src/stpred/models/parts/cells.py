"""Networks that predict cells, and locations as pools of their cells."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.checks import InputError
from stpred.models.batch import Batch, Needs
from stpred.models.parts.layers import segment_mean, segment_sum
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample, Scaling


@dataclass(frozen=True)
class CellNetworkConfig(NetworkConfig):
    """Settings of :class:`CellNetwork`."""

    @property
    def needs(self) -> Needs:
        """The cells in each location; slide statistics as every network."""
        return replace(super().needs, cells=True)


class CellNetwork(Network):
    """A network that predicts each cell, and a location as the mean or sum of its cells.

    Subclasses define ``per_cell(sample)``. A target that is itself a cell holds one cell, so that cells and locations
    take the same path.
    """

    @property
    def pooling(self) -> str:
        """How cells make up their location: ``"mean"`` or ``"sum"``."""
        return "mean"

    @abstractmethod
    def per_cell(self, sample: Sample) -> Tensor:
        """Return (m, n_genes) values of the sample's cells."""

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs of the targets."""
        return self.pool_cells(self.per_cell(sample), sample)

    def pool_cells(self, values: Tensor, sample: Sample) -> Tensor:
        """Pool (m, n_genes) values of cells to (n, n_genes) values of the targets they are in."""
        if sample.owners is None:
            return values
        pooled = segment_sum if self.pooling == "sum" else segment_mean
        return pooled(values, sample.owners, len(sample.targets))

    def ready(self, batch: Batch) -> tuple[Batch, Scaling | None]:
        """Standardise a slide's cells once for all steps, in the order of the locations that they are in."""
        scaling = self.scaling(batch)
        batch = self.with_patches(batch)
        if batch.cells is None or batch.cell_links is not None:
            return batch, scaling
        rows, first = np.unique(batch.cells.indices, return_index=True)
        order = np.argsort(first, kind="stable")
        place = np.empty(len(rows), dtype=np.int64)
        place[order] = np.arange(len(rows))
        features = batch.features[rows[order]]
        return replace(
            batch,
            features=np.asarray(features, np.float32) if scaling is None else scaling.apply(features),
            targets=place[np.searchsorted(rows, batch.targets)],
            sources=np.empty(0, dtype=np.int64),
            cells=replace(batch.cells, indices=place[np.searchsorted(rows, batch.cells.indices)]),
        ), None

    def with_patches(self, batch: Batch) -> Batch:
        """Return the batch with its patches standardised as its cells are."""
        if batch.patches is None or self.config.standardize == "none":
            return batch
        scaling = Scaling.of(batch.patches.features[batch.patches.sources])
        return replace(batch, patches=replace(batch.patches, features=scaling.apply(batch.patches.features)))

    def hidden_per_cell(self, sample: Sample) -> Tensor:
        """Return the (m, width) values of the sample's cells that the output head maps."""
        raise InputError(f"A {self.family!r} model of these settings has no hidden layer.")

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) mean over the cells of each target, whatever its prediction is of them."""
        values = self.hidden_per_cell(sample)
        return values if sample.owners is None else segment_mean(values, sample.owners, len(sample.targets))

    def _evaluate(self, batch: Batch, finish: Callable[[Tensor], Tensor], **layer: Any) -> NDArray[np.float32]:
        return super()._evaluate(self.with_patches(batch), finish, **layer)


def cells_of(sample: Sample) -> Tensor:
    """Return the (m,) rows of the sample's cells; targets that came without a list of cells are cells themselves."""
    return sample.targets if sample.cells is None else sample.cells


def typical_cells(batches: Sequence[Batch]) -> float:
    """Return the mean number of cells of the locations."""
    counts = [b.cells.counts() for b in batches if b.cells is not None]
    return float(np.concatenate(counts).mean()) if counts else 1.0

"""Features of locations as columns: standardised, with the neighbours' means beside a location's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.compute.moments import Moments
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.parts.context import n_means, ring_means
from stpred.models.parts.cross_products import one_by_one
from stpred.models.parts.sample import EXTREME, scaling_of

STANDARDIZE = ("train", "slide")


class StandardisedModel(Model):
    """A model of closed form on standardised columns; its settings have ``standardize`` and ``context_um``."""

    mean: Tensor
    std: Tensor
    config: Any

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))

    @property
    def width(self) -> int:
        """Number of columns of the design."""
        return self.n_features * (1 + n_means(self.config.context_um))

    def set_scaling(self, batches: Sequence[Batch]) -> None:
        """Take mean and standard deviation of the training points."""
        if one_by_one(batches):
            found = scaling_of(batches)
            self.set_buffer("mean", found.mean)
            self.set_buffer("std", found.std)
            return
        sources = np.concatenate([b.features[b.sources] for b in batches]).astype(np.float64)
        self.set_buffer("mean", sources.mean(axis=0))
        self.set_buffer("std", safe(sources.std(axis=0)))

    def design(self, batch: Batch) -> NDArray[np.float64]:
        """Return the (n, width) standardised columns: own features and, with context, the neighbours' means."""
        mean, std = self.mean.cpu().numpy(), self.std.cpu().numpy()
        if self.config.standardize == "slide":
            found = Moments.of(batch.features, batch.sources) if batch.moments is None else batch.moments
            mean, std = found.mean, safe(found.std)
        own = ((batch.own - mean) / std).clip(-EXTREME, EXTREME)
        if self.config.context_um is None:
            return own
        around = [((ring - mean) / std).clip(-EXTREME, EXTREME) for ring in ring_means(batch)]
        return np.concatenate([own, *around], axis=1)


def safe(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return standard deviations with 1 for constant features."""
    return np.where(std < 1e-8, 1.0, std)

"""The training mean: what a prediction has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch


@dataclass(frozen=True)
class MeanConfig(BaseConfig):
    """The mean has nothing to set."""

    family: ClassVar[str] = "mean"
    default_encoder: ClassVar[str] = "intensity"


class Mean(Model):
    """Predicts every gene's mean over the training locations, everywhere.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(seed=0)
    >>> model = st.tl.train(slide, "mean", genes=["EPCAM"], shapes_key="spots")
    """

    Config: ClassVar[type[MeanConfig]] = MeanConfig
    mean: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.register_buffer("mean", torch.zeros(n_genes))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Take the mean over all locations."""
        self._set("mean", np.concatenate([b.y for b in batches if b.y is not None]).mean(axis=0, dtype=np.float64))
        return {}

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Repeat the mean for every target."""
        return np.tile(self.mean.cpu().numpy(), (len(batch.targets), 1)), None

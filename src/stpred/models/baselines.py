"""Baselines: the training mean, and what colour alone can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.checks import InputError
from stpred._core.targets import dense
from stpred.models.base import BaseConfig, Differentiable, Model
from stpred.models.batch import Batch
from stpred.models.ridge import Ridge, RidgeConfig


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
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slide, "mean", genes=["EPCAM"], shapes_key="spots")
    """

    Config: ClassVar[type[MeanConfig]] = MeanConfig
    mean: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.register_buffer("mean", torch.zeros(n_genes))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Take the mean over all locations."""
        y = np.concatenate([dense(b.y, np.float32) for b in batches if b.y is not None])
        self.set_buffer("mean", y.mean(axis=0, dtype=np.float64))
        return {}

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Repeat the mean for every target."""
        return np.tile(self.mean.cpu().numpy(), (len(batch.targets), 1)), None


@dataclass(frozen=True)
class IntensityConfig(BaseConfig):
    """Settings of :class:`Intensity`.

    Parameters
    ----------
    n_bins
        Number of equally filled bins per colour channel.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "intensity"
    default_encoder: ClassVar[str] = "intensity"
    n_bins: int = 5

    def __post_init__(self) -> None:
        if int(self.n_bins) != self.n_bins or self.n_bins < 2:
            raise InputError(f"`n_bins` must be a whole number of at least 2, got {self.n_bins!r}.")


class Intensity(Model):
    """Least squares on the one-hot bins of a tile's mean red, green and blue.

    The colour baseline of XFuse's publication.

    A method that does not clearly beat it reads stain, not tissue.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476. There binned intensity is a baseline.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slide, "intensity", genes=["EPCAM"], shapes_key="spots")
    """

    Config: ClassVar[type[IntensityConfig]] = IntensityConfig
    edges: Tensor
    coef: Tensor
    intercept: Tensor
    config: IntensityConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        bins = self.config.n_bins
        self.register_buffer("edges", torch.zeros(n_features, bins - 1))
        self.register_buffer("coef", torch.zeros(n_features * bins, n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Place the bins at quantiles of the training tiles and solve least squares."""
        x = np.concatenate([b.own for b in batches])
        y = np.concatenate([dense(b.y) for b in batches if b.y is not None])
        self.set_buffer("edges", np.quantile(x, np.arange(1, self.config.n_bins) / self.config.n_bins, axis=0).T)
        design = self._design(x)
        center, intercept = design.mean(axis=0), y.mean(axis=0)
        # The bins of a channel sum to one, so the design has no full rank: the least-norm solution is taken.
        coef = np.linalg.lstsq(design - center, y - intercept, rcond=1e-8)[0]
        self.set_buffer("coef", coef)
        self.set_buffer("intercept", intercept - center @ coef)
        return {}

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Look the bins up."""
        values = self._design(batch.own) @ self.coef.cpu().numpy() + self.intercept.cpu().numpy()
        return values.astype(np.float32), None

    def _design(self, x: NDArray[np.float32]) -> NDArray[np.float64]:
        bins = (x[:, :, None] >= self.edges.cpu().numpy()[None]).sum(axis=2)
        return np.eye(self.config.n_bins)[bins].reshape(len(x), -1)


@dataclass(frozen=True)
class ColourConfig(RidgeConfig):
    """Settings of :class:`Colour`: those of :class:`~stpred.models.Ridge`.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "colour"
    differentiable: ClassVar[Differentiable | None] = None  # its encoder measures tiles
    default_encoder: ClassVar[str] = "colour"


class Colour(Ridge):
    """Ridge on the mean and standard deviation of a tile's red, green and blue.

    A stronger colour baseline than :class:`Intensity`: six numbers, standardised on each slide.

    What a method adds to it is what it reads from shape and texture.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slide, "colour", genes=["EPCAM"], shapes_key="spots")
    """

    Config: ClassVar[type[ColourConfig]] = ColourConfig
    config: ColourConfig

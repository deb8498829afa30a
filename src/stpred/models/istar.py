"""iStar: a weakly supervised perceptron on patches, whose outputs add up to the spot (Zhang et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred._core.targets import dense, moments
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts.sample import Sample
from stpred.models.student import Student, StudentConfig

_SLOPE = 0.1
_FLOOR = 0.01
"""Of the output, on genes from 0 to 1: it approaches zero and never reaches it."""


_SAME_AREA = 1e-4
"""Relative difference of areas that is rounding."""


@dataclass(frozen=True)
class IStarConfig(StudentConfig):
    """Settings of :class:`IStar`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    token_um, footprint_um
        Edge of a patch (about 8 um), and of the square around a training location whose patches make it up (None: its
        shape), as of :class:`Student`.
    hidden
        Widths of the hidden layers.
    dropout, input_dropout
        After each hidden layer's activation, and on the features.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "istar"
    hidden: tuple[int, ...] = (256, 256, 256, 256)
    activation: str = "leaky_relu"
    dropout: float = 0.0
    input_dropout: float = 0.1
    lr: float = 1e-3
    weight_decay: float = 0.0
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.isolated or self.output != "linear" or self.activation != "leaky_relu":
            raise InputError("iStar's patches, activation and output are its own: leave them out.")
        if self.loss != "mse" or not self.scale_genes:
            raise InputError("iStar has squared errors of genes scaled to 0..1: leave `loss` and `scale_genes`.")

    @classmethod
    def published(cls, **changes: Any) -> IStarConfig:
        """Return the publication's settings: lr 1e-4, 400 epochs, no dropout, features and gradients as they are."""
        values: dict[str, Any] = {
            "lr": 1e-4,
            "epochs": 400,
            "batch_size": 128,
            "input_dropout": 0.0,
            "standardize": "none",
        }
        return cls(**(values | {"clip_norm": None} | changes))

    @property
    def needs(self) -> Needs:
        """The patches in each location's footprint, each with the features of its tile."""
        return replace(super().needs, hierarchy=True)


class IStar(Student):
    """A perceptron on hierarchical features of every patch; a location is what its patches add up to.

    Notes
    -----
    A patch of about 8 um is described by its own features, those of the tile that it lies in, and its mean colour;
    genes are scaled to 0..1 over the training locations, and the last layer is followed by an exponential linear unit
    that keeps patches above zero. The mean over a footprint learns the measured location. Trained on ``"counts"``, a
    prediction is an amount: that of a finer region is as much smaller as its area is than the training footprint's, so
    that the parts of a spot add up to it. On ``"log1p_cp10k"``, which does not add up, it is the mean over its patches.
    Departures: the features are of any encoder instead of two vision transformers (HIPT), smoothed only by the
    overlapping tiles that a patch is seen in; the network is trained on several slides, with a rate ten times the
    published one; restarts are not part of it, and ``Ensemble`` averages them where the publication takes the median of
    five.

    References
    ----------
    Zhang et al. (2024), Inferring super-resolution tissue architecture by integrating spatial transcriptomics with
    histology, Nature Biotechnology 42.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(300, 300), n_genes=10)
    >>> config = st.models.IStar.Config(hidden=(16,), epochs=2)
    >>> model = st.tl.train(slides, config, shapes_key="spots", target="counts", encoder="colour")
    """

    Config: ClassVar[type[IStarConfig]] = IStarConfig  # type: ignore[assignment]
    config: IStarConfig
    footprint_um2: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.act = nn.LeakyReLU(_SLOPE)
        self.register_buffer("footprint_um2", torch.zeros(()))  # of amounts; 0 where predictions do not add up

    @property
    def head(self) -> None:
        """None: no linear layer is the last."""
        return None

    def begin(self, batches: Sequence[Batch]) -> None:
        """Measure the genes, let outputs start at their mean, and note the area that amounts are of."""
        super().begin(batches)
        low, size = self.gene_mean.cpu().numpy(), self.gene_std.cpu().numpy()
        start = (moments([b.y for b in batches])[0] - low) / size - _FLOOR
        bias: Any = self.layers[-1].bias
        with torch.no_grad():
            bias.copy_(torch.as_tensor(start, dtype=bias.dtype))
        areas = [b.area_um2 for b in batches if b.area_um2 is not None]
        if batches[0].scale == "counts" and areas:
            self.set_buffer("footprint_um2", np.asarray(np.median(np.concatenate(areas))))

    def gene_scaling(self, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the (n_genes,) least value and range of training targets."""
        each = [dense(b.y) for b in batches]
        low = np.min([y.min(axis=0) for y in each], axis=0)
        return low, np.max([y.max(axis=0) for y in each], axis=0) - low

    def map(self, x: Tensor) -> Tensor:
        """Map (n, n_features) patches to (n, n_genes) values of scaled genes, which are above zero."""
        return nn.functional.elu(super().map(x), alpha=_FLOOR) + _FLOOR

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        values = self.per_token(sample.features)
        return values[sample.targets] if sample.parts is None else self._means(values, sample)[0]

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) predictions; amounts are of each location's own area."""
        mean, spread = super().predict(batch)
        if self.footprint_um2 > 0 and batch.area_um2 is not None:
            share = batch.area_um2 / float(self.footprint_um2)
            share[np.abs(share - 1) < _SAME_AREA] = 1.0
            mean = (mean * share[:, None]).astype(np.float32)
        return mean, spread

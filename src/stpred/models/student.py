"""MISO's student: expression of the patches of a tile, learned from locations (Schmauch et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import positive
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts.layers import hidden_values
from stpred.models.parts.network import NetworkConfig, PerceptronNetwork, check_perceptron, check_reach
from stpred.models.parts.sample import Sample, Scaling

_ROWS = 8192
"""Tokens that are mapped at a time in prediction."""

_VALUES = 2**25
"""Predicted values of tokens that are in memory at a time."""


@dataclass(frozen=True)
class StudentConfig(NetworkConfig):
    """Settings of :class:`Student`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    token_um
        Edge of a patch in micrometres. None: the encoder's own tokens, or sub-tiles of about 8 um of encoders that have
        none, and 8 um if `isolated`; ``"morphology"`` takes any that divides its tile, `isolated` patches any up to it.
    isolated
        Describe each patch by the encoder's tile around it, which bounds what it looks at: with an encoder of tiles of
        16 um (``st.encoders.get("morphology", tile=st.TileSpec(0.5, 32))``) nothing farther than that has a part in
        its prediction. False: as one of the patches of a larger tile, through windows or layers wider than the patch.
    footprint_um
        Edge of the square around a training location whose patches make it up. None: its shape (a spot's disc, a bin);
        112 is the whole tile, as published. Locations of other regions always consist of what lies in their shapes.
    hidden
        Widths of the hidden layers.
    activation
        After each hidden layer: ``"relu"``, ``"leaky_relu"``, ``"gelu"`` or ``"silu"``.
    dropout, input_dropout
        After each hidden layer's activation, and on the features.
    output
        ``"linear"``, ``"relu"`` (published) or ``"softplus"`` of each patch; the latter two need ``scale_genes=False``.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "student"
    sparse_targets: ClassVar[bool] = True
    token_um: float | None = None
    isolated: bool = False
    footprint_um: float | None = None
    hidden: tuple[int, ...] = (512, 256)
    activation: str = "relu"
    dropout: float = 0.3
    input_dropout: float = 0.3
    output: str = "linear"
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perceptron(self)
        for name in ("token_um", "footprint_um"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, positive(getattr(self, name), name=name, unit="micrometres"))
        check_reach(self)

    @property
    def needs(self) -> Needs:
        """The tokens in each location's footprint."""
        return replace(
            super().needs, tokens=True, token_um=self.token_um, isolated=self.isolated, footprint_um=self.footprint_um
        )


class Student(PerceptronNetwork):
    """A perceptron on every patch; a location is the mean of the patches in its footprint.

    Notes
    -----
    Trained on spots it predicts any finer region: bins, sub-tiles, cells, or a map
    (:func:`stpred.tl.predict_map`). A target is the weighted mean of the patches that it covers, each predicted from
    several overlapping tiles. On measured counts (:func:`stpred.tl.train`) it is the naive variant of the paper; on the
    predictions of other models (:func:`stpred.tl.distill`) the distilled one. Loss and batch are published;
    there it is twice as wide, has no dropout, ReLU outputs, 5 epochs, and takes features as they are
    (``hidden=(1024, 512), dropout=0, input_dropout=0, output="relu", scale_genes=False, epochs=5, standardize="none",
    footprint_um=112``).

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Student.Config(hidden=(32,), epochs=3), shapes_key="spots")
    >>> slide = st.datasets.toy(seed=1, size_um=(300, 300), n_genes=20)
    >>> st.pp.subdivide(slide, "spots", size_um=8)
    >>> st.tl.predict(slide, model, shapes_key="spots_008um")
    """

    hidden_layer = "the last hidden layer's values, mean over the patches of a location"
    Config: ClassVar[type[StudentConfig]] = StudentConfig  # type: ignore[assignment]
    config: StudentConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.add_layers(n_features, *self.config.hidden, n_genes)

    @property
    def support_um(self) -> float:
        """Width of the patches, which is what a value on a fine region speaks for."""
        return float(self.record.training.get("token_um") or super().support_um)

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        if sample.parts is None:
            return self.per_token(sample.features)[sample.targets]
        if self.training and self.config.output == "linear":
            # The last layer and the mean commute: it maps locations instead of all their patches.
            last = self.head
            assert last is not None
            values = hidden_values(list(self.layers)[:-1], sample.features, self.act, **self.dropouts)
            means, weights = self._means(values, sample)
            return nn.functional.linear(means, last.weight) + weights.sum(dim=1, keepdim=True) * last.bias
        return self._means(self.per_token(sample.features), sample)[0]

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, hidden[-1]) values of the last hidden layer, the mean over a target's patches."""
        if not self.config.hidden:
            return super().hidden(sample)
        layers = list(self.layers)[:-1]
        values = torch.cat([hidden_values(layers, part, self.act) for part in sample.features.split(_ROWS)])
        return values[sample.targets] if sample.parts is None else self._means(values, sample)[0]

    @staticmethod
    def _means(values: Tensor, sample: Sample) -> tuple[Tensor, Tensor]:
        """Return (n, width) means of the targets' patches, and the (n, k) weights that they are taken with."""
        assert sample.parts is not None
        weights = sample.part_weights
        if weights is None:
            present = (sample.parts >= 0).to(values.dtype)
            weights = present / present.sum(dim=1, keepdim=True).clamp(min=1)
        rows = sample.parts.clamp(min=0)  # what stands for none has no weight
        weights = weights.to(values.dtype)
        return nn.functional.embedding_bag(rows, values, mode="sum", per_sample_weights=weights), weights

    def per_token(self, features: Tensor) -> Tensor:
        """Map (m, n_features) tokens to (m, n_genes) values."""
        if self.training:
            return self.map(features)
        return torch.cat([self.map(part) for part in features.split(_ROWS)])

    def ready(self, batch: Batch) -> tuple[Batch, Scaling | None]:
        """Standardise a slide's tokens once for all steps."""
        scaling = self.scaling(batch)
        return (batch if scaling is None else replace(batch, features=scaling.apply(batch.features))), None

    def _blocks(self, batch: Batch) -> list[NDArray[np.int64]]:
        """Return rows of targets whose tokens' values fit into memory."""
        if batch.parts is None:
            return super()._blocks(batch)
        portion = np.cumsum(batch.parts.counts()) // max(1, _VALUES // self.n_genes)
        return np.split(np.arange(len(batch.targets)), np.flatnonzero(np.diff(portion)) + 1)

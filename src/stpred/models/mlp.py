"""A perceptron on tile features: the context-free baseline of MISO, and the shape of other published predictors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stpred._core.checks import InputError, positive
from stpred.models.base import BaseConfig
from stpred.models.batch import Needs
from stpred.models.parts.layers import activation, perceptron, rows_or_zero
from stpred.models.parts.network import Network, NetworkConfig, check_perceptron, check_reach
from stpred.models.parts.sample import Sample


@dataclass(frozen=True)
class MLPConfig(NetworkConfig):
    """Settings of :class:`MLP`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    hidden
        Widths of the hidden layers.
    activation
        After each hidden layer: ``"relu"``, ``"leaky_relu"``, ``"gelu"`` or ``"silu"``.
    dropout
        After each hidden layer's activation.
    input_dropout
        On the features.
    output
        ``"linear"``, ``"relu"``, or ``"softplus"`` (with a steepness of 20).
    context_um
        Radius in micrometres within which the neighbours' features are averaged and added; None: the tile alone.
    """

    family: ClassVar[str] = "mlp"
    sparse_targets: ClassVar[bool] = True
    hidden: tuple[int, ...] = (2048, 1024)
    activation: str = "relu"
    dropout: float = 0.0
    input_dropout: float = 0.0
    output: str = "linear"
    context_um: float | None = None
    lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perceptron(self)
        if self.context_um is not None:
            positive(self.context_um, name="context_um", unit="micrometres")
        check_reach(self)

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius, if one is given."""
        return replace(super().needs, context_um=self.context_um)


class MLP(Network):
    """Perceptron on the features of a location's own tile, by default as wide as the baseline of the MISO publication.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> model = st.tl.train(slides, st.models.MLP.Config(hidden=(32,), epochs=3), shapes_key="spots")
    """

    Config: ClassVar[type[MLPConfig]] = MLPConfig  # type: ignore[assignment]
    config: MLPConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        widths = [n_features * (1 if self.config.context_um is None else 2), *self.config.hidden, n_genes]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.act = activation(self.config.activation)

    @property
    def head(self) -> nn.Linear | None:
        """The last layer, where no function follows it."""
        return self.layers[-1] if self.config.output == "linear" else None  # type: ignore[return-value]

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        x = sample.features[sample.targets]
        if self.config.context_um is not None:
            x = torch.cat([x, _around(sample, x)], dim=1)
        c = self.config
        return perceptron(
            self.layers, x, self.act,
            hidden_dropout=c.dropout, input_dropout=c.input_dropout, output=c.output, training=self.training,
        )  # fmt: skip


def _around(sample: Sample, own: Tensor) -> Tensor:
    """Return the mean of the neighbours' features; a location without neighbours is its own context."""
    if sample.neighbors is None:
        raise InputError("The batch came without neighbours, which this model needs.")
    if sample.neighbors.shape[1] == 0:
        return own
    known = (sample.neighbors >= 0).sum(dim=1, keepdim=True)
    around: Any = rows_or_zero(sample.features, sample.neighbors).sum(dim=1) / known.clamp(min=1)
    return torch.where(known > 0, around, own)

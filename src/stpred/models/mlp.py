"""A perceptron on tile features: the context-free baseline of MISO."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from stpred.models.base import MULTISCALE, BaseConfig
from stpred.models.batch import Needs
from stpred.models.parts.context import check_context, context_needs, n_means
from stpred.models.parts.layers import hidden_values, needed, ring_means_of_rows
from stpred.models.parts.network import NetworkConfig, PerceptronNetwork, check_perceptron, check_reach
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
        Radius in micrometres within which the neighbours' features are averaged and added; several radii add the mean
        of each ring between them; None: the tile alone.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "mlp"
    default_encoder: ClassVar[str] = MULTISCALE
    differentiable = "network"
    sparse_targets: ClassVar[bool] = True
    hidden: tuple[int, ...] = (2048, 1024)
    activation: str = "relu"
    dropout: float = 0.0
    input_dropout: float = 0.0
    output: str = "linear"
    context_um: float | tuple[float, ...] | None = None
    lr: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perceptron(self)
        check_context(self)
        check_reach(self)

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius, if one is given."""
        return replace(super().needs, **context_needs(self.context_um))


class MLP(PerceptronNetwork):
    """Perceptron on the features of a location's own tile, by default as wide as the baseline of the MISO publication.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications. There it is a baseline.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> model = st.tl.train(slides, st.models.MLP.Config(hidden=(32,), epochs=3), shapes_key="spots")
    """

    hidden_layer = "the last hidden layer's values"
    Config: ClassVar[type[MLPConfig]] = MLPConfig  # type: ignore[assignment]
    config: MLPConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.add_layers(n_features * (1 + n_means(self.config.context_um)), *self.config.hidden, n_genes)

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        return self.map(self._seen(sample))

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, hidden[-1]) values of the last hidden layer."""
        if not self.config.hidden:
            return super().hidden(sample)
        return hidden_values(list(self.layers)[:-1], self._seen(sample), self.act)

    def _seen(self, sample: Sample) -> Tensor:
        """Return the features of the targets, with the means around them."""
        x = sample.features[sample.targets]
        if self.config.context_um is not None:
            # A location without neighbours is its own context.
            neighbors = needed(sample.neighbors, "neighbours")
            x = torch.cat([x, *ring_means_of_rows(sample.features, neighbors, sample.near, otherwise=x)], dim=1)
        return x

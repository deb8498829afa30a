"""Retrieval: expression of the measured locations that an image is most like, in a learned space (BLEEP)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stpred._core.checks import InputError
from stpred._core.targets import dense
from stpred.models.base import MULTISCALE, BaseConfig
from stpred.models.batch import Batch
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample


@dataclass(frozen=True)
class RetrievalConfig(NetworkConfig):
    """Settings of :class:`Retrieval`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    width
        Of the common space of images and expression.
    dropout
        In both projections.
    k
        Measured locations whose mean is the prediction.
    temperature
        Of the similarities in the loss.
    n_reference
        Measured training locations that are kept, drawn equally from the slides; the model's size grows with them.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "retrieval"
    default_encoder: ClassVar[str] = MULTISCALE
    width: int = 256
    dropout: float = 0.1
    k: int = 50
    temperature: float = 1.0
    n_reference: int = 4000
    lr: float = 1e-3
    weight_decay: float = 1e-3
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("width", "k", "n_reference")
        self.check_positive("temperature")
        self.check_fraction("dropout")
        if self.loss != "mse" or not self.scale_genes:
            raise InputError("Retrieval has a loss of its own, on standardised genes: leave `loss` and `scale_genes`.")

    @classmethod
    def published(cls, **changes: Any) -> RetrievalConfig:
        """Return BLEEP's settings for features as given: 4 epochs, gradients as they are."""
        values: dict[str, Any] = {"epochs": 4, "standardize": "none", "clip_norm": None}
        return cls(**(values | changes))


class Retrieval(Network):
    """Two projections, of image features and of expression, into one space; the mean of the nearest measured locations.

    Notes
    -----
    After BLEEP (Xie et al. 2023): projections of a linear layer, GELU, a linear layer, dropout, a residual and layer
    norm; cross-entropy in both directions between the similarities of images and expression of a step, and the mean of
    the similarities within images and within expression as soft targets. A tile takes the mean expression of the `k`
    training locations whose *expression* lies nearest to its image. Unlike there, image features come from a frozen
    encoder, genes are standardised over the training locations, and nothing is batch-corrected between slides.

    References
    ----------
    Xie et al. (2023), Spatially resolved gene expression prediction from H&E histology images via bi-modal
    contrastive learning, NeurIPS.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.Retrieval.Config(width=16, k=5, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    """

    hidden_layer = "the projection of the image into the common space"
    Config: ClassVar[type[RetrievalConfig]] = RetrievalConfig  # type: ignore[assignment]
    config: RetrievalConfig
    reference: Tensor
    kept: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self.image = _Projection(n_features, c.width, c.dropout)
        self.expression = _Projection(n_genes, c.width, c.dropout)
        self.register_buffer("reference", torch.zeros(c.n_reference, n_genes))  # standardised expression
        self.register_buffer("kept", torch.zeros(c.n_reference))  # 1 where a row is in use

    def begin(self, batches: Sequence[Batch]) -> None:
        """Measure the genes, and keep the expression of training locations to retrieve from."""
        super().begin(batches)
        c = self.config
        rng = np.random.default_rng(0)
        share = max(1, c.n_reference // len(batches))
        rows = []
        for batch in batches:
            y = dense(batch.y, np.float32)
            rows.append(y if len(y) <= share else y[np.sort(rng.choice(len(y), share, replace=False))])
        y = np.concatenate(rows)[: c.n_reference]
        values = np.zeros((c.n_reference, self.n_genes), dtype=np.float32)
        values[: len(y)] = (y - self.gene_mean.cpu().numpy()) / self.gene_std.cpu().numpy()
        self.set_buffer("reference", values)
        self.set_buffer("kept", np.arange(c.n_reference) < len(y))

    def forward(self, sample: Sample) -> Tensor:
        """Return the embeddings of the tiles in training; else (n, n_genes) means of the nearest locations."""
        query = self.image(sample.features[sample.targets])
        if self.training:
            return query
        keys = self.fold() if self._folded is None else self._folded
        similarity = F.normalize(query, dim=1) @ keys.T
        similarity = similarity.masked_fill(self.kept[None] == 0, -torch.inf)
        k = min(self.config.k, int(self.kept.sum()))
        weights = torch.zeros_like(similarity).scatter_(1, similarity.topk(k, dim=1).indices, 1 / k)
        return weights @ self.reference

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) projections of the tiles, whose directions are compared."""
        return self.image(sample.features[sample.targets])

    def fold(self) -> Tensor:
        """Return the directions of the kept locations' expression."""
        return F.normalize(self.expression(self.reference), dim=1)

    def loss(self, output: Tensor, sample: Sample) -> Tensor:
        """Return the cross-entropy between images and expression, with soft targets."""
        if sample.y is None:
            raise InputError("The batch came without training targets.")
        t = self.config.temperature
        told = self.expression((sample.y - self.gene_mean) / self.gene_std)
        logits = output @ told.T / t
        targets = F.softmax((output @ output.T + told @ told.T) / (2 * t), dim=1)
        both = F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets.T)
        return both / 2


class _Projection(nn.Module):
    """Linear, GELU, linear, dropout, residual, layer norm."""

    def __init__(self, n_in: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_in, width), nn.Linear(width, width)
        self.dropout, self.norm = nn.Dropout(dropout), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, n_in) to (n, width)."""
        projected = self.first(x)
        return self.norm(projected + self.dropout(self.second(F.gelu(projected))))

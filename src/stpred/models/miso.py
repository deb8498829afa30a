"""MISO: attention of a location to its neighbours (Schmauch et al. 2025), and the transformer it is compared with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred.models.base import BaseConfig
from stpred.models.batch import Needs
from stpred.models.parts.attention import local_attention
from stpred.models.parts.layers import needed
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample

_WORTH_FOLDING = 1300
"""Locations from which multiplying the matrices first is cheaper than applying each to all locations."""


@dataclass(frozen=True)
class MISOConfig(NetworkConfig):
    """Settings of :class:`MISO`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    n_neighbors
        Nearest locations that a location attends to, beside itself. 6, 18, 36, 60 and 90 are complete rings of
        Visium's hexagon; 4, 8, 12, 20, 24, 28 and 36 of a square grid. 0: the tile alone.
    width, inner, n_heads
        Width of the residual stream, of queries, keys and values, and number of heads.
    dropout
        On the features and on the stream before the last layer.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "miso"
    n_neighbors: int = 36
    width: int = 2048
    inner: int = 1024
    n_heads: int = 64
    dropout: float = 0.0
    loss: str = "cosine"
    lr: float = 1e-4
    batch_size: int = 1
    epochs_alone: int | None = 100
    max_epochs: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("width", "inner", "n_heads")
        self.check_whole("n_neighbors", zero=True)
        self.check_fraction("dropout")
        if self.inner % self.n_heads:
            raise InputError(f"`inner` must be a multiple of `n_heads`, got {self.inner} and {self.n_heads}.")

    @classmethod
    def published(cls, **changes: Any) -> MISOConfig:
        """Return the publication's settings on HER2ST: 5 epochs, features as given, gradients as they are."""
        values: dict[str, Any] = {"epochs": 5, "standardize": "none", "clip_norm": None}
        return cls(**(values | changes))

    @property
    def needs(self) -> Needs:
        """The nearest locations at the training pitch."""
        return replace(super().needs, n_neighbors=self.n_neighbors or None)

    def training_target(self, target: str | None) -> str:
        """Return raw counts by default: the cosine is invariant to the scale of a slide."""
        relative = self.output_scale("counts") == "relative"
        return "counts" if target is None and relative else super().training_target(target)


class MISO(Network):
    """Linear embedding, one pre-norm transformer block whose attention is local, linear head.

    Notes
    -----
    Sizes, loss (cosine per slide and gene on raw counts) and one slide per step are those of the publication; there the
    number of epochs is 5 (of 21 to 28 slides) and features are not standardised (``epochs=5, standardize="none"``).
    Besides softmax and layer norm there is no non-linearity, so that consecutive linear maps are multiplied out where
    that saves work. ``loss="pearson"`` is the centred form. The output is relative: per gene and slide its scale is
    open.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.MISO.Config(n_neighbors=6, width=32, inner=16, n_heads=2, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    >>> model.record.target
    'relative'
    """

    unit = "slides"
    hidden_layer = "the stream after the transformer block"
    Config: ClassVar[type[MISOConfig]] = MISOConfig  # type: ignore[assignment]
    config: MISOConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self.embedding = nn.Linear(n_features, c.width)
        self.norm = nn.LayerNorm(c.width)
        self.qkv = nn.Linear(c.width, 3 * c.inner)
        self.out = nn.Linear(c.inner, c.width, bias=False)
        self.feed_norm = nn.LayerNorm(c.width)
        self.feed = nn.Linear(c.width, c.width)
        self.last = nn.Linear(c.width, n_genes)

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.last

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        drop = self.config.dropout
        x = nn.functional.dropout(sample.features, drop, self.training)
        h = self.embedding(x)
        attended = self.attend(self._queries(x, h), sample)
        if self._folded is not None:
            weight, bias = self._folded[1]
            stream = torch.addmm(h[sample.targets], attended, self.out.weight.t())
            return nn.functional.linear(self.feed_norm(stream), weight, bias).addmm_(stream, self.last.weight.t())
        return self.last(self._block(h, attended, sample))

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) values of the stream that the last layer maps."""
        h = self.embedding(sample.features)
        return self._block(h, self.attend(self._queries(sample.features, h), sample), sample)

    def _block(self, h: Tensor, attended: Tensor, sample: Sample) -> Tensor:
        """Return the (n, width) stream after attention and feed-forward."""
        stream = nn.functional.dropout(h[sample.targets] + self.out(attended), self.config.dropout, self.training)
        return stream + self.feed(self.feed_norm(stream))

    def attend(self, qkv: Tensor, sample: Sample) -> Tensor:
        """Attend to itself and the neighbours: (m, 3 * inner) queries, keys and values to (n, inner)."""
        query, key, value = qkv.split(self.config.inner, dim=1)
        rows = sample.targets[:, None]
        if self.config.n_neighbors:
            rows = torch.cat([rows, needed(sample.neighbors, "neighbours")], dim=1)
        return local_attention(query[sample.targets], key, value, rows, n_heads=self.config.n_heads)

    def _queries(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the (m, 3 * inner) queries, keys and values of the normalised stream.

        The embedding has no activation: with layer norm's centring and gamma it is one linear map of the features,
        divided by the deviation that layer norm divides by.
        """
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if self._folded is None and (len(x) < _WORTH_FOLDING or x.shape[1] >= h.shape[1] or not plain):
            return self.qkv(self.norm(h))
        shift = nn.functional.linear(self.norm.bias, self.qkv.weight, self.qkv.bias)
        if self._folded is not None:
            one_over_deviation = torch.native_layer_norm(h, h.shape[1:], None, None, self.norm.eps)[2]
            return nn.functional.linear(x, *self._folded[0]).mul_(one_over_deviation).add_(shift)
        deviation = (h.var(dim=1, unbiased=False, keepdim=True) + self.norm.eps).sqrt()
        return nn.functional.linear(x, *self.fold_queries()) / deviation + shift

    def fold_queries(self) -> tuple[Tensor, Tensor]:
        """Return embedding, layer norm's centring and gamma, and the query map as one (3 * inner, n_features) map."""
        weight, bias = self.embedding.weight, self.embedding.bias
        scaled = self.qkv.weight * self.norm.weight
        return scaled @ (weight - weight.mean(dim=0)), scaled @ (bias - bias.mean())

    def fold_head(self) -> tuple[Tensor, Tensor]:
        """Return feed-forward and head as one (n_genes, width) map."""
        weight, bias = self.last.weight, self.last.bias
        return weight @ self.feed.weight, weight @ self.feed.bias + bias

    def fold(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Return both products of linear maps; None in other than single precision."""
        return (self.fold_queries(), self.fold_head()) if self.embedding.weight.dtype == torch.float32 else None


@dataclass(frozen=True)
class TransformerConfig(MISOConfig):
    """Settings of :class:`Transformer`: those of :class:`MISO`, in the sizes of its baseline.

    Parameters
    ----------
    width, inner, n_heads, dropout
        As of :class:`MISO`.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "transformer"
    width: int = 512
    inner: int = 256
    n_heads: int = 8
    n_neighbors: int = 0

    @property
    def needs(self) -> Needs:
        """Every location of the slide at the training pitch."""
        return Needs(whole_slide=True, slide_statistics=self.standardize == "slide")


class Transformer(MISO):
    """The network of MISO with every location attending to every other of its slide, without positions.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications. There it is a baseline.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.Transformer.Config(width=32, inner=16, n_heads=2, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    """

    Config: ClassVar[type[TransformerConfig]] = TransformerConfig  # type: ignore[assignment]

    def attend(self, qkv: Tensor, sample: Sample) -> Tensor:
        """Attend to all sources: (m, 3 * inner) queries, keys and values to (n, inner)."""
        sources = needed(sample.sources, "the slide's locations")
        if int(sample.slides.max()) > 0:
            raise InputError("A step of the global transformer holds one slide; set batch_size=1.")
        heads = self.config.n_heads
        query, key, value = (
            part.view(len(part), heads, -1).transpose(0, 1)[None] for part in qkv.split(self.config.inner, dim=1)
        )
        query = query[:, :, sample.targets]
        key, value = key[:, :, sources], value[:, :, sources]
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return attended[0].transpose(0, 1).reshape(len(sample.targets), -1)

"""Hist2ST: convolution within a tile, transformer over a section, graph network over neighbours (Zeng et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from stpred import links
from stpred._core.checks import InputError
from stpred.models.base import BaseConfig
from stpred.models.batch import Needs
from stpred.models.parts import losses
from stpred.models.parts.layers import mean_of_rows, needed
from stpred.models.parts.sample import Sample, padded
from stpred.models.parts.section import PITCH_UM, SectionConfig, SectionNetwork

_PITCHES = 2.0
"""How far a neighbour of the graph may be, in pitches."""


@dataclass(frozen=True)
class Hist2STConfig(SectionConfig):
    """Settings of :class:`Hist2ST`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    parts
        The tile is cut into ``parts * parts`` sub-tiles, on whose grid the convolutions work.
    channels
        Of the convolutions.
    n_mixers
        Blocks of a convolution within each channel and one across channels.
    kernel
        Edge of the convolutions, in sub-tiles; odd.
    n_graph_layers
        Layers of the graph network.
    n_neighbors
        Nearest locations of each that are its neighbours in the graph, up to two pitches away.
    views
        Augmented views of every location in each training step: its sub-tiles turned or mirrored, other dropout.
    self_distillation
        Weight of the squared difference between the output and the mean of its views; 0 leaves them out.
    width, depth, n_heads, head_width, feed_width, dropout, input_dropout, n_places, pitch_um
        Of the transformer over the section, as of :class:`HisToGene`.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "hist2st"
    parts: int = 3
    channels: int = 32
    n_mixers: int = 2
    kernel: int = 3
    n_graph_layers: int = 4
    n_neighbors: int = 4
    views: int = 2
    self_distillation: float = 0.5
    depth: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("parts", "channels", "kernel", "n_graph_layers", "n_neighbors", "views")
        self.check_whole("n_mixers", zero=True)
        self.check_fraction("self_distillation", below=float("inf"))
        if self.kernel % 2 == 0:
            raise InputError(f"`kernel` must be odd, got {self.kernel}.")

    @classmethod
    def published(cls, **changes: Any) -> Hist2STConfig:
        """Return the publication's sizes: width 1024, 8 blocks of 16 heads, 5 views, lr 1e-5, 350 epochs.

        Features and genes are as given; the convolutions work on 4 x 4 sub-tiles.
        """
        values: dict[str, Any] = {
            "width": 1024, "depth": 8, "n_heads": 16, "head_width": 64, "feed_width": 1024, "parts": 4, "views": 5,
            "n_places": 64, "lr": 1e-5, "epochs": 350, "standardize": "none", "scale_genes": False, "clip_norm": None,
        }  # fmt: skip
        return cls(**(values | changes))

    @property
    def needs(self) -> Needs:
        """Every location of the slide at the training pitch, its place and its sub-tiles."""
        return replace(super().needs, parts=self.parts)


class Hist2ST(SectionNetwork):
    """Convolutions over a tile's sub-tiles, transformer over the section, graph network, recurrent combination.

    Notes
    -----
    Each location is the embedding of its tile and of its sub-tiles after blocks of depthwise and pointwise convolutions
    (ConvMixer), with learned vectors of its place. A transformer relates all locations of the section; layers of
    GraphSAGE then average each location's nearest neighbours, and a recurrent network reads the layers' outputs, whose
    mean goes to the linear head. Departures: the convolutions work on the encoder's features of sub-tiles instead of
    pixels, beside those of the whole tile, and are normalised by location instead of by batch; self-distillation pulls
    the output to the plain mean of its augmented views instead of a learned combination; the term of zero-inflated
    counts is left out (``loss="nb"`` is a likelihood of counts without zero inflation); the network is narrower and
    shallower by default (`published` has the full size); places, standardisation and locations of another pitch are as
    in :class:`HisToGene`.

    References
    ----------
    Zeng et al. (2022), Spatial transcriptomics prediction from histology jointly through Transformer and graph neural
    networks, Briefings in Bioinformatics 23.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> sizes = {"width": 16, "depth": 1, "n_heads": 2, "feed_width": 16, "n_graph_layers": 2, "parts": 2}
    >>> model = st.tl.train(slides, st.models.Hist2ST.Config(**sizes, epochs=1), shapes_key="spots", encoder="colour")
    """

    hidden_layer = "the mean of what the recurrent network reads from the graph layers, normalised"
    Config: ClassVar[type[Hist2STConfig]] = Hist2STConfig  # type: ignore[assignment]
    config: Hist2STConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self.convolution = TileConvolution(c, n_features)
        self.graph = nn.ModuleList(nn.Linear(2 * c.width, c.width) for _ in range(c.n_graph_layers))
        self.graph_norms = nn.ModuleList(nn.LayerNorm(c.width) for _ in range(c.n_graph_layers))
        self.recurrent = nn.LSTM(c.width, c.width, num_layers=2)

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs; in training with augmented views, (1 + views, n, n_genes)."""
        rows, n_sources, targets = self.stream(sample)
        neighbors = self._neighbors(sample, rows, n_sources)
        c = self.config
        if not (self.training and c.self_distillation):
            return self.last(self._read(sample, rows, n_sources, targets, neighbors, turn=0))
        turns = [0, *torch.randint(8, (c.views,)).tolist()]
        read = (self._read(sample, rows, n_sources, targets, neighbors, turn=t) for t in turns)
        return torch.stack([self.last(values) for values in read])

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, width) values that the last layer maps."""
        rows, n_sources, targets = self.stream(sample)
        return self._read(sample, rows, n_sources, targets, self._neighbors(sample, rows, n_sources), turn=0)

    def _read(
        self, sample: Sample, rows: Tensor, n_sources: int, targets: Tensor, neighbors: Tensor, *, turn: int
    ) -> Tensor:
        c = self.config
        x = nn.functional.dropout(sample.features, c.input_dropout, self.training)
        h = self.embedding(x[rows]) + self.convolution(x, self._parts(sample, n_sources, len(rows)), turn=turn)
        h = self.attend(self.located(h, rows, sample), n_sources)
        layers = []
        for layer, norm in zip(self.graph, self.graph_norms, strict=True):
            around = mean_of_rows(h[:n_sources], neighbors, otherwise=h)
            h = nn.functional.gelu(norm(layer(torch.cat([h, around], dim=1))))
            h = nn.functional.dropout(h, c.dropout, self.training)
            layers.append(h[targets])
        read, _ = self.recurrent(torch.stack(layers))
        return self.norm(read.mean(dim=0))

    def _parts(self, sample: Sample, n_sources: int, n: int) -> Tensor:
        """Return the (n, parts ** 2) rows of the sub-tiles of the stream: of the sources, and of targets beside."""
        parts = needed(sample.source_parts, "sub-tiles")
        each = self.config.parts**2
        # A location smaller than its sub-tiles comes with one of them, which stands for all.
        parts = parts.expand(len(parts), each)
        if n == n_sources:
            return parts
        is_source = torch.isin(sample.targets, needed(sample.sources, "the slide's locations"))
        beside = needed(sample.parts, "sub-tiles")[~is_source]
        return torch.cat([parts, beside.expand(len(beside), each)])

    def _neighbors(self, sample: Sample, rows: Tensor, n_sources: int) -> Tensor:
        """Return the (m, k) nearest sources of each row of the stream, -1 for none; a source is not its own."""
        c = self.config
        places = needed(sample.places, "places")[rows].double().cpu().numpy()
        reach = _PITCHES * (c.pitch_um or PITCH_UM) * 1.001
        found = links.knn(places, places[:n_sources], n_neighbors=c.n_neighbors, max_distance_um=reach)
        return torch.from_numpy(padded(found)).to(rows.device)

    def loss(self, output: Tensor, sample: Sample) -> Tensor:
        """Return the configured loss of the output, and what the mean of its augmented views adds."""
        if output.ndim == 2:
            return super().loss(output, sample)
        plain, views = output[0], output[1:]
        each = torch.stack([super(Hist2ST, self).loss(o, sample) for o in output]).mean()
        return each + self.config.self_distillation * losses.mse(plain, views.mean(dim=0).detach())


class TileConvolution(nn.Module):
    """ConvMixer on the grid of a tile's sub-tiles: features to channels, blocks, four channels, linear."""

    def __init__(self, config: Hist2STConfig, n_features: int) -> None:
        super().__init__()
        c = config
        self.parts = c.parts
        self.stem = nn.Linear(n_features, c.channels)
        self.within = nn.ModuleList(
            nn.Conv2d(c.channels, c.channels, c.kernel, padding="same", groups=c.channels) for _ in range(c.n_mixers)
        )
        self.across = nn.ModuleList(nn.Conv2d(c.channels, c.channels, 1) for _ in range(c.n_mixers))
        self.norms = nn.ModuleList(nn.GroupNorm(1, c.channels) for _ in range(2 * c.n_mixers))
        self.few = nn.Conv2d(c.channels, 4, 1)
        self.out = nn.Linear(4 * c.parts**2, c.width)

    def forward(self, features: Tensor, parts: Tensor, *, turn: int = 0) -> Tensor:
        """Map (n, parts ** 2) rows of (m, n_features) to (n, width); `turn` is one of the eight of a square."""
        grid = self.stem(features)[parts].view(len(parts), self.parts, self.parts, -1).permute(0, 3, 1, 2)
        grid = grid.rot90(turn % 4, dims=(2, 3))
        grid = grid.flip(3) if turn >= 4 else grid
        for i, (within, across) in enumerate(zip(self.within, self.across, strict=True)):
            grid = grid + self.norms[2 * i](nn.functional.gelu(within(grid)))
            grid = self.norms[2 * i + 1](nn.functional.gelu(across(grid)))
        return self.out(self.few(grid).flatten(1))

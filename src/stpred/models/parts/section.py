"""Transformers over all locations of a section: places, blocks of attention, and settings that these have."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred.models.base import BaseConfig
from stpred.models.batch import Needs
from stpred.models.parts.layers import needed
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample

PITCH_UM = 100.0
"""Unit of places where training locations have no pitch."""


@dataclass(frozen=True)
class SectionConfig(NetworkConfig):
    """Settings of a network over all locations of a section.

    Parameters
    ----------
    width
        Of the residual stream.
    depth
        Blocks of attention.
    n_heads, head_width
        Number of heads, and width of each.
    feed_width
        Hidden width of the perceptron after each attention.
    dropout
        After the embedding, in the blocks, and in their perceptrons.
    input_dropout
        On the features.
    n_places
        Entries of the tables of places along x and y, one for each pitch of the training locations; None leaves places
        out.
    pitch_um
        Distance of two entries; None: the pitch of the training locations.
    """

    width: int = 256
    depth: int = 4
    n_heads: int = 8
    head_width: int = 32
    feed_width: int = 512
    dropout: float = 0.1
    input_dropout: float = 0.0
    n_places: int | None = 128
    pitch_um: float | None = None
    lr: float = 3e-4
    batch_size: int = 1
    epochs_alone: int | None = 60
    max_epochs: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("width", "depth", "n_heads", "head_width", "feed_width", "n_places")
        self.check_fraction("dropout", "input_dropout")
        self.check_positive("pitch_um")

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Fix the unit of places for training locations of this pitch."""
        return self if self.pitch_um is not None or pitch_um is None else replace(self, pitch_um=round(pitch_um, 3))

    @property
    def needs(self) -> Needs:
        """Every location of the slide at the training pitch, and where they are."""
        return Needs(whole_slide=True, places=True, slide_statistics=self.standardize == "slide")


class SectionNetwork(Network):
    """A network on the stream of a section: all its sources, and targets that are not among them.

    Sources attend to one another, targets to the sources, so that no prediction depends on which others are asked for.
    """

    unit = "slides"
    config: Any

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self.embedding = nn.Linear(n_features, c.width)
        self.places = None if c.n_places is None else Places(c.n_places, c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)
        self.last = nn.Linear(c.width, n_genes)

    @property
    def head(self) -> nn.Linear:
        """The last layer."""
        return self.last

    def stream(self, sample: Sample) -> tuple[Tensor, int, Tensor]:
        """Return the rows of features in the stream, how many of them are sources, and where the targets are in it."""
        sources = needed(sample.sources, "the slide's locations")
        if int(sample.slides.max()) > 0:
            raise InputError(f"A step of {self.family!r} holds one slide; set batch_size=1.")
        where = torch.full((len(sample.features),), -1, device=sources.device)
        where[sources] = torch.arange(len(sources), device=sources.device)
        beside = sample.targets[where[sample.targets] < 0]
        where[beside] = len(sources) + torch.arange(len(beside), device=sources.device)
        return torch.cat([sources, beside]), len(sources), where[sample.targets]

    def located(self, h: Tensor, rows: Tensor, sample: Sample) -> Tensor:
        """Add what the tables say of the places of the (m, width) stream, and drop some of it in training."""
        if self.places is not None:
            h = h + self.places(needed(sample.places, "places")[rows] / (self.config.pitch_um or PITCH_UM))
        return nn.functional.dropout(h, self.config.dropout, self.training)

    def attend(self, h: Tensor, n_sources: int) -> Tensor:
        """Map the (m, width) stream through the blocks."""
        for block in self.blocks:
            h = block(h, n_sources)
        return h


class Places(nn.Module):
    """Learned vectors of the places along x and y.

    Between two entries it is interpolated. All start at zero: a place that no training section reached adds nothing,
    and neither does one beyond the table.
    """

    def __init__(self, n: int, width: int) -> None:
        super().__init__()
        self.x, self.y = (nn.Parameter(torch.zeros(n, width)) for _ in range(2))

    def forward(self, places: Tensor) -> Tensor:
        """Map (m, 2) places, in entries, to (m, width)."""
        return _interpolated(self.x, places[:, 0]) + _interpolated(self.y, places[:, 1])


def _interpolated(table: Tensor, at: Tensor) -> Tensor:
    """Return (m, width) values of a table at fractional rows, zero beyond it."""
    # a lattice in rounded micrometres is meant to hit the entries
    at = torch.where((at - at.round()).abs() < 0.02, at.round(), at)
    low = at.floor()
    share = (at - low)[:, None]
    beyond = torch.cat([table, table.new_zeros(1, table.shape[1])])

    def row(index: Tensor) -> Tensor:
        index = index.long()
        return beyond[torch.where((index < 0) | (index >= len(table)), len(table), index)]

    return (1 - share) * row(low) + share * row(low + 1)


class Block(nn.Module):
    """Pre-norm attention and perceptron, each with a residual."""

    def __init__(self, config: SectionConfig) -> None:
        super().__init__()
        c = config
        inner = c.n_heads * c.head_width
        self.n_heads, self.p = c.n_heads, c.dropout
        self.norm, self.feed_norm = nn.LayerNorm(c.width), nn.LayerNorm(c.width)
        self.qkv = nn.Linear(c.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, c.width)
        self.feed = nn.Sequential(
            nn.Linear(c.width, c.feed_width),
            nn.GELU(),
            nn.Dropout(c.dropout),
            nn.Linear(c.feed_width, c.width),
            nn.Dropout(c.dropout),
        )

    def forward(self, h: Tensor, n_sources: int) -> Tensor:
        """Let the (m, width) stream attend to its first rows, the sources."""
        query, key, value = (
            part.view(len(h), self.n_heads, -1).transpose(0, 1)[None] for part in self.qkv(self.norm(h)).chunk(3, dim=1)
        )
        key, value = key[:, :, :n_sources], value[:, :, :n_sources]
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        attended = self.out(attended[0].transpose(0, 1).reshape(len(h), -1))
        h = h + nn.functional.dropout(attended, self.p, self.training)
        return h + self.feed(self.feed_norm(h))

"""DeepSpot and DeepCell: deep sets over a location and what surrounds it (Nonchev et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from stpred._core.checks import InputError, one_of
from stpred._core.specs import TileSpec
from stpred._core.targets import dense
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.parts.cells import CellNetwork, cells_of
from stpred.models.parts.layers import dropout, median_of_relus, needed, rows_or_zero
from stpred.models.parts.network import Network, NetworkConfig
from stpred.models.parts.sample import Sample

CONTEXTS = ("spot", "spot+parts", "spot+neighbors", "all")
POOLS = ("max", "mean", "sum")
PLACED = ("distance", "attention")
"""Means of neighbours whose weights depend on where these are."""

PITCHES = 1.5
"""Radius in training pitches: six neighbours on Visium's hexagon (the next are at 1.73), eight on a square grid."""

_INNER = 64
"""Largest width of queries and keys of neighbours."""

_CHUNK = 8192
"""Rows that phi maps at a time in prediction: its copies are ten times as wide as its output."""


@dataclass(frozen=True)
class DeepSpotConfig(NetworkConfig):
    """Settings of :class:`DeepSpot`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    context
        ``"all"``, ``"spot"``, ``"spot+parts"`` or ``"spot+neighbors"``.
    context_um
        Radius in micrometres of the neighbourhood; None: 1.5 pitches of the training locations, which makes six
        neighbours on Visium and eight on a square grid.
    parts
        The tile is cut into ``parts * parts`` sub-tiles.
    width
        Output width of phi.
    n_phi, n_rho
        Copies of phi (element-wise median) and of rho (mean).
    input_dropout, phi_dropout, rho_dropout, output_dropout
        On the features, after phi's linear map, before rho's, and on rho's outputs.
    parts_pool, neighbors_pool
        ``"sum"``, ``"mean"`` or ``"max"``. The publication sums sub-tiles, which is their mean with other weights; the
        mean starts on the scale of the rest. Neighbours also take ``"distance"``, their mean with weights that fall off
        with the distance as a Gaussian of learned width, and ``"attention"``, whose weights are that times what the
        location's own values and the neighbour's say of each other.
    oversample
        Clusters of locations within each slide, from which equally many are drawn in every epoch; None draws each
        location once. The publication clusters a latent space of tile and expression; here it is k-means on the
        leading components of expression.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "deepspot"
    context: str = "all"
    context_um: float | None = None
    parts: int = 3
    width: int = 512
    n_phi: int = 10
    n_rho: int = 10
    input_dropout: float = 0.0
    phi_dropout: float = 0.3
    rho_dropout: float = 0.3
    output_dropout: float = 0.1
    parts_pool: str = "mean"
    neighbors_pool: str = "max"
    oversample: int | None = None
    lr: float = 1e-3
    weight_decay: float = 1e-6
    batch_size: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.context, CONTEXTS, name="context")
        one_of(self.parts_pool, POOLS, name="parts_pool")
        one_of(self.neighbors_pool, POOLS + PLACED, name="neighbors_pool")
        self.check_whole("parts", "width", "n_phi", "n_rho", "oversample")
        self.check_fraction("input_dropout", "phi_dropout", "rho_dropout", "output_dropout")
        self.check_positive("context_um")

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Fix the radius for training locations of this pitch."""
        if self.context_um is not None or not self.sees_neighbors or pitch_um is None:
            return self
        return replace(self, context_um=round(PITCHES * pitch_um, 3))

    @classmethod
    def published(cls, **changes: Any) -> DeepSpotConfig:
        """Return the publication's settings: lr 1e-4, 15 epochs, sums of sub-tiles, oversampling, features as given.

        The tile is the spot's diameter there: pass ``tile=`` to :func:`stpred.tl.train`.
        """
        values: dict[str, Any] = {"lr": 1e-4, "epochs": 15, "parts_pool": "sum", "standardize": "none", "oversample": 8}
        return cls(**(values | {"clip_norm": None} | changes))

    @property
    def needs(self) -> Needs:
        """Neighbours within the radius and sub-tiles, as far as the context goes."""
        return replace(
            super().needs,
            context_um=(self.context_um or 150.0) if self.sees_neighbors else None,
            parts=self.parts if self.sees_parts else None,
            places=self.sees_neighbors and self.neighbors_pool in PLACED,
        )

    @property
    def sees_parts(self) -> bool:
        """Whether sub-tiles are used."""
        return self.context in ("spot+parts", "all")

    @property
    def sees_neighbors(self) -> bool:
        """Whether neighbours are used."""
        return self.context in ("spot+neighbors", "all")


class DeepSpot(Network):
    """Deep sets: phi maps the tile, its sub-tiles and its neighbours alike; rho maps the pools to genes.

    Notes
    -----
    phi is ``n_phi`` copies of Linear, dropout, ReLU, combined by the element-wise lower median. Sub-tiles are averaged
    (published: summed), neighbours max-pooled, and the three concatenated. rho is the mean of ``n_rho`` copies of
    dropout, Linear, dropout.
    In evaluation the mean of linear maps is one linear map, so rho is folded into a single matrix, and every location
    is mapped by phi once, however many neighbourhoods it is in. Sets are ragged: nothing is padded with zeros that
    could enter a pool. Unlike in the publication's code, the tile is the encoder's own (pass ``tile=`` for one of the
    spot's diameter), and features are standardised per slide (``standardize="none"`` leaves them).
    On locations smaller than a sub-tile (bins, squares of :func:`stpred.pp.subdivide`), the set of sub-tiles
    is the one about the location's centre, with the weight of all: the publication's super-resolution, whose code takes
    a sub-tile off the centre and a ninth of the sum.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> config = st.models.DeepSpot.Config(context="spot+neighbors", width=32, n_phi=2, n_rho=2, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    """

    hidden_layer = "the pools of phi over tile, sub-tiles and neighbours, side by side"
    Config: ClassVar[type[DeepSpotConfig]] = DeepSpotConfig  # type: ignore[assignment]
    config: DeepSpotConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        n_pools = 1 + c.sees_parts + c.sees_neighbors
        self.phi = nn.Linear(n_features, c.n_phi * c.width)
        bound = 1 / math.sqrt(n_pools * c.width)  # torch's default for each of the linear maps
        self.rho_weight = nn.Parameter(torch.empty(c.n_rho, n_genes, n_pools * c.width).uniform_(-bound, bound))
        self.rho_bias = nn.Parameter(torch.empty(c.n_rho, n_genes).uniform_(-bound, bound))
        self.weighting = None
        if c.sees_neighbors and c.neighbors_pool in PLACED:
            self.weighting = NeighborWeights(c.width, attended=c.neighbors_pool == "attention")

    def initialise(self, mean: Any) -> None:
        """Let the outputs start at the training mean."""
        with torch.no_grad():
            self.rho_bias.copy_(torch.as_tensor(mean, dtype=self.rho_bias.dtype).expand_as(self.rho_bias))

    def forward(self, sample: Sample) -> Tensor:
        """Return (n, n_genes) outputs."""
        pooled = self.pool(self.embed(sample.features), sample)
        if not self.training:
            return nn.functional.linear(pooled, *(self._folded or self.fold()))
        c = self.config
        pooled = pooled / (1 - c.rho_dropout)
        total: Any = 0
        for weight, bias in zip(self.rho_weight, self.rho_bias, strict=True):
            mapped = nn.functional.linear(dropout(pooled, c.rho_dropout), weight, bias)
            total = total + dropout(mapped, c.output_dropout)
        return total / (c.n_rho * (1 - c.output_dropout))

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, pools * width) values that rho maps."""
        return self.pool(self.embed(sample.features), sample)

    def embed(self, features: Tensor) -> Tensor:
        """Map (m, n_features) features to the (m, width) values of phi, which are never negative."""
        if self.training:
            return self._phi(features)
        return torch.cat([self._phi(part) for part in features.split(_CHUNK)])

    def _phi(self, features: Tensor) -> Tensor:
        c = self.config
        features = nn.functional.dropout(features, c.input_dropout, self.training)
        mapped = self.phi(features).view(len(features), c.n_phi, c.width)
        return median_of_relus(mapped, c.phi_dropout if self.training else 0.0)

    def pool(self, z: Tensor, sample: Sample) -> Tensor:
        """Concatenate the (n, width) pools of spot, sub-tiles and neighbours."""
        c = self.config
        pools = [z[sample.targets]]
        if c.sees_parts:
            parts = needed(sample.parts, "sub-tiles")
            pooled = _pool(z, parts, c.parts_pool)
            if c.parts_pool == "sum":  # a target smaller than its sub-tiles comes with one of them
                pooled = pooled * (c.parts**2 / max(parts.shape[1], 1))
            pools.append(pooled)
        if self.weighting is not None:
            pools.append(self.weighting(z, sample, reach_um=float(c.needs.context_um or 1.0)))
        elif c.sees_neighbors:
            pools.append(_pool(z, needed(sample.neighbors, "neighbours"), c.neighbors_pool))
        return torch.cat(pools, dim=1)

    def fold(self) -> tuple[Tensor, Tensor]:
        """Return the one linear map that rho is in evaluation."""
        return self.rho_weight.mean(dim=0), self.rho_bias.mean(dim=0)

    def sampling_clusters(self, batches: Sequence[Batch], *, seed: int) -> list[Any] | None:
        """Return a cluster number for every location of each batch where classes are balanced, else None."""
        if self.config.oversample is None:
            return None
        return [_clusters(b, n_clusters=self.config.oversample, seed=seed) for b in batches]


class NeighborWeights(nn.Module):
    """Weighted mean of a location's neighbours, by their distance and, if attended, by what they are."""

    def __init__(self, width: int, *, attended: bool) -> None:
        super().__init__()
        self.log_width = nn.Parameter(torch.tensor(math.log(0.5)))  # of the Gaussian, in radii of the neighbourhood
        inner = min(width, _INNER)
        self.query, self.key = (nn.Linear(width, inner, bias=False) if attended else None for _ in range(2))

    def weights(self, z: Tensor, sample: Sample, *, reach_um: float) -> Tensor:
        """Return (n, k) weights of the neighbours, which add up to 1; 0 where there is none."""
        rows, places = needed(sample.neighbors, "neighbours"), needed(sample.places, "places")
        there = rows.clamp(min=0)
        distance = (places[there] - places[sample.targets][:, None]).square().sum(dim=2) / reach_um**2
        score = -distance / (2 * (2 * self.log_width).exp())
        if self.query is not None and self.key is not None:
            query, key = self.query(z[sample.targets]), self.key(z)[there]
            score = score + (query[:, None] * key).sum(dim=2) / math.sqrt(query.shape[1])
        # The lowest finite score stands for none, so that a location without neighbours has no weights that are NaN.
        score = score.masked_fill(rows < 0, torch.finfo(score.dtype).min)
        return score.softmax(dim=1) * (rows >= 0)

    def forward(self, z: Tensor, sample: Sample, *, reach_um: float) -> Tensor:
        """Return the (n, width) mean of (m, width) values over each target's neighbours; 0 without any."""
        rows = needed(sample.neighbors, "neighbours")
        if rows.shape[1] == 0:
            return z.new_zeros(len(rows), z.shape[1])
        weights = self.weights(z, sample, reach_um=reach_um)
        return (weights[..., None] * rows_or_zero(z, rows)).sum(dim=1)


def _pool(z: Tensor, rows: Tensor, method: str) -> Tensor:
    """Pool (n, k) rows of z, -1 for none; z is not negative, so a zero row leaves sum and maximum alone."""
    if rows.shape[1] == 0:
        return z.new_zeros(len(rows), z.shape[1])
    values = rows_or_zero(z, rows)
    if method == "max":
        return values.amax(dim=1)
    total = values.sum(dim=1)
    return total if method == "sum" else total / (rows >= 0).sum(dim=1, keepdim=True).clamp(min=1)


def _clusters(batch: Batch, *, n_clusters: int, seed: int) -> Any:
    """Cluster a slide's locations by their measured expression (50 components)."""
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    y = dense(batch.y)
    parts = PCA(min(50, *y.shape), random_state=seed).fit_transform(y)
    return KMeans(min(n_clusters, len(y)), n_init=3, random_state=seed).fit_predict(parts)


@dataclass(frozen=True)
class DeepCellConfig(DeepSpotConfig):
    """Settings of :class:`DeepCell`; see :class:`stpred.models.DeepSpot` for phi and rho.

    Parameters
    ----------
    n_neighbors
        Nearest other cells whose values of phi are pooled; the same number in training and prediction.
    width
        Output width of phi.
    phi_dropout
        After phi's linear map.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "deepcell"
    default_tile: ClassVar[TileSpec | None] = TileSpec(0.5, 48)
    context: str = "spot+neighbors"
    n_neighbors: int = 44
    width: int = 1024
    phi_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("n_neighbors")
        if self.context != "spot+neighbors" or self.context_um is not None:
            raise InputError("DeepCell sees a cell and its nearest cells: `context` and `context_um` are not for it.")
        if self.neighbors_pool in PLACED:
            raise InputError(f"DeepCell pools its neighbours by one of {list(POOLS)}, got {self.neighbors_pool!r}.")

    @classmethod
    def published(cls, **changes: Any) -> DeepCellConfig:
        """Return the publication's settings for cells: lr 1e-4, features and gradients as they are."""
        values: dict[str, Any] = {"lr": 1e-4, "standardize": "none", "clip_norm": None}
        return cls(**(values | changes))

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Return the settings as they are: a number of cells is no distance."""
        return self

    @property
    def needs(self) -> Needs:
        """The cells of each location, and the nearest cells of each."""
        return Needs(cells=True, n_neighbors=self.n_neighbors, slide_statistics=self.standardize == "slide")


class DeepCell(CellNetwork, DeepSpot):
    """Deep sets over a cell's tile and those of its nearest cells, trained on measured cells.

    Notes
    -----
    phi and rho are those of :class:`DeepSpot`; the neighbours' values of phi are max-pooled. The neighbours are always
    the nearest cells, as many in prediction as in training. On spots or bins, the mean over the cells in them.

    References
    ----------
    Nonchev et al. (2025), DeepSpot: Leveraging Spatial Context for Enhanced Spatial Transcriptomics Prediction from
    H&E Images, medRxiv 10.1101/2025.02.09.25321567.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.DeepCell.Config(width=32, n_phi=2, n_rho=2, n_neighbors=8, epochs=2)
    >>> model = st.tl.train(slides, config, shapes_key="cells")
    """

    hidden_layer = "phi of a cell and its pool over the nearest cells, side by side, mean over the cells of a location"
    Config: ClassVar[type[DeepCellConfig]] = DeepCellConfig  # type: ignore[assignment]
    config: DeepCellConfig  # type: ignore[assignment]

    def per_cell(self, sample: Sample) -> Tensor:
        """Return (m, n_genes) values of the sample's cells."""
        return DeepSpot.forward(self, self._cells_as_targets(sample))

    def hidden_per_cell(self, sample: Sample) -> Tensor:
        """Return the (m, 2 * width) values of the sample's cells that rho maps."""
        return DeepSpot.hidden(self, self._cells_as_targets(sample))

    @staticmethod
    def _cells_as_targets(sample: Sample) -> Sample:
        return replace(sample, targets=cells_of(sample), neighbors=needed(sample.neighbors, "the neighbours of cells"))

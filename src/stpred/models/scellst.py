"""sCellST: expression of single cells from the spots that they are in (Chadoutaud et al. 2026)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, listing, one_of
from stpred._core.specs import TileSpec
from stpred._core.targets import by_gene, dense
from stpred.models.base import CELLS, BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.parts.cell_ridge import CellRidge
from stpred.models.parts.cells import CellNetwork, CellNetworkConfig, cells_of, typical_cells
from stpred.models.parts.closed_form import check_weights
from stpred.models.parts.layers import (
    SOFTPLUS_BETA,
    activation,
    hidden_values,
    linear_layers,
    perceptron,
    segment_softmax,
    segment_sum,
)
from stpred.models.parts.network import check_perceptron
from stpred.models.parts.sample import Sample, Scaling

POOLS = ("mean", "sum", "attention")
REGRESSORS = ("ridge", "perceptron")

UPPER = 0.95
"""Quantile of a gene over a slide's spots that is scaled to 1."""

_SMALLEST_SHARE = 1e-9

_OF_RIDGE_ALONE = ("penalty", "block_weights", "location_weights")
_OF_RIDGE = ("regressor", "tile_um", "context_um", "standardize", *_OF_RIDGE_ALONE)


@dataclass(frozen=True)
class SCellSTConfig(CellNetworkConfig):
    """Settings of :class:`SCellST`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    regressor
        ``"ridge"``: a linear map of each cell's crop added to one of the tile around, in closed form, whose penalties
        are chosen on held-out donors (:class:`stpred.models.parts.cell_ridge.CellRidge`); of the settings below it has
        `tile_um`, `context_um`, `standardize`, `penalty`, `block_weights` and `location_weights`. ``"perceptron"``: the
        published network. None: ``"perceptron"`` where a setting of it differs from its default, else ``"ridge"``.
    tile_um
        Encoders (of a list) whose tiles are at least so wide see the tile around the location, once for all of its
        cells, and the others the crop of each cell; a cell that is predicted by itself has the tile around it. None:
        all see crops around each cell.
    penalty, block_weights, location_weights
        Of ``"ridge"``, as of :class:`Ridge`; blocks are the encoders and the means of `context_um`.
    hidden
        Widths of the hidden layers.
    activation
        After each hidden layer: ``"relu"``, ``"leaky_relu"`` (published), ``"gelu"`` or ``"silu"``.
    dropout
        After each hidden layer's activation.
    output
        ``"softplus"`` (published, with a steepness of 20), ``"relu"`` or ``"linear"``.
    pool
        ``"mean"`` of the cells in a spot (published); ``"sum"``, by which the number of cells counts and a spot's cells
        add up to it (log1p CP10k hardly depends on the number of its cells: see :class:`DeepSpot2Cell` for amounts
        that add up); ``"attention"``, a mean with learned weights (Ilse et al. 2018).
    context_um
        Radius in micrometres around a cell; the mean features of the other cells within it and their number are added
        to the cell's own. None (published): the cell alone.
    scale_genes
        For ``"mse"``: divide each gene by its range up to the 95th percentile over the spots of a slide; inverted at
        prediction by the mean over the training slides.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "scellst"
    default_tile: ClassVar[TileSpec | None] = TileSpec(0.5, 48)
    regressor: str | None = None
    tile_um: float | None = 100.0
    penalty: float | None = None
    block_weights: str | None = None
    location_weights: str | None = None
    hidden: tuple[int, ...] = (256, 256, 256)
    activation: str = "leaky_relu"
    dropout: float = 0.1
    output: str = "softplus"
    pool: str = "mean"
    context_um: float | None = None
    max_epochs: int = 400
    patience: int = 20
    epochs_alone: int | None = None
    lr: float = 1e-4
    weight_decay: float = 0.01
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_perceptron(self)
        one_of(self.pool, POOLS, name="pool")
        self.check_positive("context_um", "tile_um", "penalty")
        check_weights(self)
        self._choose_regressor()
        if self.loss == "nb" and self.pool == "sum":
            raise InputError("`loss`='nb' has the library size as offset, so shares are averaged: pass pool='mean'.")

    def _choose_regressor(self) -> None:
        """Settle which regressor is meant, and refuse settings of the other one."""
        if self.regressor is not None:
            one_of(self.regressor, REGRESSORS, name="regressor")
        own = {f.name: f.default for f in fields(self) if f.name not in _OF_RIDGE}
        network = [k for k, default in own.items() if getattr(self, k) != default]
        ridge = [k for k in _OF_RIDGE_ALONE if getattr(self, k) is not None]
        chosen = self.regressor or ("perceptron" if network else "ridge")
        if wrong := (network if chosen == "ridge" else ridge):
            other = "perceptron" if chosen == "ridge" else "ridge"
            raise InputError(
                f"{listing(wrong)} are settings of regressor={other!r}, but it is {chosen!r}; leave one out."
            )
        object.__setattr__(self, "regressor", chosen)

    @classmethod
    def published(cls, **changes: Any) -> SCellSTConfig:
        """Return the published settings: the perceptron on each cell's crop alone, gradients as they are.

        The crop is 12 um wide there, and 24 um by default: pass ``tile=stpred.TileSpec(0.25, 48)`` to
        :func:`stpred.tl.train`.
        """
        return cls(**({"regressor": "perceptron", "tile_um": None, "clip_norm": None} | changes))

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Return settings from stored values; what was stored before there was a choice is the perceptron."""
        return super().parse(({} if "regressor" in values else {"regressor": "perceptron", "tile_um": None}) | values)

    @property
    def model_class(self) -> type[Model]:
        """The network, or a model in closed form."""
        return SCellSTRidge if self.regressor == "ridge" else SCellST

    @property
    def default_encoder(self) -> str:  # type: ignore[override]
        """Crops of two sizes and tiles of two for ``"ridge"``, one crop for the perceptron."""
        return CELLS if self.regressor == "ridge" else BaseConfig.default_encoder

    @property
    def seeded(self) -> bool:  # type: ignore[override]
        """Whether two fits differ by their seed: those of the network do."""
        return self.regressor != "ridge"

    @property
    def needs(self) -> Needs:
        """The cells in each location and its tile, and the cells around each cell if a radius is given."""
        return replace(super().needs, context_um=self.context_um, tile_um=self.tile_um)


class SCellST(CellNetwork):
    """Each cell by its crop and the tile around, spots as the mean over their cells; trained on spots, predicts cells.

    Notes
    -----
    Multiple-instance learning: the loss compares spots, the model sees cells. By default (``regressor="ridge"``) a cell
    is a linear map of the tile around it plus one of its crops, by which it deviates from its spot as far as held-out
    donors say that crops predict anything: the penalties of both are chosen on them, and the fit is in closed form.

    ``SCellST.Config.published()`` is the perceptron on each cell's crop alone. Its loss is the squared error on log1p
    CP10k, each gene scaled by its range on the slide; or with ``loss="nb"`` the negative binomial likelihood of raw
    counts, where a spot's mean is its library size times the mean over its cells of each gene's share.

    Features of cells are standardised per slide by default (the published ``"self"`` normalisation, for features
    instead of pixels). Applied to cells, each is its own location. Trained on a region of cells (such as Xenium's), it
    is supervised by each cell.

    References
    ----------
    Chadoutaud et al. (2026), sCellST predicts single-cell gene expression from H&E images, Nature Communications.
    Ilse, Tomczak & Welling (2018), Attention-based deep multiple instance learning, ICML.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> config = st.models.SCellST.Config.published(epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots", cells_key="cells")
    >>> st.tl.predict(slides["donor0"], model, shapes_key="cells")

    Crops and tiles of your own choice, in closed form:

    >>> crop, tile = (st.encoders.get("colour", tile=st.TileSpec(0.5, px)) for px in (48, 224))
    >>> model = st.tl.train(slides, "scellst", shapes_key="spots", cells_key="cells", encoder=[crop, tile])
    >>> model.config.regressor
    'ridge'
    """

    hidden_layer = "the last hidden layer's values, mean over the cells of a location (weighted where the model is)"
    Config: ClassVar[type[SCellSTConfig]] = SCellSTConfig  # type: ignore[assignment]
    config: SCellSTConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.layers = linear_layers(n_features, *self.config.hidden, n_genes)
        self.act = activation(self.config.activation)
        if self.config.pool == "attention":
            hidden = self.config.hidden[-1] if self.config.hidden else n_features
            self.look, self.gate, self.weigh = (
                nn.Linear(n_features, hidden),
                nn.Linear(n_features, hidden),
                nn.Linear(hidden, 1),
            )

    @property
    def pooling(self) -> str:
        """How cells make up their location."""
        return "sum" if self.config.pool == "sum" else "mean"

    def per_cell(self, sample: Sample) -> Tensor:
        """Return (m, n_genes) values of cells: never negative, or with ``loss="nb"`` logits of shares."""
        c = self.config
        output = "linear" if c.loss == "nb" else c.output
        x = sample.features[cells_of(sample)]
        return perceptron(self.layers, x, self.act, hidden_dropout=c.dropout, output=output, training=self.training)

    def pool_cells(self, values: Tensor, sample: Sample) -> Tensor:
        """Pool cells to targets; of the likelihood of counts, the shares are averaged and not their logits."""
        if sample.owners is None:
            return values
        counted = self.config.loss == "nb"
        parts = values.sigmoid() if counted else values
        if self.config.pool == "attention":
            pooled = self._weighted(parts, sample, sample.owners)
        else:
            pooled = super().pool_cells(parts, sample)
        return torch.logit(pooled.clamp(_SMALLEST_SHARE, 1 - 1e-6)) if counted else pooled

    def _weighted(self, values: Tensor, sample: Sample, owners: Tensor) -> Tensor:
        """Return the mean of the cells' values in each target, by learned weights."""
        x, n = sample.features[cells_of(sample)], len(sample.targets)
        weight = segment_softmax(self.weigh(self.look(x).tanh() * self.gate(x).sigmoid())[:, 0], owners, n)
        return segment_sum(values * weight[:, None], owners, n)

    def hidden_per_cell(self, sample: Sample) -> Tensor:
        """Return the (m, hidden[-1]) values of the sample's cells in the last hidden layer."""
        if not self.config.hidden:
            return super().hidden_per_cell(sample)
        return hidden_values(list(self.layers)[:-1], sample.features[cells_of(sample)], self.act)

    def hidden(self, sample: Sample) -> Tensor:
        """Return the (n, hidden[-1]) mean over the cells, weighted where the prediction is."""
        if self.config.pool != "attention" or sample.owners is None:
            return super().hidden(sample)
        return self._weighted(self.hidden_per_cell(sample), sample, sample.owners)

    def gene_scaling(self, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return no centre, and the mean over slides of each gene's range up to its 95th percentile."""
        return np.zeros(self.n_genes), np.mean([_range(b) for b in batches], axis=0)

    def ready(self, batch: Batch) -> tuple[Batch, Scaling | None]:
        """Standardise the cells once, and bring the slide's genes to the range that they have on the others."""
        batch, scaling = super().ready(batch)
        if self.config.loss == "mse" and self.config.scale_genes and batch.y is not None:
            ratio = self.gene_std.cpu().numpy() / _range(batch)
            if self.kept_genes is not None:
                ratio[self.kept_genes] = 1.0
            batch = replace(batch, y=by_gene(batch.y, ratio))
        return batch, scaling

    def begin(self, batches: Sequence[Batch]) -> None:
        """Let the outputs start at the mean of the training spots."""
        super().begin(batches)
        if self.config.loss != "mse" or self.config.output == "linear":
            return
        y = np.concatenate([dense(b.y) for b in batches]).mean(axis=0)
        y = y / self.gene_std.cpu().numpy() / (typical_cells(batches) if self.config.pool == "sum" else 1.0)
        if self.config.output == "softplus":  # its inverse
            raised = np.expm1(np.clip(SOFTPLUS_BETA * y, 1e-3, 30.0))
            y = np.where(SOFTPLUS_BETA * y > 30.0, y, np.log(raised) / SOFTPLUS_BETA)
        with torch.no_grad():
            last: Any = self.layers[-1]
            last.bias.copy_(torch.as_tensor(y, dtype=torch.float32))

    @property
    def head(self) -> Any:
        """The last layer, where no function follows it."""
        return self.layers[-1] if self.config.loss == "nb" or self.config.output == "linear" else None

    def output_layers(self) -> list[Any]:
        """Return the last layer, whatever function follows it."""
        return [self.layers[-1]]


class SCellSTRidge(CellRidge):
    """sCellST in closed form: what ``SCellST.Config(regressor="ridge")`` trains."""

    family = SCellST.family
    config: SCellSTConfig


def _range(batch: Batch) -> NDArray[np.float64]:
    """Return (n_genes,) the range of a slide's targets up to the upper quantile; 1 where that is nothing."""
    low, high = np.quantile(dense(batch.y), (0.0, UPPER), axis=0)
    return np.where(high - low > 1e-8, high - low, 1.0)

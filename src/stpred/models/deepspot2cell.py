"""DeepSpot2Cell: cells that add up to their spot, in the context of its neighbours (Nonchev et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, one_of
from stpred._core.specs import TileSpec
from stpred._core.targets import dense
from stpred.models.base import BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.deepspot import PITCHES
from stpred.models.parts.cells import CellNetwork, CellNetworkConfig, cells_of, typical_cells
from stpred.models.parts.layers import lower_median, mean_of_rows, needed
from stpred.models.parts.sample import Sample


@dataclass(frozen=True)
class DeepSpot2CellConfig(CellNetworkConfig):
    """Settings of :class:`DeepSpot2Cell`; see :class:`stpred.models.NetworkConfig` for those that every network has.

    Parameters
    ----------
    patch_um
        Edge of the tile around a spot; None: the pitch of the training spots.
    patch_context_um
        Radius between spots within which they are neighbours; None: 1.5 pitches (six on Visium).
    width
        Output width of phi.
    n_phi, n_rho
        Copies of each phi (element-wise median) and of rho (mean).
    phi_dropout, rho_dropout
        After phi's linear maps, and before rho.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "deepspot2cell"
    default_tile: ClassVar[TileSpec | None] = TileSpec(0.5, 48)
    per: ClassVar[int | None] = 10_000
    patch_um: float | None = None
    patch_context_um: float | None = None
    width: int = 256
    n_phi: int = 4
    n_rho: int = 4
    phi_dropout: float = 0.3
    rho_dropout: float = 0.3
    scale_genes: bool = True
    max_epochs: int = 100
    patience: int = 10
    epochs_alone: int | None = None
    lr: float = 1e-3
    weight_decay: float = 1e-6
    batch_size: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self.loss, ("mse",), name="loss")
        self.check_whole("width", "n_phi", "n_rho")
        self.check_fraction("phi_dropout", "rho_dropout")
        self.check_positive("patch_um", "patch_context_um")

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Fix tile and radius for training spots of this pitch."""
        if pitch_um is None:
            return self
        return replace(
            self,
            patch_um=round(pitch_um, 3) if self.patch_um is None else self.patch_um,
            patch_context_um=round(PITCHES * pitch_um, 3) if self.patch_context_um is None else self.patch_context_um,
        )

    @property
    def needs(self) -> Needs:
        """The cells in each location, and the tiles of the locations that they lie in."""
        around = self.patch_context_um or 150.0
        return replace(super().needs, patch_um=self.patch_um or 100.0, patch_context_um=around)

    def output_scale(self, target: str | None) -> str:
        """Return ``"counts"``: amounts that add up, per 10 000 counts of the spot."""
        return "counts"

    def training_target(self, target: str | None) -> str:
        """Return log1p CP10k; the library size of a spot is no property of its image."""
        if target not in (None, "log1p_cp10k"):
            raise InputError(
                f"deepspot2cell is trained on counts per 10 000 (target='log1p_cp10k'), not on {target!r}."
            )
        return "log1p_cp10k"


class DeepSpot2Cell(CellNetwork):
    """Amounts in each cell, in the context of its spot's tile and the tiles around; a spot is the sum of its cells.

    Notes
    -----
    ``phi_cell`` maps the crop of a cell, ``phi_spot`` the tile of the spot it lies in (of the nearest one, or of a
    grid at the training pitch, where it lies in none) and of the spots around that, which are averaged; each phi is the
    element-wise lower median of ``n_phi`` copies. ``rho`` maps the three to genes. Unlike in the publication, where a
    non-linear rho is applied to the sum of cells, rho gives each cell an amount that is not negative, and a spot is
    the sum: cells add up to their spot exactly.

    The amounts are linear: counts per 10 000 counts *of the spot* (output scale ``"counts"``, ``per`` 10 000). A spot's
    prediction is comparable with its measured CP10k, and the loss compares both as log1p.

    References
    ----------
    Nonchev et al. (2025), DeepSpot2Cell, bioRxiv 10.1101/2025.09.23.678121, on virtual single cells with the
    supervision of spots.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(600, 600), n_genes=20)
    >>> config = st.models.DeepSpot2Cell.Config(width=32, n_phi=2, n_rho=2, epochs=3)
    >>> model = st.tl.train(slides, config, shapes_key="spots", cells_key="cells")
    """

    hidden_layer = "phi of a cell, of its spot's tile and of those around, side by side, mean over the cells"
    Config: ClassVar[type[DeepSpot2CellConfig]] = DeepSpot2CellConfig  # type: ignore[assignment]
    config: DeepSpot2CellConfig

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        c = self.config
        self.phi_cell = _Phi(n_features, c.width, c.n_phi, c.phi_dropout)
        self.phi_spot = _Phi(n_features, c.width, c.n_phi, c.phi_dropout)
        self.rho = nn.ModuleList(
            nn.Sequential(
                nn.Dropout(c.rho_dropout),
                nn.Linear(3 * c.width, 3 * c.width),
                nn.ReLU(),
                nn.Linear(3 * c.width, n_genes),
            )
            for _ in range(c.n_rho)
        )
        self.register_buffer("amount", torch.ones(n_genes))
        self.amount: Tensor

    @property
    def pooling(self) -> str:
        """Cells add up."""
        return "sum"

    def per_cell(self, sample: Sample) -> Tensor:
        """Return (m, n_genes) amounts of the sample's cells, never negative."""
        x = self.hidden_per_cell(sample)
        raw: Any = 0
        for part in self.rho:
            raw = raw + part(x)
        return nn.functional.softplus(raw / len(self.rho)) * self.amount

    def hidden_per_cell(self, sample: Sample) -> Tensor:
        """Return the (m, 3 * width) values of the sample's cells that rho maps."""
        rows = needed(sample.patch_rows, "the tiles of the spots that cells lie in")
        own = self.phi_cell(sample.features[cells_of(sample)])
        around = self.phi_spot(needed(sample.patches, "the tiles of spots"))
        spot = around[rows[:, 0]]
        place = torch.cat([spot, mean_of_rows(around, rows[:, 1:], otherwise=spot)], dim=1)
        owners = torch.arange(len(spot), device=spot.device) if sample.owners is None else sample.owners
        return torch.cat([own, place[owners]], dim=1)

    def begin(self, batches: Sequence[Batch]) -> None:
        """Let a cell's amount start at what the cells of the training spots have in the mean."""
        super().begin(batches)
        mean = np.concatenate([np.expm1(dense(b.y)) for b in batches]).mean(axis=0)
        start = float(np.log(2.0))  # softplus of zero
        self.set_buffer("amount", np.maximum(mean, 1e-3) / typical_cells(batches) / start)

    def recentre(self, batches: Sequence[Batch]) -> None:
        """Let the amounts of the training spots have the mean that was measured."""
        wanted = np.concatenate([np.expm1(dense(b.y)) for b in batches]).mean(axis=0)
        own = np.concatenate([self.outputs(b) for b in batches]).mean(axis=0, dtype=np.float64)
        ratio = np.maximum(wanted, 1e-3) / np.maximum(own, 1e-6)
        ratio = ratio if self.kept_genes is None else np.where(self.kept_genes, 1.0, ratio)
        self.set_buffer("amount", self.amount.cpu().numpy() * ratio)

    def own_targets(self, batch: Batch) -> NDArray[np.float32]:
        """Return the amounts on the log scale."""
        return np.log1p(self.outputs(batch))

    def output_layers(self) -> list[nn.Module]:
        """Return rho."""
        return [self.rho]

    def gene_scaling(self, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return no centre and each gene's standard deviation on the log scale, so that genes count alike."""
        _, std = super().gene_scaling(batches)
        return np.zeros(self.n_genes), std

    def loss(self, output: Tensor, sample: Sample) -> Tensor:
        """Return the loss between log1p of the spots' amounts and of their measured CP10k."""
        return super().loss(output.log1p() / self.gene_std, sample)

    def finish(self, output: Tensor) -> Tensor:
        """Return the amounts."""
        return output

    def as_scored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return amounts as log1p, as measured values are scored."""
        return np.log1p(values)


class _Phi(nn.Module):
    """The median of several copies of Linear, dropout, ReLU, Linear, dropout, ReLU."""

    def __init__(self, n_features: int, width: int, n_copies: int, dropout: float) -> None:
        super().__init__()
        self.copies = nn.ModuleList(
            nn.Sequential(
                nn.Linear(n_features, width), nn.Dropout(dropout), nn.ReLU(),
                nn.Linear(width, width), nn.Dropout(dropout), nn.ReLU(),
            )
            for _ in range(n_copies)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Map (m, n_features) features to (m, width) values."""
        return lower_median(torch.stack([copy(x) for copy in self.copies], dim=1))

"""DeepCell: deep sets over a cell and the cells around it, supervised by measured cells (Nonchev et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from stpred._core.checks import InputError, whole
from stpred._core.specs import TileSpec
from stpred.models.batch import Needs
from stpred.models.deepspot import DeepSpot, DeepSpotConfig
from stpred.models.parts.cells import CellNetwork, cells_of, need_neighbors
from stpred.models.parts.sample import Sample


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
    """

    family: ClassVar[str] = "deepcell"
    default_tile: ClassVar[TileSpec | None] = TileSpec(0.5, 48)
    context: str = "spot+neighbors"
    n_neighbors: int = 44
    width: int = 1024
    phi_dropout: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "n_neighbors", whole(self.n_neighbors, name="n_neighbors"))
        if self.context != "spot+neighbors" or self.context_um is not None:
            raise InputError("DeepCell sees a cell and its nearest cells: `context` and `context_um` are not for it.")

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

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> config = st.models.DeepCell.Config(width=32, n_phi=2, n_rho=2, n_neighbors=8, epochs=2)
    >>> model = st.tl.train(slides, config, shapes_key="cells")
    """

    Config: ClassVar[type[DeepCellConfig]] = DeepCellConfig  # type: ignore[assignment]
    config: DeepCellConfig  # type: ignore[assignment]

    def per_cell(self, sample: Sample) -> Tensor:
        """Return (m, n_genes) values of the sample's cells."""
        return DeepSpot.forward(self, replace(sample, targets=cells_of(sample), neighbors=need_neighbors(sample)))

"""Fine predictions that add up to what was measured in coarse locations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred import data
from stpred._core import targets
from stpred._core.checks import InputError, listing
from stpred._core.preserve import Preserved
from stpred.models import Model

if TYPE_CHECKING:
    from spatialdata import SpatialData


@dataclass(frozen=True)
class Spots:
    """Measured locations that fine predictions are to add up to, and the columns of the predicted genes."""

    region: data.Region
    columns: NDArray[np.int64]

    @classmethod
    def of(cls, sdata: SpatialData, shapes_key: str, genes: list[str], *, coordinate_system: str) -> Spots:
        """Read the measurement; every predicted gene must be in it."""
        region = data.read_region(sdata, shapes_key=shapes_key, measured=True, coordinate_system=coordinate_system)
        columns = region.var.index.get_indexer(genes)  # type: ignore[union-attr]
        if missing := [g for g, at in zip(genes, columns, strict=True) if at < 0]:
            raise InputError(
                f"`preserve`={shapes_key!r} did not measure {listing(missing)}; name the genes to predict with `genes`."
            )
        return cls(region, columns)

    def counts_of(self, gene: int) -> NDArray[np.float64]:
        """Return the counts of a predicted gene, by its position."""
        column = self.region.counts[:, [self.columns[gene]]]  # type: ignore[index]
        return targets.dense(column).ravel()

    def scale(self, points_um: NDArray[np.float64]) -> Preserved:
        """Return what rescales amounts at these points."""
        held = data.inside_of(self.region, points_um)
        owner = np.full(len(points_um), -1, dtype=np.int64)
        owner[held.indices] = np.repeat(np.arange(held.n_targets), held.counts())
        if (owner < 0).all():
            raise InputError(
                f"No predicted location lies in one of {self.region.shapes_key!r}, so nothing can add up to them; "
                "predict on a region that covers them, such as stpred.pp.subdivide makes."
            )
        return Preserved(owner, coords_um=points_um, spots_um=self.region.coords_um)


def as_amounts(values: NDArray[np.float32], model: Model) -> NDArray[np.float32]:
    """Return predictions as amounts that can be added up: counts per ten thousand, or counts."""
    if model.record.target == "log1p_cp10k":
        return np.expm1(np.maximum(values, 0))
    if model.record.target == "counts":
        return np.maximum(values, 0)
    raise InputError(
        f"The predictions of {model.record.name!r} are {model.record.target!r}, without a scale that could add up to "
        "counts; train with another loss."
    )


def preserved(values: NDArray[np.float32], points_um: NDArray[np.float64], spots: Spots, model: Model) -> Any:
    """Return (n, n_genes) predictions at (n, 2) points as amounts that add up to the spots' counts."""
    scale = spots.scale(points_um)
    out = np.empty_like(values)
    for gene in range(values.shape[1]):
        out[:, gene] = scale.rescaled(as_amounts(values[:, gene], model), spots.counts_of(gene))
    return out

"""A table of predictions or counts as one side of a comparison: positions in micrometres and values at them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.elements import apply_affine, describe_regions, table_instances, table_regions
from stpred._core.expression.counts import check_counts, check_sparse
from stpred._core.expression.cut import Cut
from stpred._core.geometry import box_of, placed, square_bins
from stpred._core.tables import read_provenance
from stpred.comparison.pooling import Squares, check_prediction, members

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_MAX_SAMPLE = 5000
"""Locations whose nearest neighbours are looked up to learn their spacing."""


@dataclass(frozen=True)
class TableSide:
    """A table of predictions or counts, and the region of it that is compared (empty until that is chosen)."""

    sdata: SpatialData
    key: str
    region: str
    coordinate_system: str = keys.UM
    noun: ClassVar[str] = "table"

    @property
    def table(self) -> AnnData:
        """The AnnData itself."""
        return self.sdata.tables[self.key]

    @property
    def genes(self) -> pd.Index:
        """Its genes."""
        return self.table.var_names

    @property
    def description(self) -> str:
        """Description in messages."""
        return f"{self.key!r} annotates {describe_regions(table_regions(self.table))}"

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of a table of predictions."""
        return check_prediction(read_provenance(self.table, what=f"table {self.key!r}"), what=f"Table {self.key!r}")

    def check_counts(self) -> None:
        """Refuse values that are no counts."""
        check_counts(self.table.X, what=f"counts of table {self.key!r}")

    @cached_property
    def instances(self) -> tuple[NDArray[np.int64], pd.Index]:
        """The rows of the table that annotate the region, and their ids."""
        return table_instances(self.table, self.region)

    @cached_property
    def shapes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of the table whose shapes are there, and the positions of these shapes."""
        rows, ids = self.instances
        index = self.sdata.shapes[self.region].index
        if not index.is_unique:
            raise InputError(
                f"The index of shapes {self.region!r} is not unique: {listing(index[index.duplicated()])}."
            )
        positions = index.get_indexer(ids)
        if not (positions >= 0).any():
            raise InputError(
                f"No instance of table {self.key!r} is in shapes {self.region!r}: the table has {listing(ids[:3])}, "
                f"the shapes {listing(index[:3])}."
            )
        return rows[positions >= 0], positions[positions >= 0]

    @cached_property
    def located(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows of the table whose shapes are there, and the (n, 2) centroids of these in micrometres."""
        affine = placed(self.sdata, self.region, coordinate_system=self.coordinate_system)
        rows, positions = self.shapes
        points = self.sdata.shapes[self.region].geometry.centroid
        return rows, apply_affine(affine, np.column_stack([points.x.to_numpy(), points.y.to_numpy()])[positions])

    @property
    def box_um(self) -> list[float]:
        """x0, y0, x1, y1 of the locations, for messages."""
        return box_of(self.located[1])

    @property
    def spacing_um(self) -> float:
        """Median distance of a location to the nearest other; infinite for a single one."""
        from scipy.spatial import cKDTree

        xy = self.located[1]
        return float(np.median(cKDTree(xy).query(xy[:: len(xy) // _MAX_SAMPLE + 1], k=2)[0][:, 1]))

    def guess(self, rows: NDArray[np.int64], genes: pd.Index) -> Cut:
        """Return what is predicted for these rows of the table."""
        return self._cut.take(rows).select(self.genes.get_indexer(genes))

    def counts(self, rows: NDArray[np.int64]) -> Cut:
        """Return the (n, all genes) counts of these rows of the table."""
        return self._cut.take(rows)

    @property
    def _cut(self) -> Cut:
        check_sparse(self.table.X, what=f"values of table {self.key!r}")
        return Cut.of(self.table.X)

    def pooled(self, sizes_um: Sequence[float], genes: pd.Index, *, additive: bool) -> Iterator[Squares]:
        """Yield the mean (or sum) of the predictions in squares of each size."""
        rows, xy = self.located
        values = self.guess(rows, genes)
        for size in sizes_um:
            at, member = square_bins(xy, size)
            yield Squares(at, values.pooled(members(member, len(at)), mean=not additive), {})

    def counted(self) -> tuple[NDArray[np.float64], Cut]:
        """Return the (n, 2) positions in micrometres and the (n, all genes) counts."""
        rows, xy = self.located
        return xy, self.counts(rows)

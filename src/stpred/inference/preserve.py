"""Fine predictions that add up to what was measured in coarse locations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from stpred import data
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import find_table, table_instances
from stpred._core.places import Place
from stpred.inference.amounts import Preserved
from stpred.models import Model

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.inference.predictor import Predictor


@dataclass(frozen=True)
class Spots:
    """Measured locations that fine predictions are to add up to.

    Attributes
    ----------
    region
        The locations, those without any count included.
    counts
        (n, n_genes) counts of the predicted genes, in their order.
    """

    region: data.Region
    counts: csc_array

    @classmethod
    def of(cls, sdata: SpatialData, shapes_key: str, predictor: Predictor, place: Place) -> Spots:
        """Read the measurement; every predicted gene must be in it, and predictions must be amounts."""
        key_in(shapes_key, sdata.shapes, what="shapes element", name="preserve")
        place = Place(shapes_key, place.image_key, coordinate_system=place.coordinate_system)
        if predictor.posterior is not None and predictor.posterior.output_scale == "relative":
            raise InputError("`preserve` needs amounts that add up; leave normalize_scale and normalize_size out.")
        as_amounts(np.zeros(1, np.float32), predictor.model)  # refuses relative outputs
        genes = predictor.genes
        region = data.read_region(sdata, place, measured=True)
        columns = region.var.index.get_indexer(genes)  # type: ignore[union-attr]
        if missing := [g for g, at in zip(genes, columns, strict=True) if at < 0]:
            raise InputError(
                f"`preserve`={shapes_key!r} did not measure {listing(missing)}; name the genes to predict with `genes`."
            )
        # What was measured to hold nothing is excluded above, but here it says that nothing is there.
        _, ids = table_instances(sdata.tables[find_table(sdata, shapes_key, None)], shapes_key)
        whole = data.read_region(sdata, place)
        whole = whole.take(np.flatnonzero(whole.instances.isin(ids)))
        rows = whole.instances.get_indexer(region.instances)
        summing = csr_array((np.ones(len(rows)), (rows, np.arange(len(rows)))), (len(whole.instances), len(rows)))
        return cls(whole, csc_array(summing @ region.counts[:, columns]))  # type: ignore[index]

    def counts_of(self, gene: int) -> NDArray[np.float64]:
        """Return the counts of a predicted gene, by its position."""
        return np.asarray(self.counts[:, [gene]].todense(), dtype=np.float64).ravel()

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
        "counts; train with another loss or target."
    )


def preserve(values: NDArray[np.float32], points_um: NDArray[np.float64], spots: Spots, model: Model) -> None:
    """Turn (n, n_genes) predictions at (n, 2) points, in place, into amounts that add up to the spots' counts."""
    scale = spots.scale(points_um)
    for gene in range(values.shape[1]):
        values[:, gene] = scale.rescaled(as_amounts(values[:, gene], model), spots.counts_of(gene))

"""Bringing a predicted and a measured table together: same locations, same genes, same scale."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred._core.counts import check_counts
from stpred._core.elements import apply_affine, need_sdata, regions_told, table_instances, table_regions
from stpred._core.gene_names import mismatch
from stpred._core.matching import box_of, geometries_um, held, match_nearest, match_overlap, placed, square_bins
from stpred._core.tables import read_provenance

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MATCHES = ("auto", "id", "overlap", "distance")
FEW = 0.5
"""Share of the predicted locations below which a match is worth a warning in the log."""

SEVERAL = 2
"""Locations of one region within one of the other from which on the two are not the same things."""


@dataclass(frozen=True)
class Pair:
    """Predicted beside measured values.

    Attributes
    ----------
    shapes_key, instances
        Region of the predicted table and (n,) ids of the locations that both tables have and that were measured with
        at least one count.
    genes
        (G,) shared symbols, in the model's order.
    predicted, observed
        (n, G) float32 values on the same scale.
    counts, columns
        (n, all genes) raw counts and the positions of `genes` in them.
    target
        The scale of `observed`.
    output_scale
        The scale of `predicted`: `target`, or ``"relative"`` where only correlations mean something.
    per
        Of predicted counts: how many counts of a location they are of (``DeepSpot2Cell``), or None.
    facts
        How the locations were matched and how many were, JSON-able.
    """

    shapes_key: str
    instances: pd.Index
    genes: pd.Index
    predicted: NDArray[np.float32]
    observed: NDArray[np.float32]
    counts: Any
    columns: NDArray[np.int64]
    target: str
    output_scale: str = ""
    per: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def guessed(self) -> NDArray[np.float32]:
        """(n, G) predictions on the scale of `observed`; amounts per 10 000 counts are log1p CP10k but for the log."""
        return np.log1p(self.predicted) if self.per is not None and self.target == "log1p_cp10k" else self.predicted

    def pooled(self, members: Any) -> Pair:
        """Return values of sets of locations: counts summed and then normalised, predictions averaged.

        Predicted counts are summed, since they add up; any other scale is averaged.

        Parameters
        ----------
        members
            (m, n) sparse matrix of 0 and 1: which locations are in which set.
        """
        return replace(
            self,
            predicted=pool(self.predicted, members, additive=self.output_scale == "counts"),
            **_measured(members @ self.counts, self.columns, target=self.target),
            facts=dict(self.facts),
        )


def pair(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    target: str | None = None,
    match: str = "auto",
    min_overlap: float = 0.5,
    max_distance_um: float = 5.0,
    coordinate_system: str = keys.UM,
) -> Pair:
    """Match locations and genes; `target` None takes the prediction's own scale.

    Locations of the same region are matched by their id, those of two regions by their overlap (`match` ``"auto"``),
    or as `match` says: ``"id"``, ``"overlap"`` (see :func:`match_overlap`) or ``"distance"`` (:func:`match_nearest`).
    """
    one_of(match, MATCHES, name="match")
    sides = _Sides.of(sdata, predicted_key, measured_key, target=target)
    ours, theirs = sides.regions
    how = ("id" if ours == theirs else "overlap") if match == "auto" else match
    rows, ids = table_instances(sides.predicted, ours)
    measured_rows, measured_ids = table_instances(sides.measured, theirs)
    facts: dict[str, Any] = {"match": how, "regions": [ours, theirs]}
    if how == "id":
        i, j = _same_ids(ids, measured_ids, sides=sides)
    else:
        limit = min_overlap if how == "overlap" else max_distance_um
        i, j, value = _same_place(sides, how=how, limit=limit, coordinate_system=coordinate_system)
        facts["median_overlap" if how == "overlap" else "median_distance_um"] = float(np.median(value))
    facts |= {
        "n_predicted": len(rows),
        "n_measured": len(measured_rows),
        "n_matched": len(i),
        "share_predicted": len(i) / len(rows),
        "share_measured": len(i) / len(measured_rows),
    }
    if how != "id":
        told = logger.warning if facts["share_predicted"] < FEW else logger.info
        told(
            "%d of %d locations of %r are matched with one of the %d of %r by %s.",
            *(len(i), len(rows), ours, len(measured_rows), theirs, how),
        )
    counts: Any = sides.measured.X[measured_rows[j]]
    kept = targets.totals(counts) > 0  # a location without any count says nothing of its expression
    if not kept.any():
        raise InputError(f"Table {measured_key!r} has no location with counts among those of {predicted_key!r}.")
    return Pair(
        shapes_key=ours,
        instances=ids[i[kept]],
        genes=sides.genes,
        predicted=sides.guess(rows[i[kept]]),
        **_measured(counts[kept], sides.columns, target=sides.target),
        columns=sides.columns,
        target=sides.target,
        output_scale=sides.output_scale,
        per=sides.per,
        facts=facts | {"n_compared": int(kept.sum())},
    )


def pair_bins(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    size_um: float,
    target: str | None = None,
    coordinate_system: str = keys.UM,
) -> Pair:
    """Put the locations of both tables into the same square bins, by their centroids; nothing is matched one to one.

    `instances` are the bins that hold predicted and measured locations and at least one count.
    """
    import pandas as pd
    from scipy.sparse import csr_matrix

    sides = _Sides.of(sdata, predicted_key, measured_key, target=target)
    rows, xy = sides.located(0, coordinate_system=coordinate_system)
    measured_rows, measured_xy = sides.located(1, coordinate_system=coordinate_system)
    bins, member = square_bins(np.concatenate([xy, measured_xy]), size_um)
    ours, theirs = member[: len(rows)], member[len(rows) :]
    n = [np.bincount(side, minlength=len(bins)) for side in (ours, theirs)]
    totals = np.bincount(theirs, weights=targets.totals(sides.measured.X)[measured_rows], minlength=len(bins))
    both = np.flatnonzero((n[0] > 0) & (n[1] > 0) & (totals > 0))
    if len(both) == 0:
        raise InputError(
            f"No square bin of {size_um:g} um holds predicted and measured locations with counts: {sides.told()}; "
            f"their boxes are {box_of(xy)} and {box_of(measured_xy)} um (x0, y0, x1, y1)."
        )

    def members(side: NDArray[np.int64]) -> Any:
        matrix = csr_matrix((np.ones(len(side), np.int64), (side, np.arange(len(side)))), (len(bins), len(side)))
        return matrix[both]

    return Pair(
        shapes_key=sides.regions[0],
        instances=pd.Index([f"x{x}y{y}" for x, y in bins[both].tolist()]),
        genes=sides.genes,
        predicted=pool(sides.guess(rows), members(ours), additive=sides.output_scale == "counts"),
        **_measured(members(theirs) @ csr_matrix(sides.measured.X[measured_rows]), sides.columns, target=sides.target),
        columns=sides.columns,
        target=sides.target,
        output_scale=sides.output_scale,
        per=sides.per,
        facts={
            "match": "bins",
            "regions": list(sides.regions),
            "bin_um": float(size_um),
            "n_predicted": int((n[0] > 0).sum()),
            "n_measured": int((n[1] > 0).sum()),
            "n_matched": int(((n[0] > 0) & (n[1] > 0)).sum()),
            "n_compared": len(both),
        },
    )


def pool(values: NDArray[Any], members: Any, *, additive: bool) -> NDArray[np.float32]:
    """Average (or with `additive` sum) (n, G) values over sets of rows, an (m, n) sparse matrix of 0 and 1."""
    found = np.asarray(members.astype(np.float64) @ values.astype(np.float64))
    if not additive:
        found /= np.asarray(members.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return found.astype(np.float32)


def _measured(counts: Any, columns: NDArray[np.int64], *, target: str) -> dict[str, Any]:
    """Return raw counts and the values that are scored; library sizes are over all measured genes."""
    return {"counts": counts, "observed": targets.transform(counts[:, columns], targets.totals(counts), target=target)}


@dataclass(frozen=True)
class _Sides:
    """Two tables whose genes and scales are settled, and nothing of their locations."""

    sdata: SpatialData
    names: tuple[str, str]
    regions: tuple[str, str]
    genes: pd.Index
    columns: NDArray[np.int64]
    target: str
    output_scale: str
    per: int | None

    @classmethod
    def of(cls, sdata: SpatialData, predicted_key: str, measured_key: str, *, target: str | None) -> _Sides:
        need_sdata(sdata)
        for name, key in (("predicted_key", predicted_key), ("measured_key", measured_key)):
            key_in(key, sdata.tables, what="table", name=name)
        predicted, measured = sdata.tables[predicted_key], sdata.tables[measured_key]
        facts = read_provenance(predicted, what=f"table {predicted_key!r}")
        if facts.get("kind") != "prediction":
            raise InputError(f"Table {predicted_key!r} holds {facts.get('kind')}, not predictions.")
        scale, per = str(facts["output_scale"]), facts.get("per")
        if target is None:  # a relative prediction has no scale of its own to measure on
            target = scale if scale in targets.TARGETS and per is None else "log1p_cp10k"
        one_of(target, targets.TARGETS, name="target")
        regions = [table_regions(t) for t in (predicted, measured)]
        for name, annotated in zip((predicted_key, measured_key), regions, strict=True):
            if not annotated:
                told = [
                    f"{k!r} annotates {regions_told(a)}"
                    for k, a in zip((predicted_key, measured_key), regions, strict=True)
                ]
                raise InputError(
                    f"Table {told[0]} and {told[1]}, so the locations of {name!r} are unknown; parse it with "
                    "spatialdata.models.TableModel and name its region."
                )
        shared = [r for r in regions[0] if r in regions[1]]
        pair_of_regions = (shared[0], shared[0]) if shared else (regions[0][0], regions[1][0])
        names = (predicted_key, measured_key)
        genes = _genes(predicted, measured, names=names)
        check_counts(measured.X, what=f"counts of table {measured_key!r}")
        columns = measured.var_names.get_indexer(genes)
        return cls(sdata, names, pair_of_regions, genes, columns, target, scale, per)

    @property
    def predicted(self) -> AnnData:
        return self.sdata.tables[self.names[0]]

    @property
    def measured(self) -> AnnData:
        return self.sdata.tables[self.names[1]]

    def guess(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return what is predicted for these rows of the table."""
        columns = self.predicted.var_names.get_indexer(self.genes)
        return targets.dense(self.predicted.X[rows][:, columns], dtype=np.float32)

    def located(self, side: int, *, coordinate_system: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the rows of a table whose shapes are there, and the (n, 2) centroids of these in micrometres."""
        region = self.regions[side]
        affine = placed(self.sdata, region, coordinate_system=coordinate_system)
        rows, positions = self.shapes_of(side)
        points = self.sdata.shapes[region].geometry.centroid
        xy = np.column_stack([points.x.to_numpy(), points.y.to_numpy()])[positions]
        return rows, apply_affine(affine, xy)

    def shapes_of(self, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the rows of a table whose shapes are there, and the positions of these shapes."""
        region = self.regions[side]
        rows, ids = table_instances((self.predicted, self.measured)[side], region)
        index = self.sdata.shapes[region].index
        if not index.is_unique:
            raise InputError(f"The index of shapes {region!r} is not unique: {listing(index[index.duplicated()])}.")
        positions = index.get_indexer(ids)
        if not (positions >= 0).any():
            raise InputError(
                f"No instance of table {self.names[side]!r} is in shapes {region!r}: the table has {listing(ids[:3])}, "
                f"the shapes {listing(index[:3])}."
            )
        return rows[positions >= 0], positions[positions >= 0]

    def told(self) -> str:
        """Say which table annotates what, for a message."""
        first, second = (regions_told(table_regions(t)) for t in (self.predicted, self.measured))
        return f"Table {self.names[0]!r} annotates {first}, {self.names[1]!r} annotates {second}"


def _same_ids(ids: pd.Index, measured_ids: pd.Index, *, sides: _Sides) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions in `ids` and in `measured_ids` of the same instance."""
    position = measured_ids.get_indexer(ids)
    known = np.flatnonzero(position >= 0)
    if len(known) == 0:
        ours, theirs = sides.regions
        of = repr(ours) if ours == theirs else f"{ours!r} and {theirs!r}"
        raise InputError(
            f"Tables {sides.names[0]!r} and {sides.names[1]!r} share no instance of {of}: ids {listing(ids[:3])} "
            f"against {listing(measured_ids[:3])}."
        )
    return known, position[known]


def _same_place(
    sides: _Sides, *, how: str, limit: float, coordinate_system: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return rows of both tables (among those of their regions) at the same place."""
    import shapely

    shapes = [geometries_um(sides.sdata, r, coordinate_system=coordinate_system)[0] for r in sides.regions]
    chosen = [sides.shapes_of(side) for side in (0, 1)]
    first, second = (s[positions] for s, (_, positions) in zip(shapes, chosen, strict=True))
    help_ = (
        "sum the finer counts into the coarser region with stpred.pp.aggregate, compare in common squares with "
        "bin_um=, or predict on the measured shapes"
    )
    number, ours_coarser = held(first, second)
    if number >= SEVERAL:
        coarse, fine = sides.regions if ours_coarser else sides.regions[::-1]
        raise InputError(
            f"{sides.told()}, and these are not the same things: one of {coarse!r} holds {number:g} of {fine!r} (in "
            f"the median); {help_}."
        )
    if how == "overlap":
        i, j, value = match_overlap(first, second, min_overlap=limit)
    else:
        centres = [shapely.get_coordinates(shapely.centroid(s)) for s in (first, second)]
        i, j, value = match_nearest(*centres, max_distance_um=limit)
    if len(i) == 0:
        boxes = [[round(v, 1) for v in shapely.total_bounds(s).tolist()] for s in (first, second)]
        needed = f"overlaps one of the other by {limit:.0%}"
        if how == "distance":
            needed = f"has its centre within {limit:g} um of one of the other"
        (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes
        if x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0:
            help_ = "they do not meet, so check the transformations"
        raise InputError(
            f"{sides.told()}, and no location of the one {needed}: their boxes are {boxes[0]} and {boxes[1]} um (x0, "
            f"y0, x1, y1); {help_}."
        )
    # Positions among the rows that have shapes are turned into positions among all rows of the region.
    found = []
    for side, (picked, region) in enumerate(zip((i, j), sides.regions, strict=True)):
        every = table_instances((sides.predicted, sides.measured)[side], region)[0]
        found.append(np.searchsorted(every, chosen[side][0][picked]))
    return found[0], found[1], value


def _genes(predicted: AnnData, measured: AnnData, *, names: tuple[str, str]) -> pd.Index:
    """Return the predicted genes that were measured, in the model's order."""
    if not measured.var_names.is_unique:
        repeated = measured.var_names[measured.var_names.duplicated()].unique()
        raise InputError(f"Gene names of table {names[1]!r} are not unique: {listing(repeated)}.")
    genes = predicted.var_names[predicted.var_names.isin(measured.var_names)]
    if len(genes) == 0:
        hint = mismatch(list(predicted.var_names), list(measured.var_names))
        raise InputError(
            f"Tables {names[0]!r} and {names[1]!r} share no gene: {listing(predicted.var_names[:3])} against "
            f"{listing(measured.var_names[:3])}{'; ' + hint if hint else ''}."
        )
    return genes

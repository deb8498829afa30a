"""Bringing a predicted and a measured table together: same locations, same genes, same scale."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, listing, one_of, warn
from stpred._core.elements import ambiguous, in_frame, need_sdata, region_in_frame, table_regions
from stpred._core.gene_names import mismatch
from stpred._core.geometry import box_of, geometries_um, square_bins
from stpred._core.library import LIBRARY, Library, gene_sums, overlap, shared_columns
from stpred._core.tables import changed_values
from stpred.comparison.matching import held, match_nearest, match_overlap
from stpred.comparison.pairing_sources import (
    RasterSide,
    TableSide,
    TranscriptsSide,
    measured_side,
    members,
    pool,
    predicted_side,
)

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MATCHES = ("auto", "id", "overlap", "distance")
FEW = 0.5
"""Share of the predicted locations below which a match is worth a warning in the log."""

COARSE = 0.99
"""Share of the distance between locations below which a square is finer than they are (bins are as wide as apart)."""

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
    measured_genes
        (all genes) names of their columns.
    target
        The scale of `observed`.
    output_scale
        The scale of `predicted`; where it is another than `target`, only correlations mean something (`comparable`).
    per
        Of predicted counts: how many counts of a location they are of (``DeepSpot2Cell``), or None.
    coords_um
        (n, 2) centres; None where locations are sets of others that overlap.
    facts
        How the locations were matched and how many were, JSON-able; and under ``"library"`` how the genes that library
        sizes are counted over compare with those of the model's training tables.
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
    coords_um: NDArray[np.float64] | None = None
    measured_genes: pd.Index | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def same_library(self) -> bool | None:
        """Whether log1p CP10k of both sides is over the same genes; None where that is not known or has no part."""
        found = self.facts.get(LIBRARY, {}).get("same")
        return None if found is None else bool(found)

    def library_facts(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the provenance of values on the scale of `observed` says of their library.

        `model`: provenance of the prediction, whose library it is where that is the same.
        """
        if self.target != "log1p_cp10k" or self.measured_genes is None:
            return {}
        if self.same_library and LIBRARY in model:
            return {LIBRARY: model[LIBRARY]}
        return {LIBRARY: Library.of([(self.measured_genes, self.counts)]).packed()}

    @property
    def comparable(self) -> bool:
        """Whether `guessed` and `observed` are on one scale, so that their difference means something."""
        if self.per is not None:
            return self.target == "log1p_cp10k"
        return self.output_scale == self.target

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
            coords_um=None,
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
    said: set[str] | None = None,
) -> Pair:
    """Match locations and genes; `target` None takes the prediction's own scale.

    Where the measurement has the genes of the model's library and others, its library sizes are counted over the
    former; where it lacks some, that is warned of (but for what is in `said`, to which the warning is added).

    Locations of the same region are matched by their id, those of two regions by their overlap (`match` ``"auto"``),
    or as `match` says: ``"id"``, ``"overlap"`` (see :func:`match_overlap`) or ``"distance"`` (:func:`match_nearest`).
    """
    one_of(match, MATCHES, name="match")
    need_sdata(sdata)
    first, second = _tables(sdata, predicted_key, measured_key, coordinate_system=coordinate_system)
    terms = _Terms.of(first, second, target=target, said=said)
    ours, theirs = first.region, second.region
    how = ("id" if ours == theirs else "overlap") if match == "auto" else match
    (rows, ids), (measured_rows, measured_ids) = first.instances, second.instances
    facts: dict[str, Any] = {"match": how, "regions": [ours, theirs]}
    if how == "id":
        i, j = _same_ids(ids, measured_ids, sides=(first, second))
    else:
        limit = min_overlap if how == "overlap" else max_distance_um
        i, j, value = _same_place(first, second, how=how, limit=limit)
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
    counts: Any = second.table.X[measured_rows[j]]
    terms, counts = terms.on_library(counts, second, said=said)
    kept = targets.totals(counts) > 0  # a location without any count says nothing of its expression
    if not kept.any():
        raise InputError(f"Table {measured_key!r} has no location with counts among those of {predicted_key!r}.")
    centres = first.table.obsm.get(keys.SPATIAL)
    return terms.pair(
        first.guess(rows[i[kept]], terms.genes),
        counts[kept],
        shapes_key=ours,
        instances=ids[i[kept]],
        coords_um=None if centres is None else np.asarray(centres, dtype=np.float64)[rows[i[kept]]],
        facts=facts | {"n_compared": int(kept.sum())} | terms.library,
    )


def pair_bins(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    sizes_um: Sequence[float],
    target: str | None = None,
    coordinate_system: str = keys.UM,
    said: set[str] | None = None,
) -> Iterator[Pair]:
    """Put the locations of both sides into the same square bins, of one size after the other; none is matched to one.

    Locations are the centroids of a table's shapes, transcripts, or the centres of a raster's pixels. `instances` are
    the bins that hold predicted and measured locations and at least one count.
    """
    import pandas as pd

    need_sdata(sdata)
    first = predicted_side(sdata, predicted_key, coordinate_system=coordinate_system)
    second = measured_side(sdata, measured_key, coordinate_system=coordinate_system)
    first, second = _in_shared_region(first, second)
    terms = _Terms.of(first, second, target=target, said=said)
    xy, counts = second.counted()
    terms, counts = terms.on_library(counts, second, said=said)
    spacing = first.spacing_um
    pooled = first.pooled(sizes_um, terms.genes, additive=terms.output_scale == "counts")
    for size, ours in zip(sizes_um, pooled, strict=True):
        at, member = square_bins(xy, size)
        sums = members(member, len(at)) @ counts
        i, j = _same_squares(ours.at, at)
        kept = targets.totals(sums[j]) > 0
        if not kept.any():
            raise InputError(
                f"No square bin of {size:g} um holds predicted and measured locations with counts: "
                f"{_told(first, second)}; their boxes are {first.box_um} and {box_of(xy)} um (x0, y0, x1, y1)."
            )
        if size < spacing * COARSE and np.isfinite(spacing):
            logger.warning(
                "Squares of %g um are finer than the %.4g um between locations of %r, so only the %d that hold one of "
                "them are compared.",
                *(size, spacing, predicted_key, kept.sum()),
            )
        facts = {
            "match": "bins",
            "regions": [first.region, second.region],
            "bin_um": float(size),
            "n_predicted": len(ours.at),
            "n_measured": len(at),
            "n_matched": len(i),
            "n_compared": int(kept.sum()),
        }
        if isinstance(second, TranscriptsSide):
            facts["transcripts"] = second.found.facts
        yield terms.pair(
            ours.values[i[kept]],
            sums[j[kept]],
            shapes_key=first.region,
            instances=pd.Index([f"x{x}y{y}" for x, y in ours.at[i[kept]].tolist()]),
            coords_um=(ours.at[i[kept]] + 0.5) * float(size),
            facts=facts | ours.facts | terms.library,
        )


def _measured(counts: Any, columns: NDArray[np.int64], *, target: str) -> dict[str, Any]:
    """Return raw counts and the values that are scored; library sizes are over all measured genes."""
    return {"counts": counts, "observed": targets.transform(counts[:, columns], targets.totals(counts), target=target)}


@dataclass(frozen=True)
class _Terms:
    """What is compared of two sides, and on which scale; nothing of their locations."""

    genes: pd.Index
    columns: NDArray[np.int64]
    measured: pd.Index
    target: str
    output_scale: str
    per: int | None
    facts: dict[str, Any] = field(default_factory=dict)
    n_predicted: int = 0
    library: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        first: TableSide | RasterSide,
        second: TableSide | TranscriptsSide,
        *,
        target: str | None,
        said: set[str] | None,
    ) -> _Terms:
        """Settle genes and scale; a prediction that was changed since is warned of."""
        facts = first.provenance()
        if isinstance(first, TableSide) and (told := changed_values(first.table, facts, what=f"table {first.key!r}")):
            _warn(told, said)
        scale, per = str(facts["output_scale"]), facts.get("per")
        if target is None:  # a relative prediction has no scale of its own to measure on
            target = scale if scale in targets.TARGETS and per is None else "log1p_cp10k"
        one_of(target, targets.TARGETS, name="target")
        genes = _genes(first, second)
        second.check_counts()
        if target == "log1p_cp10k" and len(second.genes) == 1:
            raise InputError(
                f"{second.key!r} measured a single gene, {second.genes[0]!r}: every location would have the same log1p "
                "CP10k of it, for there is no other gene to be normalised by; compare raw counts with target='counts'."
            )
        columns = second.genes.get_indexer(genes)
        return cls(genes, columns, second.genes, target, scale, per, facts, len(first.genes))

    def on_library(
        self, counts: Any, second: TableSide | TranscriptsSide, *, said: set[str] | None
    ) -> tuple[_Terms, Any]:
        """Return counts of the genes that library sizes are counted over, and where the compared genes are in them."""
        if self.target != "log1p_cp10k" or (self.output_scale != self.target and self.per is None):
            return self, counts  # library sizes have no part in it, or the prediction has no size
        library = Library.parse(self.facts.get(LIBRARY))
        what = f"{second.noun} {second.key!r}"
        if library is None:
            if len(self.genes) < FEW * self.n_predicted:
                _warn(
                    f"The {what} measured {len(self.genes)} of the {self.n_predicted} predicted genes, and the model "
                    "does not state which genes its training libraries were counted over: if these were others, log1p "
                    "CP10k is another scale on either side, and RMSE, MAE, R2 and intervals do not hold.",
                    said,
                )
            return self, counts
        found = overlap(library, second.genes, gene_sums(counts))
        told = {LIBRARY: found.to_dict() | {"same": found.same or found.wider, "counted_over_shared": found.wider}}
        if found.wider:
            columns = np.union1d(shared_columns(library, second.genes), self.columns)
            _warn(
                f"The {what} measured genes that the model's training tables did not, with "
                f"{1 - found.share_measured:.0%} of its counts; its library sizes are counted over the "
                f"{len(columns)} shared ones, so that log1p CP10k is one scale.",
                said,
            )
            position = np.searchsorted(columns, self.columns)
            return replace(self, columns=position, measured=second.genes[columns], library=told), counts[:, columns]
        if not found.same:
            _warn(
                f"The {what} and the model's training tables count library sizes over different genes: the "
                f"{found.n_shared} that both have carry {found.share_model:.0%} of the training counts and "
                f"{found.share_measured:.0%} of these, so log1p CP10k is not one scale and RMSE, MAE, R2 and "
                "intervals do not hold (correlations of a gene change little); compare with a table of the same "
                "genes, or train on slides of these.",
                said,
            )
        return replace(self, library=told), counts

    def pair(self, predicted: NDArray[np.float32], counts: Any, **where: Any) -> Pair:
        """Return predicted values of `genes` beside the counts of all measured ones."""
        return Pair(
            genes=self.genes,
            predicted=predicted,
            **_measured(counts, self.columns, target=self.target),
            columns=self.columns,
            measured_genes=self.measured,
            target=self.target,
            output_scale=self.output_scale,
            per=self.per,
            **where,
        )


def _warn(message: str, said: set[str] | None) -> None:
    """Warn, once per call of those that pass what was said."""
    if said is not None and message in said:
        return
    if said is not None:
        said.add(message)
    warn(message)


def _tables(
    sdata: SpatialData, predicted_key: str, measured_key: str, *, coordinate_system: str
) -> tuple[TableSide, TableSide]:
    """Return two tables; what has no locations that could be matched one by one is refused."""
    if predicted_key in sdata.images:
        raise InputError(
            f"Image {predicted_key!r} has pixels and no locations that could be matched one by one; compare it in "
            "squares with bin_um= of stpred.tl.compare."
        )
    if measured_key in sdata.points:
        raise InputError(
            f"Points {measured_key!r} are single transcripts; sum them into squares with bin_um= of stpred.tl.compare, "
            "or into a region with stpred.pp.aggregate."
        )
    first = predicted_side(sdata, predicted_key, coordinate_system=coordinate_system)
    second = measured_side(sdata, measured_key, coordinate_system=coordinate_system)
    first, second = _in_shared_region(first, second)
    assert isinstance(first, TableSide)
    assert isinstance(second, TableSide)
    return first, second


def _in_shared_region(
    first: TableSide | RasterSide, second: TableSide | TranscriptsSide
) -> tuple[TableSide | RasterSide, TableSide | TranscriptsSide]:
    """Let two tables that annotate the same region be compared there; refuse one that annotates none.

    Of tables of several regions, that in the frame is compared.
    """
    for side in (first, second):
        if isinstance(side, TableSide) and not table_regions(side.table):
            raise InputError(
                f"{_told(first, second)}, so the locations of {side.key!r} are unknown; parse it with "
                "spatialdata.models.TableModel and name its region."
            )
    if isinstance(first, TableSide) and isinstance(second, TableSide):
        ours, theirs = (table_regions(side.table) for side in (first, second))
        shared = [r for r in ours if r in theirs]
        placed = in_frame(first.sdata, {*ours, *theirs}, first.coordinate_system)
        # Where the frame holds no region of either, it is not what tells them apart.
        candidates = [r for r in shared if r in placed] if placed and len({*ours, *theirs}) > 1 else shared
        if len(candidates) > 1:
            raise ambiguous(first.sdata, first.key, candidates, coordinate_system=first.coordinate_system)
        if candidates:
            return replace(first, region=candidates[0]), replace(second, region=candidates[0])
    return _in_frame(first), _in_frame(second)


def _in_frame(side: Any) -> Any:
    """Return a side at the region that is in the frame."""
    if not isinstance(side, TableSide):
        return side
    return replace(side, region=region_in_frame(side.sdata, side.key, coordinate_system=side.coordinate_system))


def _told(first: TableSide | RasterSide, second: TableSide | TranscriptsSide) -> str:
    """Say what the two sides are, for a message."""
    noun = "" if first.noun == second.noun else f"{second.noun} "
    return f"{first.noun.capitalize()} {first.told}, {noun}{second.told}"


def _same_squares(ours: NDArray[np.int64], theirs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of both sides' squares that are the same."""
    _, number = square_bins(np.concatenate([ours, theirs]) + 0.5, 1.0)
    _, i, j = np.intersect1d(number[: len(ours)], number[len(ours) :], assume_unique=True, return_indices=True)
    return i, j


def _same_ids(
    ids: pd.Index, measured_ids: pd.Index, *, sides: tuple[TableSide, TableSide]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions in `ids` and in `measured_ids` of the same instance."""
    for side, names in zip(sides, (ids, measured_ids), strict=True):
        if not names.is_unique:
            raise InputError(
                f"Table {side.key!r} has several rows of the same instance of {side.region!r}: "
                f"{listing(names[names.duplicated()].unique())}; keep one row of each."
            )
    position = measured_ids.get_indexer(ids)
    known = np.flatnonzero(position >= 0)
    if len(known) == 0:
        first, second = sides
        of = repr(first.region) if first.region == second.region else f"{first.region!r} and {second.region!r}"
        raise InputError(
            f"Tables {first.key!r} and {second.key!r} share no instance of {of}: ids {listing(ids[:3])} "
            f"against {listing(measured_ids[:3])}."
        )
    return known, position[known]


def _same_place(
    first: TableSide, second: TableSide, *, how: str, limit: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """Return rows of both tables (among those of their regions) at the same place."""
    import shapely

    sides = (first, second)
    ours, theirs = (
        geometries_um(s.sdata, s.region, coordinate_system=s.coordinate_system)[0][s.shapes[1]] for s in sides
    )
    help_ = (
        "sum the finer counts into the coarser region with stpred.pp.aggregate, compare in common squares with "
        "bin_um=, or predict on the measured shapes"
    )
    number, ours_coarser = held(ours, theirs)
    if number >= SEVERAL:
        coarse, fine = (s.region for s in (sides if ours_coarser else sides[::-1]))
        raise InputError(
            f"{_told(*sides)}, and these are not the same things: one of {coarse!r} holds {number:g} of {fine!r} (in "
            f"the median); {help_}."
        )
    if how == "overlap":
        i, j, value = match_overlap(ours, theirs, min_overlap=limit)
    else:
        centres = [shapely.get_coordinates(shapely.centroid(s)) for s in (ours, theirs)]
        i, j, value = match_nearest(*centres, max_distance_um=limit)
    if len(i) == 0:
        boxes = [[round(v, 1) for v in shapely.total_bounds(s).tolist()] for s in (ours, theirs)]
        needed = f"overlaps one of the other by {limit:.0%}"
        if how == "distance":
            needed = f"has its centre within {limit:g} um of one of the other"
        (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes
        if x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0:
            help_ = "they do not meet, so check the transformations"
        raise InputError(
            f"{_told(*sides)}, and no location of the one {needed}: their boxes are {boxes[0]} and {boxes[1]} um (x0, "
            f"y0, x1, y1); {help_}."
        )
    # Positions among the rows that have shapes are turned into positions among all rows of the region.
    found = [np.searchsorted(s.instances[0], s.shapes[0][picked]) for s, picked in zip(sides, (i, j), strict=True)]
    return found[0], found[1], value


def _genes(first: TableSide | RasterSide, second: TableSide | TranscriptsSide) -> pd.Index:
    """Return the predicted genes that were measured, in the model's order."""
    if not second.genes.is_unique:
        repeated = second.genes[second.genes.duplicated()].unique()
        raise InputError(f"Gene names of {second.noun} {second.key!r} are not unique: {listing(repeated)}.")
    genes = first.genes[first.genes.isin(second.genes)]
    if len(genes) == 0:
        hint = mismatch(list(first.genes), list(second.genes))
        both = f"{first.noun.capitalize()} {first.key!r} and {second.noun} {second.key!r}"
        if first.noun == second.noun:
            both = f"Tables {first.key!r} and {second.key!r}"
        raise InputError(
            f"{both} share no gene: {listing(first.genes[:3])} against {listing(second.genes[:3])}"
            f"{'; ' + hint if hint else ''}."
        )
    return genes

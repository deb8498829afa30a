"""Bringing a predicted and a measured table together: same locations, same genes, same scale."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, listing, one_of
from stpred._core.elements import ambiguous, in_frame, need_sdata, region_in_frame, table_regions
from stpred._core.geometry import box_of, geometries_um, square_bins
from stpred.comparison.matching import match_nearest, match_overlap, n_inside
from stpred.comparison.pooling import members
from stpred.comparison.rasters import RasterSide
from stpred.comparison.tables import TableSide
from stpred.comparison.terms import FEW, Pair, Terms
from stpred.comparison.transcripts import TranscriptsSide, read_transcripts

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

MATCHES = ("auto", "id", "overlap", "distance")
COARSE = 0.99
"""Share of the distance between locations below which a square is finer than they are (bins are as wide as apart)."""

SEVERAL = 2
"""Locations of one region within one of the other from which on the two are not the same things."""


@dataclass(frozen=True)
class MatchRule:
    """How a location of one table is found in the other.

    Attributes
    ----------
    match
        ``"id"``, ``"overlap"`` (see :func:`match_overlap`), ``"distance"`` (:func:`match_nearest`), or ``"auto"``:
        by id in one region, by overlap between two.
    min_overlap, max_distance_um
        Limits of the latter two.
    """

    match: str = "auto"
    min_overlap: float = 0.5
    max_distance_um: float = 5.0

    def __post_init__(self) -> None:
        one_of(self.match, MATCHES, name="match")


def pair(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    target: str | None = None,
    rule: MatchRule | None = None,
    coordinate_system: str = keys.UM,
    warned: set[str] | None = None,
) -> Pair:
    """Match locations and genes; `target` None takes the prediction's own scale.

    Where the measurement has the genes of the model's library and others, its library sizes are counted over the
    former; where it lacks some, that is warned of (unless the warning is in `warned`, to which it is added).
    """
    rule = MatchRule() if rule is None else rule
    need_sdata(sdata)
    first, second = _tables(sdata, predicted_key, measured_key, coordinate_system=coordinate_system)
    terms = Terms.of(first, second, target=target, warned=warned)
    ours, theirs = first.region, second.region
    match = ("id" if ours == theirs else "overlap") if rule.match == "auto" else rule.match
    (rows, ids), (measured_rows, measured_ids) = first.instances, second.instances
    matching: dict[str, Any] = {"match": match, "regions": [ours, theirs]}
    if match == "id":
        i, j = _same_ids(ids, measured_ids, sides=(first, second))
    else:
        i, j, value = _same_place(first, second, replace(rule, match=match))
        matching["median_overlap" if match == "overlap" else "median_distance_um"] = float(np.median(value))
    matching |= {
        "n_predicted": len(rows),
        "n_measured": len(measured_rows),
        "n_matched": len(i),
        "share_predicted": len(i) / len(rows),
        "share_measured": len(i) / len(measured_rows),
    }
    if match != "id":
        log = logger.warning if matching["share_predicted"] < FEW else logger.info
        log(
            "%d of %d locations of %r are matched with one of the %d of %r by %s.",
            *(len(i), len(rows), ours, len(measured_rows), theirs, match),
        )
    counts = second.counts(measured_rows[j])
    terms, counts = terms.on_library(counts, second, warned=warned)
    kept = targets.totals(counts) > 0  # a location without any count says nothing of its expression
    if not kept.any():
        raise InputError(f"Table {measured_key!r} has no location with counts among those of {predicted_key!r}.")
    centres = first.table.obsm.get(keys.SPATIAL)
    return terms.pair(
        first.guess(rows[i[kept]], terms.genes),
        counts.take(np.flatnonzero(kept)),
        shapes_key=ours,
        instances=ids[i[kept]],
        coords_um=None if centres is None else np.asarray(centres, dtype=np.float64)[rows[i[kept]]],
        matching=matching | {"n_compared": int(kept.sum())} | terms.library,
    )


def pair_bins(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    sizes_um: Sequence[float],
    target: str | None = None,
    coordinate_system: str = keys.UM,
    warned: set[str] | None = None,
) -> Iterator[Pair]:
    """Put the locations of both sides into the same square bins, of one size after the other; none is matched to one.

    Locations are the centroids of a table's shapes, transcripts, or the centres of a raster's pixels. `instances` are
    the bins that hold predicted and measured locations and at least one count.
    """
    import pandas as pd

    need_sdata(sdata)
    first = _predicted_side(sdata, predicted_key, coordinate_system=coordinate_system)
    second = _measured_side(sdata, measured_key, coordinate_system=coordinate_system)
    first, second = _in_shared_region(first, second)
    terms = Terms.of(first, second, target=target, warned=warned)
    xy, counts = second.counted()
    terms, counts = terms.on_library(counts, second, warned=warned)
    spacing = first.spacing_um
    pooled = first.pooled(sizes_um, terms.genes, additive=terms.output_scale == "counts")
    for size, ours in zip(sizes_um, pooled, strict=True):
        at, member = square_bins(xy, size)
        sums = counts.pooled(members(member, len(at)))
        i, j = _same_squares(ours.at, at)
        kept = targets.totals(sums)[j] > 0
        if not kept.any():
            raise InputError(
                f"No square bin of {size:g} um holds predicted and measured locations with counts: "
                f"{_describe(first, second)}; their boxes are {first.box_um} and {box_of(xy)} um (x0, y0, x1, y1)."
            )
        if size < spacing * COARSE and np.isfinite(spacing):
            logger.warning(
                "Squares of %g um are finer than the %.4g um between locations of %r, so only the %d that hold one of "
                "them are compared.",
                *(size, spacing, predicted_key, kept.sum()),
            )
        matching = {
            "match": "bins",
            "regions": [first.region, second.region],
            "bin_um": float(size),
            "n_predicted": len(ours.at),
            "n_measured": len(at),
            "n_matched": len(i),
            "n_compared": int(kept.sum()),
        }
        if isinstance(second, TranscriptsSide):
            matching["transcripts"] = second.found.summary
        yield terms.pair(
            ours.values.take(i[kept]),
            sums.take(j[kept]),
            shapes_key=first.region,
            instances=pd.Index([f"x{x}y{y}" for x, y in ours.at[i[kept]].tolist()]),
            coords_um=(ours.at[i[kept]] + 0.5) * float(size),
            matching=matching | ours.summary | terms.library,
        )


def _predicted_side(sdata: SpatialData, key: str, *, coordinate_system: str) -> TableSide | RasterSide:
    """Return the predicted table or raster of this name."""
    if key in sdata.images:
        return RasterSide(sdata, key, coordinate_system)
    return _table_side(sdata, key, coordinate_system, name="predicted_key", other="images")


def _measured_side(sdata: SpatialData, key: str, *, coordinate_system: str) -> TableSide | TranscriptsSide:
    """Return the table of raw counts, or the transcripts that count, of this name."""
    if key in sdata.points:
        return TranscriptsSide(key, read_transcripts(sdata, key, coordinate_system=coordinate_system))
    return _table_side(sdata, key, coordinate_system, name="measured_key", other="points")


def _table_side(sdata: SpatialData, key: str, coordinate_system: str, *, name: str, other: str) -> TableSide:
    if key not in sdata.tables:
        raise InputError(
            f"No table named {key!r} and no {other} (`{name}`); available: tables {listing(sdata.tables)}, "
            f"{other} {listing(getattr(sdata, other))}."
        )
    regions = table_regions(sdata.tables[key])
    return TableSide(sdata, key, regions[0] if len(regions) == 1 else "", coordinate_system)


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
    first = _predicted_side(sdata, predicted_key, coordinate_system=coordinate_system)
    second = _measured_side(sdata, measured_key, coordinate_system=coordinate_system)
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
                f"{_describe(first, second)}, so the locations of {side.key!r} are unknown; parse it with "
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


def _describe(first: TableSide | RasterSide, second: TableSide | TranscriptsSide) -> str:
    """Describe the two sides in a message."""
    noun = "" if first.noun == second.noun else f"{second.noun} "
    return f"{first.noun.capitalize()} {first.description}, {noun}{second.description}"


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
    matched = np.flatnonzero(position >= 0)
    if len(matched) == 0:
        first, second = sides
        of = repr(first.region) if first.region == second.region else f"{first.region!r} and {second.region!r}"
        raise InputError(
            f"Tables {first.key!r} and {second.key!r} share no instance of {of}: ids {listing(ids[:3])} "
            f"against {listing(measured_ids[:3])}."
        )
    return matched, position[matched]


def _same_place(
    first: TableSide, second: TableSide, rule: MatchRule
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
    number, ours_coarser = n_inside(ours, theirs)
    if number >= SEVERAL:
        coarse, fine = (s.region for s in (sides if ours_coarser else sides[::-1]))
        raise InputError(
            f"{_describe(*sides)}, and these are not the same things: one of {coarse!r} holds {number:g} of {fine!r} "
            f"(in the median); {help_}."
        )
    if rule.match == "overlap":
        i, j, value = match_overlap(ours, theirs, min_overlap=rule.min_overlap)
    else:
        centres = [shapely.get_coordinates(shapely.centroid(s)) for s in (ours, theirs)]
        i, j, value = match_nearest(*centres, max_distance_um=rule.max_distance_um)
    if len(i) == 0:
        boxes = [[round(v, 1) for v in shapely.total_bounds(s).tolist()] for s in (ours, theirs)]
        needed = f"overlaps one of the other by {rule.min_overlap:.0%}"
        if rule.match == "distance":
            needed = f"has its centre within {rule.max_distance_um:g} um of one of the other"
        (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes
        if x1 < u0 or u1 < x0 or y1 < v0 or v1 < y0:
            help_ = "they do not meet, so check the transformations"
        raise InputError(
            f"{_describe(*sides)}, and no location of the one {needed}: their boxes are {boxes[0]} and {boxes[1]} um "
            f"(x0, y0, x1, y1); {help_}."
        )
    # Positions among the rows that have shapes are turned into positions among all rows of the region.
    found = [np.searchsorted(s.instances[0], s.shapes[0][picked]) for s, picked in zip(sides, (i, j), strict=True)]
    return found[0], found[1], value

"""What a slide's locations are like in counts and in the image, and which pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.recipes.quality import QC, REASONS
from stpred._core.specs import TileSpec
from stpred._image.quality import SHARPNESS_MPP, folds, sharpness, window_share
from stpred._image.tissue import survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stpred.data._regions import Region

THUMBNAIL_MPP = 8.0


@dataclass(frozen=True)
class Quality:
    """What was measured of n locations, and the verdict.

    Attributes
    ----------
    measures
        (n,) values by name: ``total_counts``, ``n_genes_by_counts`` of measured regions; ``tissue``, ``pen``, ``fill``,
        ``fold`` (shares of the tile) and ``sharpness``, where the image is judged.
    reason
        (n,) why a location does not pass, one of `REASONS`; "" where it does.
    """

    measures: dict[str, NDArray[np.float64]]
    reason: NDArray[np.object_]

    @property
    def passes(self) -> NDArray[np.bool_]:
        """(n,) locations that pass."""
        return self.reason == ""

    def left_out(self) -> dict[str, int]:
        """Return how many locations do not pass, by reason."""
        return {r: n for r in REASONS if (n := int((self.reason == r).sum()))}


def judge(region: Region, qc: QC) -> Quality:
    """Measure the locations of a region, and judge them by the limits."""
    measures: dict[str, NDArray[np.float64]] = {}
    if region.counts is not None:
        measures["total_counts"] = np.asarray(region.counts.sum(axis=1), dtype=np.float64).ravel()
        measures["n_genes_by_counts"] = np.asarray((region.counts > 0).sum(axis=1), dtype=np.float64).ravel()
    if qc.judges_image:
        measures |= _of_image(region, qc)
    reason = np.full(len(region.coords_um), "", dtype=object)
    limits: list[tuple[str, str, Any, bool]] = [
        ("few_counts", "total_counts", qc.min_counts, True),
        ("few_genes", "n_genes_by_counts", qc.min_genes, True),
        ("little_tissue", "tissue", qc.min_tissue, True),
        ("pen", "pen", qc.max_pen, False),
        ("fill", "fill", qc.max_fill, False),
        ("fold", "fold", qc.max_fold, False),
        ("blurred", "sharpness", qc.min_sharpness, True),
    ]
    for name, measure, limit, least in limits:
        if limit is None or measure not in measures:
            continue
        values = measures[measure]
        with np.errstate(invalid="ignore"):  # what could not be measured is not judged
            fails = values < limit if least else values > limit
        reason[fails & (reason == "")] = name
    return Quality(measures, reason)


def _of_image(region: Region, qc: QC) -> dict[str, NDArray[np.float64]]:
    thumbnail, corner_um = region.pyramid.thumbnail(THUMBNAIL_MPP)
    found = survey(thumbnail, mpp=THUMBNAIL_MPP)
    masks = {"tissue": found.tissue, "pen": found.pen, "fill": found.fill}
    if qc.max_fold is not None:
        masks["fold"] = folds(thumbnail, found.tissue, mpp=THUMBNAIL_MPP)
    at, size = (region.coords_um - corner_um) / THUMBNAIL_MPP, qc.tile_um / THUMBNAIL_MPP
    measures = {name: window_share(mask, at, size_px=size) for name, mask in masks.items()}
    if qc.min_sharpness is not None:
        measures["sharpness"] = _sharpness(region, qc.tile_um)
    return measures


def _sharpness(region: Region, tile_um: float) -> NDArray[np.float64]:
    out = np.full(len(region.coords_um), np.nan)
    if region.pyramid.mpp > SHARPNESS_MPP * 1.01:
        return out
    tile = TileSpec(SHARPNESS_MPP, max(16, round(tile_um / SHARPNESS_MPP)))
    for rows, tiles in region.pyramid.read(region.coords_um, tile, batch_size=64):
        out[rows] = [sharpness(field) for field in tiles]
    return out


def good_genes(regions: Sequence[Region], qc: QC) -> set[str] | None:
    """Return the genes that pass over all regions together; None where no limit is of genes."""
    if qc.min_gene_counts is None and qc.min_gene_share is None:
        return None
    import pandas as pd

    parts, n = [], 0
    for region in regions:
        if region.counts is None or region.var is None:
            continue
        n += region.counts.shape[0]
        sums, some = (np.asarray(m.sum(axis=0)).ravel() for m in (region.counts, region.counts > 0))
        parts.append(pd.DataFrame({"counts": sums, "locations": some}, index=region.var.index))
    total = pd.concat(parts).groupby(level=0).sum()
    enough = total["counts"] >= (qc.min_gene_counts or 0)
    return set(total.index[enough & (total["locations"] >= (qc.min_gene_share or 0.0) * n)])

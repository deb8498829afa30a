"""What a slide's locations are like in counts and in the image, and which pass."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.geometry import square_bins
from stpred._core.recipes.quality import QC, REASONS
from stpred._core.specs import TileSpec
from stpred._image.quality import SHARPNESS_MPP, folds, sharpness, window_share
from stpred._image.tissue import survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stpred.data._regions import Region
    from stpred.tiles import Pyramid

logger = logging.getLogger("stpred")

THUMBNAIL_MPP = 8.0

_MIN_TISSUE_SHARE = 0.25
"""Share of tissue from which on a tile without any detail is out of focus: tissue in focus always has some."""

_MIN_PER_SQUARE = 4
"""Locations in each square of half a tile from which on one tile stands for all of them."""


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
        measures |= ImageQuality.of(region.pyramid, qc).measures(region.coords_um)
    return Quality(measures, _verdicts(measures, qc, n=len(region.coords_um)))


def passing(region: Region, qc: QC) -> Region:
    """Return the locations of a region that pass, which remembers the limits and how many did not pass.

    Raises
    ------
    InputError
        If none passes.
    """
    found = judge(region, qc)
    if not found.passes.any():
        raise InputError(
            f"No location of slide {region.slide!r} passes `qc`: {found.left_out()}; look at stpred.pp.qc(sdata), and "
            "relax the limits (qc=stpred.QC(...)) if they do not suit the slide."
        )
    if left := found.left_out():
        logger.info("Slide %r: locations left out by quality: %s.", region.slide, left)
    return replace(region.take(np.flatnonzero(found.passes)), left_out=left, qc=qc)


def _verdicts(measures: dict[str, NDArray[np.float64]], qc: QC, *, n: int) -> NDArray[np.object_]:
    """Return the first reason why each of n locations does not pass; "" where it does."""
    reason = np.full(n, "", dtype=object)
    limits: list[tuple[str, str, Any, bool]] = [
        ("few_counts", "total_counts", qc.min_counts, True),
        ("few_genes", "n_genes_by_counts", qc.min_genes, True),
        ("pen", "pen", qc.max_pen, False),
        ("fill", "fill", qc.max_fill, False),
        ("little_tissue", "tissue", qc.min_tissue, True),
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
    return reason


@dataclass(frozen=True)
class ImageQuality:
    """What an image shows, to be judged anywhere on it.

    Attributes
    ----------
    pyramid, qc
        The image and the limits.
    masks
        (h, w) bool planes of a thumbnail, by the measure that is their share of a tile.
    corner_um
        (2,) corner of the thumbnail.
    """

    pyramid: Pyramid
    qc: QC
    masks: dict[str, NDArray[np.bool_]]
    corner_um: NDArray[np.float64]

    @classmethod
    def of(cls, pyramid: Pyramid, qc: QC) -> ImageQuality:
        """Survey the image."""
        thumbnail, corner_um = pyramid.thumbnail(THUMBNAIL_MPP)
        found = survey(thumbnail, mpp=THUMBNAIL_MPP)
        masks = {"tissue": found.tissue, "pen": found.pen, "fill": found.fill}
        if qc.max_fold is not None:
            masks["fold"] = folds(thumbnail, found.tissue, mpp=THUMBNAIL_MPP)
        return cls(pyramid, qc, masks, corner_um)

    def measures(self, points_um: NDArray[np.float64], *, dense: bool | None = None) -> dict[str, NDArray[np.float64]]:
        """Return the (n,) shares of the masks in the tile about each (n, 2) point, and its sharpness.

        `dense`: one tile stands for all points in a square of half its edge; None: where there are many in each.
        """
        at, size = (points_um - self.corner_um) / THUMBNAIL_MPP, self.qc.tile_um / THUMBNAIL_MPP
        measures = {name: window_share(mask, at, size_px=size) for name, mask in self.masks.items()}
        if self.qc.min_sharpness is not None:
            measures["sharpness"] = self._sharpness(points_um, measures["tissue"], dense=dense)
        return measures

    def reasons(self, points_um: NDArray[np.float64], *, dense: bool | None = None) -> NDArray[np.object_]:
        """Return why each (n, 2) point does not pass; "" where it does."""
        return _verdicts(self.measures(points_um, dense=dense), self.qc, n=len(points_um))

    def _sharpness(
        self, points_um: NDArray[np.float64], tissue: NDArray[np.float64], *, dense: bool | None
    ) -> NDArray[np.float64]:
        """Return the sharpness about each point; NaN where it cannot be told: off tissue, or on a coarse image."""
        if self.pyramid.mpp > SHARPNESS_MPP * 1.01:
            return np.full(len(points_um), np.nan)
        squares, member = square_bins(points_um, self.qc.tile_um / 2)
        if len(points_um) >= _MIN_PER_SQUARE * len(squares) if dense is None else dense:
            found = self._at((squares + 0.5) * self.qc.tile_um / 2)[member]
        else:
            found = self._at(points_um)
        return np.where(np.isnan(found) & (tissue >= _MIN_TISSUE_SHARE), 0.0, found)

    def _at(self, points_um: NDArray[np.float64]) -> NDArray[np.float64]:
        out = np.full(len(points_um), np.nan)
        tile = TileSpec(SHARPNESS_MPP, max(16, round(self.qc.tile_um / SHARPNESS_MPP)))
        for rows, tiles in self.pyramid.read(points_um, tile, batch_size=64):
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

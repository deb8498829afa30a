"""Predictions as tables that annotate regions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError, warn
from stpred.inference import intervals
from stpred.inference.default_regions import put_regions
from stpred.inference.preserve import preserve
from stpred.models.ood import ood_scores, slide_ood_summary

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.inference.predictor import Predictor
    from stpred.inference.preserve import Spots
    from stpred.models import Model

OOD_LIMIT = 0.5
"""Fraction of tiles out of the distribution of the training tiles from which on the user is warned."""


def predict_table(
    predictor: Predictor, region: data.Region, *, interval: float | None = None, spots: Spots | None = None
) -> AnnData:
    """Return the table of predictions for a region, as :func:`stpred.tl.predict` describes it.

    Parameters
    ----------
    predictor
        What predicts.
    region
        Locations.
    interval
        Level of the intervals whose borders are written; None: of none, and on a slide that is out of distribution no
        offsets either.
    spots
        Measured locations whose counts predictions are to add up to.
    """
    model = predictor.model
    finer = _finer(predictor, region, interval)
    comparable = spots is None and predictor.posterior is None and not finer  # values that the intervals are of
    found = predictor.apply(region)
    mean, std = found.mean, found.std
    obs, slide = ood_columns(model, found.distance)
    provenance = predictor.provenance(region, found.context) | slide
    if model.record.target == "counts":
        np.maximum(mean, 0, out=mean)
    if spots is not None:
        std = None
        preserve(mean, region.coords_um, spots, model)
        provenance |= {"output_scale": "counts", "preserved": spots.region.shapes_key}
    var = predictor.var
    unlike = slide["slide"]["in_distribution"] is False
    withheld = unlike and interval is None
    if comparable:
        provenance |= intervals.provenance_of(model, unlike=unlike, withheld=withheld)
    if not comparable or withheld:
        var = var.drop(columns=[intervals.LOW, intervals.HIGH], errors="ignore")
    table = tables.build_table(
        mean,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=var,
        spatial_um=region.coords_um,
        obs=obs,
        layers=None if std is None else {keys.STD: std},
        provenance=provenance,
    )
    if comparable and not withheld:
        intervals.put_intervals(table, model, predictor.columns, interval)
        if unlike and interval is not None:
            warn("The slide is out of distribution, so its intervals are too narrow; see stpred.tl.recalibrate.")
    warn_out_of_distribution(model, obs[keys.OOD_SCORE])
    return table


def _finer(predictor: Predictor, region: data.Region, interval: float | None) -> bool:
    """Whether locations are finer than the calibrated ones; an interval at a level is refused then."""
    record = predictor.model.record
    if not record.intervals or intervals.apply_to(predictor.model, data.median_width_um(region)):
        return False
    if interval is not None:
        raise InputError(
            f"The intervals of model {record.name!r} are of locations {record.intervals['width_um']:g} "
            f"um wide, and those of {region.shapes_key!r} are finer: they are measured with fewer counts and more "
            "noise. Calibrate them on such locations with stpred.tl.conformal(model, slides, shapes_key=...)."
        )
    return True


def result_key(sdata: SpatialData, region: data.Region, name: str, key_added: str | None) -> str:
    """Return the name of a table that is to be written, or refuse it."""
    key = keys.predicted(region.shapes_key, name) if key_added is None else key_added
    tables.check_writable(sdata, key)
    tables.check_name(region.sdata, key, kind="tables")  # may be that of a region that is created with it
    return key


def put_result(sdata: SpatialData, key: str, table: AnnData, region: data.Region) -> None:
    """Put a table into the object, with the regions that were created for it."""
    put_regions(sdata, region.sdata)
    tables.put_table(sdata, key, table)


def ood_columns(model: Model, distance: NDArray[np.float32]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return columns of ``obs``, and provenance, of the out-of-distribution distance of a slide.

    `distance` is of all its locations, as shares of the training tiles' limit.
    """
    limit = model.record.training.get("slide_limit")
    score = ood_scores(distance, limit)
    obs = {keys.OOD_SCORE: score, keys.IN_DISTRIBUTION: score <= 0}
    return obs, {"slide": slide_ood_summary(distance, limit)}


def of_one_donor(model: Model) -> str:
    """Return what has to be added to a warning about a slide where a model has seen a single donor."""
    if not tables.one_donor({"training": model.record.training}):
        return ""
    return " It was trained on one donor, so it cannot tell how far donors differ."


def warn_out_of_distribution(model: Model, score: NDArray[np.float32]) -> None:
    """Warn where most tiles are out of the distribution of the training tiles."""
    if len(score) and np.isnan(score).all():
        warn(
            f"What the training tiles of model {model.record.name!r} looked like is not known, so obs['ood_score'] is "
            "NaN and obs['in_distribution'] False everywhere: nothing says whether it can be trusted here."
        )
        return
    fraction = float((score > 0).mean())
    if fraction > OOD_LIMIT:
        warn(
            f"{fraction:.0%} of the tiles are out of distribution for model {model.record.name!r} "
            "(obs['in_distribution'] is False); its predictions here are guesses. Train on slides like this one."
            + of_one_donor(model)
        )

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError, listing, warn
from stpred._core.expression.library import Library, Overlap
from stpred._core.places import Place
from stpred._core.targets import LOG_SHARE
from stpred.inference.intervals import calibrate, refused, residual_sketch
from stpred.inference.predictor import Predictor, load_trained
from stpred.inference.provenance import trained_on

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import Model


def conformal(
    model: Model | str | Path,
    slides: Mapping[str, SpatialData],
    *,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    groups: Mapping[str, str] | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Calibrate a model's intervals on measured slides that it was not trained on (split conformal prediction).

    From then on its predicted tables say, gene by gene, between which borders the measurement of a location of a new
    slide lies in 50, 80, 90 and 95 % of cases. Slides are the unit: they weigh the same, and since a new slide brings
    a shift of its own, intervals are widened until held-out slides are covered as stated (see
    :func:`stpred.metrics.conformal_intervals`). Models of closed form come calibrated from :func:`stpred.tl.train`
    where there are three donors or more.

    Parameters
    ----------
    model
        A trained model, whose record is changed, or the folder it was saved in (which is not: use the model that
        :func:`stpred.models.load` returns). Save it again to keep the intervals.
    slides
        Names to slides with measured raw counts, two or more; those that the model was trained on are refused.
    shapes_key, table_key, image_key, cells_key
        As in :func:`stpred.tl.train`.
    groups
        Donor of each slide: a donor's slides are held out together, and donors that the model was trained on are
        refused. None takes each slide for its own donor and refuses only the very slides; with several slides of a
        donor the intervals are then too narrow for others.
    encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.

    Returns
    -------
    DataFrame, one row per level: ``level``, ``coverage`` (mean over slides, each covered by intervals that were built
    without it; NaN with two slides), ``coverage_sd`` between slides, ``factor`` of the widening, ``width`` (median
    over genes, on the output scale of the model or the root of counts), ``n_slides``. ``attrs["library"]`` says for
    each slide how the genes that its library sizes are counted over compare with those of training; where it lacks
    some that carry more than a tenth of the training counts, a warning says so and there is a column
    ``same_library``, False. Later
    predictions have ``var["interval_low"]`` and ``["interval_high"]`` (90 %), ``varm["interval_offsets"]`` (all
    levels), and with ``stpred.tl.predict(interval=0.9)`` ``layers["lower"]`` and ``layers["upper"]``.

    Raises
    ------
    InputError
        If there are fewer than two slides or donors, one was trained on, the predictions have no scale, or none of the
        genes was measured.

    References
    ----------
    Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, J. Am. Stat. Assoc. 113 (2018).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(5, size_um=(500, 500), n_genes=20)
    >>> names = list(slides)
    >>> model = st.tl.train({s: slides[s] for s in names[:2]}, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> found = st.tl.conformal(model, {s: slides[s] for s in names[2:]}, shapes_key="spots")
    >>> found["level"].tolist()
    [0.5, 0.8, 0.9, 0.95]
    """
    trained = load_trained(model)
    if reason := refused(trained):
        raise InputError(f"Model {trained.record.name!r} can have no intervals: {reason}.")
    slides = data.as_slides(slides)
    if len(slides) < 2:
        raise InputError(
            f"Intervals are calibrated on two slides or more, got {listing(slides)}: differences of slides cannot "
            "be estimated from one."
        )
    predictor = Predictor.of(trained, encoder=encoder, device=device)
    place = Place(shapes_key=shapes_key, image_key=image_key, table_key=table_key, coordinate_system=coordinate_system)
    names, sketches = trained.record.genes, []
    regions = {
        s: data.read_region(sdata, place, slide=s, measured=True, prefer=trained.record.region)
        for s, sdata in slides.items()
    }
    given = {} if groups is None else data.donor_folds(list(slides), groups)
    if training_slides := [s for s, r in regions.items() if trained_on(trained, r, given.get(s, ""))]:
        raise InputError(
            f"Model {trained.record.name!r} was trained on {listing(training_slides)} (or on their donors); intervals "
            "need slides outside its training, or stpred.tl.train(..., intervals=True)."
        )
    libraries: dict[str, Overlap] = {}
    for region in regions.values():
        if trained.record.target in ("log1p_cp10k", LOG_SHARE):
            region, compared = data.on_library(region, Library.parse(trained.record.library))
            if compared is not None:
                libraries[region.slide] = compared
        if trained.needs.cells:
            region = data.with_cells(region, cells_key=cells_key, prefer=trained.record.cells)
        measured = region.measures(names)
        if not measured.any():
            raise InputError(f"Slide {region.slide!r} measured none of the model's genes.")
        genes = [g for g, k in zip(names, measured, strict=True) if k]
        guess = predictor.values(region)[:, measured]
        truth = region.target(genes, trained.record.target, n_measured=trained.record.n_measured)
        sketches.append(_with_gaps(residual_sketch(truth, guess, trained.record.target), measured))
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    calibrate(
        trained,
        sketches,
        slides=list(slides),
        groups=list(donors.values()),
        width_um=float(np.median([data.median_width_um(r) for r in regions.values()])),
        calibrated_on="slides that the model was not trained on",
        donors_given=groups is not None,
    )
    different = _different(trained, libraries)
    levels = trained.record.intervals["levels"]
    width = [np.nanmedian(np.array(i["high"], float) - np.array(i["low"], float)) for i in levels]
    frame = pd.DataFrame(levels).drop(columns=["low", "high"]).assign(width=width, n_slides=len(slides))
    frame = frame[["level", "coverage", "coverage_sd", "factor", "width", "n_slides"]].astype(
        {"coverage": float, "coverage_sd": float}
    )
    if different:
        frame["same_library"] = False
    frame.attrs["library"] = {s: found.to_dict() for s, found in libraries.items()}
    return frame


def _with_gaps(sketch: NDArray[np.float64], measured: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sketch of measured genes with NaN for the others."""
    found = np.full((len(measured), sketch.shape[1]), np.nan)
    found[measured] = sketch
    return found


def _different(model: Model, libraries: dict[str, Overlap]) -> list[str]:
    """Return the slides whose library sizes are not over the model's genes; warn, and write it into the record."""
    different = [s for s, found in libraries.items() if not (found.same or found.wider)]
    if wider := [s for s, found in libraries.items() if found.wider]:
        warn(
            f"The slides {listing(wider, most=4)} measured genes that the model's training tables did not; their "
            "library sizes are counted over the model's, so that log1p CP10k is one scale."
        )
    if different:
        model.record.intervals["other_library"] = different
        worst = min((libraries[s] for s in different), key=lambda found: min(found.share_model, found.share_measured))
        warn(
            f"The slides {listing(different, most=4)} and the model's training tables count library sizes over "
            f"different genes (those that both have carry as little as {worst.share_model:.0%} of the training counts "
            f"and {worst.share_measured:.0%} of a slide's), so log1p CP10k is not one scale: intervals hold for "
            "measurements of such genes only, and are as wide as the two scales are apart."
        )
    return different

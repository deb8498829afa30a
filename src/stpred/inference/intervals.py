"""Conformal intervals of a model: from the residuals of held-out slides into its record and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import metrics
from stpred._core.checks import InputError, listing
from stpred._core.expression.library import LIBRARY, Library
from stpred._core.tables import read_provenance
from stpred._core.targets import LOG_SHARE, SCALES, dense
from stpred.comparison.scoring import Measured
from stpred.metrics.intervals import intervals_of, sketch_in_blocks

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from stpred.comparison.terms import Pair
    from stpred.models import Model

LEVELS = (0.5, 0.8, 0.9, 0.95)
LEVEL = 0.9
"""The one whose offsets are in ``var`` of predicted tables."""

LOWER, UPPER = "lower", "upper"
LOW, HIGH = "interval_low", "interval_high"
OFFSETS = "interval_offsets"

_PRIOR_LOCATIONS, _GENE_GROUPS, _GROUP_SIZE = 10, 5, 20
"""Locations that the usual spread of a gene counts for; groups of genes of similar amount, and their least size."""

_OTHER_DEPTH = 2.0
"""Ratio of library sizes from which on the noise of a measurement is another one."""

_BLOCK_VALUES = 2**22
"""Values whose borders are made at a time."""

_FINER = 0.75
"""Share of the width of the calibrated locations below which others are finer: fewer counts, and more noise."""


def refused(model: Model) -> str | None:
    """Say why a model has no intervals, or return None."""
    if model.record.target not in SCALES:
        return f"its predictions are {model.record.target}, so nothing measured lies at a distance from them"
    if model.config.per is not None:
        return f"its predictions are amounts per {model.config.per} counts, which a location does not measure"
    return None


def as_stable(values: Any, output_scale: str) -> NDArray[np.float64]:
    """Return values on the scale that offsets are added on: roots of counts, whose noise hardly depends on the mean."""
    values = np.asarray(values, dtype=np.float64)
    return np.sqrt(np.maximum(values, 0)) if output_scale == "counts" else values


def residual_sketch(observed: Any, predicted: NDArray[np.float32], output_scale: str) -> NDArray[np.float64]:
    """Return the sketch of observed (dense or sparse) minus predicted (n, G) values, see `as_stable` and `calibrate`.

    Values in double precision are made of some genes at a time.
    """
    by_gene = observed.tocsc() if hasattr(observed, "tocsc") else observed

    def residuals(genes: slice) -> NDArray[np.float64]:
        return as_stable(dense(by_gene[:, genes]), output_scale) - as_stable(predicted[:, genes], output_scale)

    return sketch_in_blocks(predicted.shape, residuals)


def calibrate(
    model: Model,
    sketches: Sequence[NDArray[np.float64]],
    *,
    slides: Sequence[str],
    groups: Sequence[str],
    width_um: float,
    calibrated_on: str,
    donors_given: bool = True,
) -> None:
    """Write the intervals of all levels into the model's record.

    Parameters
    ----------
    model
        Trained; its genes are those of the sketches.
    sketches
        (G, Q) quantiles of observed minus predicted values of each slide that the predicting model was not trained on,
        see `residual_sketch`.
    slides, groups, calibrated_on
        Names of these slides, their donors, and which slides these are, as text.
    width_um
        Median width of their locations.
    donors_given
        Whether `groups` are donors, and not slides of donors that nobody named.
    """
    stacked = np.stack(sketches)
    found = {level: intervals_of(stacked, level=level, groups=groups) for level in LEVELS}
    record = model.record
    record.intervals = {
        "scale": "sqrt" if record.target == "counts" else "identity",
        "slides": list(slides),
        "n_donors": len(set(groups)),
        "donors_given": donors_given,
        "width_um": round(width_um, 3),
        "how": calibrated_on,
        "levels": [
            {
                "level": level,
                "factor": round(i.factor, 4),
                "coverage": _rounded(np.mean(i.coverage)),
                "coverage_sd": _rounded(np.std(i.coverage, ddof=1)),
                "low": [_rounded(v) for v in i.low],
                "high": [_rounded(v) for v in i.high],
            }
            for level, i in found.items()
        ],
    }
    usual = next(i for i in record.intervals["levels"] if i["level"] == LEVEL)
    record.var |= {LOW: usual["low"], HIGH: usual["high"]}


def doubts(stated: Mapping[str, Any], *, unlike: bool, trained_donors: int | None = None) -> list[str]:
    """Return why intervals may not hold for a slide, as sentences.

    Parameters
    ----------
    stated
        How they were calibrated, as the model's record says.
    unlike
        Whether the slide is out of distribution.
    trained_donors
        Number of donors of the training slides, if it is known.
    """
    found = []
    if unlike:
        found.append("The slide is out of distribution: its intervals are too narrow.")
    if stated.get("n_donors") == 1 or trained_donors == 1:
        found.append("One donor was seen: the intervals hold between sections of that donor, and not for another.")
    elif stated.get("donors_given") is False:
        found.append("No donors were named: if slides of one donor calibrated the intervals, they hold for that donor.")
    return found


def provenance_of(model: Model, *, unlike: bool = False, withheld: bool = False) -> dict[str, Any]:
    """Return what the provenance of a table says of its intervals; `unlike`: the slide is out of distribution."""
    if not model.record.intervals:
        return {}
    found = dict(model.record.intervals)
    trained = model.record.training
    donors = trained.get("n_donors") if trained.get("donors_given") else None
    found |= {"doubts": doubts(found, unlike=unlike, trained_donors=donors), "withheld": withheld}
    found["levels"] = [{k: v for k, v in i.items() if k not in ("low", "high")} for i in found["levels"]]
    return {"intervals": found}


def stated_of(n_locations: int, key: str) -> dict[str, Any]:
    """Return the provenance of intervals of :func:`of_residuals`."""
    return {
        "how": f"{n_locations} measured locations of the slide, each left out",
        "of": key,
        "slides": [],
        "levels": [{"level": level} for level in LEVELS],
        "doubts": [],
        "withheld": False,
    }


def apply_to(model: Model, width_um: float) -> bool:
    """Whether a model's intervals are of locations of this width: finer ones are measured with more noise."""
    calibrated = model.record.intervals.get("width_um")
    return calibrated is None or width_um >= _FINER * calibrated


def check_level(model: Model, level: float | None) -> None:
    """Refuse a level that the model was not calibrated for."""
    if level is None:
        return
    levels = [i["level"] for i in model.record.intervals.get("levels", [])]
    if not levels:
        raise InputError(
            f"Model {model.record.name!r} has no calibrated intervals; give it some with stpred.tl.conformal(model, "
            "slides) and slides that it was not trained on, or stpred.tl.train(..., intervals=True)."
        )
    if level not in levels:
        raise InputError(f"`interval` must be one of the calibrated levels {listing(levels)}, got {level!r}.")


def put_intervals(table: AnnData, model: Model, columns: Sequence[int], level: float | None) -> None:
    """Write the offsets of all levels into ``varm``, and with a level the borders of every location into layers."""
    if not model.record.intervals:
        return
    levels = model.record.intervals["levels"]
    offsets = np.array([[i[side] for i in levels for side in ("low", "high")]], dtype=np.float64)[0].T
    table.varm[OFFSETS] = offsets[list(columns)]
    if level is not None:
        at = [i["level"] for i in levels].index(level)
        predicted = np.asarray(table.X)
        low, high = np.empty_like(predicted, np.float32), np.empty_like(predicted, np.float32)
        step = max(_BLOCK_VALUES // max(predicted.shape[1], 1), 1)
        for first in range(0, len(predicted), step):  # in double precision, but not all of them at once
            rows = slice(first, first + step)
            low[rows], high[rows] = bounds(predicted[rows], table.varm[OFFSETS], at, output_scale=model.record.target)
        table.layers[LOWER], table.layers[UPPER] = low, high


def bounds(
    predicted: Any, offsets: NDArray[np.float64], at: int, *, output_scale: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (n, G) borders of the intervals of one level; nothing measured is below zero but log shares."""
    stable = as_stable(predicted, output_scale)
    least = -np.inf if output_scale == LOG_SHARE else 0.0
    low, high = (np.maximum(stable + offsets[:, 2 * at + side], least) for side in (0, 1))
    return (np.square(low), np.square(high)) if output_scale == "counts" else (low, high)


def of_residuals(residuals: NDArray[np.float64], amount: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (G, 2 * number of levels) offsets from (n, G) left-out residuals of a few locations of the slide itself.

    A gene's own quantiles would need hundreds of locations. Residuals are divided by each gene's standard deviation,
    that of a few locations drawn towards the usual one, and quantiles are taken over genes of similar `amount` (G,),
    which are skewed alike.
    """
    n, n_genes = residuals.shape
    squares = np.square(residuals).sum(axis=0)
    usual = float(np.median(squares)) / n
    spread = np.sqrt(np.maximum((squares + _PRIOR_LOCATIONS * usual) / (n + _PRIOR_LOCATIONS), 1e-12))
    scaled = residuals / spread
    out = np.empty((n_genes, 2 * len(LEVELS)))
    for genes in np.array_split(np.argsort(amount, kind="stable"), max(1, min(_GENE_GROUPS, n_genes // _GROUP_SIZE))):
        for k, level in enumerate(LEVELS):
            ends = np.quantile(scaled[:, genes], [(1 - level) / 2, (1 + level) / 2])
            out[genes, 2 * k : 2 * k + 2] = ends * spread[genes, None]
    return out


def interval_coverage(both: Pair, table: AnnData, predicted_key: str) -> pd.DataFrame:
    """Return the coverage of each gene's intervals at each level, as :func:`stpred.tl.coverage` does.

    `both`: values of the predicted `table` beside measured ones.
    """
    import pandas as pd

    provenance = read_provenance(table, what=f"table {predicted_key!r}")
    stated = provenance.get("intervals", {})
    if stated.get("withheld"):
        raise InputError(
            f"The intervals of table {predicted_key!r} were withheld, since the slide is out of distribution; correct "
            "it by a few measured spots (stpred.tl.recalibrate), or predict with interval=0.9 to have them anyway."
        )
    if OFFSETS not in table.varm or not stated:
        raise InputError(
            f"Table {predicted_key!r} has no intervals; calibrate its model with stpred.tl.conformal and predict again."
        )
    offsets = np.asarray(table.varm[OFFSETS])[table.var_names.get_indexer(both.genes)]
    found: list[list[NDArray[np.float64]]] = [[] for _ in stated["levels"]]
    for part in Measured.of(both).parts():
        predicted = both.predictions(part.genes)
        for at, shares in enumerate(found):
            low, high = bounds(predicted, offsets[part.genes], at, output_scale=both.output_scale)
            shares.append(metrics.coverage(part.observed, low, high))
    parts = [
        pd.DataFrame(
            {
                "gene": both.genes,
                "level": interval["level"],
                "coverage": np.concatenate(shares),
                "n_locations": len(both.instances),
            }
        )
        for interval, shares in zip(stated["levels"], found, strict=True)
    ]
    result = pd.concat(parts, ignore_index=True)
    if both.same_library is False:
        result["same_library"] = False
    result.attrs["library"] = both.matching.get(LIBRARY, {})
    result.attrs["doubts"] = [*stated.get("doubts", ()), *_of_depth(both, provenance)]
    return result


def _of_depth(both: Pair, provenance: Mapping[str, Any]) -> list[str]:
    """Say that a measurement is far deeper or shallower than what the intervals were calibrated on."""
    library = Library.parse(provenance.get(LIBRARY))
    if library is None or both.output_scale == "counts" or "recalibrated" in provenance:
        return []
    depth = float(np.median(both.totals))
    if 1 / _OTHER_DEPTH <= depth / max(library.median_size, 1e-9) <= _OTHER_DEPTH:
        return []
    wrong = "wide" if depth > library.median_size else "narrow"
    return [
        f"The measurement has {depth:.3g} counts per location, the training {library.median_size:.3g}, and with that "
        f"another noise: the intervals are too {wrong}."
    ]


def _rounded(value: Any) -> float | None:
    return float(f"{value:.5g}") if np.isfinite(value) else None

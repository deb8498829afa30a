from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables
from stpred._core.checks import InputError, listing
from stpred._core.elements import key_in_frame, table_instances
from stpred._core.expression.library import LIBRARY
from stpred._core.targets import LOG_SHARE, dense
from stpred.comparison.pairing import pair
from stpred.inference import intervals
from stpred.inference.intervals import as_stable
from stpred.tl._trust.gamma_poisson import shrink

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

MIN_LOCATIONS = 5
"""Measured locations below which a line through them says nothing."""

_PRIOR_FREE = 10
"""Degrees of freedom that the median gene's residual variance counts for in that of each."""

MIN_SLOPE = 0.1
"""Share of the median gene's slope that every gene keeps: a few locations may suggest that it turns around."""

_PARTS = 20
"""Parts of the measured locations that are left out in turn for intervals."""

SLOPE, OFFSET = "recalibrated_slope", "recalibrated_offset"


def recalibrate(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    instances: Iterable[Any] | None = None,
    target: str | None = None,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Correct the scale and offset of a slide's prediction by a few measured locations of the same slide.

    A new slide shifts every gene by its stain, its depth and its preparation, and predictions are often spread too
    wide or too narrow. Per gene a line is fitted through the measured locations and drawn towards the line that the
    genes have in common, the more so the fewer locations there are and the noisier the gene is (empirical Bayes), so
    that a handful of spots helps and none of them decides. Correlations within the slide stay as they were but for
    values that would be negative: a gene whose line would turn around keeps a tenth of the usual slope.

    Parameters
    ----------
    sdata
        Object with both tables.
    predicted_key
        Table that :func:`stpred.tl.predict` wrote; a relative one gets a scale in this way.
    measured_key
        Table of raw counts of some of its locations.
    instances
        Ids of the locations to learn from; None takes all that are measured. Score the result on others.
    target
        Scale of the result, ``"log1p_cp10k"`` or ``"counts"``; None takes the prediction's own.
    key_added
        Name of the new table; None makes ``{predicted_key}_recalibrated``, with the suffix of the frame where the table
        is of several slides.
    coordinate_system
        The slide's micrometre frame.
    inplace
        With False the table is returned and the object is not changed.

    Returns
    -------
    None, or the table: ``X`` float32 on `target`, never below zero (but for log shares); ``var["recalibrated_slope"]``
    and ``["recalibrated_offset"]`` (NaN for genes that were not measured, which stay as they are, or are excluded from
    a relative prediction); intervals of this slide, from what each measured location lies off the lines through the
    others (``varm["interval_offsets"]``, ``var["interval_low"]``, ``["interval_high"]``, NaN for genes without a line),
    in place of those of other slides; everything else as in the prediction but for ``std``, which was of the old scale.
    Intervals of a few locations in one place hold for tissue like that place: let `instances` be spread over the slide.
    Where the measurement counts its library sizes over other genes than the model was trained on, a warning says
    so: recalibrated genes are then on the scale of the measurement, the others on that of the model.

    Raises
    ------
    InputError
        If fewer than five measured locations with counts are shared, or no gene.

    References
    ----------
    Efron and Morris, Data analysis using Stein's estimator, J. Am. Stat. Assoc. 70 (1975). DerSimonian and Laird,
    Controlled Clinical Trials 7 (1986), for the variance between genes.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20, donor=2)
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model, shapes_key="spots")
    >>> st.tl.recalibrate(slide, "spots_ridge", "spots_counts", instances=slide["spots"].index[:10])
    >>> slide.tables["spots_ridge_recalibrated"].var_names.tolist()
    ['EPCAM', 'COL1A2']
    """
    both = pair(sdata, predicted_key, measured_key, target=target, coordinate_system=coordinate_system)
    table = sdata.tables[predicted_key]
    rows = _learned_from(both, instances)
    region = both.shapes_key
    at, ids = table_instances(table, region)
    values = dense(table.X[at], np.float64)
    if both.per is not None and both.target == "log1p_cp10k":
        values = np.log1p(values)
    columns = table.var_names.get_indexer(both.genes)
    relative = both.output_scale == "relative"
    x = np.asarray(both.guessed, dtype=np.float64)[rows]
    slope, offset = np.full((2, table.n_vars), np.nan)
    # Relative predictions have no unit, and no common line before they are given one.
    centre, unit = _standard(values[:, columns]) if relative else (np.zeros(len(columns)), np.ones(len(columns)))
    found = shrunken_lines((x - centre) / unit, both.observed[rows])
    slope[columns], offset[columns] = found[0] / unit, found[1] - found[0] * centre / unit
    # Genes that were not measured stay as they are, which they cannot on another scale.
    kept = np.ones(table.n_vars, dtype=bool) if both.comparable else np.isfinite(slope)
    line = values * np.nan_to_num(slope) + np.nan_to_num(offset)
    new = np.where(np.isfinite(slope), line if both.target == LOG_SHARE else np.maximum(line, 0), values)
    provenance = tables.read_provenance(table, what=f"table {predicted_key!r}")
    provenance["intervals"] = intervals.stated_of(len(rows), predicted_key)
    offsets = np.full((table.n_vars, 2 * len(intervals.LEVELS)), np.nan)
    offsets[columns] = _offsets((x - centre) / unit, both.observed[rows], scale=both.target)
    summary: dict[str, Any] = {
        "of": predicted_key,
        "by": measured_key,
        "n_locations": len(rows),
        "n_genes": int(np.isfinite(slope).sum()),
    }
    if LIBRARY in both.matching:
        summary[LIBRARY] = both.matching[LIBRARY]
    changed = {"output_scale": both.target, "per": None, "recalibrated": summary}
    var = table.var.drop(columns=[intervals.LOW, intervals.HIGH], errors="ignore").assign(
        **{SLOPE: slope, OFFSET: offset}
    )
    obs = table.obs.iloc[at]
    result = tables.build_table(
        new[:, kept].astype(np.float32),
        shapes_key=region,
        instances=ids,
        var=var[kept],
        spatial_um=np.asarray(table.obsm[keys.SPATIAL])[at],
        obs={k: obs[k].to_numpy() for k in (keys.OOD_SCORE, keys.IN_DISTRIBUTION) if k in obs},
        provenance=provenance | changed | both.library(provenance),
    )
    result.varm[intervals.OFFSETS] = offsets[kept]
    at_level = 2 * intervals.LEVELS.index(intervals.LEVEL)
    result.var[intervals.LOW], result.var[intervals.HIGH] = offsets[kept][:, at_level : at_level + 2].T
    if not inplace:
        return result
    usual = f"{predicted_key}_recalibrated"
    usual = key_in_frame(sdata, predicted_key, usual, coordinate_system=coordinate_system)
    tables.put_table(sdata, usual if key_added is None else key_added, result)
    return None


def _learned_from(both: Pair, instances: Iterable[Any] | None) -> NDArray[np.int64]:
    """Return the rows of the locations that are learned from: those of the given ids, or all."""
    rows = np.arange(len(both.instances))
    if instances is not None:
        wanted = list(instances)
        rows = np.flatnonzero(both.instances.isin(wanted))
        if len(rows) == 0:
            raise InputError(
                f"None of the {len(wanted)} `instances` is both predicted and measured: {listing(wanted[:3])} against "
                f"{listing(both.instances[:3])}."
            )
    if len(rows) < MIN_LOCATIONS:
        raise InputError(f"Recalibration needs {MIN_LOCATIONS} measured locations or more, got {len(rows)}.")
    return rows


def _offsets(x: NDArray[np.float64], y: NDArray[np.floating], *, scale: str) -> NDArray[np.float64]:
    """Return (G, 2 * number of levels) offsets of intervals from (n, G) predicted and measured values."""
    residuals = as_stable(y, scale) - as_stable(_left_out(x, y, positive=scale != LOG_SHARE), scale)
    return intervals.of_residuals(residuals, y.mean(axis=0))


def shrunken_lines(x: NDArray[np.float64], y: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (G,) slopes and offsets of each gene's line of y on x, (n, G), shrunk towards the common line.

    Slopes are the posterior means under a normal prior whose mean and variance are estimated from all genes'
    least-squares slopes and their standard errors, at least a tenth of the median. Offsets are shrunk likewise.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    n = len(x)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    dx, dy = x - mean_x, y - mean_y
    square = np.square(dx).sum(axis=0)
    varies = square > 1e-12 * np.maximum(np.square(x).sum(axis=0), 1e-30)
    raw = np.divide((dx * dy).sum(axis=0), square, out=np.zeros(x.shape[1]), where=varies)
    noise = _moderated(np.square(dy - raw * dx).sum(axis=0), n - 2)
    error = np.divide(noise, square, out=np.full(x.shape[1], np.inf), where=varies)
    slope = shrink(raw, error)[0]
    slope = np.maximum(slope, MIN_SLOPE * max(float(np.median(slope)), 0.0))
    # The shift of a gene is its mean residual about the prediction; shifts of a slide have a common part too.
    shift, _ = shrink(mean_y - slope * mean_x, _moderated(np.square(dy - slope * dx).sum(axis=0), n - 2) / n)
    return slope, shift


def _left_out(x: NDArray[np.float64], y: NDArray[np.floating], *, positive: bool) -> NDArray[np.float64]:
    """Return (n, G) what the lines through the other locations say of each; of many, a part is left out at once."""
    out = np.empty(y.shape)
    part = np.arange(len(x)) % _PARTS
    for k in np.unique(part):
        own = part == k
        slope, offset = shrunken_lines(x[~own], y[~own])
        out[own] = x[own] * slope + offset
    return np.maximum(out, 0) if positive else out


def _moderated(squares: NDArray[np.float64], free: int) -> NDArray[np.float64]:
    """Return residual variances, those of few degrees of freedom drawn towards the median gene's."""
    typical = float(np.median(squares)) / max(free, 1)
    return (squares + _PRIOR_FREE * typical) / (max(free, 0) + _PRIOR_FREE)


def _standard(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    spread = values.std(axis=0)
    return values.mean(axis=0), np.where(spread > 0, spread, 1.0)

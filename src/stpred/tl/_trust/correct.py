from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, tables, targets
from stpred._core.checks import InputError, listing
from stpred._core.elements import need_sdata, table_instances, with_region
from stpred.comparison.pairing import pair
from stpred.inference.intervals import HIGH, LOW, OFFSETS
from stpred.inference.provenance import provenance_in_frame
from stpred.tl._trust.gamma_poisson import posterior, recalibration

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

KIND = "correction"

MIN_LOCATIONS = 20
"""Locations with counts that a slide needs to be recalibrated on."""


def correct(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    key_added: str | None = None,
    allow_training_slide: bool = False,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Denoise a poorly measured slide, and fill what it lacks, with what a model of other slides predicts.

    The prediction is brought to the slide's own scale: of each gene a straight line through the measured CP10k, whose
    slope is shrunk towards the one that the slide's genes have in common, so that a prediction that is worth nothing
    here becomes a gene's mean. Around that line a gene varies by a constant share (estimated, and shrunk likewise),
    and the measured count is Poisson. Then the expected rate is a mean of measurement and prediction, weighted by
    their precisions: ``weight`` of the measurement rises with the counts and with what the prediction misses. Rates are
    averaged and not their logarithms, since the logarithm of a zero count has no noise to speak of.

    To see whether it helps on your slides, thin the counts of a good one (binomially) and compute the likelihood
    of the removed ones. On a HER2ST section (Ridge trained on three others of the patient, 500 genes, spots of at least
    100 counts) they were likelier than under the recalibrated prediction and under the measurement with 5, 20 and 50 %
    of the counts. Correlations of log1p CP10k are no fair judge: it depends on the library size, which parts share.

    Parameters
    ----------
    sdata
        The slide.
    predicted_key
        Table from :func:`stpred.tl.predict` on the scale log1p CP10k, of a model that was not trained on this slide.
    measured_key
        Table of raw counts, of the same region or of one that matches it by overlap.
    key_added
        Name of the new table; None: ``{shapes}_corrected``.
    allow_training_slide
        Go on although the model was trained on this very slide. Its prediction then repeats the noise of the
        measurement, which would count twice.
    coordinate_system
        The slide's micrometre frame.
    inplace
        Write into `sdata`, or return the table.

    Returns
    -------
    None, or the table if not `inplace`: every predicted location x every predicted gene, with

    - ``X``: float32 corrected log1p CP10k, finite everywhere;
    - ``layers["measured"]``: measured log1p CP10k, 0 where nothing was measured; ``layers["predicted"]``: the
      prediction as it was; ``layers["weight"]``: share of the measurement, 0 where ``X`` is filled with the prediction;
    - ``obs["measured"]``: whether the location has counts (else it holds the recalibrated prediction);
    - ``var["measured"]``: whether the gene has a count on this slide (else it holds the prediction as it was), and
      ``var["slope"]``, ``var["intercept"]`` (CP10k) and ``var["excess_cv"]`` (variation of a gene about the line,
      as a share), NaN where it has none;
    - where the measurement counts its library sizes over other genes than the model was trained on, a warning says so:
      measured genes are then on the scale of the measurement, the others on that of the model;
    - in ``uns["stpred"]`` the provenance, such as ``common_slope``: 0 if predictions say nothing on this slide.

    Raises
    ------
    InputError
        If the model was trained on this slide, predictions are not log1p CP10k, or too few locations have counts.

    References
    ----------
    The estimate is that of SAVER (Huang et al., Nature Methods 2018), with an image model's prediction in place of
    that from other genes. Filling and denoising by a model of other slides is a use that DeepSpot was shown for.

    Examples
    --------
    >>> import stpred as st
    >>> small = {"size_um": (600, 600), "n_genes": 20}
    >>> slide = st.datasets.toy(seed=1, **small)
    >>> model = st.tl.train(st.datasets.toy_cohort(2, **small), genes="all", shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> st.tl.correct(slide, "spots_ridge", "spots_counts")
    >>> sorted(name for name in slide["spots_corrected"].layers if name)
    ['measured', 'predicted', 'weight']
    """
    need_sdata(sdata)
    both = pair(sdata, predicted_key, measured_key, target="log1p_cp10k", coordinate_system=coordinate_system)
    table = sdata.tables[predicted_key]
    provenance = tables.read_provenance(table, what=f"table {predicted_key!r}")
    provenance = provenance_in_frame(sdata, predicted_key, provenance, coordinate_system=coordinate_system)
    if both.output_scale != "log1p_cp10k" and both.per is None:
        raise InputError(
            f"Table {predicted_key!r} holds predictions as {both.output_scale!r}; only those on the scale "
            "'log1p_cp10k' can be averaged with measured expression"
            + ("; see stpred.tl.to_log1p_cp10k." if both.output_scale == "log_share" else ".")
        )
    if not allow_training_slide:
        _refuse_own(provenance, predicted_key)
    if len(both.instances) < MIN_LOCATIONS:
        raise InputError(
            f"Only {len(both.instances)} locations of {measured_key!r} have counts and a prediction; recalibrating "
            f"predictions needs {MIN_LOCATIONS}."
        )
    name = f"{both.shapes_key}_corrected" if key_added is None else key_added
    if inplace:
        tables.check_writable(sdata, name)
    result = _corrected(table, both, provenance, measured=(measured_key, sdata.tables[measured_key].n_vars))
    if not inplace:
        return result
    tables.put_table(sdata, name, result)
    return None


def _refuse_own(provenance: dict[str, Any], key: str) -> None:
    """Refuse predictions on an image that the model was trained on."""
    trained_on = provenance.get("training", {}).get("slides", {})
    image = provenance.get("image")
    own = [s for s, f in trained_on.items() if isinstance(f, dict) and f.get("image") and f["image"] == image]
    if own:
        raise InputError(
            f"The model behind {key!r} was trained on this slide (as {listing(own)}), so its prediction repeats the "
            "noise that is to be removed; train on other slides, or give allow_training_slide=True."
        )


def _corrected(table: AnnData, both: Pair, provenance: dict[str, Any], *, measured: tuple[str, int]) -> AnnData:
    """Return the table of corrected values with both sides beside them."""
    rows, ids = table_instances(table, both.shapes_key)
    predicted = targets.dense(table.X, np.float32)[rows]
    if both.per is not None:
        predicted = np.log1p(predicted)
    at = ids.get_indexer(both.instances)
    counts = targets.dense(both.counts[:, both.columns])
    counted = counts.sum(axis=0) > 0
    if not counted.any():
        raise InputError(f"None of the predicted genes has a count in {measured[0]!r}.")
    columns = table.var_names.get_indexer(both.genes[counted])
    exposure = targets.totals(both.counts) / targets.CP10K
    rate = np.maximum(np.expm1(predicted[:, columns].astype(np.float64)), 0)
    line = recalibration(counts[:, counted], exposure, rate[at])
    X, shown, weight = predicted.copy(), np.zeros_like(predicted), np.zeros_like(predicted)
    X[:, columns] = np.log1p(line.expected(rate))
    found, share = posterior(counts[:, counted], exposure, line.expected(rate[at]), line.excess)
    X[np.ix_(at, columns)] = np.log1p(found)
    shown[np.ix_(at, columns)] = both.observed[:, counted]
    weight[np.ix_(at, columns)] = share
    result = with_region(table[rows].copy(), both.shapes_key)
    result.X = X
    result.layers.clear()
    result.var = result.var.drop(columns=[LOW, HIGH], errors="ignore")  # of the prediction alone
    result.varm.pop(OFFSETS, None)
    result.layers.update({"measured": shown, "predicted": predicted, "weight": weight})
    result.obs["measured"] = np.isin(np.arange(len(rows)), at)
    result.var["measured"] = np.isin(np.arange(table.n_vars), columns)
    for column, values in (
        ("slope", line.slope),
        ("intercept", line.intercept),
        ("excess_cv", np.sqrt(line.excess)),
    ):
        result.var[column] = np.nan
        result.var.iloc[columns, result.var.columns.get_loc(column)] = values
    own = {
        "kind": KIND,
        "output_scale": "log1p_cp10k",
        "measured": measured[0],
        "model": provenance.get("model"),
        "model_id": provenance.get("model_id"),
        "image": provenance.get("image"),
        "common_slope": line.common,
        "matching": both.matching,
        "n_genes": {"measured_and_predicted": len(columns), "predicted": table.n_vars, "measured": measured[1]},
        "n_filled_locations": int((~result.obs["measured"]).sum()),
        "versions": tables.package_versions(),
    }
    tables.write_provenance(result, own | both.library(provenance))
    return result

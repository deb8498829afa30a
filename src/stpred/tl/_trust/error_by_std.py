from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from stpred._core import keys, targets
from stpred._core.checks import InputError, fraction_of, key_in, one_of, whole
from stpred._core.elements import table_instances
from stpred._core.tables import read_provenance
from stpred.comparison.pairing import pair
from stpred.inference.intervals import LEVEL, LEVELS, OFFSETS, bounds

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.comparison.terms import Pair

SOURCES = ("std", "intervals")


def error_by_std(
    sdata: SpatialData,
    predicted_key: str,
    measured_key: str,
    *,
    genes: Iterable[str] | None = None,
    source: str | None = None,
    counting_noise: bool = False,
    n_bins: int = 10,
    level: float = 0.9,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Hold the errors of a prediction against the standard deviations that it states.

    All values (a gene at a location) are put into bins of equal size by their stated standard deviation. A calibrated
    uncertainty has in each bin errors as large as it says; one that orders values has larger errors in later bins.

    Parameters
    ----------
    sdata
        Object with both tables, of a slide that did not train the model.
    predicted_key
        Predicted table with ``layers["std"]``, or of a model with calibrated intervals.
    measured_key
        Table of raw counts; locations are joined by id, or by overlap where the regions differ.
    genes
        Genes to look at; None: all that both have.
    source
        ``"std"``: the layer; ``"intervals"``: the 90 % interval's width over that of a normal distribution of standard
        deviation 1 (3.29). None: the layer where there is one.
    counting_noise
        Of predicted counts: add the variance of Poisson counts of the predicted mean to the stated one, where that is
        of the expected count alone.
    n_bins
        Number of bins; fewer where standard deviations are equal.
    level
        Of the normal interval whose coverage is given.
    coordinate_system
        The slide's micrometre frame.

    Returns
    -------
    DataFrame, a row per bin: ``bin``, ``n`` values, ``std`` (root of the mean stated variance), ``rmse`` (realised, of
    measurement minus prediction), ``bias`` (mean of that), ``ratio`` (rmse / std: over 1 the errors are larger than
    stated), ``coverage`` (share of the values within the normal interval of that `level`). ``attrs["stpred"]`` says
    ``calibration``: ``ratio`` and ``coverage`` over all values, ``ence`` (mean over the bins of abs(rmse - std) / std,
    0 for a calibrated one) and ``spearman`` between stated deviations and absolute errors; and in words, ``verdict``.

    Raises
    ------
    InputError
        If the table has neither standard deviations nor intervals, the prediction is on another scale than anything
        measured, or the two share no location or gene.

    Notes
    -----
    The measurement has noise of its own, which counts as error: a standard deviation that is of the *expected*
    expression (``"xfuse"``, ensembles) is smaller than the error by that noise even where it is right
    (`counting_noise`); those of intervals and of ``loss="nb"`` contain it.

    References
    ----------
    Levi, Gispan, Giladi & Fetaya (2022), Evaluating and calibrating uncertainty prediction in regression tasks,
    Sensors 22:5540, on errors binned by stated deviations and their mean relative difference (ENCE).

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(4, size_um=(500, 500), n_genes=20)
    >>> unseen = slides.pop("donor3")
    >>> model = st.tl.train(slides, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(unseen, model, shapes_key="spots")
    >>> found = st.tl.error_by_std(unseen, "spots_ridge", "spots_counts", n_bins=4)
    >>> found.columns.tolist()
    ['bin', 'n', 'std', 'rmse', 'bias', 'ratio', 'coverage']
    """
    n_bins, level = whole(n_bins, name="n_bins"), fraction_of(level, name="level")
    if source is not None:
        one_of(source, SOURCES, name="source")
    both = pair(sdata, predicted_key, measured_key, coordinate_system=coordinate_system)
    if not both.comparable or both.per is not None:
        raise InputError(
            f"Table {predicted_key!r} is on the scale {both.output_scale!r}, on which nothing is measured, so that it "
            "has no errors."
        )
    columns = _columns(both, genes)
    std, used = _stated(sdata.tables[predicted_key], predicted_key, both, source)
    if counting_noise:
        if both.output_scale != "counts":
            raise InputError(f"`counting_noise` is of predicted counts; {predicted_key!r} is {both.output_scale!r}.")
        std = np.sqrt(np.square(std) + both.predicted.clip(min=0))
    error = both.observed[:, columns].astype(np.float64) - both.predicted[:, columns]
    frame, calibration = binned(error.ravel(), std[:, columns].ravel(), n_bins=n_bins, level=level)
    frame.attrs[keys.UNS] = {
        "kind": "error_by_std", "predicted": predicted_key, "measured": measured_key, "source": used, "level": level,
        "counting_noise": counting_noise,
        "scale": both.output_scale, "n_locations": len(both.instances), "n_genes": len(columns),
        "calibration": calibration, "verdict": verdict_of(calibration),
    }  # fmt: skip
    return frame


def binned(
    error: NDArray[np.float64], std: NDArray[np.float64], *, n_bins: int, level: float
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return errors by bins of (n,) stated standard deviations, and what holds over all values."""
    from scipy.stats import spearmanr

    known = np.isfinite(error) & np.isfinite(std) & (std > 0)
    if not known.any():
        raise InputError("No value has a standard deviation above 0, so there is nothing to hold errors against.")
    error, std = error[known], std[known]
    edges = np.unique(np.quantile(std, np.linspace(0, 1, n_bins + 1)))
    where = np.searchsorted(edges[1:-1], std, side="right")
    inside = np.abs(error) <= ndtri((1 + level) / 2) * std
    data = pd.DataFrame({"bin": where, "variance": std**2, "square": error**2, "error": error, "inside": inside})
    parts = data.groupby("bin")
    mean = parts.mean()
    frame = pd.DataFrame({
        "bin": np.arange(len(mean)), "n": parts.size().to_numpy(), "std": np.sqrt(mean["variance"].to_numpy()),
        "rmse": np.sqrt(mean["square"].to_numpy()), "bias": mean["error"].to_numpy(),
    })  # fmt: skip
    frame["ratio"] = frame["rmse"] / frame["std"]
    frame["coverage"] = mean["inside"].to_numpy()
    varied = np.ptp(std) > 0 and np.ptp(np.abs(error)) > 0
    return frame, {
        "ratio": float(np.sqrt(np.mean(error**2) / np.mean(std**2))),
        "coverage": float(inside.mean()),
        "ence": float((np.abs(frame["rmse"] - frame["std"]) / frame["std"]).mean()),
        "spearman": float(spearmanr(std, np.abs(error)).statistic) if varied else float("nan"),
    }


def verdict_of(calibration: dict[str, float]) -> str:
    """Say in words how stated standard deviations compare with errors."""
    ratio = calibration["ratio"]
    size = "as large as stated" if 0.9 <= ratio <= 1.1 else f"{ratio:.2f} times as large as stated"
    kind = "calibrated" if 0.9 <= ratio <= 1.1 else "overconfident" if ratio > 1 else "too cautious"
    order = calibration["spearman"]
    ranked = "" if not np.isfinite(order) else f"; larger stated ones go with larger errors (Spearman {order:.2f})"
    if np.isfinite(order) and order < 0.1:
        ranked = f"; stated ones do not tell large errors from small ones (Spearman {order:.2f})"
    return f"{kind}: errors are {size}{ranked}"


def _columns(both: Pair, genes: Iterable[str] | None) -> NDArray[np.int64]:
    if genes is None:
        return np.arange(len(both.genes))
    wanted = [genes] if isinstance(genes, str) else list(genes)
    for gene in wanted:
        key_in(gene, both.genes, what="gene of both tables", name="genes")
    if not wanted:
        raise InputError("`genes` is empty; name one or more, or leave it out for all.")
    return np.asarray(both.genes.get_indexer(wanted), dtype=np.int64)


def _stated(table: AnnData, key: str, both: Pair, source: str | None) -> tuple[NDArray[np.float64], str]:
    """Return (n, G) standard deviations of a pair's values, and where they are from."""
    rows_all, ids = table_instances(table, both.shapes_key)
    rows = rows_all[ids.get_indexer(both.instances)]
    columns = table.var_names.get_indexer(both.genes)
    used = source or ("std" if keys.STD in table.layers else "intervals")
    if used == "std":
        if keys.STD not in table.layers:
            raise InputError(f"Table {key!r} has no layers['std']: its model gives no standard deviation.")
        return targets.dense(table.layers[keys.STD][rows][:, columns], np.float64), used
    stated: dict[str, Any] = read_provenance(table, what=f"table {key!r}").get("intervals", {})
    if stated.get("withheld"):
        raise InputError(
            f"The intervals of table {key!r} were withheld, since the slide is out of distribution; predict with "
            "interval=0.9 to have them anyway, or correct it by a few measured spots (stpred.tl.recalibrate)."
        )
    if OFFSETS not in table.varm or not stated:
        raise InputError(
            f"Table {key!r} has neither layers['std'] nor calibrated intervals; give its model intervals with "
            "stpred.tl.conformal, or train an ensemble."
        )
    predicted = targets.dense(table.X[rows][:, columns], np.float64)
    low, high = bounds(
        predicted, np.asarray(table.varm[OFFSETS])[columns], LEVELS.index(LEVEL), output_scale=both.output_scale
    )
    return (high - low) / (2 * ndtri((1 + LEVEL) / 2)), used

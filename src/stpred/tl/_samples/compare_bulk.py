from __future__ import annotations

from itertools import permutations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stpred import metrics
from stpred._core import targets
from stpred._core.checks import InputError, listing, one_of
from stpred._core.expression.gene_names import mismatch
from stpred._core.names import names_of
from stpred.metrics import benjamini_hochberg
from stpred.tl._samples.pseudobulk import log1p_cpm

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

SCALES = ("counts", "linear", "log")

MIN_SAMPLES = 3
_EXACT_UP_TO = 7
"""Samples up to which all orders are looked at (5 040); beyond, the t distribution is close enough."""


def compare_bulk(
    pseudobulk: AnnData,
    bulk: AnnData | pd.DataFrame,
    *,
    method: Literal["spearman", "pearson"] = "spearman",
    bulk_scale: Literal["counts", "linear", "log"] | None = None,
) -> pd.DataFrame:
    """Correlate pseudo-bulk with bulk RNA of the same samples, gene by gene.

    A gene that is predicted well across patients correlates over the samples. That samples correlate over genes says
    much less: that some genes are high everywhere is enough for it. It is reported beside, with what the mean profile
    of all samples alone would give.

    Parameters
    ----------
    pseudobulk
        From :func:`stpred.tl.pseudobulk`; sums of counts are brought to log1p counts per million (of all genes of the
        table), log1p CP10k likewise.
    bulk
        Samples x genes, AnnData or DataFrame, named as the slides and genes of `pseudobulk` (others are left out).
    method
        Correlation over the samples. ``"spearman"`` asks for the order alone, which a bulk of another protocol keeps;
        ``"pearson"`` of the logarithms follows ST-Net's publication.
    bulk_scale
        What `bulk` holds: ``"counts"`` (brought to log1p CPM over all its genes), ``"linear"`` (TPM, FPKM, CPM; log1p
        is taken) or ``"log"`` (as it is). None takes whole numbers as counts and asks about anything else.

    Returns
    -------
    DataFrame with a row per shared gene, best first: ``gene``, ``correlation`` (NaN without variance), ``p_value``
    (one-sided, that it is positive; of Spearman in up to 7 samples exact, else by Student's t), ``p_bh`` (Benjamini and
    Hochberg), ``n_samples``. ``attrs``: ``joined`` (how many samples and genes either side has and how many are shared,
    and which samples), ``n_positive``, ``n_tested``, ``n_significant`` (``p_bh`` below 0.05), ``per_sample`` (dict of
    sample to correlation over genes; None for relative predictions, whose genes cannot be compared), and
    ``per_sample_of_mean`` (the same for the mean profile of the bulk, leaving the sample out).

    Raises
    ------
    InputError
        If fewer than 3 samples or no gene are shared, or the scale of `bulk` is unknown.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827, compared pseudo-bulk with TCGA: 177 of 249 genes positive, 55 significant.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(4, size_um=(400, 400), n_genes=20)
    >>> predicted = st.tl.pseudobulk(slides, "spots_counts")
    >>> measured = st.tl.pseudobulk(slides, "cells_counts")
    >>> found = st.tl.compare_bulk(predicted, measured)
    >>> found.attrs["joined"]["n_samples"], bool(found["correlation"].median() > 0)
    (4, True)
    """
    import pandas as pd

    one_of(method, ("spearman", "pearson"), name="method")
    values, scale = log1p_cpm(pseudobulk)
    ours = pd.DataFrame(values, index=pseudobulk.obs_names.astype(str), columns=pseudobulk.var_names.astype(str))
    theirs = _log_bulk(bulk, bulk_scale)
    samples, genes = ours.index[ours.index.isin(theirs.index)], ours.columns[ours.columns.isin(theirs.columns)]
    if len(genes) == 0:
        hint = mismatch(list(ours.columns), list(theirs.columns))
        raise InputError(
            f"The pseudo-bulk and the bulk share no gene: {listing(ours.columns[:3])} against "
            f"{listing(theirs.columns[:3])}{'; ' + hint if hint else ''}."
        )
    if len(samples) < MIN_SAMPLES:
        raise InputError(
            f"{len(samples)} samples are in the pseudo-bulk ({len(ours)}, such as {listing(ours.index[:3])}) and in "
            f"the bulk ({len(theirs)}, such as {listing(theirs.index[:3])}); a correlation over samples needs "
            f"{MIN_SAMPLES}, and says something from about 10 on."
        )
    x, y = ours.loc[samples, genes].to_numpy(), theirs.loc[samples, genes].to_numpy()
    kernel = getattr(metrics, method)
    correlation = kernel(x, y)
    p = positive_p(x, y, correlation, exact=method == "spearman" and len(samples) <= _EXACT_UP_TO)
    result = pd.DataFrame(
        {
            "gene": genes,
            "correlation": correlation,
            "p_value": p,
            "p_bh": benjamini_hochberg(p),
            "n_samples": len(samples),
        }
    ).sort_values("correlation", ascending=False, kind="stable", ignore_index=True)
    result.attrs = {
        "method": method,
        "joined": {
            "n_samples": len(samples),
            "n_samples_pseudobulk": len(ours),
            "n_samples_bulk": len(theirs),
            "n_genes": len(genes),
            "n_genes_pseudobulk": ours.shape[1],
            "n_genes_bulk": theirs.shape[1],
            "samples": samples.tolist(),
        },
        "n_positive": int((correlation > 0).sum()),
        "n_tested": int(np.isfinite(p).sum()),
        "n_significant": int((result["p_bh"] < 0.05).sum()),
        "per_sample": None,
        "per_sample_of_mean": None,
    }
    if scale != "relative":
        others = (y.sum(axis=0) - y) / (len(y) - 1)
        for name, guess in (("per_sample", x), ("per_sample_of_mean", others)):
            result.attrs[name] = dict(zip(samples, kernel(guess.T, y.T).tolist(), strict=True))
    return result


def positive_p(
    x: NDArray[np.float64], y: NDArray[np.float64], correlation: NDArray[np.float64], *, exact: bool = False
) -> NDArray[np.float64]:
    """Return (G,) one-sided p-values of the correlations of (S, G) values; NaN stays NaN.

    With `exact`, ranks are compared in all S! orders; else by Student's t.
    """
    from scipy.stats import rankdata, t

    if exact:
        ranks, others = (rankdata(v, axis=0) - (len(v) + 1) / 2 for v in (x, y))
        orders = np.array(list(permutations(range(len(x)))))
        observed = (ranks * others).sum(axis=0)
        p = np.array([(r[orders] @ o >= s - 1e-9).mean() for r, o, s in zip(ranks.T, others.T, observed, strict=True)])
        return np.where(np.isnan(correlation), np.nan, p)
    freedom = len(x) - 2
    with np.errstate(divide="ignore"):
        return t.sf(correlation * np.sqrt(freedom / np.maximum(1 - correlation**2, 0)), freedom)


def _log_bulk(bulk: Any, scale: str | None) -> pd.DataFrame:
    """Return bulk RNA as a frame of samples x genes, as logarithms."""
    import pandas as pd

    if isinstance(bulk, pd.DataFrame):
        frame = bulk.set_axis(names_of(bulk.index)).set_axis(bulk.columns.astype(str), axis=1)
    elif hasattr(bulk, "obs_names"):
        frame = pd.DataFrame(
            targets.dense(bulk.X), index=bulk.obs_names.astype(str), columns=bulk.var_names.astype(str)
        )
    else:
        raise InputError(f"`bulk` must be an AnnData or a DataFrame of samples x genes, got {type(bulk).__name__}.")
    for names, what in ((frame.index, "Samples"), (frame.columns, "Genes")):
        if not names.is_unique:
            raise InputError(f"{what} of the bulk are not unique: {listing(names[names.duplicated()].unique())}.")
    try:
        values = frame.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError("`bulk` must hold numbers only; keep sample facts elsewhere.") from error
    if not np.isfinite(values).all():
        raise InputError(f"`bulk` holds {int((~np.isfinite(values)).sum())} NaN or infinite values.")
    whole = bool((values >= 0).all() and (values == np.round(values)).all())
    if scale is None and not whole:
        raise InputError(
            "`bulk` holds values that are not counts; say with `bulk_scale` whether they are 'linear' (TPM, FPKM, "
            "CPM) or 'log'."
        )
    scale = "counts" if scale is None else one_of(scale, SCALES, name="bulk_scale")
    if scale != "log" and (values < 0).any():
        raise InputError(f"`bulk` holds {int((values < 0).sum())} negative values, so it is not {scale!r}.")
    if scale == "counts":
        total = values.sum(axis=1, keepdims=True)
        if (total == 0).any():
            raise InputError(f"Samples of the bulk without any count: {listing(frame.index[total.ravel() == 0])}.")
        values = values / total * 1e6
    return pd.DataFrame(values if scale == "log" else np.log1p(values), index=frame.index, columns=frame.columns)

"""Means over genes and slides, with an explicit rule for what is undefined."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, one_of


def summarise(scores: ArrayLike, *, nan: Literal["drop", "zero"] = "drop") -> dict[str, float]:
    """Mean and median of per-gene scores, with an explicit rule for genes that have none.

    Parameters
    ----------
    scores
        Per-gene scores of any shape, such as (G,) or (slides, G).
    nan
        ``"drop"`` leaves undefined scores out; ``"zero"`` counts them as 0, as several published tables do.

    Returns
    -------
    ``mean``, ``median`` (NaN when none remains), ``n`` (scores used) and ``n_nan`` (undefined scores met).

    Raises
    ------
    InputError
        If `nan` is neither ``"drop"`` nor ``"zero"``.

    Examples
    --------
    >>> from stpred.metrics import summarise
    >>> summarise([0.5, float("nan"), 0.1])
    {'mean': 0.3, 'median': 0.3, 'n': 2, 'n_nan': 1}
    """
    one_of(nan, ("drop", "zero"), name="nan")
    values = np.asarray(scores, dtype=np.float64).ravel()
    undefined = np.isnan(values)
    values = values[~undefined] if nan == "drop" else np.where(undefined, 0.0, values)
    found = (float(np.mean(values)), float(np.median(values))) if values.size else (float("nan"), float("nan"))
    return {"mean": found[0], "median": found[1], "n": int(values.size), "n_nan": int(undefined.sum())}


def average(
    scores: ArrayLike, *, order: Literal["genes", "slides"] = "genes", nan: Literal["drop", "zero"] = "drop"
) -> dict[str, float]:
    """Mean of scores per gene and slide, taken in one of the two orders that publications use.

    Where every score is defined the mean is the same in both orders, and only its spread differs: between slides or
    between genes. Where scores are dropped it is not. First over genes, every slide weighs the same, however few of its
    genes have a score; first over slides, every gene does, however few slides it was measured on.

    Parameters
    ----------
    scores
        (slides, G) scores.
    order
        ``"genes"`` averages each slide's genes first and then the slides; ``"slides"`` averages each gene over the
        slides first and then the genes.
    nan
        ``"drop"`` leaves undefined scores out, and with them slides or genes that have no other; ``"zero"`` counts them
        as 0.

    Returns
    -------
    ``mean``; ``sd`` over the slides or genes averaged last (ddof 1, NaN for one alone); ``n`` of these; ``n_nan``
    (undefined scores met).

    Raises
    ------
    InputError
        If `scores` is no (slides, G) matrix, or `order` or `nan` is none of the two words.

    Examples
    --------
    >>> from stpred.metrics import average
    >>> scores = [[0.2, 0.4], [0.6, float("nan")]]
    >>> [round(average(scores, order=order)["mean"], 2) for order in ("genes", "slides")]
    [0.45, 0.4]
    >>> [round(average(scores, order=order, nan="zero")["mean"], 2) for order in ("genes", "slides")]
    [0.3, 0.3]
    """
    one_of(order, ("genes", "slides"), name="order")
    one_of(nan, ("drop", "zero"), name="nan")
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"`scores` must be a (slides, genes) matrix, got shape {values.shape}.")
    undefined = np.isnan(values)
    if nan == "zero":
        values = np.where(undefined, 0.0, values)
    each = mean_of_defined(values, axis=1 if order == "genes" else 0)
    each = each[~np.isnan(each)]
    nothing = float("nan")
    return {
        "mean": float(each.mean()) if each.size else nothing,
        "sd": float(each.std(ddof=1)) if each.size > 1 else nothing,
        "n": int(each.size),
        "n_nan": int(undefined.sum()),
    }


def mean_of_defined(values: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Return the mean over an axis of what is not NaN; NaN where all is."""
    finite = ~np.isnan(values)
    number = finite.sum(axis=axis)
    with np.errstate(invalid="ignore"):
        return np.where(finite, values, 0.0).sum(axis=axis) / np.where(number > 0, number, np.nan)

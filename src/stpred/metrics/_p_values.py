"""Corrections of p-values for the number of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError


def benjamini_hochberg(p: ArrayLike) -> NDArray[np.float64]:
    """Correct p-values for the false discovery rate by the step-up method of Benjamini and Hochberg.

    Parameters
    ----------
    p
        p-values of any shape. NaN stays NaN and is no test.

    Returns
    -------
    Corrected p-values of that shape; those at most alpha hold with an expected fraction of at most alpha false ones.

    Raises
    ------
    InputError
        If `p` holds values outside of 0 to 1.

    References
    ----------
    Benjamini and Hochberg, Controlling the false discovery rate, Journal of the Royal Statistical Society B 57 (1995).

    Examples
    --------
    >>> from stpred.metrics import benjamini_hochberg
    >>> benjamini_hochberg([0.01, 0.04, 0.03]).round(2)
    array([0.03, 0.04, 0.04])
    """
    from scipy.stats import false_discovery_control

    return _corrected(p, false_discovery_control)


def median_p(p: ArrayLike) -> Any:
    """Combine the p-values of repeated splits of the same data: twice their median, at most 1.

    Valid whatever the dependence of the splits.

    Parameters
    ----------
    p
        (R, ...) p-values of R repeats.

    Returns
    -------
    A float or (...) p-values; NaN where a repeat has none.

    Raises
    ------
    InputError
        If `p` is empty or holds values outside of 0 to 1.

    References
    ----------
    van de Wiel, Berkhof and van Wieringen, Testing the prediction error difference between two predictors,
    Biostatistics 10 (2009). Rüger, Das maximale Signifikanzniveau des Tests: "Lehne H0 ab, wenn k unter n gegebenen
    Tests zur Ablehnung führen", Metrika 25 (1978).

    Examples
    --------
    >>> from stpred.metrics import median_p
    >>> float(median_p([0.01, 0.02, 0.6]))
    0.04
    """
    values = _probabilities(p)
    if not values.ndim or not len(values):
        raise InputError("`p` must hold the p-values of one or more repeats.")
    return np.minimum(1.0, 2 * np.median(values, axis=0))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Correct p-values for their number by the step-down method of Holm.

    Parameters
    ----------
    p
        (G,) p-values. NaN stays NaN and is no test.

    Returns
    -------
    (G,) corrected p-values; those at most alpha hold with a family-wise error of at most alpha.

    Raises
    ------
    InputError
        If `p` is not one row of values between 0 and 1.

    References
    ----------
    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979).

    Examples
    --------
    >>> from stpred.metrics import holm
    >>> holm([0.01, 0.04, 0.03]).round(2)
    array([0.03, 0.06, 0.06])
    """

    def step_down(values: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.argsort(values, kind="stable")
        found = np.empty(len(values))
        found[order] = np.minimum(1.0, np.maximum.accumulate(values[order] * np.arange(len(order), 0, -1)))
        return found

    if np.ndim(p) != 1:
        raise InputError(f"`p` must be one row of p-values, got shape {np.shape(p)}.")
    return _corrected(p, step_down)


def _corrected(p: ArrayLike, correct: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Apply a correction to the p-values that are not NaN."""
    values = _probabilities(p)
    corrected = np.full(values.shape, np.nan)
    if (tested := ~np.isnan(values)).any():
        corrected[tested] = correct(values[tested])
    return corrected


def _probabilities(p: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(p, dtype=np.float64)
    if ((values < 0) | (values > 1)).any():
        raise InputError("`p` must hold p-values between 0 and 1.")
    return values

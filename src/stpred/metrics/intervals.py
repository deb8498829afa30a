"""Split-conformal intervals whose unit of exchange is the slide, not the location."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError

__all__ = ["Intervals", "conformal_intervals", "coverage"]

_SKETCH = 100
"""Quantiles of a slide's residuals that are kept: all slides weigh the same, whatever their size."""

_GENES = 400
"""Genes on which the widening is chosen and coverage is estimated, where there are more."""

_FOLDS = 10
"""Upper bound of the number of folds of held-out slides."""

_MAX_FACTOR = 50.0

_BLOCK_VALUES = 2**22
"""Residuals that are in memory at a time, in double precision: 32 MB."""


@dataclass(frozen=True)
class Intervals:
    """Offsets to add to a prediction, and their coverage of held-out slides.

    Attributes
    ----------
    level
        Nominal coverage.
    low, high
        (G,) offsets; NaN for genes without residuals.
    factor
        How much the quantiles of the pooled residuals were widened about their median, since slides differ.
    coverage
        (S,) share of the values of each slide (mean over genes) within intervals built without it, widening included;
        NaN with fewer than three slides (or donors).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import conformal_intervals
    >>> found = conformal_intervals([np.linspace(-1, 1, 41)[:, None]] * 3, level=0.9)
    >>> bool(found.low[0] < -0.8) and bool(found.high[0] > 0.8)
    True
    """

    level: float
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    factor: float
    coverage: NDArray[np.float64]


def conformal_intervals(
    residuals: Sequence[ArrayLike], *, level: float = 0.9, groups: Sequence[str] | None = None
) -> Intervals:
    """Find, for every gene, the interval around a prediction that holds a share of the values of new slides.

    The interval of a gene goes from the lower to the upper quantile of the residuals of calibration slides, all slides
    weighing the same (split conformal prediction, Vovk et al. 2005, Lei et al. 2018). Locations of a slide are not
    exchangeable with those of another one, which the pooled quantiles ignore: a new slide brings its own shift. So
    intervals are widened about the median residual by one factor for all genes: the one with which slides, each held
    out in turn (in ten parts where there are more), are covered at the nominal level on average.

    Parameters
    ----------
    residuals
        One (n_i, G) array per slide that the model was not trained on: observed minus predicted. What is not finite is
        no residual.
    level
        Nominal coverage, between 0 and 1.
    groups
        Donor of each slide; all slides of a donor are held out together. None: each slide is its own.

    Returns
    -------
    Intervals

    Raises
    ------
    InputError
        With fewer than two slides or donors (one has no variation), or other numbers of genes.

    References
    ----------
    Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, J. Am. Stat. Assoc. 113 (2018); on groups of exchangeable data, Lee,
    Barber and Willett, arXiv 2306.06342 (2023).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import conformal_intervals
    >>> rng = np.random.default_rng(0)
    >>> slides = [rng.normal(0, 1, (500, 3)) + rng.normal(0, 0.3, 3) for _ in range(8)]
    >>> found = conformal_intervals(slides, level=0.9)
    >>> bool(np.all(found.low < -1.3) and np.all(found.high > 1.3))
    True
    """
    return intervals_of(sketch(residuals), level=level, groups=groups)


def intervals_of(sketches: NDArray[np.float64], *, level: float, groups: Sequence[str] | None = None) -> Intervals:
    """Return the intervals of the residuals that (S, G, Q) sketches are of, see :func:`conformal_intervals`."""
    if isinstance(level, (bool, str)) or not 0 < float(level) < 1:
        raise InputError(f"`level` must be between 0 and 1, such as 0.9, got {level!r}.")
    if len(sketches) < 2:
        raise InputError(
            "Intervals need the residuals of at least two slides, got one: how slides vary cannot be estimated."
        )
    donors = np.arange(len(sketches)) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    if len(donors) != len(sketches):
        raise InputError(f"`groups` has {len(donors)} donors for {len(sketches)} slides.")
    if len(np.unique(donors)) < 2:
        raise InputError(
            "Intervals need slides of at least two donors, got one: differences between donors cannot be estimated."
        )
    some = np.unique(np.linspace(0, sketches.shape[1] - 1, min(_GENES, sketches.shape[1])).round().astype(np.int64))
    part = sketches[:, some]
    factor = _factor(part, donors, level)
    found = np.full(len(sketches), np.nan)
    if len(np.unique(donors)) > 2:
        for fold in _folds(donors):
            others, of = np.delete(part, fold, axis=0), np.delete(donors, fold)
            low, high = _widened(*_quantiles(others, level), _factor(others, of, level))
            found[fold] = [_inside(part[k], low, high) for k in fold]
    low, high = _widened(*_quantiles(sketches, level), factor)
    return Intervals(float(level), low, high, factor, found)


def coverage(observed: ArrayLike, low: ArrayLike, high: ArrayLike) -> NDArray[np.float64]:
    """Return the share of each gene's observed values within their intervals.

    Parameters
    ----------
    observed, low, high
        (n, G) values and the borders of their intervals, which belong to them.

    Returns
    -------
    (G,) float64; NaN for genes without any value.

    Raises
    ------
    InputError
        If the three are not of shapes that go together.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import coverage
    >>> coverage(np.array([[1.0], [5.0]]), np.zeros((2, 1)), np.full((2, 1), 2.0))
    array([0.5])
    """
    values, below, above = (np.asarray(v, dtype=np.float64) for v in (observed, low, high))
    if values.ndim != 2 or below.shape != values.shape or above.shape != values.shape:
        raise InputError(
            f"`observed`, `low` and `high` must be (n, genes) of one shape, got {values.shape}, {below.shape} and "
            f"{above.shape}."
        )
    finite = np.isfinite(values) & np.isfinite(below) & np.isfinite(above)
    within, number = (finite & (values >= below) & (values <= above)).sum(axis=0), finite.sum(axis=0)
    return np.divide(within, number, out=np.full(values.shape[1], np.nan), where=number > 0)


def sketch(residuals: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Return (S, G, Q) quantiles of each slide's residuals, at the middles of Q equal shares."""
    found: list[NDArray[np.float64]] = []
    for values in residuals:
        array = np.asarray(values)
        if array.ndim != 2 or (found and array.shape[1] != len(found[0])):
            raise InputError(f"Residuals must be (n, genes) with the same genes on every slide, got {array.shape}.")
        found.append(sketch_in_blocks(array.shape, partial(_columns, array)))
    return np.stack(found) if found else np.empty((0, 0, _SKETCH))


def _columns(values: NDArray, genes: slice) -> NDArray:
    return values[:, genes]


def sketch_in_blocks(shape: tuple[int, ...], residuals: Callable[[slice], ArrayLike]) -> NDArray[np.float64]:
    """Return the (G, Q) sketch of a slide's (n, G) residuals, which are asked for so many genes at a time."""
    n, n_genes = shape
    at = (np.arange(_SKETCH) + 0.5) / _SKETCH
    quantiles = np.full((n_genes, _SKETCH), np.nan)
    step = max(_BLOCK_VALUES // max(n, 1), 1)
    for first in range(0, n_genes, step):
        genes = slice(first, min(first + step, n_genes))
        array = np.asarray(residuals(genes), dtype=np.float64)
        array = np.where(np.isfinite(array), array, np.nan)
        if (finite := np.flatnonzero(np.isfinite(array).any(axis=0))).size:
            quantiles[first + finite] = _quantile(np.ascontiguousarray(array[:, finite].T), at).T
    return quantiles


def _quantiles(sketches: NDArray[np.float64], level: float) -> tuple[NDArray, NDArray, NDArray]:
    """Return the lower border, median and upper border of the pooled residuals of each gene."""
    pooled = np.moveaxis(sketches, 0, 1).reshape(sketches.shape[1], -1)
    low, middle, high = np.full((3, sketches.shape[1]), np.nan)
    finite = np.isfinite(pooled).any(axis=1)
    if finite.any():
        at = [(1 - level) / 2, 0.5, (1 + level) / 2]
        low[finite], middle[finite], high[finite] = _quantile(pooled[finite], at)
    return low, middle, high


def _quantile(values: NDArray[np.float64], at: NDArray[np.float64] | list[float]) -> NDArray[np.float64]:
    """Return (len(at), G) quantiles of (G, n) values, NaN ignored (which is slow, so only where there is any)."""
    return (np.quantile if np.isfinite(values).all() else np.nanquantile)(values, at, axis=1)


def _folds(donors: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the positions of the slides of each fold; those of a donor share a fold."""
    names = np.unique(donors)
    return [np.flatnonzero(np.isin(donors, part)) for part in np.array_split(names, min(len(names), _FOLDS))]


def _widened(low: NDArray, middle: NDArray, high: NDArray, factor: float) -> tuple[NDArray, NDArray]:
    return middle + factor * (low - middle), middle + factor * (high - middle)


def _inside(values: NDArray[np.float64], low: NDArray, high: NDArray) -> float:
    """Return the share of a slide's values within, over the genes that it and the others have; NaN without any."""
    finite = np.isfinite(values[:, 0]) & np.isfinite(low)
    if not finite.any():
        return float("nan")
    values, low, high = values[finite], low[finite, None], high[finite, None]
    return float(((values >= low) & (values <= high)).mean())


def _factor(sketches: NDArray[np.float64], donors: NDArray[np.int64], level: float) -> float:
    """Return the widening with which held-out slides are covered at the level, over genes and slides."""
    borders = {k: _quantiles(np.delete(sketches, f, axis=0), level) for f in _folds(donors) for k in f}

    def covered(factor: float) -> float:
        found = np.array([_inside(sketches[k], *_widened(*b, factor)) for k, b in borders.items()])
        return float(np.nanmean(found)) if np.isfinite(found).any() else 1.0

    low, high = 0.0, 1.0
    while covered(high) < level and high < _MAX_FACTOR:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if covered(middle) >= level else (middle, high)
    return high

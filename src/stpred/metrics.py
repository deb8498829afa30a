"""Scores of predicted against observed expression, one per gene; arrays in, arrays out.

Rows are instances (spots, bins, cells), columns are genes. Every score is computed in float64, gene by gene, and is NaN
where it is not defined; `summarise` says what becomes of those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from stpred._core.checks import InputError, one_of
from stpred._core.targets import TARGETS, dense, totals, transform

__all__ = ["library_size_baseline", "mae", "pearson", "r2", "rmse", "spearman", "summarise"]

Kernel = Callable[[NDArray[Any], NDArray[Any]], NDArray[np.float64]]

_BLOCK = 512  # genes made dense at once: memory stays flat for whole transcriptomes


def pearson(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Pearson correlation of each gene over the rows.

    Parameters
    ----------
    predicted, observed
        (n, G) values, dense or sparse.

    Returns
    -------
    (G,) float64 in [-1, 1]; NaN where either side does not vary (beyond the rounding of its dtype) or holds NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import pearson
    >>> pearson(np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), np.array([[1, 5], [3, 6], [5, 9]]))
    array([ 1., nan])
    """
    return _per_gene(_pearson, predicted, observed)


def spearman(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Spearman rank correlation of each gene over the rows; ties get their average rank.

    Parameters
    ----------
    predicted, observed
        (n, G) values, dense or sparse.

    Returns
    -------
    (G,) float64 in [-1, 1]; NaN where either side is constant or holds NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import spearman
    >>> spearman(np.array([[0.0], [1.0], [2.0]]), np.array([[1], [10], [100]]))
    array([1.])
    """
    return _per_gene(_spearman, predicted, observed)


def r2(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Coefficient of determination of each gene: 1 - residual / total sum of squares of the observed values.

    Unlike the squared correlation it punishes a wrong scale or offset and can be negative.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64, at most 1; NaN where the observed values do not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import r2
    >>> r2(np.array([[1.0], [1.0]]), np.array([[0.0], [2.0]]))
    array([0.])
    """
    return _per_gene(_r2, predicted, observed)


def rmse(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Root mean squared error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import rmse
    >>> rmse(np.array([[0.0], [0.0]]), np.array([[3.0], [3.0]]))
    array([3.])
    """
    return _per_gene(lambda p, o: np.sqrt(np.mean(np.square(p - o), axis=0)), predicted, observed)


def mae(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Mean absolute error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import mae
    >>> mae(np.array([[0.0], [0.0]]), np.array([[1.0], [3.0]]))
    array([2.])
    """
    return _per_gene(lambda p, o: np.mean(np.abs(p - o), axis=0), predicted, observed)


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
    ``mean``, ``median`` (NaN when nothing is left), ``n`` (scores used) and ``n_nan`` (undefined scores met).

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


def library_size_baseline(
    counts: Any, *, target: str = "log1p_cp10k", genes: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Pearson correlation of each gene with the spot's total count of all *other* genes.

    This is what knowing nothing but how much RNA a spot caught is worth. On raw counts it beats most image models,
    which is why raw-count correlations are not to be reported without it.

    Parameters
    ----------
    counts
        (n, G) raw counts of all measured genes, dense or sparse.
    target
        Scale of the gene's own value: ``"log1p_cp10k"`` or ``"counts"``. The total of the others is always in counts.
    genes
        Column positions of the genes to score; None scores all.

    Returns
    -------
    (G,) or (len(genes),) float64; NaN where the gene or the total does not vary.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import library_size_baseline
    >>> counts = np.array([[1, 10, 5], [2, 20, 5], [4, 40, 5]])
    >>> library_size_baseline(counts, target="counts")
    array([ 1.,  1., nan])
    """
    one_of(target, TARGETS, name="target")
    matrix = counts.tocsc() if hasattr(counts, "tocsc") else np.asarray(counts)
    if matrix.ndim != 2:
        raise InputError(f"`counts` must be a (n, G) matrix, got shape {matrix.shape}.")
    library = totals(matrix)
    columns = np.arange(matrix.shape[1]) if genes is None else np.asarray(genes, dtype=np.int64)
    scores = np.empty(columns.size, dtype=np.float64)
    for start in range(0, columns.size, _BLOCK):
        block = dense(matrix[:, columns[start : start + _BLOCK]])
        values = transform(block, library, target=target)
        scores[start : start + _BLOCK] = _pearson(values, library[:, None] - block)
    return scores


def _per_gene(kernel: Kernel, predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Apply a kernel to blocks of genes that are made dense one after the other."""
    sides = [m.tocsc() if hasattr(m, "tocsc") else np.asarray(m) for m in (predicted, observed)]
    if sides[0].ndim != 2 or sides[0].shape != sides[1].shape:
        raise InputError(
            f"`predicted` and `observed` must be (n, genes) matrices of one shape, got {sides[0].shape} and "
            f"{sides[1].shape}."
        )
    scores = np.full(sides[0].shape[1], np.nan)
    if sides[0].shape[0] == 0:
        return scores
    for start in range(0, scores.size, _BLOCK):
        p, o = (dense(m[:, start : start + _BLOCK], dtype=None) for m in sides)
        with np.errstate(invalid="ignore", divide="ignore"):  # what is undefined becomes NaN
            scores[start : start + _BLOCK] = kernel(p, o)
    return scores


def _centred(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values minus their column mean, and the columns' norms, NaN where only rounding makes a column vary."""
    x = values.astype(np.float64)
    centred = x - x.mean(axis=0)
    norm = np.linalg.norm(centred, axis=0)
    # A prediction that is constant up to its own rounding would otherwise correlate through noise.
    eps = np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps
    rounding = 4 * eps * np.sqrt(len(x)) * np.abs(x).max(axis=0)
    return centred, np.where(norm > rounding, norm, np.nan)


def _pearson(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    p, p_norm = _centred(predicted)
    o, o_norm = _centred(observed)
    return np.clip(np.einsum("ng,ng->g", p / p_norm, o / o_norm), -1.0, 1.0)


def _spearman(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    return _pearson(rankdata(predicted, axis=0), rankdata(observed, axis=0))


def _r2(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    centred, norm = _centred(observed)
    residual = np.sum(np.square(observed.astype(np.float64) - predicted), axis=0)
    return np.where(np.isnan(norm), np.nan, 1.0 - residual / np.sum(np.square(centred), axis=0))

"""Scores of one gene's prediction: what it is worth, from the predicted and the observed column alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, positive
from stpred._core.targets import dense
from stpred.metrics._per_gene import (
    as_columns,
    centred,
    columnar,
    correlation,
    missing,
    over_blocks,
    pair,
    per_gene,
    ranks,
    tied,
)
from stpred.metrics._windows import check_windows

_STABILISERS = (0.01, 0.03)  # of structural similarity, as shares of the range (Wang et al.)
_QUARTERS = (0.25, 0.75)


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
    >>> from stpred.metrics import pearson
    >>> pearson([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]], [[1, 5], [3, 6], [5, 9]])
    array([ 1., nan])
    """
    return per_gene(correlation, *pair(predicted, observed))


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
    >>> from stpred.metrics import spearman
    >>> spearman([[0.0], [1.0], [2.0]], [[1], [10], [100]])
    array([1.])
    """
    return per_gene(lambda p, o: correlation(ranks(p), ranks(o)), *pair(predicted, observed))


def r2(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Coefficient of determination of each gene: 1 - residual / total sum of squares of the observed values.

    Unlike the squared correlation it punishes a wrong scale or offset and can be negative.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64, at most 1; NaN where the observed values do not vary or either side holds NaN.

    Examples
    --------
    >>> from stpred.metrics import r2
    >>> r2([[1.0], [1.0]], [[0.0], [2.0]])
    array([0.])
    """
    return per_gene(_r2, *pair(predicted, observed))


def rmse(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Root mean squared error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64; NaN where either side holds NaN.

    Examples
    --------
    >>> from stpred.metrics import rmse
    >>> rmse([[0.0], [0.0]], [[3.0], [3.0]])
    array([3.])
    """
    return per_gene(lambda p, o: np.sqrt(_squares(_errors(p, o)) / len(o)), *pair(predicted, observed))


def mae(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Mean absolute error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64; NaN where either side holds NaN.

    Examples
    --------
    >>> from stpred.metrics import mae
    >>> mae([[0.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 2.0]])
    array([2., 0.])
    """
    return per_gene(lambda p, o: np.mean(np.abs(_errors(p, o)), axis=0), *pair(predicted, observed))


def auroc(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """How well the prediction tells each gene's highest quarter of locations from its lowest.

    Locations at or above the 75th percentile of the observed values are held against those at or below the 25th; the
    score is the chance that one of the former is predicted above one of the latter, equal predictions counting one
    half.

    Parameters
    ----------
    predicted, observed
        (n, G) values, dense or sparse.

    Returns
    -------
    (G,) float64 in [0, 1], 0.5 for a constant prediction; NaN where both percentiles are the same value, so that there
    are no two groups (a gene absent from more than three quarters of the locations), or where either side holds NaN.

    References
    ----------
    He et al., Integrating spatial gene expression and breast tumour morphology via deep learning, Nature Biomedical
    Engineering 4 (2020).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import auroc
    >>> observed = np.array([[0, 0], [1, 0], [2, 0], [8, 0], [9, 1]])
    >>> auroc(np.array([[3.0, 1], [2, 2], [1, 3], [2, 4], [5, 5]]), observed)
    array([0.625,   nan])
    """
    return per_gene(_auroc, *pair(predicted, observed))


def ssim(
    predicted: Any, observed: Any, windows: Any, *, data_range: float | ArrayLike | None = None
) -> NDArray[np.float64]:
    """Structural similarity of each gene's predicted and observed map, averaged over windows.

    Means, sample variances and the sample covariance within each window make up the usual index with the constants
    ``(0.01 L)^2`` and ``(0.03 L)^2``, ``L`` being the range of the values. On a full rectangular grid with windows of 3
    x 3 locations this is ``skimage.metrics.structural_similarity(win_size=3, use_sample_covariance=True)``.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.
    windows
        (m, n) sparse 0/1 matrix, each row one window of two or more locations, such as a location with its whole ring
        of neighbours. Windows cut by the border are the caller's to leave out.
    data_range
        Range L, one for all genes or (G,); None takes each gene's observed range.

    Returns
    -------
    (G,) float64, at most 1; NaN where the observed values do not vary, either side holds NaN, or there is no window.

    References
    ----------
    Wang et al., Image quality assessment: from error visibility to structural similarity, IEEE Transactions on Image
    Processing 13 (2004).

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from stpred.metrics import ssim
    >>> windows = csr_matrix([[1, 1, 1, 0], [0, 1, 1, 1]])
    >>> observed = np.array([[0.0], [1.0], [3.0], [2.0]])
    >>> ssim(observed, observed, windows), ssim(3 - observed, observed, windows).round(2)
    (array([1.]), array([-0.88]))
    """
    sides = pair(predicted, observed)
    n, n_genes = sides[0].shape
    about, members = check_windows(windows, n=n, min_members=2)
    given = np.full(n_genes, np.nan)
    if data_range is not None and np.ndim(data_range):
        given[:] = _one_each(data_range, n_genes=n_genes)
    elif data_range is not None:
        given[:] = positive(data_range, name="data_range")  # type: ignore[arg-type]
    if not members.size:
        return np.full(n_genes, np.nan)

    def kernel(p: NDArray[Any], o: NDArray[Any], ranges: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = np.ptp(o.astype(np.float64), axis=0) if data_range is None else ranges[0]
        return _ssim(p, o, about=about, members=members, spread=spread)

    # The range travels as a matrix of one row, so that it is cut with the genes.
    return per_gene(kernel, *sides, given[None])


def smooth(values: Any, windows: Any) -> NDArray[np.float64]:
    """Mean over the members of each window, as in scores against a smoothed truth.

    Parameters
    ----------
    values
        (n, G) values, dense or sparse.
    windows
        (m, n) sparse 0/1 matrix, each row one window: a location with its ring, or a block of 3 x 3.

    Returns
    -------
    (m, G) float64; NaN where a member is NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from stpred.metrics import smooth
    >>> smooth(np.array([[0.0], [2.0], [7.0]]), csr_matrix([[1, 1, 0], [1, 1, 1]]))
    array([[1.],
           [3.]])
    """
    matrix = columnar(values, name="values")
    about, members = check_windows(windows, n=matrix.shape[0])
    means = np.empty((len(members), matrix.shape[1]))

    def work(genes: slice) -> None:
        means[:, genes] = (about @ dense(matrix[:, genes])) / members[:, None]

    over_blocks(work, n_rows=matrix.shape[0], n_genes=matrix.shape[1])
    return means


def partial_pearson(predicted: Any, observed: Any, given: Any) -> NDArray[np.float64]:
    """Pearson correlation of each gene after what a covariate explains linearly is taken out of both sides.

    With the log total count as covariate: the correlation beyond the amount of RNA that a location caught.

    Parameters
    ----------
    predicted, observed
        (n, G) values, dense or sparse.
    given
        (n,) covariate of all genes, or (n, G) one for each gene. One that does not vary takes nothing out.

    Returns
    -------
    (G,) float64 in [-1, 1]; NaN where either side does not vary, is the covariate on another scale, or holds NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import partial_pearson, pearson
    >>> size = np.array([1.0, 2, 3, 4])
    >>> own = np.array([1.0, -1, -1, 1])
    >>> pearson((size + own)[:, None], (size - own)[:, None]).round(2)
    array([0.11])
    >>> partial_pearson((size + own)[:, None], (size - own)[:, None], size)
    array([-1.])
    """
    sides = pair(predicted, observed)
    covariate = as_columns(given, name="given")
    n, n_genes = sides[0].shape
    if covariate.shape not in {(n,), (n, n_genes)}:
        raise InputError(
            f"`given` must have shape ({n},) or ({n}, {n_genes}) like the values, got {tuple(covariate.shape)}."
        )
    if covariate.ndim == 1:
        shared = covariate[:, None]
        return per_gene(lambda p, o: _partial(p, o, shared), *sides)
    return per_gene(_partial, *sides, covariate)


def _errors(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    return predicted.astype(np.float64) - observed


def _squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ng,ng->g", values, values)


def _r2(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    x, norm = centred(observed)
    return np.where(np.isnan(norm), np.nan, 1.0 - _squares(_errors(predicted, observed)) / _squares(x))


def _auroc(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    columns = np.ascontiguousarray(observed.T, dtype=np.float64)
    n_genes, n = columns.shape
    low, high = np.quantile(columns, _QUARTERS, axis=1, keepdims=True)
    order, first = tied(predicted)
    start = np.flatnonzero(first)
    tops, bottoms = (
        np.add.reduceat(side.ravel()[order].astype(np.float64), start) for side in (columns >= high, columns <= low)
    )
    gene = start // n
    n_tops, n_bottoms = (np.bincount(gene, weights=side, minlength=n_genes) for side in (tops, bottoms))
    # Bottom locations predicted lower than this run of equal predictions, within the gene.
    below = np.cumsum(bottoms) - bottoms - (np.cumsum(n_bottoms) - n_bottoms)[gene]
    wins = np.bincount(gene, weights=tops * (below + bottoms / 2), minlength=n_genes)
    return np.where((low < high).ravel() & ~missing(predicted), wins / (n_tops * n_bottoms), np.nan)


def _ssim(
    predicted: NDArray[Any],
    observed: NDArray[Any],
    *,
    about: Any,
    members: NDArray[np.float64],
    spread: NDArray[np.float64],
) -> NDArray[np.float64]:
    o, o_norm = centred(observed)
    p = predicted.astype(np.float64)
    shift = observed.astype(np.float64).mean(axis=0)
    p -= shift  # second moments lose digits far from zero
    count = members[:, None]
    mean_p, mean_o = (about @ p) / count, (about @ o) / count
    free = count - 1
    var_p = ((about @ np.square(p)) - count * np.square(mean_p)) / free
    var_o = ((about @ np.square(o)) - count * np.square(mean_o)) / free
    both = ((about @ (p * o)) - count * mean_p * mean_o) / free
    mean_p, mean_o = mean_p + shift, mean_o + shift
    c1, c2 = (np.square(share * spread) for share in _STABILISERS)
    similarity = (2 * mean_p * mean_o + c1) * (2 * both + c2)
    similarity /= (np.square(mean_p) + np.square(mean_o) + c1) * (var_p + var_o + c2)
    # A NaN outside all windows would go unseen.
    return np.where(np.isnan(o_norm) | missing(predicted) | ~(spread > 0), np.nan, similarity.mean(axis=0))


def _one_each(data_range: float | ArrayLike, *, n_genes: int) -> NDArray[np.float64]:
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape != (n_genes,) or not (ranges >= 0).all():
        raise InputError(f"`data_range` must be a positive number or one for each of the {n_genes} genes.")
    return ranges


def _partial(predicted: NDArray[Any], observed: NDArray[Any], given: NDArray[Any]) -> NDArray[np.float64]:
    g, g_norm = centred(given)
    g = np.where(np.isnan(g_norm) & np.isfinite(given).all(axis=0), 0.0, g / g_norm)
    return np.clip(np.einsum("ng,ng->g", _residual(predicted, g), _residual(observed, g)), -1.0, 1.0)


def _residual(values: NDArray[Any], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit residual of values on a unit covariate; NaN where only rounding remains."""
    values = values.astype(np.float64) if values.dtype.kind == "b" else values
    x, norm = centred(values)
    eps = np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps
    rounding = 4 * eps * np.sqrt(len(x)) * np.maximum(values.max(axis=0), -values.min(axis=0)) / norm
    x /= norm
    for _ in range(2):  # the second time removes the rest of rounding
        x -= given * np.sum(x * given, axis=0)
    norm = np.sqrt(_squares(x))
    return x / np.where(norm > rounding, norm, np.nan)

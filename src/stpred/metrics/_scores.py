"""Scores of one gene's prediction: what it is worth, from the predicted and the observed column alone."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, positive
from stpred._core.targets import dense
from stpred.metrics._kernels import auroc_kernel, errors, one_each, partial_kernel, r2_kernel, squares, ssim_kernel
from stpred.metrics._per_gene import as_columns, columnar, correlation, over_blocks, pair, per_gene, ranks
from stpred.metrics._windows import check_windows


def pearson(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Pearson correlation of each gene over the rows.

    Parameters
    ----------
    predicted, observed
        (n, G) values, dense or sparse.

    Returns
    -------
    (G,) float64 in [-1, 1]; NaN where either side does not vary (beyond the rounding of its dtype) or holds NaN.

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

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

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

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

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

    Examples
    --------
    >>> from stpred.metrics import r2
    >>> r2([[1.0], [1.0]], [[0.0], [2.0]])
    array([0.])
    """
    return per_gene(r2_kernel, *pair(predicted, observed))


def rmse(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Root mean squared error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64; NaN where either side holds NaN.

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

    Examples
    --------
    >>> from stpred.metrics import rmse
    >>> rmse([[0.0], [0.0]], [[3.0], [3.0]])
    array([3.])
    """
    return per_gene(lambda p, o: np.sqrt(squares(errors(p, o)) / len(o)), *pair(predicted, observed))


def mae(predicted: Any, observed: Any) -> NDArray[np.float64]:
    """Mean absolute error of each gene, in the unit of the values.

    Parameters
    ----------
    predicted, observed
        (n, G) values on the same scale, dense or sparse.

    Returns
    -------
    (G,) float64; NaN where either side holds NaN.

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

    Examples
    --------
    >>> from stpred.metrics import mae
    >>> mae([[0.0, 1.0], [0.0, 2.0]], [[1.0, 1.0], [3.0, 2.0]])
    array([2., 0.])
    """
    return per_gene(lambda p, o: np.mean(np.abs(errors(p, o)), axis=0), *pair(predicted, observed))


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

    Raises
    ------
    InputError
        If the two are not (n, G) matrices of one shape.

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
    return per_gene(auroc_kernel, *pair(predicted, observed))


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

    Raises
    ------
    InputError
        If `predicted` and `observed` are not (n, G) matrices of one shape, `windows` is no sparse 0/1 matrix of n
        columns with two or more members in each row, or `data_range` is not positive or of another number of genes.

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
        given[:] = one_each(data_range, n_genes=n_genes)
    elif data_range is not None:
        given[:] = positive(data_range, name="data_range")  # type: ignore[arg-type]
    if not members.size:
        return np.full(n_genes, np.nan)

    def kernel(p: NDArray[Any], o: NDArray[Any], ranges: NDArray[np.float64]) -> NDArray[np.float64]:
        spread = np.ptp(o.astype(np.float64), axis=0) if data_range is None else ranges[0]
        return ssim_kernel(p, o, about=about, members=members, spread=spread)

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

    Raises
    ------
    InputError
        If `values` is no (n, G) matrix, or `windows` no sparse 0/1 matrix of n columns with a member in each row.

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

    Raises
    ------
    InputError
        If `predicted` and `observed` are not (n, G) matrices of one shape, or `given` is neither (n,) nor (n, G).

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
        return per_gene(lambda p, o: partial_kernel(p, o, shared), *sides)
    return per_gene(partial_kernel, *sides, covariate)

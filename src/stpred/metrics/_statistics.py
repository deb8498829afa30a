"""What scores of several slides, donors, splits or genes say together: tests, intervals and corrections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, whole
from stpred._core.targets import dense
from stpred.metrics._bootstrap import labels_of
from stpred.metrics._p_values import holm
from stpred.metrics._per_gene import centred, over_blocks, pair
from stpred.metrics.summary import mean_of_defined

_CELLS = 4_000_000  # values of a block of replicates
_NEAREST_ONE = 1 - 1e-15  # a correlation of exactly 1 would be infinitely far from 0


@dataclass(frozen=True)
class ConsistentGenes:
    """How often each gene was predicted with a positive correlation; all (G,).

    Attributes
    ----------
    n_positive, n_donors
        Donors with a correlation above 0, and donors with any.
    p_value, p_holm
        Chance of as many by coin tosses, and corrected over the genes by Holm; NaN for genes without donors.
    consistent
        Whether the gene passed.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import consistent_genes
    >>> consistent_genes(np.full((12, 1), 0.1)).n_positive
    array([12])
    """

    n_positive: NDArray[np.int64]
    n_donors: NDArray[np.int64]
    p_value: NDArray[np.float64]
    p_holm: NDArray[np.float64]
    consistent: NDArray[np.bool]


@dataclass(frozen=True)
class PermutationNull:
    """Correlations of each gene beside those of permuted locations.

    Attributes
    ----------
    pearson
        (G,) correlation as it is.
    p_value
        (G,) one-sided chance of as high a correlation by permuted locations.
    null
        (n_permutations, G) correlations of the permutations.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import permutation_null
    >>> values = np.arange(20.0)[:, None]
    >>> permutation_null(values, values, n_permutations=19).null.shape
    (19, 1)
    """

    pearson: NDArray[np.float64]
    p_value: NDArray[np.float64]
    null: NDArray[np.float64]


def fisher_t_test(correlations: ArrayLike) -> tuple[Any, Any]:
    """One-tailed t-test that the mean Fisher-z transformed correlation of slides is above 0.

    Parameters
    ----------
    correlations
        (S,) correlations of one gene (or of slide means) on S slides, or (S, G) of several genes. Slides should be of
        different donors: those of one are no independent observations.

    Returns
    -------
    The t statistic and the p-value, each a float or (G,). Slides where a gene has no correlation (NaN) are excluded for
    this gene; genes with fewer than three are NaN.

    Raises
    ------
    InputError
        With fewer than three slides, since two leave one degree of freedom: no mean could differ from chance.

    References
    ----------
    Fisher (1921), On the "probable error" of a coefficient of correlation deduced from a small sample, Metron 1:3.

    Examples
    --------
    >>> from stpred.metrics import fisher_t_test
    >>> statistic, p = fisher_t_test([0.3, 0.2, 0.4, 0.25])
    >>> round(float(statistic), 2), round(float(p), 4)
    (6.3, 0.004)
    """
    values = np.asarray(correlations, dtype=np.float64)
    if values.ndim not in (1, 2):
        raise InputError(f"`correlations` must have shape (slides,) or (slides, genes), got {values.shape}.")
    if (np.abs(values) > 1 + 1e-9).any():
        raise InputError("`correlations` must lie between -1 and 1.")
    n = (~np.isnan(values)).sum(axis=0)
    if not values.size or n.max() < 3:
        raise InputError(
            f"A t-test over slides needs correlations on three or more of them, got {int(n.max()) if n.size else 0}: "
            "two leave a single degree of freedom."
        )
    from scipy.special import stdtr

    z = np.arctanh(np.clip(values, -_NEAREST_ONE, _NEAREST_ONE))
    mean = mean_of_defined(z, axis=0)
    free = np.where(n >= 3, n - 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = np.nansum(np.square(z - mean), axis=0)
        statistic = mean / np.sqrt(squares / free / n)
    return statistic[()], stdtr(free, -statistic)[()]


def correlation_difference_test(
    first: ArrayLike, second: ArrayLike, n: ArrayLike, *, between: ArrayLike | None = None
) -> tuple[Any, Any]:
    """One-tailed test that the first of two correlations with the same values is the higher, by Fisher's z.

    Parameters
    ----------
    first, second
        Pearson correlations of two predictions with what was measured at `n` locations, of any one shape.
    n
        Numbers of locations, 4 or more.
    between
        Correlation of the two predictions with each other. None: the two are taken as independent, as in MISO's
        publication. Two models of the same image agree in part, which makes that test cautious: its size is below the
        nominal one, and so is its power.

    Returns
    -------
    z and p-value, a standard normal's upper tail, each of the shape of the input; NaN where a correlation is missing.

    Raises
    ------
    InputError
        If a correlation is not between -1 and 1, or `n` is below 4 locations.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications, for models of spatial expression. Meng, Rosenthal and Rubin, Comparing correlated
    correlation coefficients, Psychological Bulletin 111 (1992), for `between`.

    Examples
    --------
    >>> from stpred.metrics import correlation_difference_test
    >>> z, p = correlation_difference_test(0.5, 0.3, 200)
    >>> round(float(z), 2), round(float(p), 3)
    (2.38, 0.009)
    >>> round(float(correlation_difference_test(0.5, 0.3, 200, between=0.8)[0]), 1)
    4.9
    """
    from scipy.special import ndtr

    r1, r2, size = (np.asarray(v, dtype=np.float64) for v in (first, second, n))
    for values in (r1, r2):
        if (np.abs(values) > 1 + 1e-9).any():
            raise InputError("Correlations must lie between -1 and 1.")
    if not (size >= 4).all():
        raise InputError(f"`n` must be 4 locations or more, got {np.min(size):g}.")
    z1, z2 = (np.arctanh(np.clip(r, -_NEAREST_ONE, _NEAREST_ONE)) for r in (r1, r2))
    if between is None:
        z = (z1 - z2) * np.sqrt((size - 3) / 2)
    else:
        rho = np.asarray(between, dtype=np.float64)
        square = (np.square(r1) + np.square(r2)) / 2
        f = np.minimum((1 - rho) / (2 * np.maximum(1 - square, 1e-12)), 1.0)
        h = (1 - f * square) / np.maximum(1 - square, 1e-12)
        z = (z1 - z2) * np.sqrt((size - 3) / np.maximum(2 * (1 - rho) * h, 1e-12))
    return z[()], ndtr(-z)[()]


def consistent_genes(scores: ArrayLike, *, alpha: float = 0.05, min_positive: int | None = None) -> ConsistentGenes:
    """Find the genes whose correlation is positive in more donors than coin tosses would give.

    Parameters
    ----------
    scores
        (D, G) correlation of each gene in each donor. Donors without one (NaN) are no tosses of that gene; a
        correlation of 0 is a toss that failed.
    alpha
        Family-wise error among the genes, by the binomial test and Holm's correction.
    min_positive
        Take the genes that are positive in at least this many donors instead; None takes those by `alpha`.

    Returns
    -------
    A :class:`ConsistentGenes` with ``n_positive``, ``n_donors``, ``p_value``, ``p_holm`` and ``consistent``, each (G,).

    Raises
    ------
    InputError
        If `scores` is no (donors, genes) matrix, or `alpha` is not between 0 and 1.

    References
    ----------
    He et al., Integrating spatial gene expression and breast tumour morphology via deep learning, Nature Biomedical
    Engineering 4 (2020).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import consistent_genes
    >>> scores = np.full((8, 2), 0.1)
    >>> scores[:3, 1] = -0.1
    >>> found = consistent_genes(scores)
    >>> found.n_positive, found.p_value.round(3), found.consistent
    (array([8, 5]), array([0.004, 0.363]), array([ True, False]))
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2:
        raise InputError(f"`scores` must be a (donors, genes) matrix, got shape {values.shape}.")
    if not 0 < alpha < 1:
        raise InputError(f"`alpha` must lie between 0 and 1, got {alpha!r}.")
    from scipy.special import bdtrc

    n_donors = (~np.isnan(values)).sum(axis=0)
    n_positive = (values > 0).sum(axis=0)
    p_value = np.where(n_positive > 0, bdtrc(n_positive - 1.0, np.maximum(n_donors, 1), 0.5), 1.0)
    p_value[n_donors == 0] = np.nan
    p_holm = holm(p_value)
    if min_positive is None:
        consistent = p_holm <= alpha
    else:
        consistent = n_positive >= whole(min_positive, name="min_positive", unset=True)
    return ConsistentGenes(n_positive, n_donors=n_donors, p_value=p_value, p_holm=p_holm, consistent=consistent)


def permutation_null(
    predicted: Any, observed: Any, *, n_permutations: int = 1000, seed: int = 0, blocks: ArrayLike | None = None
) -> PermutationNull:
    """Correlations that remain when the locations of the prediction are shuffled, all genes together.

    Neighbouring locations of tissue are alike, and shuffled ones are not. On tissue the null is therefore too narrow
    and its p-values too small (anti-conservative): a small one rules out chance among exchangeable locations and
    nothing more. Slides and donors are what can be tested (:func:`fisher_t_test`).

    Parameters
    ----------
    predicted, observed
        (n_locations, G) values, dense or sparse.
    n_permutations
        Number of permutations. Time goes with ``n_permutations * n_locations * G``.
    seed
        Seed of the permutations.
    blocks
        (n_locations,) labels, such as slides or regions: locations change places within theirs only.

    Returns
    -------
    A :class:`PermutationNull` with ``pearson`` and ``p_value`` ``(1 + those as high) / (1 + n_permutations)``, both
    (G,) and NaN where the correlation is, and ``null`` (n_permutations, G).

    Raises
    ------
    InputError
        If `predicted` and `observed` are not (n, G) matrices of one shape, or labels are of another number of rows.

    References
    ----------
    Phipson and Smyth, Permutation p-values should never be zero, Statistical Applications in Genetics and Molecular
    Biology 9 (2010).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import permutation_null
    >>> rng = np.random.default_rng(0)
    >>> observed = rng.normal(size=(50, 2))
    >>> found = permutation_null(observed * [1, 0] + rng.normal(size=(50, 2)), observed, n_permutations=199)
    >>> found.p_value < 0.05
    array([ True, False])
    """
    sides = pair(predicted, observed)
    n_permutations = whole(n_permutations, name="n_permutations")
    n_rows, n_genes = sides[0].shape
    labels = None if blocks is None else labels_of(blocks, n=n_rows, name="blocks")
    rng = np.random.default_rng(seed)
    orders = np.stack([_shuffled(rng, labels, n_rows=n_rows) for _ in range(n_permutations)])
    scores, null = np.full(n_genes, np.nan), np.full((n_permutations, n_genes), np.nan)

    def work(genes: slice) -> None:
        p, o = (x / norm for x, norm in (centred(dense(m[:, genes], dtype=None)) for m in sides))
        scores[genes] = np.clip(np.einsum("ng,ng->g", p, o), -1.0, 1.0)
        for i, order in enumerate(orders):
            null[i, genes] = np.einsum("ng,ng->g", p[order], o)

    if n_rows:
        over_blocks(work, n_rows=n_rows, n_genes=n_genes)
    # Shuffles that change nothing give the same correlation but for the rounding of its sum.
    as_high = (null >= scores - 1e-12).sum(axis=0)
    p_value = np.where(np.isnan(scores), np.nan, (1 + as_high) / (1 + n_permutations))
    return PermutationNull(scores, p_value=p_value, null=np.clip(null, -1.0, 1.0))


def _shuffled(rng: np.random.Generator, labels: NDArray[np.int64] | None, *, n_rows: int) -> NDArray[np.intp]:
    """Return a random order of rows that keeps each within its block."""
    if labels is None:
        return rng.permutation(n_rows)
    order = np.empty(n_rows, dtype=np.intp)
    order[np.argsort(labels, kind="stable")] = np.lexsort((rng.random(n_rows), labels))
    return order

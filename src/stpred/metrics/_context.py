"""What a score is held against: knowing only the library size, knowing the neighbours, and the noise of counting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, one_of, whole
from stpred._core.expression.counts import check_counts
from stpred._core.expression.cut import Cut
from stpred._core.targets import SCALES, dense, totals, transform
from stpred.metrics._per_gene import as_cut, columnar, correlation, over_blocks, per_gene
from stpred.metrics._poisson import null, rmax_of_pairs
from stpred.metrics._windows import check_windows


@dataclass(frozen=True)
class RmaxTest:
    """Rmax of each gene beside what Poisson noise alone would show; all (G,) float64, NaN for genes without counts.

    Attributes
    ----------
    rmax
        ``sqrt(1 - mean / variance)`` of the raw counts, 0 where the variance is below the mean.
    null_mean, null_q95
        Mean and 95 % quantile of the same estimate for counts without any structure.
    p_value
        One-sided test of dispersion: the chance that such counts vary as much.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import rmax_test
    >>> rmax_test(np.array([[0, 3], [9, 3], [1, 3], [8, 3]])).rmax.round(2)
    array([0.89, 0.  ])
    """

    rmax: NDArray[np.float64]
    null_mean: NDArray[np.float64]
    null_q95: NDArray[np.float64]
    p_value: NDArray[np.float64]


def library_size_baseline(
    counts: Any,
    *,
    target: str = "log1p_cp10k",
    genes: ArrayLike | None = None,
    library: ArrayLike | None = None,
    n_measured: int | None = None,
) -> NDArray[np.float64]:
    """Pearson correlation of each gene with the spot's total count of all *other* genes.

    This is the score of the amount of RNA that a spot caught, and nothing else. On raw counts it beats most image
    models, which is why raw-count correlations are not to be reported without it.

    Parameters
    ----------
    counts
        (n, G) raw counts of all measured genes, dense or sparse.
    target
        Scale of the gene's own value: ``"log1p_cp10k"``, ``"counts"`` or ``"log_share"`` (of the genes in `counts`).
        The total of the others is always in counts.
    genes
        Column positions of the genes to score; None scores all.
    library, n_measured
        (n,) total counts of the locations and number of measured genes, where `counts` are those of some of them; None:
        the sums and the number of the columns of `counts`.

    Returns
    -------
    (G,) or (len(genes),) float64; NaN where the gene or the total does not vary.

    Raises
    ------
    InputError
        If `counts` is no (n, G) matrix, `library` has another number of locations, or the target is unknown.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import library_size_baseline
    >>> counts = np.array([[1, 10, 5], [2, 20, 5], [4, 40, 5]])
    >>> library_size_baseline(counts, target="counts")
    array([ 1.,  1., nan])
    """
    one_of(target, SCALES, name="target")
    matrix = as_cut(counts, name="counts")
    n_measured = matrix.shape[1] if n_measured is None else whole(n_measured, name="n_measured")
    sizes = np.asarray(totals(matrix) if library is None else library, dtype=np.float64)
    if sizes.shape != matrix.shape[:1]:
        raise InputError(f"`library` must have one value per row of `counts`: got {sizes.shape} for {matrix.shape}.")
    chosen = matrix if genes is None else matrix.select(np.asarray(genes, dtype=np.int64))

    def kernel(block: NDArray[Any]) -> NDArray[np.float64]:
        return correlation(transform(block, sizes, target=target, n_measured=n_measured), sizes[:, None] - block)

    scores = np.empty(chosen.shape[1])
    for columns in chosen.slices():
        scores[columns] = per_gene(kernel, columnar(chosen.block(columns), name="counts"))
    return scores


def neighbour_baseline(observed: Any, windows: Any) -> NDArray[np.float64]:
    """Pearson correlation of each gene with the mean of the observed values *around* each location.

    This is what interpolating the measurement itself is worth: a map that is smooth is easily guessed, with no image.

    Parameters
    ----------
    observed
        (n, G) observed values, dense or sparse.
    windows
        (n, n) sparse 0/1 matrix, row i being the window about location i. The location itself never counts, and
        locations without neighbours are excluded.

    Returns
    -------
    (G,) float64; NaN where the gene or its neighbour average does not vary, or holds NaN.

    Raises
    ------
    InputError
        If `observed` is no (n, G) matrix, or `windows` no sparse 0/1 matrix of n rows and columns.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy.sparse import csr_matrix
    >>> from stpred.metrics import neighbour_baseline
    >>> line = csr_matrix(np.eye(6) + np.eye(6, k=1) + np.eye(6, k=-1))
    >>> neighbour_baseline(np.array([[0, 0], [1, 9], [2, 0], [3, 9], [4, 0], [5, 9]]), line).round(2)
    array([ 0.97, -1.  ])
    """
    matrix = columnar(observed, name="observed")
    n = matrix.shape[0]
    about, _ = check_windows(windows, n=n, min_members=0)
    if about.shape[0] != n:
        raise InputError(f"`windows` must have one row for each of the {n} locations, got {about.shape[0]}.")
    about.setdiag(0)
    about.eliminate_zeros()
    near = np.diff(about.indptr).astype(np.float64)
    kept = near > 0
    if not kept.any():
        return np.full(matrix.shape[1], np.nan)
    means = about[kept].multiply(1 / near[kept, None]).tocsr()

    def kernel(block: NDArray[Any]) -> NDArray[np.float64]:
        return correlation(block[kept], means @ block.astype(np.float64))

    return per_gene(kernel, matrix)


def reliability(
    counts: Any, *, target: str = "log1p_cp10k", genes: ArrayLike | None = None, n_splits: int = 3, seed: int = 0
) -> NDArray[np.float64]:
    """Highest Pearson correlation that counting noise leaves to a perfect predictor, on any scale.

    Every count is thrown into one of two halves at random, each half is brought to the scale by its own library size,
    and the correlation r of the halves is extrapolated to the full depth (Spearman-Brown, ``2 r / (1 + r)``); its root
    is the ceiling. On raw counts that estimates the same as ``stpred.genes.rmax``, which does not hold on the log
    scale.

    Parameters
    ----------
    counts
        (n, G) raw counts of all measured genes of one slide, dense or sparse.
    target
        Scale: ``"log1p_cp10k"``, ``"counts"`` or ``"log_share"``. For the first, locations of which a half stays empty
        are excluded.
    genes
        Column positions of the genes to score; None scores all.
    n_splits
        How often to split; r is averaged over the splits.
    seed
        Seed of the splits.

    Returns
    -------
    (G,) or (len(genes),) float64 in [0, 1]; NaN for genes that no split kept in both halves.

    Raises
    ------
    InputError
        If `counts` is no (n, G) matrix of whole numbers, `n_splits` no positive whole number, or the target is
        unknown.

    Notes
    -----
    A negative r counts as 0, so that genes of pure noise average a little above 0 and not 0. The extrapolation is exact
    where the scale is linear. On the log scale it is an approximation, since the logarithm of half the counts is not
    half of anything: on simulated slides it came out up to 0.05 too high, most for genes of 1 to 5 counts at locations
    of very different library sizes.

    References
    ----------
    Spearman, Correlation calculated from faulty data, British Journal of Psychology 3 (1910). Neufeld et al., Inference
    after latent variable estimation for single-cell RNA sequencing data, Biostatistics 25 (2024), on count splitting.

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import reliability
    >>> rng = np.random.default_rng(0)
    >>> rates = np.column_stack([rng.gamma(1, 20, 500), np.full(500, 20.0)])
    >>> reliability(rng.poisson(rates), target="counts").round(1)
    array([1. , 0.3])
    """
    one_of(target, SCALES, name="target")
    whole(n_splits, name="n_splits")
    if not isinstance(counts, Cut):
        check_counts(counts)
    matrix = as_cut(counts, name="counts")
    columns = np.arange(matrix.shape[1]) if genes is None else np.asarray(genes, dtype=np.int64)
    splits = _Splits.of(matrix, n_splits=n_splits, seed=seed)
    total, defined = np.zeros(len(columns)), np.zeros(len(columns))
    for r in splits.correlations(columns, target=target):
        total += np.nan_to_num(r)
        defined += ~np.isnan(r)
    with np.errstate(invalid="ignore"):
        r = np.clip(total / np.where(defined > 0, defined, np.nan), 0.0, None)
    return np.sqrt(2 * r / (1 + r))


def rmax_test(counts: Any) -> RmaxTest:
    """Test whether each gene's counts vary more than Poisson noise, with the null distribution of Rmax.

    The estimate of Rmax is clipped at 0, so that a gene without structure has one above 0 half of the time: with
    structureless counts at 180 locations it averages 0.12. It says something where it exceeds `null_q95`.

    Parameters
    ----------
    counts
        (n, G) raw counts of one slide, two or more locations, dense or sparse.

    Returns
    -------
    A :class:`RmaxTest` with ``rmax``, ``null_mean``, ``null_q95`` and ``p_value``, each (G,).

    Raises
    ------
    InputError
        If `counts` is no (n, G) matrix of whole numbers, or has fewer than two locations.

    Notes
    -----
    The null hypothesis is one rate for all locations: given its total, the gene's counts fall anywhere with equal
    chance. Differences of library size between locations are structure in this sense, as they are for Rmax. p-values
    are exact for small totals and from three exact moments for others (chi-square for large ones), in both cases mid-p.
    Genes of a handful of counts are rejected less often than the level says, for they show too few outcomes.

    References
    ----------
    Fisher, Thornton and Mackenzie, The accuracy of the plating method of estimating the density of bacterial
    populations, Annals of Applied Biology 9 (1922). Lancaster, Significance tests in discrete distributions, Journal of
    the American Statistical Association 56 (1961).

    Examples
    --------
    >>> import numpy as np
    >>> from stpred.metrics import rmax_test
    >>> rng = np.random.default_rng(0)
    >>> rates = np.column_stack([rng.gamma(1, 2, 180), np.full(180, 2.0), np.zeros(180)])
    >>> found = rmax_test(rng.poisson(rates))
    >>> found.rmax.round(2), found.null_mean.round(2), found.p_value < 0.05
    (array([0.78, 0.24,  nan]), array([0.12, 0.12,  nan]), array([ True, False, False]))
    """
    if not isinstance(counts, Cut):
        check_counts(counts)
    matrix = as_cut(counts, name="counts")
    n = matrix.shape[0]
    if n < 2:
        raise InputError(f"The dispersion of counts needs two or more locations, `counts` has {n}.")
    total, second = np.empty(matrix.shape[1]), np.empty(matrix.shape[1])
    for genes in matrix.slices():
        values = columnar(matrix.block(genes), name="counts").astype(np.float64)
        if hasattr(values, "sum_duplicates"):
            values.sum_duplicates()
        squares = values.multiply(values) if hasattr(values, "multiply") else np.square(values)
        total[genes], second[genes] = (np.asarray(v.sum(axis=0)).ravel() for v in (values, squares))
    pairs = (second - total) / 2
    found = [np.full(len(total), np.nan) for _ in range(4)]
    there = total > 0
    tested = (rmax_of_pairs(pairs[there], total[there], n=n), *null(pairs[there], total[there], n=n))
    for into, value in zip(found, tested, strict=True):
        into[there] = value
    ceiling, p_value, mean, q95 = found
    return RmaxTest(ceiling, null_mean=mean, null_q95=q95, p_value=p_value)


@dataclass(frozen=True)
class _Splits:
    """Counts thrown into two halves at random, several times; drawn anew for each block of genes, never kept.

    Attributes
    ----------
    counts
        All measured genes.
    states
        For each split those of the generator at the start of each block, in the order of the columns.
    libraries
        For each split the (2, n) library sizes of the halves.
    """

    counts: Cut
    states: list[list[Any]]
    libraries: list[NDArray[np.float64]]

    @classmethod
    def of(cls, counts: Cut, *, n_splits: int, seed: int) -> _Splits:
        """Draw all of them once, for the library sizes."""
        rng = np.random.default_rng(seed)
        states: list[list[Any]] = []
        libraries = []
        for _ in range(n_splits):
            states.append([])
            halves = np.zeros((2, counts.shape[0]))
            for genes in counts.slices():
                block = _counted(counts.block(genes))
                states[-1].append(rng.bit_generator.state)
                for half, values in zip(halves, _halves(block, rng), strict=True):
                    half += np.bincount(block.indices, weights=values, minlength=len(half))
            libraries.append(halves)
        return cls(counts, states, libraries)

    def correlations(self, columns: NDArray[np.int64], *, target: str) -> list[NDArray[np.float64]]:
        """Return for each split the correlation of the halves of each of some genes, on a scale."""
        found = [np.full(len(columns), np.nan) for _ in self.states]
        kept = [np.asarray((h > 0).all(axis=0) | (target == "counts")) for h in self.libraries]
        order = np.argsort(columns, kind="stable")
        for k, genes in enumerate(self.counts.slices()):
            first, last = np.searchsorted(columns[order], [genes.start, genes.stop])
            if first == last:
                continue
            block = _counted(self.counts.block(genes))
            for split, states in enumerate(self.states):
                if kept[split].any():
                    found[split][order[first:last]] = self._within(
                        block, states[k], columns[order[first:last]] - genes.start,
                        library=self.libraries[split], kept=kept[split], target=target,
                    )  # fmt: skip
        return found

    def _within(
        self,
        block: Any,
        state: Any,
        columns: NDArray[np.int64],
        *,
        library: NDArray[np.float64],
        kept: NDArray[np.bool_],
        target: str,
    ) -> NDArray[np.float64]:
        """Return the correlations of some columns of a block, thrown apart as at a state of the generator."""
        from scipy.sparse import csc_matrix

        rng = np.random.default_rng()
        rng.bit_generator.state = state
        halves = [csc_matrix((values, block.indices, block.indptr), block.shape) for values in _halves(block, rng)]
        scores = np.full(len(columns), np.nan)
        n_measured = self.counts.shape[1]

        def work(genes: slice) -> None:
            first, second = (
                transform(dense(half[:, columns[genes]])[kept], sizes[kept], target=target, n_measured=n_measured)
                for half, sizes in zip(halves, library, strict=True)
            )
            scores[genes] = correlation(first, second)

        over_blocks(work, n_rows=block.shape[0], n_genes=len(columns))
        return scores


def _counted(block: Any) -> Any:
    """Return a block of counts as a csc matrix of whole numbers, each place once."""
    from scipy.sparse import csc_matrix

    matrix = csc_matrix(columnar(block, name="counts"))
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    return csc_matrix((matrix.data.astype(np.int64), matrix.indices, matrix.indptr), matrix.shape)


def _halves(block: Any, rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    drawn = rng.binomial(block.data, 0.5)
    return drawn, block.data - drawn

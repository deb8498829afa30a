"""From counts to the values that a model is trained on and scored against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError, one_of
from stpred._core.expression.counts import check_sparse
from stpred._core.expression.cut import Cut

Target = Literal["log1p_cp10k", "counts"]
TARGETS: tuple[str, ...] = get_args(Target)

CP10K = 1e4

WITHOUT_LIBRARY = {"log1p_cp10k_given_library": 1.0, "log1p_cp10k_half_library": 0.5}
"""log1p CP10k less a share of what a slide's library sizes explain: what models are trained on, no scales of their own.
"""

LOG_SHARE = "log_share"
"""ST-Net's scale, ``log((1 + count) / (n_measured + total))``: with far more genes than counts it falls with the
library size, so it is no log1p CP10k but for a known library (`from_log_share`)."""

SCALES = (*TARGETS, LOG_SHARE)
"""Scales with a unit: what predictions can be scored on."""

TRAINED_ON = (*TARGETS, *WITHOUT_LIBRARY, LOG_SHARE)
"""What a user may train a model on."""


def dense(values: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a dense array of `values`, which may be a scipy sparse matrix or array; a broken one is refused."""
    check_sparse(values, what="values")
    return np.asarray(values.toarray() if hasattr(values, "toarray") else values, dtype=dtype)


def stored(values: Any) -> NDArray[Any]:
    """Return the values that an array holds explicitly: of a sparse one, those other than zero."""
    return np.asarray(values.data if hasattr(values, "toarray") else values)


def by_gene(values: Any, factors: NDArray[np.float64]) -> Any:
    """Return (n, G) values, dense or sparse, times (G,) factors as float32."""
    if hasattr(values, "toarray"):
        return values.multiply(factors).tocsr().astype(np.float32)
    return (values * factors).astype(np.float32)


def totals(counts: Any) -> NDArray[np.float64]:
    """Return the (n,) library sizes of (n, G) counts of *all* measured genes, dense or sparse."""
    if hasattr(counts, "tocsr") or isinstance(counts, np.ndarray):
        counts = Cut(counts)  # summing all at once copies a sparse matrix to another type
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def sparse_transform(counts: Any, totals: ArrayLike, *, target: str) -> Any:
    """Return what :func:`transform` returns as a float32 csr matrix, without making zeros explicit.

    Parameters
    ----------
    counts
        (n, g) sparse counts of the chosen genes.
    totals, target
        As of :func:`transform`, except ``"log_share"``, which has no zeros.
    """
    from scipy.sparse import csr_matrix

    one_of(target, TARGETS, name="target")
    values = csr_matrix(counts, dtype=np.float64, copy=True)
    if target == "log1p_cp10k":
        library = np.asarray(totals, dtype=np.float64)
        scale = np.divide(CP10K, library, out=np.zeros_like(library), where=library > 0)
        values.data = np.log1p(values.data * np.repeat(scale, np.diff(values.indptr)))
    return values.astype(np.float32)


def moments(parts: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (g,) mean and standard deviation over the rows of (n, g) values, dense or sparse."""
    n = sum(p.shape[0] for p in parts)
    mean = np.sum([np.asarray(p.sum(axis=0), dtype=np.float64).ravel() for p in parts], axis=0) / n
    square = np.zeros_like(mean)
    for p in parts:
        if hasattr(p, "toarray"):
            there = np.bincount(p.indices, minlength=p.shape[1])
            away = np.bincount(p.indices, weights=(p.data - mean[p.indices]) ** 2, minlength=p.shape[1])
            square += away + (p.shape[0] - there) * mean**2
        else:
            square += np.square(np.asarray(p, dtype=np.float64) - mean).sum(axis=0)
    return mean, np.sqrt(square / n)


def transform(counts: Any, totals: ArrayLike, *, target: str, n_measured: int | None = None) -> NDArray[np.float32]:
    """Turn the counts of chosen genes into target values.

    Parameters
    ----------
    counts
        (n, g) counts of the chosen genes, dense or sparse.
    totals
        (n,) library sizes over *all* measured genes, not only the chosen ones: otherwise a value would depend on which
        other genes were chosen.
    target
        ``"log1p_cp10k"`` (natural log of one plus counts per ten thousand), ``"counts"``, ``"log_share"``:
        ``log((1 + count) / (n_measured + total))``, or one of `WITHOUT_LIBRARY` (see :func:`without_library`; the rows
        are those of one slide).
    n_measured
        Number of all measured genes, for ``"log_share"``.

    Returns
    -------
    (n, g) float32, dense. A row with an empty library becomes 0.
    """
    one_of(target, TRAINED_ON, name="target")
    values = dense(counts)
    library = np.asarray(totals, dtype=np.float64)
    if values.ndim != 2 or library.shape != values.shape[:1]:
        raise InputError(f"`totals` must have one value per row of `counts`: got {library.shape} for {values.shape}.")
    if target == "log1p_cp10k" or target in WITHOUT_LIBRARY:
        scale = np.divide(CP10K, library, out=np.zeros_like(library), where=library > 0)
        values = np.log1p(values * scale[:, None])
        values = without_library(values, library, share=WITHOUT_LIBRARY.get(target, 0.0))
    elif target == LOG_SHARE:
        if n_measured is None:
            raise InputError("The target 'log_share' needs `n_measured`, the number of all measured genes.")
        values = np.log((1 + values) / (n_measured + library)[:, None])
    return values.astype(np.float32)


def without_library(values: NDArray[np.float64], totals: ArrayLike, *, share: float) -> NDArray[np.float64]:
    """Return the values of one slide less a share of the part that the log library size explains linearly.

    Parameters
    ----------
    values
        (n, g) values, such as log1p CP10k.
    totals
        (n,) library sizes.
    share
        1: the residuals of each gene's regression on the log library size, about the gene's mean; 0: the values.
    """
    library = np.log(np.maximum(np.asarray(totals, dtype=np.float64), 1.0))
    library -= library.mean() if len(library) else 0.0
    square = library @ library
    if share == 0 or square < 1e-12:
        return values
    return np.asarray(values - share * np.outer(library, library @ (values - values.mean(axis=0)) / square))


def from_log_share(values: Any, totals: ArrayLike, *, n_measured: int) -> NDArray[np.float32]:
    """Return the (n, g) log1p CP10k of log shares at (n,) known library sizes: exact, but for predictions below zero.

    The inverse of ``transform(..., target="log_share")`` followed by log1p CP10k; `n_measured` is that of the former. A
    location with an empty library becomes 0.
    """
    library = np.asarray(totals, dtype=np.float64)
    counts = np.exp(dense(values)) * (n_measured + library)[:, None] - 1
    return transform(counts.clip(min=0), library, target="log1p_cp10k")


def scale_of(target: str) -> str:
    """Return the scale of what a model predicts that was trained on `target`."""
    return "log1p_cp10k" if target in WITHOUT_LIBRARY else target


def standardised(values: Any) -> NDArray[np.float64]:
    """Return (n, n_genes) values with mean 0 and standard deviation 1 of each gene; a constant one is 0."""
    values = np.asarray(values, dtype=np.float64)
    std = values.std(axis=0)
    scaled: NDArray[np.float64] = (values - values.mean(axis=0)) / np.where(std < 1e-8, np.inf, std)
    return scaled

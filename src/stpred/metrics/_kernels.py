"""What the scores of :mod:`stpred.metrics._scores` compute on dense blocks of genes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stpred._core.checks import InputError
from stpred.metrics._per_gene import centred, missing, tied

_STABILISERS = (0.01, 0.03)  # of structural similarity, as shares of the range (Wang et al.)
_QUARTERS = (0.25, 0.75)


def errors(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    return predicted.astype(np.float64) - observed


def squares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.einsum("ng,ng->g", values, values)


def r2_kernel(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
    x, norm = centred(observed)
    return np.where(np.isnan(norm), np.nan, 1.0 - squares(errors(predicted, observed)) / squares(x))


def auroc_kernel(predicted: NDArray[Any], observed: NDArray[Any]) -> NDArray[np.float64]:
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


def ssim_kernel(
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


def one_each(data_range: float | ArrayLike, *, n_genes: int) -> NDArray[np.float64]:
    ranges = np.asarray(data_range, dtype=np.float64)
    if ranges.shape != (n_genes,) or not (ranges >= 0).all():
        raise InputError(f"`data_range` must be a positive number or one for each of the {n_genes} genes.")
    return ranges


def partial_kernel(predicted: NDArray[Any], observed: NDArray[Any], given: NDArray[Any]) -> NDArray[np.float64]:
    g, g_norm = centred(given)
    g = np.where(np.isnan(g_norm) & np.isfinite(given).all(axis=0), 0.0, g / g_norm)
    return np.clip(np.einsum("ng,ng->g", residual(predicted, g), residual(observed, g)), -1.0, 1.0)


def residual(values: NDArray[Any], given: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the unit residual of values on a unit covariate; NaN where only rounding remains."""
    values = values.astype(np.float64) if values.dtype.kind == "b" else values
    x, norm = centred(values)
    eps = np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps
    rounding = 4 * eps * np.sqrt(len(x)) * np.maximum(values.max(axis=0), -values.min(axis=0)) / norm
    x /= norm
    for _ in range(2):  # the second time removes the rest of rounding
        x -= given * np.sum(x * given, axis=0)
    norm = np.sqrt(squares(x))
    return x / np.where(norm > rounding, norm, np.nan)

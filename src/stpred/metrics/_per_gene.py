"""The loop below every score: genes in blocks, densified one after the other, several at a time in threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.compute.threads import in_threads, n_threads
from stpred._core.expression.counts import check_sparse
from stpred._core.expression.cut import Cut
from stpred._core.targets import dense

Kernel = Callable[..., NDArray[np.float64]]

_CELLS = 320_000  # values of a block: few enough for the processor's cache, whatever the number of rows
_MIN_GENES, _MAX_GENES = 8, 512  # of a block
_WORTH_THREADS = 2_000_000
_MAX_THREADS = 8


def as_columns(values: Any, *, name: str) -> Any:
    """Return values of which columns can be cut: an array, or a csc matrix of what is sparse."""
    check_sparse(values, what=f"values of `{name}`")
    return values.tocsc() if hasattr(values, "tocsc") else np.asarray(values)


def columnar(values: Any, *, name: str) -> Any:
    """Return a matrix as of :func:`as_columns`."""
    matrix = as_columns(values, name=name)
    if matrix.ndim != 2:
        raise InputError(f"`{name}` must be a (n, genes) matrix, got shape {matrix.shape}.")
    return matrix


def as_cut(values: Any, *, name: str) -> Cut:
    """Return a (n, genes) matrix, checked, of which blocks of genes are cut."""
    if not isinstance(values, Cut):
        check_sparse(values, what=f"values of `{name}`")
    cut = Cut.of(values)
    if cut.values.ndim != 2:
        raise InputError(f"`{name}` must be a (n, genes) matrix, got shape {cut.values.shape}.")
    return cut


def pair(predicted: Any, observed: Any) -> list[Any]:
    """Return both sides of a score, of one shape."""
    sides = [as_columns(predicted, name="predicted"), as_columns(observed, name="observed")]
    if sides[0].ndim != 2 or sides[0].shape != sides[1].shape:
        raise InputError(
            f"`predicted` and `observed` must be (n, genes) matrices of one shape, got {sides[0].shape} and "
            f"{sides[1].shape}."
        )
    return sides


def over_blocks(work: Callable[[slice], None], *, n_rows: int, n_genes: int) -> None:
    """Call `work` with slices that cover all genes; the calls are independent and may run at the same time."""

    def quietly(genes: slice) -> None:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # what is undefined becomes NaN
            work(genes)

    size = int(np.clip(_CELLS // max(n_rows, 1), _MIN_GENES, _MAX_GENES))
    blocks = [slice(start, min(start + size, n_genes)) for start in range(0, n_genes, size)]
    in_threads(quietly, blocks, threads=n_threads(_MAX_THREADS) if n_rows * n_genes >= _WORTH_THREADS else 1)


def per_gene(kernel: Kernel, *matrices: Any) -> NDArray[np.float64]:
    """Return the (G,) results of a kernel that gets dense (n, block) columns of each matrix, in their own dtypes."""
    n_rows, n_genes = matrices[0].shape
    scores = np.full(n_genes, np.nan)
    if n_rows == 0:
        return scores

    def work(genes: slice) -> None:
        scores[genes] = kernel(*(dense(m[:, genes], dtype=None) for m in matrices))

    over_blocks(work, n_rows=n_rows, n_genes=n_genes)
    return scores


def centred(values: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return values minus their column mean, and the columns' norms, NaN where only rounding makes a column vary."""
    x = values.astype(np.float64)
    largest = np.maximum(x.max(axis=0), -x.min(axis=0))
    x -= x.mean(axis=0)
    x -= x.mean(axis=0)  # sums of many rows round: a constant column would keep a part of its offset
    norm = np.sqrt(np.einsum("ng,ng->g", x, x))
    # Squares of very small or large values leave the range of floats; the plain norm is kept for all others.
    if (extreme := ((norm < 1e-140) & (largest > 0)) | np.isinf(norm)).any():
        scale = largest[extreme]
        norm[extreme] = scale * np.linalg.norm(x[:, extreme] / scale, axis=0)
    # A prediction that is constant up to its own rounding would otherwise correlate through noise.
    eps = np.finfo(values.dtype if values.dtype.kind == "f" else np.float64).eps
    return x, np.where(norm > 4 * eps * np.sqrt(len(x)) * largest, norm, np.nan)


def correlation(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Return the Pearson correlation of the columns of two dense blocks."""
    a, a_norm = centred(first)
    b, b_norm = centred(second)
    a /= a_norm
    b /= b_norm
    return np.clip(np.einsum("ng,ng->g", a, b), -1.0, 1.0)


def tied(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Sort each column of a (n, g) block.

    Returns
    -------
    The order that sorts the columns, as positions in the transposed block read as one line, one column after the other;
    and which of the sorted values is the first of a run of equal ones.
    """
    if values.dtype.kind not in "fiu" or values.dtype == np.float16:
        values = values.astype(np.float32)
    columns = np.ascontiguousarray(values.T)
    order = np.argsort(columns, axis=1)
    order += np.arange(columns.shape[0])[:, None] * columns.shape[1]
    ordered = columns.ravel()[order]
    first = np.ones(columns.shape, dtype=bool)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=first[:, 1:])
    return order.ravel(), first.ravel()


def missing(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which columns hold NaN."""
    return np.isnan(values.min(axis=0)) if values.dtype.kind == "f" else np.zeros(values.shape[1], dtype=bool)


def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the (n, g) ranks from 0 within columns; equal values share their average, columns with NaN are NaN."""
    n, n_genes = values.shape
    order, first = tied(values)
    place = np.tile(np.arange(n, dtype=np.float64), n_genes)
    if not first.all():
        start = np.flatnonzero(first)
        length = np.diff(start, append=first.size)
        start, length = start[length > 1], length[length > 1]
        shared = ~first
        shared[start] = True
        place[shared] = np.repeat(start % n + (length - 1) / 2, length)
    found = np.empty((n_genes, n))
    found.reshape(-1)[order] = place
    found[missing(values)] = np.nan
    return found.T

"""Matrices of locations by genes that are cut gene by gene: chosen rows, or sums over sets of them, without a copy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK_VALUES = 2**22
"""Values that are in memory at a time where a matrix is worked through: 32 MB of float64."""


@dataclass(frozen=True)
class Cut:
    """Rows and columns of a matrix, or sums over sets of these rows; nothing is copied until a block is asked for.

    Attributes
    ----------
    values
        (N, M) matrix as it is stored, dense or sparse.
    rows, columns
        (n,) and (G,) positions of those that are meant; None: all.
    sets
        (m, n) sparse 0/1 matrix, which of the rows are in which set, whose sums (or with `mean` means) are the rows of
        the cut; None: the rows themselves.
    """

    values: Any
    rows: NDArray[np.int64] | None = None
    columns: NDArray[np.int64] | None = None
    sets: Any = None
    mean: bool = False

    @classmethod
    def of(cls, matrix: Any) -> Cut:
        """Return a matrix as a cut, or a cut as it is."""
        return matrix if isinstance(matrix, Cut) else cls(matrix if _is_sparse(matrix) else np.asarray(matrix))

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        n, n_columns = self.values.shape
        if self.sets is not None:
            n = self.sets.shape[0]
        elif self.rows is not None:
            n = len(self.rows)
        return n, n_columns if self.columns is None else len(self.columns)

    @property
    def is_sparse(self) -> bool:
        """Whether blocks are sparse."""
        return _is_sparse(self.values)

    def take(self, rows: NDArray[np.int64]) -> Cut:
        """Return some of the rows, or sets, in this order."""
        rows = np.asarray(rows, dtype=np.int64)
        n = self.shape[0]
        if len(rows) == n and np.array_equal(rows, np.arange(n)):
            return self
        if self.sets is not None:
            return replace(self, sets=self.sets[rows])
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def select(self, columns: NDArray[np.int64]) -> Cut:
        """Return some of the columns, in this order."""
        columns = np.asarray(columns, dtype=np.int64)
        return replace(self, columns=columns if self.columns is None else self.columns[columns])

    def pooled(self, sets: Any, *, mean: bool = False) -> Cut:
        """Return sums (or means) over sets of the rows, given as an (m, n) sparse 0/1 matrix."""
        if self.sets is not None and (self.mean or mean):
            raise ValueError("Means of sets of sets are not those of their rows.")
        return replace(self, sets=sets if self.sets is None else sets @ self.sets, mean=mean)

    def sum(self, axis: int) -> NDArray[Any]:
        """Return the sums of the rows (axis 1), or of the columns (axis 0, float64)."""
        if axis == 1:
            sums = self._row_sums()
            return sums if self.sets is None else np.asarray(self.sets @ sums)
        total = np.zeros(self.shape[1])
        if self.sets is None:
            for part in self._strips(self.columns):
                total += np.asarray(part.sum(axis=0), dtype=np.float64).ravel()
            return total
        for genes in self.slices():
            total[genes] = np.asarray(self.block(genes).sum(axis=0), dtype=np.float64).ravel()
        return total

    def whole(self) -> Any:
        """Return all of it, dense or sparse."""
        return self.block(slice(None))

    def block(self, genes: slice) -> Any:
        """Return some columns, dense or sparse as the matrix is stored."""
        first, last, _ = genes.indices(self.shape[1])
        columns: Any = slice(first, last) if self.columns is None else self.columns[genes]
        if self.columns is None and last - first == self.shape[1]:
            columns = None
        parts = list(self._strips(None if columns is None else _as_slice(columns)))
        block = parts[0] if len(parts) == 1 else _stacked(parts)
        if self.sets is None:
            return block
        if not self.mean:
            return self.sets @ block
        block = block.toarray() if _is_sparse(block) else block
        members = np.asarray(self.sets.sum(axis=1), dtype=np.float64).reshape(-1, 1)
        return np.asarray(self.sets.astype(np.float64) @ block.astype(np.float64)) / members

    @property
    def width(self) -> int:
        """Columns of a dense block."""
        return max(BLOCK_VALUES // max(self.shape[0], 1), 1)

    def slices(self) -> Iterator[slice]:
        """Yield slices that cover all columns, of blocks of `BLOCK_VALUES` explicit values at most (or one column)."""
        n_genes = self.shape[1]
        ends = np.cumsum(self._sizes())
        start = 0
        while start < n_genes:
            done = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, done + BLOCK_VALUES, side="right")), start + 1)
            yield slice(start, stop)
            start = stop

    def _sizes(self) -> NDArray[np.int64]:
        """Return how many explicit values each column of a block has, of the rows or of their sets."""
        n_rows, n_genes = self.values.shape[0], self.shape[1]
        m = self.shape[0]
        if not self.is_sparse:
            return np.full(n_genes, max(n_rows if self.rows is None else len(self.rows), m), dtype=np.int64)
        found = np.zeros(self.values.shape[1], dtype=np.int64)
        if self.values.format == "csc":
            found += np.diff(self.values.indptr)
        else:
            indices = self.values.tocsr(copy=False).indices
            for first in range(0, len(indices), BLOCK_VALUES):
                found += np.bincount(indices[first : first + BLOCK_VALUES], minlength=len(found))
        found = found if self.columns is None else found[self.columns]
        if self.sets is None:
            return found
        copies = self.sets.nnz / max(self.sets.shape[1], 1)
        bounded: NDArray[np.int64] = np.maximum(found, np.minimum(found * copies, m).astype(np.int64))
        return bounded

    def _row_sums(self) -> NDArray[Any]:
        return np.concatenate([np.asarray(part.sum(axis=1)).ravel() for part in self._strips(self.columns)])

    def _strips(self, columns: Any) -> Iterator[Any]:
        """Yield some columns of the rows (before they are pooled), so many rows at a time that little is copied."""
        n = self.values.shape[0] if self.rows is None else len(self.rows)
        if self.is_sparse and self.values.format == "csc" and columns is not None:
            found = self.values[:, columns]
            yield found if self.rows is None else found[self.rows]
            return
        each = self.values.nnz / max(self.values.shape[0], 1) if self.is_sparse else self.values.shape[1]
        step = max(int(BLOCK_VALUES // max(each, 1)), 1)
        for first in range(0, max(n, 1), step):
            rows: Any = slice(first, min(first + step, n))
            if self.rows is not None:
                rows = _as_slice(self.rows[rows])
            if columns is None:
                yield self.values[rows]
            elif isinstance(rows, slice) and isinstance(columns, slice):
                yield self.values[rows, columns]
            elif self.is_sparse:
                yield self.values[rows][:, columns]
            elif isinstance(columns, slice) or isinstance(rows, slice):
                yield self.values[rows, columns]
            else:
                yield self.values[np.ix_(rows, columns)]


def _as_slice(positions: Any) -> Any:
    """Return positions that follow each other as a slice, which copies nothing of a dense matrix."""
    if isinstance(positions, slice) or len(positions) == 0:
        return positions
    first, n = int(positions[0]), len(positions)
    if int(positions[-1]) - first == n - 1 and np.array_equal(positions, np.arange(first, first + n)):
        return slice(first, first + n)
    return positions


def _stacked(parts: list[Any]) -> Any:
    if not _is_sparse(parts[0]):
        return np.concatenate(parts)
    from scipy.sparse import vstack

    return vstack(parts, format="csr")


def _is_sparse(matrix: Any) -> bool:
    return hasattr(matrix, "tocsr")

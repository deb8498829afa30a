"""Windows of neighbouring locations: 0/1 matrices of which each row is one window."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.expression.counts import check_sparse


def check_windows(windows: Any, *, n: int, min_members: int = 1) -> tuple[Any, NDArray[np.float64]]:
    """Return windows as a float64 csr matrix of ones, and the number of members of each.

    Parameters
    ----------
    windows
        (m, n) sparse 0/1 matrix.
    n
        How many locations there are.
    min_members
        How many members a window must have.
    """
    from scipy.sparse import csr_matrix

    if not hasattr(windows, "tocsr") or windows.ndim != 2 or windows.shape[1] != n:
        shape = getattr(windows, "shape", None)
        raise InputError(f"`windows` must be a sparse (windows, {n}) matrix, one column per location, got {shape}.")
    check_sparse(windows, what="entries of `windows`")
    checked = csr_matrix(windows, dtype=np.float64, copy=True)
    checked.sum_duplicates()
    checked.eliminate_zeros()
    if (checked.data != 1).any():
        raise InputError("`windows` must hold 1 for the members of a window and 0 for all else.")
    members = np.diff(checked.indptr).astype(np.float64)
    if members.size and members.min() < min_members:
        raise InputError(f"Each row of `windows` needs {min_members} or more members, one has {int(members.min())}.")
    return checked, members

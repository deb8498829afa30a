"""Rescaling of fine predictions so that those in a spot add up to its measured counts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAREST = 3
"""Spots that decide on the scale of what lies in none."""


class Preserved:
    """Rescales the amounts of fine locations so that those in each spot add up to its counts.

    What lies in no spot is rescaled as the nearest spots are, weighted by the inverse of their distance. Where nothing
    is predicted in a spot but something was measured, it is shared out evenly.

    Parameters
    ----------
    owner
        (n,) spot that each location lies in, -1 for none.
    coords_um, spots_um
        (n, 2) and (s, 2) centres in micrometres.
    """

    def __init__(
        self, owner: NDArray[np.int64], *, coords_um: NDArray[np.float64], spots_um: NDArray[np.float64]
    ) -> None:
        from scipy.sparse import csr_array
        from scipy.spatial import cKDTree

        self._inside = np.flatnonzero(owner >= 0)
        self._outside = np.flatnonzero(owner < 0)
        self._owner = owner[self._inside]
        self._n = len(spots_um)
        self.held = np.bincount(self._owner, minlength=self._n)
        """(s,) number of locations in each spot; a spot without any keeps its counts to itself."""
        k = min(NEAREST, self._n)
        distance, spot = cKDTree(spots_um).query(coords_um[self._outside], k=np.arange(1, k + 1))
        weight = 1 / np.maximum(distance, 1e-6)
        rows = np.repeat(np.arange(len(self._outside)), k)
        shape = (len(self._outside), self._n)
        self._near = csr_array((weight.ravel(), (rows, spot.ravel())), shape=shape)

    def rescaled(self, amounts: NDArray[np.float32], counts: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (n,) amounts of one gene, none negative, rescaled to the (s,) counts of the spots."""
        out = np.empty(len(amounts), dtype=np.float64)
        inside = amounts[self._inside].astype(np.float64)
        total = np.bincount(self._owner, weights=inside, minlength=self._n)
        empty = (total <= 0) & (counts > 0)
        inside[empty[self._owner]] = 1.0
        total = np.where(empty, self.held, total)
        factor = np.divide(counts, total, out=np.zeros(self._n), where=total > 0)
        out[self._inside] = inside * factor[self._owner]
        there = np.where(self.held > 0, 1.0, 0.0)
        around = self._near @ (total * there)
        scale = np.divide(self._near @ (counts * there), around, out=np.zeros(len(around)), where=around > 0)
        out[self._outside] = amounts[self._outside] * scale
        return out.astype(np.float32)

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    observed = rng.poisson(rng.gamma(2, 2, size=(40, 1)) * rng.uniform(0.1, 3, size=12)).astype(float)
    return 0.5 * observed + rng.normal(size=observed.shape), observed


def square(height: int, width: int, *, whole: bool) -> sparse.csr_matrix:
    """Windows of 3 x 3 locations of a grid counted by rows: all of them, or those that the border does not cut."""
    rows = []
    for y in range(height):
        for x in range(width):
            member = np.zeros((height, width))
            member[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = 1
            if not whole or member.sum() == 9:
                rows.append(member.ravel())
    return sparse.csr_matrix(np.array(rows))


@pytest.fixture
def grid() -> dict[str, sparse.csr_matrix]:
    """Windows on a grid of 7 x 9 locations."""
    return {"whole": square(7, 9, whole=True), "all": square(7, 9, whole=False)}

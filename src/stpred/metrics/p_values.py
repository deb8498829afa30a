"""Corrections of p-values for the number of tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def benjamini_hochberg(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (G,) p-values corrected for the false discovery rate; NaN stays NaN and is no test."""
    from scipy.stats import false_discovery_control

    corrected = np.full_like(p, np.nan)
    if (tested := np.isfinite(p)).any():
        corrected[tested] = false_discovery_control(p[tested])
    return corrected

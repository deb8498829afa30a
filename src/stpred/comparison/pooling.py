"""Values pooled over sets of locations, such as the squares of a lattice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.expression.cut import Cut

PREDICTION = "prediction"


@dataclass(frozen=True)
class Squares:
    """Values pooled into squares.

    Attributes
    ----------
    at
        (b, 2) int64 column and row of squares of a lattice anchored at the frame's origin, by row and then column.
    values
        (b, G) predictions.
    summary
        Numbers for the provenance, JSON-able.
    """

    at: NDArray[np.int64]
    values: Cut
    summary: dict[str, Any]


def check_prediction(provenance: dict[str, Any], *, what: str) -> dict[str, Any]:
    """Return the provenance of a prediction; refuse any other."""
    if provenance.get("kind") != PREDICTION:
        raise InputError(f"{what} holds {provenance.get('kind')}, not predictions.")
    if "output_scale" not in provenance:
        raise InputError(f"{what} does not state the scale of its predictions: its provenance lacks 'output_scale'.")
    return provenance


def members(member: NDArray[np.int64], n: int) -> Any:
    """Return the (n, locations) sparse matrix of 0 and 1 that says which locations are in which square."""
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(member), np.int64), (member, np.arange(len(member)))), (n, len(member)))

"""What runs a published predictor: the interface between its own code and ours."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Runtime(Protocol):
    """A published predictor in memory.

    Attributes
    ----------
    symbols
        Names of its outputs: gene symbols as far as they are known.
    gene_ids
        Ensembl ids of these, None where unknown.
    revision
        Fingerprint of its weights.
    """

    symbols: list[str]
    gene_ids: list[str | None]
    revision: str

    def predict(self, inputs: NDArray[Any], coords: NDArray[np.float64] | None) -> NDArray[np.float32]:
        """Map (n, width) features, or pixels row by row, and (n, 2) upper left corners in pixels, to (n, G) values."""
        ...

    def to(self, device: Any) -> None:
        """Move it."""
        ...

"""Mean and standard deviation of a slide's features, from blocks of them, to the last bit as from all at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

_ROWS = 4096


@dataclass(frozen=True)
class Moments:
    """Statistics of (n, n_features) features.

    Attributes
    ----------
    mean, std
        (n_features,) float64, with numpy's own order of summing.
    std_of_blocks
        The standard deviation with squares summed by blocks of rows first, as networks take it.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    std_of_blocks: NDArray[np.float64]

    @classmethod
    def of(
        cls, features: NDArray[Any], rows: NDArray[np.int64], *, done: Callable[[NDArray[Any]], None] | None = None
    ) -> Self:
        """Return those of some rows, which are read block by block; `done` is called with `features` after each."""

        def blocks() -> Any:
            for first in range(0, len(rows), _ROWS):
                yield np.asarray(features[rows[first : first + _ROWS]], dtype=np.float64)
                if done is not None:
                    done(features)

        total = np.zeros(features.shape[1])
        for block in blocks():
            total = np.add.reduce(np.concatenate([total[None], block]), axis=0)
        mean = total / len(rows)
        squares, of_blocks = np.zeros_like(mean), np.zeros_like(mean)
        for block in blocks():
            away = np.square(block - mean)
            squares = np.add.reduce(np.concatenate([squares[None], away]), axis=0)
            of_blocks += away.sum(axis=0)
        return cls(mean, np.sqrt(squares / len(rows)), np.sqrt(of_blocks / len(rows)))

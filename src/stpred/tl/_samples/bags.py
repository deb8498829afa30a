"""Slides as bags of tiles: their moments, and the tiles of extreme scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass(frozen=True)
class Bags:
    """Tiles of slides, and where the extremes of a score are to be looked for.

    Attributes
    ----------
    features
        (N, d) tiles of all slides.
    starts
        (S + 1,) first row of each slide.
    places
        (S, T) rows of each slide, filled up with N to the longest.
    order
        (S, n_top) which of the sorted scores stand for the n_top most extreme: in a slide of fewer tiles each is there
        several times, as evenly as can be.
    """

    features: Tensor
    starts: NDArray[np.int64]
    places: Tensor
    order: Tensor

    @classmethod
    def of(cls, tiles: Sequence[NDArray[Any]], n_top: int, *, device: str = "cpu") -> Bags:
        import torch

        n = np.array([len(t) for t in tiles])
        starts = np.concatenate([[0], np.cumsum(n)])
        at = np.arange(max(n.max(), n_top))
        places = np.where(at < n[:, None], starts[:-1, None] + at, starts[-1])
        order = ((np.arange(n_top) + 0.5) * np.minimum(n, n_top)[:, None] / n_top).astype(np.int64)
        rows = np.concatenate([np.asarray(t, dtype=np.float32) for t in tiles])
        return cls(
            torch.from_numpy(rows).to(device), starts, torch.from_numpy(places).to(device),
            torch.from_numpy(order).to(device),
        )  # fmt: skip

    @cached_property
    def slide_means(self) -> NDArray[np.float64]:
        """(S, d) mean features of each slide."""
        return self._means(lambda part: part.mean(dim=0))

    @cached_property
    def slide_squares(self) -> NDArray[np.float64]:
        """(S, d) mean squares of the features of each slide."""
        return self._means(lambda part: part.square().mean(dim=0))

    def _means(self, function: Any) -> NDArray[np.float64]:
        parts = zip(self.starts[:-1], self.starts[1:], strict=True)
        return np.stack([function(self.features[a:b].double()).cpu().numpy() for a, b in parts])

    def moments(self, masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (K, d) means and standard deviations of the tiles of each mask's slides, a slide weighing as any."""
        first, second = self.slide_means, self.slide_squares
        share = masks / masks.sum(axis=1, keepdims=True)
        mean = share @ first
        spread = np.sqrt(np.maximum(share @ second - mean**2, 0))
        return mean, np.where(spread > 1e-6 * np.abs(mean) + 1e-12, spread, np.inf)

    def highest(self, scores: Tensor) -> Tensor:
        """Return (K, S, n_top) rows of the highest tiles of each slide by (K, N) scores, from high to low."""
        import torch

        padded = torch.nn.functional.pad(scores, (0, 1), value=-torch.inf)[:, self.places]
        top = padded.topk(self.order.shape[1], dim=2).indices.gather(2, self.order.expand(len(scores), -1, -1))
        return self.places.expand(len(scores), -1, -1).gather(2, top)

    def extremes(self, scores: Tensor) -> Tensor:
        """Return (K, S, 2 n_top) of (K, N) scores those of the highest and the lowest tiles, from high to low each."""
        import torch

        with torch.no_grad():
            rows = torch.cat([self.highest(scores), self.highest(-scores).flip(2)], dim=2)
        return scores.gather(1, rows.flatten(1)).reshape(rows.shape)

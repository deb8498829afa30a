"""How far tiles, and slides as a whole, are from those of training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred.links import Links

_SLIDE_TILES = 20
"""Tiles from which on a slide is judged as a whole."""


_FEWEST_DONORS = 3
"""Donors, or sections of a single one, from which on slides are judged as a whole."""


_SLIDES_DIFFER = 0.05
"""Least standard deviation between slides of the log of their median distance: few slides may happen to agree."""


_ROWS = 2**16
"""Features whose distances, in double precision, are in memory at a time."""


class TrainingDistribution(nn.Module):
    """How far features lie from those of training: Mahalanobis distance in the leading components plus the rest.

    Distances are given as shares of the 99th percentile of what tiles of left-out training donors have. Tiles of a
    slide that was stained, scanned or prepared otherwise may each stay below that and yet all lie too far out, so the
    slide is judged as well, by its median (:func:`ood_scores`).
    """

    MAX_COMPONENTS: ClassVar[int] = 24
    mean: Tensor
    std: Tensor
    components: Tensor
    spread: Tensor
    rest: Tensor
    limit: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        k = min(self.MAX_COMPONENTS, n_features)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.register_buffer("components", torch.zeros(k, n_features))
        self.register_buffer("spread", torch.ones(k))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("limit", torch.ones(()))

    def fit(
        self,
        slides: Sequence[NDArray[np.float32]],
        groups: Sequence[str] | None = None,
        *,
        seen: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> float | None:
        """Learn from the (n, n_features) features of each training slide and its donor; None: one each.

        Returns the median distance up to which a whole slide counts as alike; None where fewer than three donors (of
        one donor: slides) cannot tell.
        `seen` gives the distances of a slide's targets as they are judged in prediction; None: those of its tiles.
        """
        self.limit.fill_(1.0)
        donors = [str(i) for i in range(len(slides))] if groups is None else list(groups)
        if len(set(donors)) == 1:  # sections of one donor are left out one by one
            donors = [str(i) for i in range(len(slides))]
        distances, typical = [], []
        for left in dict.fromkeys(donors) if len(slides) > 1 else ():
            self._fit_space(np.concatenate([s for s, d in zip(slides, donors, strict=True) if d != left]))
            for i in [i for i, d in enumerate(donors) if d == left]:
                distances.append(self.distance(slides[i]))
                typical.append((left, float(np.median(distances[-1] if seen is None else seen(i)))))
        self._fit_space(np.concatenate(slides))
        found = distances or [self.distance(slides[0])]
        self.limit.fill_(max(float(np.quantile(np.concatenate(found), 0.99)), 1e-6))
        medians = [
            np.mean(np.log([m for d, m in typical if d == left])) for left in dict.fromkeys(d for d, _ in typical)
        ]
        if len(medians) < _FEWEST_DONORS:
            return None
        return _slide_limit(np.exp(medians) / float(self.limit))

    def _fit_space(self, features: NDArray[np.float32]) -> None:
        features = features.astype(np.float64)
        mean, std = features.mean(axis=0), features.std(axis=0)
        std[std < 1e-8] = 1.0
        scaled = (features - mean) / std
        # The covariance is small (features x features) however many tiles there are.
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        values, vectors = values[::-1].clip(1e-6), vectors[:, ::-1]
        # eigh leaves the sign open; the largest entry is made positive so that files are reproducible.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        k = len(self.spread)
        for name, value in {
            "mean": mean,
            "std": std,
            "components": vectors[:, :k].T,
            "spread": np.sqrt(values[:k]),
            "rest": np.sqrt(values[k:].sum() + 1e-3),
        }.items():
            getattr(self, name).copy_(torch.from_numpy(np.asarray(value)))

    @property
    def known(self) -> bool:
        """Whether training tiles were seen; published weights come without."""
        return bool(self.components.any())

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the (n,) distances of (n, n_features) features from the training mean."""
        arrays = {k: v.cpu().numpy().astype(np.float64) for k, v in self.named_buffers()}
        scaled = (features.astype(np.float64) - arrays["mean"]) / arrays["std"]
        inside = scaled @ arrays["components"].T
        outside = np.square(scaled).sum(axis=1) - np.square(inside).sum(axis=1)
        return np.sqrt(np.square(inside / arrays["spread"]).mean(axis=1) + outside.clip(0) / arrays["rest"] ** 2)

    def within(self, features: NDArray[Any], links: Links) -> NDArray[np.float32]:
        """Return (n,) relative distances of targets: the mean of the features that (n,) ragged links give each."""
        distance = np.zeros(len(features), dtype=np.float32)
        rows = np.unique(links.indices)
        for part in np.array_split(rows, -(-len(rows) // _ROWS)):
            distance[part] = self.distance(np.asarray(features[part], dtype=np.float32))
        return self.relative(links.mean(distance))

    def relative(self, distance: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (n,) distances as shares of the limit of training tiles, NaN where these are not known."""
        if not self.known:
            return np.full(len(distance), np.nan, dtype=np.float32)
        return (distance / float(self.limit)).astype(np.float32)


def _slide_limit(medians: NDArray[np.float64]) -> float:
    """Return what the median distance of one more donor like these stays below in 97.5 % of cases (log-normal)."""
    from scipy.stats import t

    logs, n = np.log(np.maximum(medians, 1e-6)), len(medians)
    spread = max(float(logs.std(ddof=1)), _SLIDES_DIFFER)
    return float(np.exp(logs.mean() + t.ppf(0.975, n - 1) * spread * np.sqrt(1 + 1 / n)))


def ood_scores(relative: NDArray[np.float32], slide_limit: float | None = None) -> NDArray[np.float32]:
    """Return (n,) scores of one slide's tiles: 0 = like those of training, positive beyond.

    Parameters
    ----------
    relative
        (n,) distances as shares of the training tiles' limit.
    slide_limit
        Median of these up to which the whole slide is alike; what it goes beyond that is added to every tile. None, or
        fewer than 20 tiles: the slide is not judged.
    """
    scores = np.maximum(relative - 1.0, 0.0)
    return (scores + (slide_ood_score(relative, slide_limit) or 0.0)).astype(np.float32)


def slide_ood_score(relative: NDArray[np.float32], slide_limit: float | None) -> float | None:
    """Return how far a slide's median distance goes beyond those of training: 0 = alike, None = not judged."""
    if slide_limit is None or len(relative) < _SLIDE_TILES or np.isnan(relative).any():
        return None
    return max(float(np.median(relative)) / slide_limit - 1.0, 0.0)


def slide_ood_summary(relative: NDArray[np.float32], slide_limit: float | None) -> dict[str, Any]:
    """Return what the provenance says of a slide as a whole; None where it was not judged."""
    score = slide_ood_score(relative, slide_limit)
    unlike = ood_scores(relative, slide_limit) > 0
    return {
        "score": None if score is None else round(score, 4),
        "in_distribution": None if score is None else score == 0,
        "share_unlike": float(unlike.mean()),
    }

"""Out-of-distribution distances and scores of tiles and slides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.lazy import Lazily
from stpred.links import Links
from stpred.models.batch import Batch
from stpred.models.parts.cross_products import CrossProducts, dealt, total

MIN_SLIDE_TILES = 20
"""Tiles from which on a slide is judged as a whole."""

MIN_DONORS = 3
"""Donors, or sections of a single one, from which on slides are judged as a whole."""

MIN_ROWS = 3
"""Training tiles for each component: of fewer, held-out tiles lie so far out that nothing else would."""

MIN_SLIDE_SD = 0.05
"""Lower bound of the standard deviation between slides of the log median distance: few slides may happen to agree."""

_ROWS = 2**16
"""Features whose distances, in double precision, are in memory at a time."""

N_STATISTICS = 24
"""Mean and deviation of three channels, at four scales."""

_TILES_AT_ONCE = 256
"""Tiles that are in memory at a time."""


class TrainingDistribution(nn.Module):
    """Features of the training tiles: distances are Mahalanobis in the leading components plus the residual.

    Their unit is the 99th percentile of tiles of held-out training donors. Tiles of a slide that was stained, scanned
    or prepared otherwise may each stay below it and yet all lie far out, so the slide is judged as well, by its median
    (:func:`ood_scores`).
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
        blocks: Sequence[int] | None = None,
        target_distances: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> float | None:
        """Fit to the (n, n_features) features of each training slide, of the donors `groups` (None: one each).

        Returns the median distance up to which a whole slide is in distribution; None with fewer than three donors (of
        one donor: slides). `blocks`: widths of the features of several encoders side by side, which then count the
        same. `target_distances` gives those of a slide's targets as in prediction; None: of its features.

        Slides that come as :class:`~stpred._core.lazy.Lazily` are taken one after the other, and donors held out in a
        few folds.
        """
        self.limit.fill_(1.0)
        weights = None if blocks is None else _block_weights(blocks)
        donors = [str(i) for i in range(len(slides))] if groups is None else list(groups)
        if len(set(donors)) == 1:  # sections of one donor are held out one by one
            donors = [str(i) for i in range(len(slides))]
        distances: list[NDArray[np.float64]] = []
        medians: dict[str, list[float]] = {}
        spaces = self._one_by_one if isinstance(slides, Lazily) else self._at_once
        for i, features in spaces(slides, donors, weights):
            distances.append(self.distance(features))
            judged = distances[-1] if target_distances is None else target_distances(i)
            medians.setdefault(donors[i], []).append(float(np.median(judged)))
        found = distances or [self.distance(slides[0])]
        self.limit.fill_(max(float(np.quantile(np.concatenate(found), 0.99)), 1e-6))
        if len(medians) < MIN_DONORS:
            return None
        return _slide_limit(np.exp([np.mean(np.log(m)) for m in medians.values()]) / float(self.limit))

    def _at_once(
        self, slides: Sequence[NDArray[np.float32]], donors: list[str], weights: NDArray[np.float64] | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield each slide while the space is that of the other donors; afterwards it is that of all slides."""
        sizes = {d: sum(len(s) for s, e in zip(slides, donors, strict=True) if e == d) for d in donors}
        fewest = sum(sizes.values()) - (max(sizes.values()) if len(sizes) > 1 else 0)
        k = min(max(fewest // MIN_ROWS, 1), len(self.spread))
        for held_out in dict.fromkeys(donors) if len(slides) > 1 else ():
            others = np.concatenate([s for s, d in zip(slides, donors, strict=True) if d != held_out])
            self._fit_space(others, weights, k)
            yield from ((i, slides[i]) for i, d in enumerate(donors) if d == held_out)
        self._fit_space(np.concatenate(slides), weights, k)

    def _one_by_one(
        self, slides: Sequence[NDArray[np.float32]], donors: list[str], weights: NDArray[np.float64] | None
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Do the same with a few folds of donors and one slide in memory at a time."""
        center = slides[0].mean(axis=0, dtype=np.float64)
        folds, parts = dealt(donors), []
        for fold in folds:
            parts.append(CrossProducts.zeros(len(center)))
            for i in fold:
                parts[-1].add(slides[i] - center)
        whole = total(parts)
        fewest = whole.n - (max(p.n for p in parts) if len(parts) > 1 else 0)
        k = min(max(fewest // MIN_ROWS, 1), len(self.spread))
        for fold in folds if len(folds) > 1 else ():
            self._fit_products(
                total([p for p, f in zip(parts, folds, strict=True) if f is not fold]), center, weights, k
            )
            yield from ((i, slides[i]) for i in fold)
        self._fit_products(whole, center, weights, k)

    def extend(
        self, slides: Sequence[NDArray[np.float32]], *, share: float, blocks: Sequence[int] | None = None
    ) -> None:
        """Take the (n, n_features) features of more slides in, with this share of the new distribution's moments.

        The old covariance is that of the leading components, and beside them of each feature by itself. Tiles at the
        old limit are, in the median, at the new one, unless the own tiles (99 % of them) reach further.
        """
        features = np.concatenate(slides).astype(np.float64)
        weights = np.ones(features.shape[1]) if blocks is None else _block_weights(blocks)
        border = self._border(weights)
        own, mean, std, components, spread, rest = (
            features.mean(axis=0),
            *(
                getattr(self, n).cpu().numpy().astype(np.float64)
                for n in ("mean", "std", "components", "spread", "rest")
            ),
        )
        old = (components.T * spread**2) @ components + np.diag(self._beside(components, spread, rest, weights))
        apart = own - mean
        covariance = (1 - share) * (old * std * std[:, None]) + share * np.cov(features.T, ddof=0).reshape(old.shape)
        self._set_space(mean + share * apart, covariance + share * (1 - share) * np.outer(apart, apart), weights)
        reach = float(np.quantile(self.distance(features), 0.99))
        self.limit.fill_(max(float(np.median(self.distance(border))), reach))

    def _border(self, weights: NDArray[np.float64], n: int = 1024) -> NDArray[np.float64]:
        """Return (n, n_features) features that all lie at the limit, in the directions that training tiles vary in."""
        arrays = {k: v.cpu().numpy().astype(np.float64) for k, v in self.named_buffers()}
        components, spread = arrays["components"], arrays["spread"]
        rng = np.random.default_rng(0)
        beside = np.sqrt(self._beside(components, spread, arrays["rest"], weights))
        scaled = (rng.standard_normal((n, len(spread))) * spread) @ components
        scaled += rng.standard_normal((n, len(beside))) * beside
        far = self.distance(arrays["mean"] + arrays["std"] * scaled)  # in proportion to `scaled`
        return np.asarray(arrays["mean"] + arrays["std"] * scaled * (arrays["limit"] / far)[:, None])

    @staticmethod
    def _beside(components: Any, spread: Any, rest: Any, weights: Any) -> NDArray[np.float64]:
        """Return each standardised and weighted feature's variance beside the components; their sum is known."""
        found = (weights**2 - (spread[:, None] ** 2 * components**2).sum(axis=0)).clip(0)
        return np.asarray(found * max(float(rest) ** 2 - 1e-3, 0.0) / max(found.sum(), 1e-12))

    def _fit_space(self, features: NDArray[np.float32], weights: NDArray[np.float64] | None, k: int) -> None:
        """Set the `k` leading components; the others of the buffers count nothing."""
        scaled = features.astype(np.float64)
        mean, std = scaled.mean(axis=0), scaled.std(axis=0)
        std[std < 1e-8] = 1.0
        if weights is not None:
            std /= weights
        scaled -= mean
        scaled /= std
        # The covariance is small (features x features) however many tiles there are.
        self._set_components(mean, std, scaled.T @ scaled / len(scaled), k)

    def _fit_products(
        self, sums: CrossProducts, center: NDArray[np.float64], weights: NDArray[np.float64] | None, k: int
    ) -> None:
        """Set the `k` leading components from sums of products about a point."""
        covariance = sums.centred()[0] / sums.n
        std = np.sqrt(np.diag(covariance).clip(0))
        std[std < 1e-8] = 1.0
        if weights is not None:
            std /= weights
        self._set_components(center + sums.centers[0], std, covariance / std / std[:, None], k)

    def _set_space(
        self, mean: NDArray[np.float64], covariance: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> None:
        std = np.sqrt(np.diag(covariance))
        std[std < 1e-8] = 1.0
        std /= weights
        used = int(self.components.any(dim=1).sum())  # as in training
        self._set_components(mean, std, covariance / std / std[:, None], max(used, 1))

    def _set_components(self, mean: Any, std: Any, correlation: NDArray[np.float64], k: int) -> None:
        values, vectors = np.linalg.eigh(correlation)
        values, vectors = values[::-1].clip(1e-6), vectors[:, ::-1]
        # eigh leaves the sign open; the largest entry is set positive so that files are reproducible.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        missing = len(self.spread) - k
        for name, value in {
            "mean": mean,
            "std": std,
            "components": np.pad(vectors[:, :k].T, ((0, missing), (0, 0))),
            "spread": np.pad(np.sqrt(values[:k]), (0, missing), constant_values=1.0),
            "rest": np.sqrt(values[k:].sum() + 1e-3),
        }.items():
            getattr(self, name).copy_(torch.from_numpy(np.asarray(value)))

    @property
    def fitted(self) -> bool:
        """Whether it was fitted; published weights come without."""
        return bool(self.components.any())

    def distance(self, features: NDArray[Any]) -> NDArray[np.float64]:
        """Return the (n,) distances of (n, n_features) features from the training mean."""
        arrays = {k: v.cpu().numpy().astype(np.float64) for k, v in self.named_buffers()}
        scaled = (features.astype(np.float64) - arrays["mean"]) / arrays["std"]
        inside = scaled @ arrays["components"].T
        outside = np.square(scaled).sum(axis=1) - np.square(inside).sum(axis=1)
        return np.sqrt(np.square(inside / arrays["spread"]).mean(axis=1) + outside.clip(0) / arrays["rest"] ** 2)

    def mean_distance(self, features: NDArray[Any], links: Links) -> NDArray[np.float32]:
        """Return (n,) relative distances of targets: the mean over the rows of (m, n_features) features of each."""
        distance = np.zeros(len(features), dtype=np.float32)
        rows = np.unique(links.indices)
        for part in np.array_split(rows, -(-len(rows) // _ROWS)):
            distance[part] = self.distance(np.asarray(features[part], dtype=np.float32))
        return self.relative(links.mean(distance))

    def relative(self, distance: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (n,) distances in units of the training limit, NaN where it was not fitted."""
        if not self.fitted:
            return np.full(len(distance), np.nan, dtype=np.float32)
        return (distance / float(self.limit)).astype(np.float32)


def _block_weights(blocks: Sequence[int]) -> NDArray[np.float64]:
    """Return the (n_features,) weights with which standardised features of several encoders have the same variance.

    A feature by itself beside them (a number of cells) keeps its own.
    """
    widths = np.repeat(blocks, blocks).astype(np.float64)
    return np.asarray(np.where(widths > 1, np.sqrt(sum(blocks) / (len(blocks) * widths)), 1.0))


def _slide_limit(medians: NDArray[np.float64]) -> float:
    """Return the 97.5 % quantile of the median distance of one more donor (log-normal)."""
    from scipy.stats import t

    logs, n = np.log(np.maximum(medians, 1e-6)), len(medians)
    spread = max(float(logs.std(ddof=1)), MIN_SLIDE_SD)
    return float(np.exp(logs.mean() + t.ppf(0.975, n - 1) * spread * np.sqrt(1 + 1 / n)))


def ood_scores(relative: NDArray[np.float32], slide_limit: float | None = None) -> NDArray[np.float32]:
    """Return (n,) out-of-distribution scores of one slide's tiles: 0 = like those of training, positive beyond.

    Parameters
    ----------
    relative
        (n,) distances in units of the training limit.
    slide_limit
        Median of these up to which the whole slide is in distribution; what it goes beyond that is added to every
        tile. None, or fewer than 20 tiles: the slide is not judged.
    """
    scores = np.maximum(relative - 1.0, 0.0)
    return (scores + (slide_ood_score(relative, slide_limit) or 0.0)).astype(np.float32)


def slide_ood_score(relative: NDArray[np.float32], slide_limit: float | None) -> float | None:
    """Return the excess of a slide's median distance over those of training: 0 = in distribution, None = not judged."""
    if slide_limit is None or len(relative) < MIN_SLIDE_TILES or np.isnan(relative).any():
        return None
    return max(float(np.median(relative)) / slide_limit - 1.0, 0.0)


def slide_ood_summary(relative: NDArray[np.float32], slide_limit: float | None) -> dict[str, Any]:
    """Return the provenance of a slide's scores; None where it was not judged as a whole."""
    score = slide_ood_score(relative, slide_limit)
    outside = ood_scores(relative, slide_limit) > 0
    return {
        "score": None if score is None else round(score, 4),
        "in_distribution": None if score is None else score == 0,
        "share_unlike": None if np.isnan(relative).all() else float(outside.mean()),
    }


def pixel_statistics(batch: Batch, mean: NDArray[Any], std: NDArray[Any]) -> NDArray[np.float32]:
    """Return (n, 24) normalised means and deviations of the channels of the tile, its half, quarter and eighth.

    `mean` and `std` are those of the channels, 0..1.
    """
    parts: list[NDArray[np.float32]] = []
    for start in range(0, len(batch.targets), _TILES_AT_ONCE):
        tiles = np.asarray(batch.features[batch.targets[start : start + _TILES_AT_ONCE]])
        size = math.isqrt(tiles.shape[1] // 3)
        tiles = tiles.reshape(-1, size, size, 3)
        columns = []
        for part in (1, 2, 4, 8):
            half = max(1, size // (2 * part))
            middle = tiles[:, size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half]
            columns += [(middle.mean(axis=(1, 2)) / 255 - mean) / std, middle.std(axis=(1, 2)) / 255 / std]
        parts.append(np.concatenate(columns, axis=1).astype(np.float32))
    return np.concatenate(parts) if parts else np.empty((0, N_STATISTICS), dtype=np.float32)

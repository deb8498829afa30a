"""What features are worth: simple classifiers on them, and measures that need no labels. Arrays only."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

_CHUNK = 2048


def standardized(
    train: NDArray[np.float32], test: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return both with the training rows' mean 0 and standard deviation 1; features that do not vary become 0."""
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scale = np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), 1 / np.maximum(std, 1e-12), 0.0)
    return ((train - mean) * scale).astype(np.float32), ((test - mean) * scale).astype(np.float32)


def knn_labels(
    train: NDArray[np.float32], labels: NDArray[np.int64], test: NDArray[np.float32], *, k: int, n_classes: int
) -> NDArray[np.int64]:
    """Return the commonest label among the k training rows nearest (Euclidean) to each test row; ties: the lowest."""
    known, given = torch.from_numpy(train), torch.from_numpy(labels)
    out = []
    for part in torch.from_numpy(test).split(_CHUNK):
        distance = known.square().sum(dim=1) - 2 * part @ known.T  # but for what is the same for all training rows
        nearest = given[distance.topk(min(k, len(known)), dim=1, largest=False).indices]
        out.append(F.one_hot(nearest, n_classes).sum(dim=1).argmax(dim=1))
    return torch.cat(out).numpy()


def linear_labels(
    train: NDArray[np.float32],
    labels: NDArray[np.int64],
    test: NDArray[np.float32],
    *,
    n_classes: int,
    penalty: float = 1e-3,
    iterations: int = 100,
) -> NDArray[np.int64]:
    """Return what a multinomial logistic regression on the training rows says of the test rows."""
    x, y = torch.from_numpy(train), torch.from_numpy(labels)
    weight = torch.zeros(train.shape[1], n_classes, requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight + bias, y) + 0.5 * penalty * weight.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return (torch.from_numpy(test) @ weight + bias).argmax(dim=1).numpy()


def accuracies(truth: NDArray[np.int64], said: NDArray[np.int64]) -> tuple[float, float]:
    """Return the share of right labels, and its mean over the classes that occur (balanced accuracy)."""
    right = truth == said
    return float(right.mean()), float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def recognition(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return how surely a tile's first view is told to be of the same tile as its second view.

    The share of other tiles whose second view is less like it (correlation of standardised features), averaged over
    tiles: 1 is perfect, 0.5 guessing.
    """
    both = np.concatenate([first, second])
    a, b = np.split(standardized(both, both)[0], 2)
    x, y = (F.normalize(torch.from_numpy(v), dim=1) for v in (a, b))
    alike = x @ y.T
    own = alike.diagonal()[:, None]
    others = max(len(alike) - 1, 1)
    less, same = (alike < own).sum(dim=1), (alike == own).sum(dim=1) - 1
    return float(((less + 0.5 * same) / others).mean())


def effective_rank(features: NDArray[np.float32]) -> float:
    """Return how many directions features vary in: exp of the entropy of the singular values (Roy & Vetterli 2007)."""
    values = np.linalg.svd(features - features.mean(axis=0, dtype=np.float64), compute_uv=False)
    if not values.sum() > 0:
        return 0.0
    share = values / values.sum()
    share = share[share > 0]
    return float(np.exp(-(share * np.log(share)).sum()))


def spread(features: NDArray[np.float32]) -> float:
    """Return the part of features' size that differs between tiles, 0 (all tiles alike) to 1."""
    size = float(np.square(features, dtype=np.float64).mean())
    return float(np.sqrt(features.var(axis=0, dtype=np.float64).mean() / size)) if size > 0 else 0.0

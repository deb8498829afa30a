"""What features are worth, by measures that need no labels. Arrays only."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray


def recognition(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the probability that a tile's first view is recognised as of the same tile as its second view.

    The share of other tiles whose second view is less like it (correlation of standardised features), averaged over
    tiles: 1 is perfect, 0.5 guessing.
    """
    from sklearn.preprocessing import StandardScaler

    a, b = np.split(StandardScaler().fit_transform(np.concatenate([first, second])), 2)
    x, y = (F.normalize(torch.from_numpy(v), dim=1) for v in (a, b))
    alike = x @ y.T
    own = alike.diagonal()[:, None]
    others = max(len(alike) - 1, 1)
    less, same = (alike < own).sum(dim=1), (alike == own).sum(dim=1) - 1
    return float(((less + 0.5 * same) / others).mean())


def effective_rank(features: NDArray[np.float32]) -> float:
    """Return the effective rank of features: exp of the entropy of the singular values (Roy & Vetterli 2007)."""
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

"""The tissue must be readable from morphology and not from colour; otherwise a score on it means nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stpred.datasets import make_tissue
from stpred.datasets._spots import visium_spots
from stpred.encoders._built_in.morphology import Morphology

TILE_PX = 224


def _slide(donor: int) -> tuple[NDArray, NDArray, NDArray]:
    """Return morphology features, mean colour and the log of the noiseless share of each spot."""
    tissue = make_tissue(size_um=(900, 900), donor=donor, seed=7, n_genes=60)
    spots = visium_spots(tissue)
    kept = spots.positions["n_cells"].to_numpy() > 0
    pad = TILE_PX // 2
    image = np.pad(tissue.image, ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    corner = np.rint(spots.positions.loc[kept, ["y_um", "x_um"]].to_numpy() / tissue.mpp).astype(int)
    tiles = np.stack([image[i : i + TILE_PX, j : j + TILE_PX] for i, j in corner])
    expected = spots.expected[kept].astype(float)
    log = np.log1p(expected / expected.sum(axis=1, keepdims=True) * 1e4)
    return Morphology(threads=1).encode(tiles).astype(float), tiles.mean(axis=(1, 2)), log


def _ridge(x: NDArray, y: NDArray, held_out: NDArray, penalty: float) -> NDArray:
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-9
    x, held_out = (x - mean) / std, (held_out - mean) / std
    return held_out @ np.linalg.solve(x.T @ x + penalty * np.eye(x.shape[1]), x.T @ (y - y.mean(axis=0)))


def _median_pearson(a: NDArray, b: NDArray) -> float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(np.median((a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0) + 1e-12)))


@pytest.mark.slow
def test_morphology_predicts_an_unseen_donor_and_colour_does_not() -> None:
    *train, (features, colour, truth) = [_slide(donor) for donor in range(3)]
    x, y = (np.concatenate([slide[k] for slide in train]) for k in (0, 2))
    good = _median_pearson(_ridge(x, y, features, 100.0), truth)
    rgb = np.concatenate([slide[1] for slide in train])
    edges = np.quantile(rgb, [0.2, 0.4, 0.6, 0.8], axis=0)
    bins = [np.eye(5)[(c[:, :, None] >= edges.T).sum(axis=2)].reshape(len(c), -1) for c in (rgb, colour)]
    intensity = _median_pearson(_ridge(bins[0], y, bins[1], 1e-6), truth)
    assert good >= 0.75, (good, intensity)
    assert intensity <= good / 2

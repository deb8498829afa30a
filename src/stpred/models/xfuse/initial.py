"""Initial values of XFuse: gene baselines, metagene profiles, and the data that they are fitted to."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.targets import dense
from stpred.models.batch import Batch
from stpred.models.parts.pixel_grid import Window
from stpred.models.xfuse.likelihood import EPS, negative_binomial

STEPS = 400
RATE = 0.05


def fit_baselines(counts: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    """Return (g,) log total counts and (g,) logits of genes by maximum likelihood.

    Parameters
    ----------
    counts
        (n, g) counts of all locations.
    measured
        (n, g) whether the gene was measured there.

    Notes
    -----
    Starts at the moments and goes on with Adam; all of the rows in each step, so nothing is random. A gene without any
    count gets half a count over all locations.
    """
    n = measured.sum(dim=0).clamp(min=1)
    mean = ((counts * measured).sum(dim=0) / n).clamp(min=0.5 / float(len(counts)))
    variance = ((counts - mean).square() * measured).sum(dim=0) / n
    odds = (variance / mean - 1).clamp(min=0.05, max=1e3)  # mean = r * odds, variance = mean * (1 + odds)
    logits = odds.log().requires_grad_()
    rate = (mean / odds).log().requires_grad_()
    optimizer = torch.optim.Adam([rate, logits], lr=RATE)
    with torch.enable_grad():
        for _ in range(STEPS):
            optimizer.zero_grad()
            found = negative_binomial(counts, rate.exp() + EPS, logits)
            (-(found * measured).sum() / len(counts)).backward()
            optimizer.step()
            with torch.no_grad():  # a Poisson-like gene has no finite solution
                logits.clamp_(min=-6)
                rate.clamp_(min=-15, max=15)
    # The means are what counts; the last steps of Adam leave them off by a little.
    with torch.no_grad():
        rate += mean.log() - (rate + logits)
    return rate.detach(), logits.detach()


def first_profiles(
    counts: Tensor, measured: Tensor, n: int, *, logits: Tensor, max_log: float = 3.0
) -> tuple[Tensor, Tensor]:
    """Return (n, g) log profiles, relative to the mean, that the locations' counts are mixtures of, and deviations.

    Non-negative factors of the counts. With no profile to start from, thousands of steps go by before metagenes that
    began alike have parted. The deviations are what so many counts of their dispersion leave open: of `logits`, and as
    if each count came from its metagene, beside a prior of one. Profiles beyond the number of genes or locations are
    those of the mean, with deviations of one.
    """
    from sklearn.decomposition import NMF

    share = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    mean = (share * measured).sum(dim=0) / measured.sum(dim=0).clamp(min=1)
    values = torch.where(measured, counts, mean * counts.sum(dim=1, keepdim=True)).double().numpy()
    k = min(n, *values.shape)
    model = NMF(k, init="nndsvda", solver="mu", beta_loss="kullback-leibler", max_iter=300, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged is no matter for a start
        weights = model.fit_transform(values + 1e-9)
    parts = torch.from_numpy(model.components_).float()
    held = parts * torch.from_numpy(weights.sum(axis=0)).float()[:, None]  # counts of each gene in each metagene
    deviation = (1 + held / (1 + logits.exp())).rsqrt()
    of_part = parts / parts.sum(dim=1, keepdim=True).clamp(min=1e-12)
    eps = 0.02 * mean.clamp(min=mean[mean > 0].min() if bool((mean > 0).any()) else 1.0)
    profiles = ((of_part + eps) / (mean + eps)).log().clamp(-max_log, max_log)
    further = (0, 0, 0, n - k)
    return torch.nn.functional.pad(profiles, further), torch.nn.functional.pad(deviation, further, value=1.0)


def evenly_picked_rows(batch: Batch, max_rows: int) -> NDArray[np.int64]:
    """Return rows of evenly picked locations, at most so many."""
    n = len(batch.targets)
    return np.unique(np.linspace(0, n - 1, min(max(max_rows, 1), n)).astype(np.int64))


def features_of_targets(
    batch: Batch, *, edge: int = 256
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float64]]:
    """Return the (p, width) features of the pixels in targets, their (n, width) means, and the targets' (n,) sizes."""
    grid: Any = batch.pixel_grid
    n, frame = len(batch.targets), grid.frame
    sums, sizes, pixels = np.zeros((n, grid.n_features)), np.zeros(n), []
    for row in range(frame.row, frame.row + frame.height, edge):
        for column in range(frame.column, frame.column + frame.width, edge):
            height, width = min(edge, frame.row + frame.height - row), min(edge, frame.column + frame.width - column)
            window = Window(row, column, height, width)
            inside = grid.inside(window)
            if len(inside.target) == 0:
                continue
            values = grid.features(window).reshape(grid.n_features, -1).T[inside.pixel]
            pixels.append(values[inside.share > 0.5])
            np.add.at(sums, inside.target, values * inside.share[:, None])
            np.add.at(sizes, inside.target, inside.share)
    means = sums / np.maximum(sizes, 1e-9)[:, None]
    return np.concatenate(pixels or [means.astype(np.float32)]), means.astype(np.float32), sizes


def evenly_picked_counts(batch: Batch, n_genes: int, max_rows: int) -> tuple[Tensor, Tensor]:
    """Return (n, n_genes) counts of evenly picked locations, and whether each gene was measured there."""
    rows = evenly_picked_rows(batch, max_rows)
    counts = torch.from_numpy(dense(batch.y[rows], np.float32))  # type: ignore[index]
    measured = torch.ones(n_genes, dtype=torch.bool) if batch.measured is None else torch.from_numpy(batch.measured)
    return counts, measured.expand(len(rows), n_genes)


def evenly_picked_pixels(grid: Any, *, edge: int = 64) -> NDArray[np.float32]:
    """Return (3, p) pixels of nine windows spread over the frame."""
    frame = grid.frame
    height, width = min(edge, frame.height), min(edge, frame.width)
    at = [
        Window(
            frame.row + int(y * (frame.height - height)), frame.column + int(x * (frame.width - width)), height, width
        )
        for y in (0.0, 0.5, 1.0)
        for x in (0.0, 0.5, 1.0)
    ]
    grid.fetch(at)
    return np.concatenate([grid.image(window).reshape(3, -1) for window in at], axis=1)

"""Features of encoders beside the pixels: reduced, and as a linear term of metagenes and scale."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

MAX_ROWS = 100_000
"""Pixels that the principal components are found on."""


class FeatureTerm(nn.Module):
    """What the features of a pixel add to its metagenes and its scale, beside what the latents say.

    Parameters
    ----------
    width
        Number of features.
    channels
        Number of principal components that they are reduced to.
    metagenes
        Most metagenes.

    Attributes
    ----------
    precision
        Of the normal prior of the weights.
    dispersion
        Factor of the counts' odds when training is done, as held-out spots of the training sections have it.
    unseen
        Further factor of the odds on other sections, whose own effects are not known.
    """

    centre: Tensor
    axes: Tensor
    precision: Tensor
    dispersion: Tensor
    unseen: Tensor

    def __init__(self, width: int, channels: int, metagenes: int) -> None:
        super().__init__()
        self.channels = min(width, channels)
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("axes", torch.zeros(width, self.channels))
        self.register_buffer("precision", torch.ones(()))
        self.register_buffer("dispersion", torch.ones(()))
        self.register_buffer("unseen", torch.ones(()))
        self.to_metagenes = nn.Parameter(torch.zeros(metagenes, self.channels))
        self.to_scale = nn.Parameter(torch.zeros(self.channels))

    def forward(self, features: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p, m) terms of the active metagenes' logits and (p,) terms of the scale, of (b, k, h, w) features."""
        rows = features.float().permute(0, 2, 3, 1).flatten(0, 2)
        return rows @ self.to_metagenes[active].T, rows @ self.to_scale

    def penalty(self, active: Tensor) -> Tensor:
        """Return minus the log density of the weights, up to a constant."""
        return self.precision / 2 * (self.to_metagenes[active].square().sum() + self.to_scale.square().sum())

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load; models of before there was `unseen` have one dispersion for all sections."""
        state_dict.setdefault(prefix + "unseen", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def fit_axes(self, values: NDArray[np.float32]) -> None:
        """Set the principal components of (n, width) features, in units of the first one's standard deviation."""
        step = max(1, len(values) // MAX_ROWS)
        some = values[::step].astype(np.float64)
        centre = some.mean(axis=0)
        variance, vectors = np.linalg.eigh((some - centre).T @ (some - centre) / len(some))
        axes = vectors[:, ::-1][:, : self.channels]
        # A sign for each, so that it does not depend on the machine.
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
        self.centre.copy_(torch.from_numpy(centre))
        self.axes.copy_(torch.from_numpy(axes / np.sqrt(max(variance[-1], 1e-12))))

    def reduced(self, grid: Any) -> Any:
        """Return a slide's pixel grid with its features reduced."""
        return grid.reduced(self.centre.cpu().numpy(), self.axes.cpu().numpy())

"""Layers that families share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stpred._core.checks import one_of

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu")


def activation(name: str) -> nn.Module:
    """Return an activation by name; ``"leaky_relu"`` has a slope of 0.01."""
    one_of(name, ACTIVATIONS, name="activation")
    return {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}[name]()


def lower_median(values: Tensor) -> Tensor:
    """Return the element-wise median of (n, e, f) values over e, the lower of the middle two when e is even."""
    return values.median(dim=1).values


def rows_or_zero(values: Tensor, rows: Tensor) -> Tensor:
    """Gather (n, k) rows of (m, f) values as (n, k, f); -1 gives zeros."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[rows]

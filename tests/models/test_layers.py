"""Layers against their plain form, value by value."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stpred.models.parts import layers


def plainly(linear: list[nn.Linear], x: torch.Tensor, p: float) -> torch.Tensor:
    """A linear layer, ReLU and dropout in turn, from the same random numbers."""
    for layer in linear:
        x = torch.relu(layer(x))
        x = torch.where(layers._kept(x.shape, p, x.device), x, 0.0) * (1 / (1 - p))
    return x


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_relu_and_dropout_in_one_are_those_in_turn(p: float) -> None:
    """Bit by bit, and so are the gradients: what was trained before is trained to the same weights."""
    torch.manual_seed(0)
    linear = [nn.Linear(7, 50), nn.Linear(50, 20)]
    x, weight = torch.randn(300, 7), torch.randn(300, 20)
    found = []
    for how in ("one", "turn"):
        torch.manual_seed(1)
        for layer in linear:
            layer.zero_grad()
        if how == "one":
            out = layers.hidden_values(linear, x, nn.ReLU(), hidden_dropout=p, training=True)
        else:
            out = plainly(linear, x, p)
        (out * weight).sum().backward()
        found.append([out.detach(), *(q.grad.clone() for layer in linear for q in layer.parameters())])
    for one, turn in zip(*found, strict=True):
        assert torch.equal(one, turn)
    assert abs(float((found[0][0] == 0).float().mean()) - (1 - (1 - p) / 2)) < 0.1

"""Layers that families share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stpred._core.checks import InputError, one_of

OUTPUTS = ("linear", "relu", "softplus")

SOFTPLUS_BETA = 20.0
"""Steepness of softplus outputs, as in sCellST."""

ACTIVATIONS = ("relu", "leaky_relu", "gelu", "silu")

_BLOCK = {"cpu": 2**18, "other": 2**26}
"""Values of a block of medians: what a CPU's cache holds; a GPU needs more."""


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; the mode comes back afterwards."""
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        network.train(training)


def linear_layers(*widths: int) -> nn.ModuleList:
    """Return the linear layers of a perceptron of these widths."""
    return nn.ModuleList(nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))


def activation(name: str) -> nn.Module:
    """Return an activation by name; ``"leaky_relu"`` has a slope of 0.01."""
    one_of(name, ACTIVATIONS, name="activation")
    return {"relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "gelu": nn.GELU, "silu": nn.SiLU}[name]()


def perceptron(
    layers: Iterable[nn.Module],
    x: Tensor,
    act: nn.Module,
    *,
    hidden_dropout: float = 0.0,
    input_dropout: float = 0.0,
    output: str = "linear",
    training: bool = False,
) -> Tensor:
    """Map (n, width) values through linear layers, with an activation and dropout after each but the last.

    `output` is what follows the last one: ``"linear"``, ``"relu"`` or ``"softplus"`` (of steepness 20).
    """
    *hidden, last = layers
    x = hidden_values(hidden, x, act, hidden_dropout=hidden_dropout, input_dropout=input_dropout, training=training)
    x = last(x)
    if output == "relu":
        return x.relu()
    return nn.functional.softplus(x, beta=SOFTPLUS_BETA) if output == "softplus" else x


def hidden_values(
    layers: Iterable[nn.Module],
    x: Tensor,
    act: nn.Module,
    *,
    hidden_dropout: float = 0.0,
    input_dropout: float = 0.0,
    training: bool = False,
) -> Tensor:
    """Map (n, width) values through the hidden layers of :func:`perceptron`, each with activation and dropout."""

    def drop(values: Tensor, p: float) -> Tensor:
        return dropout(values, p) * (1 / (1 - p)) if training and p else values

    x = drop(x, input_dropout)
    for layer in layers:
        if training and hidden_dropout and type(act) is nn.ReLU:
            x = _ReLUDropout.apply(layer(x), hidden_dropout)
        else:
            x = drop(act(layer(x)), hidden_dropout)
    return x


class _ReLUDropout(torch.autograd.Function):
    """ReLU and dropout of a linear layer's output, in its own memory; the result is all that the gradient needs."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        values.relu_().mul_(_kept(values.shape, p, values.device)).mul_(1 / (1 - p))
        ctx.mark_dirty(values)
        ctx.save_for_backward(values)
        ctx.scale = 1 / (1 - p)
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (values,) = ctx.saved_tensors
        # the kernel of ReLU's own gradient: what is above zero passes
        return torch.ops.aten.threshold_backward(gradient * ctx.scale, values, 0), None


def segment_sum(values: Tensor, owners: Tensor, n: int) -> Tensor:
    """Sum (m, f) values into the (n, f) segments that (m,) `owners` name, in rising order; empty ones are zero."""
    counts = torch.bincount(owners, minlength=n)
    if values.device.type == "cpu" and values.dtype == torch.float32:
        return torch.segment_reduce(values.contiguous(), "sum", lengths=counts, unsafe=True, initial=0)
    return values.new_zeros(n, values.shape[1]).index_add_(0, owners, values)


def segment_mean(values: Tensor, owners: Tensor, n: int) -> Tensor:
    """Average (m, f) values within the (n, f) segments that (m,) `owners` name, in rising order."""
    counts = torch.bincount(owners, minlength=n).clamp(min=1)
    return segment_sum(values, owners, n) / counts[:, None]


def segment_softmax(values: Tensor, owners: Tensor, n: int) -> Tensor:
    """Return (m,) weights: the softmax of (m,) values within each of n segments."""
    highest = values.new_full((n,), -torch.inf).scatter_reduce(0, owners, values.detach(), "amax")
    raised = (values - highest[owners]).exp()
    return raised / segment_sum(raised[:, None], owners, n)[owners, 0]


_T = TypeVar("_T")


def needed(value: _T | None, what: str) -> _T:
    """Return a required part of a batch; raise `InputError` if it is missing."""
    if value is None:
        raise InputError(f"The batch came without {what}, which this model needs.")
    return value


def mean_of_rows(values: Tensor, rows: Tensor, *, otherwise: Tensor) -> Tensor:
    """Average (n, k) rows of (m, f) values, -1 for none; where there is none, take the (n, f) `otherwise`."""
    if rows.shape[1] == 0:
        return otherwise
    number = (rows >= 0).sum(dim=1, keepdim=True)
    return torch.where(number > 0, rows_or_zero(values, rows).sum(dim=1) / number.clamp(min=1), otherwise)


def ring_means_of_rows(values: Tensor, rows: Tensor, near: Tensor | None, *, otherwise: Tensor) -> list[Tensor]:
    """Average (n, k) rows of (m, f) values, nearest first, in rings that end after (n, r) `near` of them.

    None: one mean of all. Where a ring is empty, the next inner one stands for it, and for the first the (n, f)
    `otherwise`.
    """
    if near is None:
        return [mean_of_rows(values, rows, otherwise=otherwise)]
    found = []
    place = torch.arange(rows.shape[1], device=rows.device)
    inner = torch.zeros_like(near[:, :1])
    for outer in near.split(1, dim=1):
        ring = torch.where((place >= inner) & (place < outer), rows, -1)
        otherwise = mean_of_rows(values, ring, otherwise=otherwise)
        found.append(otherwise)
        inner = outer
    return found


def rows_or_zero(values: Tensor, rows: Tensor) -> Tensor:
    """Gather (n, k) rows of (m, f) values as (n, k, f); -1 gives zeros."""
    return torch.cat([values, values.new_zeros(1, values.shape[1])])[rows]


def dropout(values: Tensor, p: float) -> Tensor:
    """Drop values as torch does in training, from cheaper random numbers; what stays is not scaled up."""
    return values * _kept(values.shape, p, values.device) if p else values


def _kept(shape: torch.Size, p: float, device: torch.device) -> Tensor:
    """Return a mask that is false with probability p (on the CPU a multiple of 1 / 65536), from torch's random state.

    To multiply with: that is several times as fast as ``torch.where``, which is not vectorised over masks.
    """
    if device.type != "cpu":
        return torch.rand(shape, device=device) >= p
    # Four draws of 16 bits from each of 64, many times as fast as a float for each.
    bits = torch.empty(-(-shape.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    return bits.view(torch.int16)[: shape.numel()].view(shape) >= round(p * 2**16) - 2**15


def lower_median(values: Tensor) -> Tensor:
    """Return the element-wise median of (n, e, f) values over e, the lower of the middle two when e is even."""
    return _lower_median(list(values.unbind(1)))


def _lower_median(wires: list[Tensor]) -> Tensor:
    wires, middle = list(wires), (len(wires) - 1) // 2
    for low, high, lower, upper in _selection(len(wires), middle):
        a, b = wires[low], wires[high]
        if lower:
            wires[low] = torch.minimum(a, b)
        if upper:
            wires[high] = torch.maximum(a, b)
    return wires[middle]


@cache
def _selection(n: int, k: int) -> list[tuple[int, int, bool, bool]]:
    """Return the steps of Batcher's odd-even merge sort of n values that the k-th smallest (from 0) depends on.

    Each step is (i, j, whether i becomes the lesser, whether j becomes the greater of the two).
    """
    steps, p = [], 1
    while p < n:
        q = p
        while q:
            for j in range(q % p, n - q, 2 * q):
                for i in range(j, min(j + q, n - q)):
                    if i // (2 * p) == (i + q) // (2 * p):
                        steps.append((i, i + q))
            q //= 2
        p *= 2
    needed, kept = {k}, []
    for i, j in reversed(steps):
        if i in needed or j in needed:
            kept.append((i, j, i in needed, j in needed))
            needed |= {i, j}
    return kept[::-1]


def median_of_relus(values: Tensor, p: float = 0.0) -> Tensor:
    """Return the lower median over e of ReLUs of (n, e, f) values, after dropout with probability p.

    Dropout rescales. Only the index of each median among the e values is kept for the gradient.
    """
    return _MedianOfReLUs.apply(values, p)


class _MedianOfReLUs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        n, e, f = values.shape
        out = values.new_empty(n, f)
        # The number of the value, from 1; 0 where there is no gradient.
        which = torch.zeros(n, f, dtype=torch.int16 if e > 126 else torch.int8, device=values.device)
        for rows in _blocks(values):
            wires = [dropout(one, p) for one in values[rows].unbind(1)]
            # ReLU keeps the order of values, so that the median of ReLUs is the ReLU of the median.
            median = _lower_median(wires)
            torch.mul(median.relu(), 1 / (1 - p), out=out[rows])
            if ctx.needs_input_grad[0]:
                found = which[rows]
                for i, one in enumerate(wires, start=1):
                    torch.maximum(found, (one == median).to(which.dtype).mul_(i), out=found)
                found.mul_(median > 0)
        ctx.save_for_backward(which)
        ctx.shape, ctx.scale = values.shape, 1 / (1 - p)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (which,) = ctx.saved_tensors
        found = gradient.new_empty(ctx.shape)
        for rows in _blocks(found):
            scaled = gradient[rows] * ctx.scale
            for i, one in enumerate(found[rows].unbind(1), start=1):
                torch.mul(scaled, which[rows] == i, out=one)
        return found, None


def _blocks(values: Tensor) -> Iterator[slice]:
    n, e, f = values.shape
    step = max(1, _BLOCK["cpu" if values.device.type == "cpu" else "other"] // max(1, e * f))
    yield from (slice(i, i + step) for i in range(0, n, step))

"""Attention of every location to its own few neighbours, without a copy of their rows for each location.

On the CPU in single and double precision, compiled kernels walk over the neighbours of one location at a time. For
other devices and precisions, PyTorch works on a few locations at once. Both keep only the log of the softmax's
denominator for the backward pass, and compute the weights again there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stpred._core.checks import InputError, whole
from stpred._core.compute.threads import in_threads

# Entries of one gathered block in the PyTorch path: what a CPU's cache holds; a GPU needs more.
_BLOCK = {"cpu": 2**18, "other": 2**23}
# Multiplications from which threads are worth starting.
_MIN_THREADED = 2**20


def local_attention(query: Tensor, key: Tensor, value: Tensor, neighbors: Tensor, *, n_heads: int) -> Tensor:
    """Return multi-head attention of every target to its own neighbours; differentiable once.

    Parameters
    ----------
    query
        (n, D) floats of the targets; the columns of one head lie side by side.
    key, value
        (m, D) floats of all locations, with the precision and device of `query`.
    neighbors
        (n, k) int64 rows of `key` and `value`, -1 where there is none. A row may be named more than once.
    n_heads
        Number of heads that share the D columns evenly.

    Returns
    -------
    (n, D) values averaged with the softmax of query.key / sqrt(D / n_heads) over the neighbours; 0 without neighbours.
    """
    n_heads = whole(n_heads, name="n_heads")
    _check(query, key, value, neighbors, n_heads=n_heads)
    return _LocalAttention.apply(query, key, value, neighbors if len(key) else neighbors[:, :0], n_heads)


def _check(query: Tensor, key: Tensor, value: Tensor, neighbors: Tensor, *, n_heads: int) -> None:
    floats = (query, key, value)
    shapes, kinds = [tuple(x.shape) for x in floats], [str(x.dtype) for x in floats]
    devices = [str(x.device) for x in (*floats, neighbors)]
    if query.ndim != 2 or key.ndim != 2 or shapes[1] != shapes[2] or shapes[0][1] != shapes[1][1]:
        raise InputError(f"`query` must be (n, D) and `key` and `value` (m, D), got {', '.join(map(str, shapes))}.")
    if not shapes[0][1] or shapes[0][1] % n_heads:
        raise InputError(f"`n_heads` must divide the {shapes[0][1]} columns of `query`, got {n_heads}.")
    if not query.is_floating_point() or len(set(kinds)) > 1:
        raise InputError(f"`query`, `key` and `value` must be floats of one precision, got {', '.join(kinds)}.")
    if len(set(devices)) > 1:
        raise InputError(f"`query`, `key`, `value` and `neighbors` must be on one device, got {', '.join(devices)}.")
    if neighbors.dtype != torch.int64 or neighbors.ndim != 2 or len(neighbors) != len(query):
        given = f"{neighbors.dtype} of {tuple(neighbors.shape)}"
        raise InputError(f"`neighbors` must be int64 of ({len(query)}, k), a row per row of `query`, got {given}.")
    # A GPU refuses wrong rows by itself, and asking it would make it wait.
    if neighbors.device.type == "cpu" and neighbors.numel():
        low, high = (int(x) for x in neighbors.aminmax())
        if low < -1 or high >= len(key):
            raise InputError(f"`neighbors` must lie in -1 to {len(key) - 1}, got {low} to {high}.")


class _LocalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, neighbors: Tensor, n_heads: int) -> Tensor:
        inputs = (query, key, value, neighbors)
        exact = torch.promote_types(query.dtype, torch.float32)
        out, log_sums = query.new_zeros(query.shape), query.new_zeros((len(query), n_heads), dtype=exact)
        if _is_compiled(query):  # threads share the targets
            _in_threads(_forward_kernel(query.shape[1] // n_heads), inputs, (out, log_sums), n=len(query))
        else:
            _forward_in_blocks(inputs, (out, log_sums))
        ctx.save_for_backward(*inputs, log_sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, *_, log_sums = ctx.saved_tensors
        inputs = (*ctx.saved_tensors, gradient)
        # Many small terms meet in one row, so half precision is kept for the result.
        found = tuple(x.new_zeros(x.shape, dtype=log_sums.dtype) for x in inputs[:3])
        if _is_compiled(query):  # threads share the heads, so that none writes where another does
            _in_threads(_backward_kernel(query.shape[1] // log_sums.shape[1]), inputs, found, n=log_sums.shape[1])
        else:
            _backward_in_blocks(inputs, found)
        return *(x.to(query.dtype) for x in found), None, None


def _is_compiled(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)


def _forward_in_blocks(inputs: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
    """Fill the output and the (n, h) log-sum-exp of the scores, by PyTorch."""
    query, key, value, neighbors = inputs
    out, log_sums = found
    for rows in _blocks(query, neighbors):
        near, (q,) = neighbors[rows], _heads(rows, query, like=log_sums)
        scores = _scores(q, _gather(key, near, like=q), near)
        log_sums[rows] = scores.logsumexp(1).clamp_(min=torch.finfo(q.dtype).min)  # finite without neighbours
        weights = scores.sub_(log_sums[rows, None]).exp_()
        out[rows] = (weights[..., None] * _gather(value, near, like=q)).sum(1).flatten(1).to(out.dtype)


def _backward_in_blocks(inputs: tuple[Tensor, ...], found: tuple[Tensor, ...]) -> None:
    """Add up the gradients of query, key and value, by PyTorch."""
    query, key, value, neighbors, log_sums, gradient = inputs
    d_query, d_key, d_value = found
    for rows in _blocks(query, neighbors):
        near, (q, g) = neighbors[rows], _heads(rows, query, gradient, like=log_sums)
        k = _gather(key, near, like=q)
        weights = _scores(q, k, near).sub_(log_sums[rows, None]).exp_()
        d_weights = (g * _gather(value, near, like=q)).sum(-1)
        mean = (weights * d_weights).sum(1, keepdim=True)
        d_scores = (weights * d_weights.sub_(mean) / math.sqrt(q.shape[-1]))[..., None]
        d_query[rows] = (d_scores * k).sum(1).flatten(1)
        flat = near.clamp(min=0).flatten()  # what is missing adds 0 to row 0
        d_key.index_add_(0, flat, (d_scores * q).view(-1, query.shape[1]))
        d_value.index_add_(0, flat, (weights[..., None] * g).view(-1, query.shape[1]))


def _blocks(query: Tensor, neighbors: Tensor) -> Iterator[slice]:
    per_row = neighbors.shape[1] * query.shape[1]
    if per_row:
        step = max(1, _BLOCK["cpu" if query.device.type == "cpu" else "other"] // per_row)
        yield from (slice(i, i + step) for i in range(0, len(query), step))


def _heads(rows: slice, *tables: Tensor, like: Tensor) -> list[Tensor]:
    """Return (rows, 1, heads, width) of each table, as precise as the log-sums."""
    return [x[rows].to(like.dtype).reshape(-1, 1, like.shape[1], x.shape[1] // like.shape[1]) for x in tables]


def _gather(table: Tensor, near: Tensor, *, like: Tensor) -> Tensor:
    """Return (rows, k, heads, width); what is missing is 0, whatever the table holds."""
    found = table.index_select(0, near.clamp(min=0).flatten()).view(*near.shape, *like.shape[2:])
    return found.masked_fill_((near < 0)[..., None, None], 0)


def _scores(q: Tensor, k: Tensor, near: Tensor) -> Tensor:
    scores = (q * k).sum(-1).div_(math.sqrt(q.shape[-1]))
    return scores.masked_fill_((near < 0)[..., None], -math.inf)


def _in_threads(kernel: Callable[..., None], inputs: tuple[Tensor, ...], found: tuple[Tensor, ...], *, n: int) -> None:
    """Call ``kernel(inputs, found, start, stop)`` for parts of ``range(n)`` in as many threads as PyTorch would use."""
    arrays = (tuple(x.detach().contiguous().numpy() for x in inputs), tuple(x.numpy() for x in found))
    threads = min(n, torch.get_num_threads()) if inputs[3].numel() * inputs[0].shape[1] > _MIN_THREADED else 1
    edges = [n * i // threads for i in range(threads + 1)]
    parts = zip(edges[:-1], edges[1:], strict=True)
    in_threads(lambda part: kernel(*arrays, *part), parts, threads=threads)


@cache
def _forward_kernel(width: int) -> Callable[..., None]:
    """Return the compiled forward pass for heads of one width; with it fixed the kernel is twice as fast."""

    def forward(inputs: Any, found: Any, start: int, stop: int) -> None:
        query, key, value, neighbors = inputs
        out, log_sums = found
        n_heads, real = log_sums.shape[1], query.dtype.type
        scale = real(1 / math.sqrt(width))
        weights = np.empty((neighbors.shape[1], n_heads), query.dtype)
        top, total = np.empty(n_heads, query.dtype), np.empty(n_heads, query.dtype)
        for i in range(start, stop):
            q, o = query[i], out[i]
            top[:], total[:], o[:] = -np.inf, 0, 0
            # Whole rows of neighbours are read, not head by head: they lie far apart in memory.
            for c, j in enumerate(neighbors[i]):
                if j >= 0:
                    k, w = key[j], weights[c]
                    for h in range(n_heads):
                        score = real(0)
                        for x in range(h * width, h * width + width):
                            score += q[x] * k[x]
                        w[h] = score * scale
                        top[h] = max(top[h], w[h])
            for c, j in enumerate(neighbors[i]):
                if j >= 0:
                    v, w = value[j], weights[c]
                    for h in range(n_heads):
                        weight = math.exp(w[h] - top[h])
                        total[h] += weight
                        for x in range(h * width, h * width + width):
                            o[x] += weight * v[x]
            for h in range(n_heads):
                log_sums[i, h] = top[h] + math.log(total[h])
                if total[h] > 0:
                    for x in range(h * width, h * width + width):
                        o[x] /= total[h]

    return _compiled(forward)


@cache
def _backward_kernel(width: int) -> Callable[..., None]:
    """Return the compiled backward pass for heads of one width."""

    def backward(inputs: Any, found: Any, start: int, stop: int) -> None:
        query, key, value, neighbors, log_sums, gradient = inputs
        d_query, d_key, d_value = found
        real, scale = query.dtype.type, query.dtype.type(1 / math.sqrt(width))
        n_heads, columns = stop - start, slice(start * width, stop * width)
        weights = np.empty((neighbors.shape[1], n_heads), query.dtype)
        d_weights, mean = np.empty_like(weights), np.empty(n_heads, query.dtype)
        for i in range(len(query)):
            q, g, d_q = query[i, columns], gradient[i, columns], d_query[i, columns]
            log_sum, mean[:] = log_sums[i, start:stop], 0
            for c, j in enumerate(neighbors[i]):
                if j >= 0:
                    k, v, d_v = key[j, columns], value[j, columns], d_value[j, columns]
                    w, d_w = weights[c], d_weights[c]
                    for h in range(n_heads):
                        score, d_weight = real(0), real(0)
                        for x in range(h * width, h * width + width):
                            score += q[x] * k[x]
                            d_weight += g[x] * v[x]
                        w[h], d_w[h] = score * scale - log_sum[h], d_weight
                    for h in range(n_heads):
                        w[h] = math.exp(w[h])
                    for h in range(n_heads):
                        mean[h] += w[h] * d_w[h]
                        for x in range(h * width, h * width + width):
                            d_v[x] += w[h] * g[x]
            for c, j in enumerate(neighbors[i]):
                if j >= 0:
                    k, d_k, w, d_w = key[j, columns], d_key[j, columns], weights[c], d_weights[c]
                    for h in range(n_heads):
                        d_score = w[h] * (d_w[h] - mean[h]) * scale
                        for x in range(h * width, h * width + width):
                            d_q[x] += d_score * k[x]
                            d_k[x] += d_score * q[x]

    return _compiled(backward)


def _compiled(kernel: Callable[..., None]) -> Callable[..., None]:
    import numba

    # Sums may be taken in any order, or they would not be vectorised. Infinities and NaN keep their meaning.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz"}}
    try:
        return numba.njit(cache=True, **options)(kernel)
    except RuntimeError:  # nowhere to keep it
        return numba.njit(**options)(kernel)

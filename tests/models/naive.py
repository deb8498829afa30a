"""Slow and obvious forms of the published networks and losses, for comparison.

The batched ones (`naive_miso`, `naive_deepspot`) compute as the publications describe it, with what that costs; the
others go location by location in double precision. Weights are dictionaries in the layout of the published
checkpoints; `fill_miso` and `fill_deepspot` put them into the package's networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

Weights = dict[str, Tensor]

BLOCK = "transformer.layers.0"

MISO_NAMES = {
    "embedding": "emb_layer",
    "norm": f"{BLOCK}.0",
    "qkv": f"{BLOCK}.1.to_qkv",
    "out": f"{BLOCK}.1.to_out",
    "feed_norm": f"{BLOCK}.2",
    "feed": f"{BLOCK}.3.hidden_layers.0",
    "last": "mlp",
}


def _linear(weights: Weights, name: str, *, n_in: int, n_out: int, rng: torch.Generator, bias: bool = True) -> None:
    bound = 1 / math.sqrt(n_in)
    weights[f"{name}.weight"] = (torch.rand(n_out, n_in, generator=rng) * 2 - 1) * bound
    if bias:
        weights[f"{name}.bias"] = (torch.rand(n_out, generator=rng) * 2 - 1) * bound


# MISO's teacher.


def miso_weights(
    *, n_features: int, n_genes: int, width: int = 2048, inner: int = 1024, seed: int = 0, plain_norms: bool = False
) -> Weights:
    """Return random weights; layer norms with scales and shifts of their own unless they are to be plain."""
    rng = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    _linear(weights, "emb_layer", n_in=n_features, n_out=width, rng=rng)
    _linear(weights, f"{BLOCK}.1.to_qkv", n_in=width, n_out=3 * inner, rng=rng)
    _linear(weights, f"{BLOCK}.1.to_out", n_in=inner, n_out=width, rng=rng, bias=False)
    _linear(weights, f"{BLOCK}.3.hidden_layers.0", n_in=width, n_out=width, rng=rng)
    _linear(weights, "mlp", n_in=width, n_out=n_genes, rng=rng)
    for part in (0, 2):
        moved = 0.0 if plain_norms else 0.3
        weights[f"{BLOCK}.{part}.weight"] = 1 + moved * torch.randn(width, generator=rng)
        weights[f"{BLOCK}.{part}.bias"] = moved * torch.randn(width, generator=rng)
    return weights


def fill_miso(model: Any, weights: Weights) -> None:
    """Put weights into `stpred.models.MISO`."""
    with torch.no_grad():
        for ours, theirs in MISO_NAMES.items():
            for name, parameter in getattr(model, ours).named_parameters():
                parameter.copy_(weights[f"{theirs}.{name}"])


def miso_gradients(model: Any) -> Weights:
    """Return the gradients of `stpred.models.MISO` under the published names."""
    found = {k.rpartition("."): v.grad for k, v in model.named_parameters()}
    return {f"{MISO_NAMES[part]}.{kind}": gradient for (part, _, kind), gradient in found.items()}


def naive_miso(weights: Weights, features: Tensor, neighbors: Tensor, *, n_heads: int = 64) -> Tensor:
    """Return (n, n_genes) outputs of (n, n_features) features; (n, k) neighbours hold the location itself, -1: none.

    Keys and values of all neighbours are copied out for every location and head.
    """
    x = F.linear(features, weights["emb_layer.weight"], weights["emb_layer.bias"])
    width = x.shape[1:]
    normed = F.layer_norm(x, width, weights[f"{BLOCK}.0.weight"], weights[f"{BLOCK}.0.bias"])
    qkv = F.linear(normed, weights[f"{BLOCK}.1.to_qkv.weight"], weights[f"{BLOCK}.1.to_qkv.bias"])
    query, key, value = (part.reshape(len(x), n_heads, -1) for part in qkv.chunk(3, dim=1))
    near = neighbors.clamp(min=0)
    keys, values = key[near], value[near]  # (n, k, heads, width of a head)
    scores = torch.einsum("nhd,nkhd->nhk", query, keys) / math.sqrt(query.shape[2])
    scores = scores.masked_fill((neighbors < 0)[:, None], -math.inf)
    attended = torch.einsum("nhk,nkhd->nhd", scores.softmax(dim=2), values).reshape(len(x), -1)
    x = x + F.linear(attended, weights[f"{BLOCK}.1.to_out.weight"])
    normed = F.layer_norm(x, width, weights[f"{BLOCK}.2.weight"], weights[f"{BLOCK}.2.bias"])
    feed = f"{BLOCK}.3.hidden_layers.0"
    x = x + F.linear(normed, weights[f"{feed}.weight"], weights[f"{feed}.bias"])
    return F.linear(x, weights["mlp.weight"], weights["mlp.bias"])


def miso_by_location(
    weights: Weights, features: NDArray[Any], neighbors: Sequence[Sequence[int]], *, n_heads: int
) -> NDArray[np.float64]:
    """Return the same, location by location and head by head; neighbours without the location itself."""
    w = {k: v.double().numpy() for k, v in weights.items()}

    def norm(row: NDArray[np.float64], part: int) -> NDArray[np.float64]:
        scaled = (row - row.mean()) / np.sqrt(row.var() + 1e-5)
        return scaled * w[f"{BLOCK}.{part}.weight"] + w[f"{BLOCK}.{part}.bias"]

    def qkv(i: int) -> NDArray[np.float64]:
        row = norm(w["emb_layer.weight"] @ features[i] + w["emb_layer.bias"], 0)
        return (w[f"{BLOCK}.1.to_qkv.weight"] @ row + w[f"{BLOCK}.1.to_qkv.bias"]).reshape(3, n_heads, -1)

    out = []
    for i, around in enumerate(neighbors):
        seen = [qkv(j) for j in (i, *around)]
        attended = []
        for h in range(n_heads):
            scores = np.array([seen[0][0, h] @ s[1, h] / math.sqrt(len(s[1, h])) for s in seen])
            share = np.exp(scores - scores.max())
            attended.append(sum(p * s[2, h] for p, s in zip(share / share.sum(), seen, strict=True)))
        row = w["emb_layer.weight"] @ features[i] + w["emb_layer.bias"]
        row = row + w[f"{BLOCK}.1.to_out.weight"] @ np.concatenate(attended)
        row = row + w[f"{BLOCK}.3.hidden_layers.0.weight"] @ norm(row, 2) + w[f"{BLOCK}.3.hidden_layers.0.bias"]
        out.append(w["mlp.weight"] @ row + w["mlp.bias"])
    return np.stack(out)


# DeepSpot.


def deepspot_weights(
    *, n_features: int, n_genes: int, width: int = 512, n_copies: int = 10, n_pools: int = 3, seed: int = 0
) -> Weights:
    """Return random weights."""
    rng = torch.Generator().manual_seed(seed)
    weights: Weights = {}
    for i in range(n_copies):
        _linear(weights, f"phi_spot.{i}.model.0", n_in=n_features, n_out=width, rng=rng)
        _linear(weights, f"rho.{i}.model.2", n_in=n_pools * width, n_out=n_genes, rng=rng)
    return weights


def n_copies_of(weights: Weights) -> int:
    return len([k for k in weights if k.startswith("rho.") and k.endswith("weight")])


def fill_deepspot(model: Any, weights: Weights) -> None:
    """Put weights into `stpred.models.DeepSpot`."""
    copies = range(n_copies_of(weights))
    with torch.no_grad():
        model.phi.weight.copy_(torch.cat([weights[f"phi_spot.{i}.model.0.weight"] for i in copies]))
        model.phi.bias.copy_(torch.cat([weights[f"phi_spot.{i}.model.0.bias"] for i in copies]))
        model.rho_weight.copy_(torch.stack([weights[f"rho.{i}.model.2.weight"] for i in copies]))
        model.rho_bias.copy_(torch.stack([weights[f"rho.{i}.model.2.bias"] for i in copies]))


def deepspot_gradients(model: Any) -> Weights:
    """Return the gradients of `stpred.models.DeepSpot` under the published names."""
    n = model.config.n_phi
    phi, phi_bias = model.phi.weight.grad.chunk(n), model.phi.bias.grad.chunk(n)
    found: Weights = {}
    for i in range(n):
        found[f"phi_spot.{i}.model.0.weight"], found[f"phi_spot.{i}.model.0.bias"] = phi[i], phi_bias[i]
        found[f"rho.{i}.model.2.weight"] = model.rho_weight.grad[i]
        found[f"rho.{i}.model.2.bias"] = model.rho_bias.grad[i]
    return found


def naive_deepspot(
    weights: Weights,
    spot: Tensor,
    parts: Tensor | None,
    neighbors: Tensor | Sequence[Tensor] | None,
    *,
    phi_dropout: float = 0.0,
    rho_dropout: float = 0.0,
    output_dropout: float = 0.0,
    parts_pool: str = "sum",
    neighbors_pool: str = "max",
) -> Tensor:
    """Return (n, n_genes) outputs of (n, 1, d) tiles, (n, p, d) sub-tiles and (n, k, d) neighbours or (k_i, d) lists.

    Every copy of phi maps every bag of every location by itself.
    """
    copies = range(n_copies_of(weights))

    def phi(bag: Tensor) -> Tensor:
        maps = [(weights[f"phi_spot.{i}.model.0.weight"], weights[f"phi_spot.{i}.model.0.bias"]) for i in copies]
        each = [F.relu(F.dropout(F.linear(bag, w, b), phi_dropout)) for w, b in maps]
        return torch.stack(each).median(dim=0).values

    def pool(bag: Tensor, how: str) -> Tensor:
        if bag.shape[-2] == 0:
            return bag.new_zeros(*bag.shape[:-2], bag.shape[-1])
        return {"sum": bag.sum(-2), "mean": bag.mean(-2), "max": bag.amax(-2)}[how]

    pools = [phi(spot)[:, 0]]
    if parts is not None:
        pools.append(pool(phi(parts), parts_pool))
    if isinstance(neighbors, Tensor):
        pools.append(pool(phi(neighbors), neighbors_pool))
    elif neighbors is not None:
        pools.append(torch.stack([pool(phi(bag), neighbors_pool) for bag in neighbors]))
    pooled = torch.cat(pools, dim=1)
    outputs = []
    for i in copies:
        kept = F.relu(F.dropout(pooled, rho_dropout))
        out = F.linear(kept, weights[f"rho.{i}.model.2.weight"], weights[f"rho.{i}.model.2.bias"])
        outputs.append(F.dropout(out, output_dropout))
    return torch.stack(outputs).mean(dim=0)


def deepspot_by_location(
    weights: Weights, features: NDArray[Any], parts: Sequence[Sequence[int]], neighbors: Sequence[Sequence[int]]
) -> NDArray[np.float64]:
    """Return the same, location by location: sum over sub-tiles, maximum over neighbours."""
    w = {k: v.double().numpy() for k, v in weights.items()}
    copies = range(n_copies_of(weights))

    def apply(name: str, row: NDArray[np.float64]) -> NDArray[np.float64]:
        return w[f"{name}.weight"] @ row + w[f"{name}.bias"]

    def phi(j: int) -> NDArray[np.float64]:
        each = [np.maximum(apply(f"phi_spot.{i}.model.0", features[j]), 0) for i in copies]
        return np.sort(np.stack(each), axis=0)[(len(each) - 1) // 2]

    out = []
    for i, (mine, around) in enumerate(zip(parts, neighbors, strict=True)):
        own = phi(i)
        total = sum((phi(j) for j in mine), start=np.zeros_like(own))
        most = np.max([phi(j) for j in around], axis=0) if len(around) else np.zeros_like(own)
        pooled = np.concatenate([own, total, most])
        out.append(np.mean([apply(f"rho.{c}.model.2", pooled) for c in copies], axis=0))
    return np.stack(out)


# Losses.


def cosine_loss(output: NDArray[Any], y: NDArray[Any], slides: NDArray[np.int64], *, centred: bool = False) -> float:
    """Return 1 - cosine (or correlation), slide by slide and gene by gene; what does not vary contributes 1."""
    values = []
    for slide in np.unique(slides):
        for gene in range(y.shape[1]):
            a, b = (x[slides == slide, gene].astype(np.float64) for x in (output, y))
            if centred:
                a, b = a - a.mean(), b - b.mean()
            size = np.linalg.norm(a) * np.linalg.norm(b)
            values.append(1 - (a @ b / size if size > 0 else 0.0))
    return float(np.mean(values))


def nb_loss(output: NDArray[Any], y: NDArray[Any], totals: NDArray[Any], log_dispersion: NDArray[Any]) -> float:
    """Return minus the mean log-likelihood of scipy's negative binomial."""
    values = []
    for i in range(len(y)):
        for g in range(y.shape[1]):
            mean, theta = totals[i] / (1 + math.exp(-output[i, g])), math.exp(log_dispersion[g])
            values.append(-stats.nbinom.logpmf(y[i, g], theta, theta / (theta + mean)))
    return float(np.mean(values))

"""The evidence lower bound of XFuse, spelled out: one pixel, region, gene, level and metagene at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred.models import XFuse
from stpred.models.xfuse import model as module
from stpred.models.xfuse.sample import PatchSample

EPS = 1e-8


@dataclass
class Draws:
    """What a step drew, in order."""

    like: list[NDArray[np.float64]] = field(default_factory=list)
    plain: list[NDArray[np.float64]] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)


def recorded(monkeypatch: pytest.MonkeyPatch, *, noise: bool = True) -> Draws:
    """Note everything random that follows; without `noise` it is zero, and an unknown level is the last."""
    draws = Draws()
    like, plain, choose = torch.randn_like, torch.randn, module._straight_through

    def randn_like(of: Tensor, **more: Any) -> Tensor:
        drawn = like(of, **more) if noise else torch.zeros_like(of)
        draws.like.append(drawn.double().numpy().copy())
        return drawn

    def randn(*shape: Any, **more: Any) -> Tensor:
        drawn = plain(*shape, **more) if noise else torch.zeros(*shape)
        draws.plain.append(drawn.double().numpy().copy())
        return drawn

    def chosen(logits: Tensor) -> Tensor:
        hot = choose(logits) if noise else torch.eye(len(logits))[-1]
        draws.choices.append(int(hot.argmax()))
        return hot

    monkeypatch.setattr(torch, "randn_like", randn_like)
    monkeypatch.setattr(torch, "randn", randn)
    monkeypatch.setattr(module, "_straight_through", chosen)
    return draws


def gaussian_kl(mean: float, std: float, prior: float = 1.0) -> float:
    """Divergence of N(mean, std) from N(0, prior)."""
    return math.log(prior / std) + (std**2 + mean**2) / (2 * prior**2) - 0.5


def log_normal_pdf(x: float, mean: float, std: float) -> float:
    return -0.5 * math.log(2 * math.pi) - math.log(std) - (x - mean) ** 2 / (2 * std**2)


def log_nb_pmf(count: float, total_count: float, logits: float) -> float:
    """log NB with success probability sigmoid(logits)."""
    log_p, log_q = -math.log1p(math.exp(-logits)), -math.log1p(math.exp(logits))
    binomial = math.lgamma(count + total_count) - math.lgamma(total_count) - math.lgamma(count + 1)
    return binomial + count * log_p + total_count * log_q


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def numbers(tensor: Any) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().double().numpy())


def dense(layer: Any, x: Sequence[float]) -> list[float]:
    """A 1 x 1 convolution at one pixel."""
    weight, bias = numbers(layer.weight)[:, :, 0, 0], numbers(layer.bias)
    return [bias[o] + sum(weight[o, i] * x[i] for i in range(len(x))) for o in range(len(bias))]


def rectified(norm: Any, x: Sequence[float]) -> list[float]:
    """Batch normalisation as it is outside of training, and a leaky rectifier."""
    bn: nn.BatchNorm2d = norm[0]
    mean, var = numbers(bn.running_mean), numbers(bn.running_var)
    weight, bias = numbers(bn.weight), numbers(bn.bias)
    out = []
    for c, value in enumerate(x):
        z = (value - mean[c]) / math.sqrt(var[c] + 1e-5) * weight[c] + bias[c]
        out.append(z if z > 0 else 0.2 * z)
    return out


def head(layers: Any, x: Sequence[float]) -> list[float]:
    return dense(layers[2], rectified(layers[1], dense(layers[0], x)))


def elbo(model: XFuse, sample: PatchSample, draws: Draws) -> dict[str, float]:
    """The terms, from the parameters, the data and the draws; only the convolutions between pixels are torch's."""
    b, _, height, width = sample.image.shape
    n_genes, depth = model.n_genes, model.config.depth
    twin = copy.deepcopy(model).double().eval()
    terms = dict.fromkeys(("image", "expression", "latents", "metagenes", "effects", "levels"), 0.0)

    # Latents: standard normal a priori, each level for itself.
    latents = []
    with torch.no_grad():
        for level, (mean, std) in enumerate(twin.guide(sample.image.double())):
            for m, s in zip(mean.double().flatten().tolist(), std.double().flatten().tolist(), strict=True):
                terms["latents"] += gaussian_kl(m, s)
            latents.append(mean.double() + std.double() * torch.from_numpy(draws.like[level]))
        h = numbers(twin.decoder(latents))

    # Pictures.
    image, on_image = numbers(sample.image), sample.on_image.numpy()
    for k in range(b):
        for y in range(height):
            for x in range(width):
                mean_, spread = head(model.image_mean, h[k, :, y, x]), head(model.image_spread, h[k, :, y, x])
                if not on_image[k, y, x]:
                    continue
                for c in range(3):
                    sd = softplus(spread[c]) + EPS
                    terms["image"] += log_normal_pdf(image[k, c, y, x], math.tanh(mean_[c]), sd)

    # Metagenes.
    active = np.flatnonzero(model.active.numpy())
    u_mean, u_std = numbers(model.profile_mean), np.exp(numbers(model.profile_log_std))
    u_prior = np.exp(numbers(model.profile_log_prior))
    n_patches = sum(sample.n_patches.values())
    profile = {}
    for row, m in enumerate(active.tolist()):
        for g in range(n_genes):
            profile[m, g] = u_mean[m, g] + u_std[m, g] * draws.plain[0][row, g]
            terms["metagenes"] += gaussian_kl(u_mean[m, g], u_std[m, g], u_prior[g]) * b / n_patches

    # Effects of the patches' slides.
    covariates = model.config.covariates or {}
    names = sorted({n for levels in covariates.values() for n in levels})
    every = [(n, v) for n in names for v in sorted({str(s[n]) for s in covariates.values() if s.get(n) is not None})]
    unknown = [(s, n) for s in sorted(covariates) for n in names if covariates[s].get(n) is None]
    e_mean, e_std = numbers(model.effect_mean), np.exp(numbers(model.effect_log_std))
    e_prior = np.exp(numbers(model.effect_log_prior))

    def patches_with(name: str, level: str) -> int:
        return sum(n for slide, n in sample.n_patches.items() if covariates[slide].get(name) == level)

    choices = iter(draws.choices)
    log_rate = [[float(v) for v in numbers(model.log_rate)] for _ in range(b)]
    logit = [[float(v) for v in numbers(model.logit)] for _ in range(b)]
    for k, slide in enumerate(sample.slides):
        for name in names:
            own = [at for at, (n, _) in enumerate(every) if n == name]
            level = covariates[slide].get(name)
            if level is None:
                raw = numbers(model.level_logits)[unknown.index((slide, name)), : len(own)]
                share = np.exp(raw) / np.exp(raw).sum()
                for p in share.tolist():
                    terms["levels"] += p * math.log(p * len(own)) / sample.n_patches[slide]
                at = own[next(choices)]
            else:
                at = every.index((name, level))
            known_level = level is not None  # of an unknown one the mean effects are mixed, as published
            for g in range(n_genes):
                log_rate[k][g] += e_mean[0, at, g] + known_level * e_std[0, at, g] * draws.like[depth + k][0, at, g]
                logit[k][g] += e_mean[1, at, g] + known_level * e_std[1, at, g] * draws.like[depth + k][1, at, g]
                for part in range(2 * known_level):
                    kl = gaussian_kl(e_mean[part, at, g], e_std[part, at, g], e_prior[part, g])
                    terms["effects"] += kl / max(patches_with(*every[at]), 1)

    # Counts: a region's rate is that of its pixels.
    weight, bias = numbers(model.metagene.weight)[:, :, 0, 0], numbers(model.metagene.bias)
    region, pixel = sample.region.tolist(), sample.pixel.tolist()
    for r, owner in enumerate(sample.owner.tolist()):
        rate = [0.0] * n_genes
        for p in (p for p, q in zip(pixel, region, strict=True) if q == r):
            k, y, x = p // (height * width), p // width % height, p % width
            assert k == owner
            scale = softplus(head(model.scale, h[k, :, y, x])[0])
            phi = rectified(model.shared[1], dense(model.shared[0], h[k, :, y, x]))
            raw_ = {m: bias[m] + sum(weight[m, c] * phi[c] for c in range(len(phi))) for m in active.tolist()}
            whole = sum(math.exp(v) for v in raw_.values())
            for m, v in raw_.items():
                for g in range(n_genes):
                    rate[g] += scale * math.exp(v) / whole * math.exp(log_rate[k][g] + profile[m, g])
        for g in range(n_genes):
            if bool(sample.measured[owner, g]):
                terms["expression"] += log_nb_pmf(float(sample.counts[r, g]), EPS + rate[g], logit[owner][g])
    return terms

"""The terms of the evidence lower bound: pure functions of tensors, in single precision.

The counts of a region are negative binomial, ``NB(total_count, logits)`` with mean ``total_count * exp(logits)``. Such
variables with one success probability add up in `total_count`: what pixels have sums to what their region has.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-8

MAX_PRODUCT_COUNT = 8
"""Counts up to which a ratio of gamma functions is a product."""


def normal_kl(mean: Tensor, std: Tensor, prior_std: Tensor | float = 1.0) -> Tensor:
    """Return, for each element, the divergence of ``N(mean, std)`` from ``N(0, prior_std)``."""
    prior = torch.as_tensor(prior_std, dtype=mean.dtype, device=mean.device)
    ratio = std / prior
    return 0.5 * (ratio.square() + (mean / prior).square() - 1) - ratio.log()


def categorical_kl(logits: Tensor) -> Tensor:
    """Return the divergence of categorical distributions (..., k) from the uniform one."""
    log_share = F.log_softmax(logits, dim=-1)
    return (log_share.exp() * log_share).sum(dim=-1) + torch.log(torch.tensor(float(logits.shape[-1])))


def normal(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return the log density of each value."""
    return torch.distributions.Normal(mean, std, validate_args=False).log_prob(x)


def negative_binomial(counts: Tensor, total_count: Tensor, logits: Tensor) -> Tensor:
    """Return the log probability of each count."""
    found = torch.distributions.NegativeBinomial(total_count, logits=logits, validate_args=False)
    return found.log_prob(counts)


def region_sums(values: Tensor, region: Tensor, n_regions: int) -> Tensor:
    """Return the (n_regions, k) sums of (p, k) values of pixels by the (p,) region that each lies in."""
    return torch.zeros(n_regions, values.shape[1], dtype=values.dtype, device=values.device).index_add(
        0, region, values
    )


def total_counts(sums: Tensor, profiles: Tensor, base: Tensor) -> Tensor:
    """Return the (r, g) total counts of regions.

    Parameters
    ----------
    sums
        (r, m) scale times activation of every metagene, summed over the region's pixels.
    profiles
        (m, g) log profiles of the metagenes.
    base
        (g,) or (r, g) log rate of the genes, with the effects of the regions' covariates.
    """
    return EPS + sums @ profiles.exp() * base.exp()


def leave_one_out(
    logits: Tensor,
    scale: Tensor,
    region: Tensor,
    n_regions: int,
    *,
    profiles: Tensor,
    base: Tensor,
    success: Tensor,
    counts: Tensor,
    measured: Tensor,
) -> Tensor:
    """Return the log likelihood of the counts without each metagene, relative to that with all of them.

    Parameters
    ----------
    logits
        (p, m) of the pixels that lie in regions; activations are their softmax.
    scale
        (p,) of the same pixels.
    region
        (p,) region of each, ascending.
    n_regions
        Number of regions r.
    profiles, base, success
        (m, g) log profiles, (r, g) log rates and (r, g) logits.
    counts, measured
        (r, g) counts, and whether the gene was measured there.

    Returns
    -------
    (m,) differences, all from one decode: leaving a metagene out divides the others by what it leaves.

    Notes
    -----
    For counts of zero the log probability is linear in the total count, and for small ones a sum of logarithms, so
    log-gamma, which is twenty times slower, is taken of the others alone.
    """
    n_metagenes = logits.shape[1]
    activation = torch.softmax(logits, dim=1)
    rates = profiles.exp()
    fail = -F.softplus(success) * measured
    row, gene = torch.nonzero((counts > 0) & measured, as_tuple=True)
    factor, rising = base.exp(), rising_log(counts[row, gene])

    def log_likelihood(sums: Tensor) -> Tensor:
        total = EPS + sums @ rates * factor
        return (total * fail).sum() + rising(total[row, gene])

    full = log_likelihood(region_sums(activation * scale[:, None], region, n_regions))
    if n_metagenes == 1:
        return torch.zeros(1, device=logits.device)
    sums = sums_without_each(logits, activation, scale, region, n_regions)
    return torch.stack([log_likelihood(sums[k]) for k in range(n_metagenes)]) - full


def rising_log(counts: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function that sums ``lgamma(r + count) - lgamma(r)`` over the elements of r."""
    small = (counts <= MAX_PRODUCT_COUNT) & (counts == counts.round())
    steps = [torch.nonzero(small & (counts > k))[:, 0] for k in range(MAX_PRODUCT_COUNT)]
    large = torch.nonzero(~small)[:, 0]
    many = counts[large]

    def total(r: Tensor) -> Tensor:
        found = torch.stack([(r[rows] + k).log().sum() for k, rows in enumerate(steps)]).sum()
        return found + (torch.lgamma(r[large] + many) - torch.lgamma(r[large])).sum()

    return total


def sums_without_each(logits: Tensor, activation: Tensor, scale: Tensor, region: Tensor, n_regions: int) -> Tensor:
    """Return (k, r, j) region sums of metagene j where metagene k is left out (0 for j = k).

    Without k a pixel's others are ``a_j / (1 - a_k)``: one matrix product for each region. For the pixel's leading
    metagene, where that is nearly 0 / 0, the softmax of the others is taken.
    """
    n_metagenes = activation.shape[1]
    leading = activation.argmax(dim=1, keepdim=True)
    weight = (1 / (1 - activation).clamp(min=1e-6)).scatter(1, leading, 0.0)
    share = activation * scale[:, None]
    out = torch.zeros(n_metagenes, n_regions, n_metagenes, dtype=activation.dtype, device=activation.device)
    start = 0
    for r, end in enumerate(torch.bincount(region, minlength=n_regions).cumsum(0).tolist()):
        if end > start:
            out[:, r] = weight[start:end].T @ share[start:end]
        start = end
    index = torch.arange(n_metagenes, device=activation.device)
    out[index, :, index] = 0
    others = torch.softmax(logits.scatter(1, leading, -torch.inf), dim=1) * scale[:, None]
    return out.view(-1, n_metagenes).index_add_(0, leading[:, 0] * n_regions + region, others).view_as(out)


@dataclass
class Elbo:
    """The terms of the evidence lower bound of a step, as they enter it: log likelihoods, and divergences to take off.

    Attributes
    ----------
    image, expression
        Log likelihoods, summed over pixels and channels, regions and genes.
    latents
        Divergence of the latents, summed.
    metagenes, effects, levels
        Divergences of the metagenes, the covariates' effects and the unknown levels: this step's share of them.
    features
        Penalty of the weights of features beside the pixels: this step's share of it.
    """

    image: Tensor
    expression: Tensor
    latents: Tensor
    metagenes: Tensor
    effects: Tensor
    levels: Tensor
    features: Tensor = field(default_factory=lambda: torch.zeros(()))

    def total(self) -> Tensor:
        """Return the bound."""
        return self.image + self.expression - self.latents - self.metagenes - self.effects - self.levels - self.features

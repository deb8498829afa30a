"""Losses that families share: squared error, cosine and Pearson per slide and gene, negative binomial on counts."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

Loss = Literal["mse", "cosine", "pearson", "nb"]
LOSSES: tuple[str, ...] = get_args(Loss)

RELATIVE = ("cosine", "pearson")
"""Losses that leave the scale of each gene open."""

_EPS = 1e-8


def mse(output: Tensor, y: Tensor) -> Tensor:
    """Return the squared error, mean over the (n, n_genes) values."""
    return torch.nn.functional.mse_loss(output, y)


def cosine(output: Tensor, y: Tensor, slides: Tensor, *, centred: bool = False) -> Tensor:
    """Return 1 - cosine of prediction and measurement over the locations of a slide, mean over slides and genes.

    Parameters
    ----------
    output, y
        (n, n_genes) prediction and measurement.
    slides
        (n,) number of the slide that each location is from, 0 to the number of slides minus one, each occurring.
    centred
        Subtract each slide's mean first: 1 - Pearson correlation.

    Notes
    -----
    A gene that is zero (with `centred`: constant) on a slide contributes 1 and no gradient. The uncentred form is the
    loss of MISO.
    """
    n_slides = int(slides.max()) + 1

    def total(values: Tensor) -> Tensor:
        if n_slides == 1:
            return values.sum(dim=0, keepdim=True)
        return values.new_zeros(n_slides, values.shape[1]).index_add_(0, slides, values)

    if centred:
        sizes = torch.bincount(slides, minlength=n_slides).to(output.dtype)[:, None]
        output = output - (total(output) / sizes)[slides]
        y = y - (total(y) / sizes)[slides]
    dot, norm, norm_y = total(output * y), total(output.square()), total(y.square())
    # The root of zero has no gradient: clamp before it, which is the same as clamping the norm.
    similarity = dot / (norm.clamp(min=_EPS**2).sqrt() * norm_y.clamp(min=_EPS**2).sqrt())
    return 1 - similarity.mean()


def negative_binomial(output: Tensor, y: Tensor, totals: Tensor, log_dispersion: Tensor) -> Tensor:
    """Return the negative log-likelihood of counts whose mean is the library size times a predicted share.

    Parameters
    ----------
    output
        (n, n_genes) logit of each gene's share of a location's counts.
    y
        (n, n_genes) raw counts.
    totals
        (n,) library sizes.
    log_dispersion
        (n_genes,) log of the inverse dispersion theta: the variance is ``mu + mu ** 2 / theta``.
    """
    log_mean = torch.nn.functional.logsigmoid(output) + totals[:, None].log()
    theta = log_dispersion.clamp(-10, 15).exp()
    log_sum = torch.logaddexp(log_mean, log_dispersion.clamp(-10, 15).expand_as(log_mean))
    likelihood = (
        torch.lgamma(y + theta)
        - torch.lgamma(theta)
        - torch.lgamma(y + 1)
        + theta * (log_dispersion.clamp(-10, 15) - log_sum)
        + y * (log_mean - log_sum)
    )
    return -likelihood.mean()

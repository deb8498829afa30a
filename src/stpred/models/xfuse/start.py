"""A start from all sections: metagenes and scale as linear functions of features, fitted to the spots' counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from stpred.models.xfuse.likelihood import EPS, negative_binomial

PRECISIONS = (1e4, 300.0, 30.0, 10.0, 3.0)
"""Precisions of the prior that are tried, the strongest first."""

STEPS = 60
RATE = 0.05
DISPERSIONS = (1.0, 1.1, 1.2, 1.35, 1.5, 1.75, 2.0)
"""Factors of the odds that are tried on held-out spots: what is fitted to so few says too little of their spread."""

EFFECT_SD = 0.3
"""Standard deviation of the sections' effects on the log rate."""


def growth(term: Tensor) -> Tensor:
    """Return a factor that is 1 at 0 and never negative, and grows linearly: exponentials blow up on unseen slides."""
    return F.softplus(term + math.log(math.expm1(1.0)))


@dataclass(frozen=True)
class Spots:
    """Spots of all sections, each at the mean of its features.

    Attributes
    ----------
    features
        (n, k) means of the reduced features of the pixels in each spot.
    sizes
        (n,) pixels in each.
    counts, measured
        (n, g) counts, and whether the gene was measured there.
    group
        (n,) section of each, from 0.
    fold
        (n,) part that is held out together: sections, or quarters of a single one.
    quarter
        (n,) quarter of its section that each lies in, from 0.
    """

    features: Tensor
    sizes: Tensor
    counts: Tensor
    measured: Tensor
    group: Tensor
    fold: Tensor
    quarter: Tensor

    def take(self, rows: Tensor) -> Spots:
        """Return some of the spots."""
        return Spots(*(v[rows] for v in vars(self).values()))


@dataclass(frozen=True)
class Start:
    """Weights of the features and all that goes with them; shapes as in `XFuse`.

    Attributes
    ----------
    to_metagenes, bias
        (m, k) weights and (m,) constants of the logits of metagenes.
    to_scale, scale
        (k,) weights of the factor of a pixel's scale, and the scale without them before its rectifier.
    profiles, rate, logit
        (m, g) log profiles, (g,) log rates and (g,) logits.
    effects
        (sections, g) effects on the log rate.
    """

    to_metagenes: Tensor
    bias: Tensor
    to_scale: Tensor
    scale: Tensor
    profiles: Tensor
    rate: Tensor
    logit: Tensor
    effects: Tensor

    def total_counts(self, spots: Spots, *, effects: bool = True) -> Tensor:
        """Return the (n, g) total counts of spots, with the effects of their sections or of the average one."""
        share = torch.softmax(spots.features @ self.to_metagenes.T + self.bias, dim=1)
        scale = F.softplus(self.scale) * growth(spots.features @ self.to_scale) * spots.sizes
        effect = self.effects[spots.group] if effects else self.effects.mean(dim=0)
        return EPS + (share * scale[:, None]) @ self.profiles.exp() * (self.rate + effect).exp()

    def log_likelihood(self, spots: Spots, *, effects: bool = True, dispersion: float = 1.0) -> Tensor:
        """Return the log likelihood of the counts, with the odds multiplied by `dispersion` at the same mean."""
        total = self.total_counts(spots, effects=effects) / dispersion
        found = negative_binomial(spots.counts, total, self.logit + math.log(dispersion))
        return (found * spots.measured).sum()

    def penalty(self, precision: float, spread: Tensor) -> Tensor:
        """Return minus the log density of the priors, up to constants; `spread`: that of the log profiles."""
        weights = self.to_metagenes.square().sum() + self.to_scale.square().sum()
        effects = (self.effects / EFFECT_SD).square().sum()
        return (precision * weights + (self.profiles / spread).square().sum() + effects) / 2


@dataclass(frozen=True)
class Chosen:
    """What is chosen on held-out spots.

    Attributes
    ----------
    precision
        Of the weights' prior.
    dispersion
        Factor of the odds at spots of sections that are in training, as quarters of these have it.
    unseen
        Further factor of the odds on other sections, as whole sections that are held out have it; 1 or more.
    """

    precision: float
    dispersion: float
    unseen: float


def fit_start(spots: Spots, *, profiles: Tensor, rate: Tensor, logit: Tensor) -> tuple[Start, Chosen]:
    """Return the start, and what is chosen on held-out spots.

    The strongest precision stands for no weights at all: if no other predicts held-out spots better, they are zero.

    Parameters
    ----------
    spots
        Spots of the training sections.
    profiles, rate, logit
        (m, g), (g,) and (g,) initial log profiles, log rates and logits.
    """
    first = _blank(spots, profiles, rate, logit)
    scores = torch.zeros(len(PRECISIONS) + 1, len(DISPERSIONS), dtype=torch.float64)
    for fold in spots.fold.unique().tolist():
        inside, outside = spots.take(spots.fold != fold), spots.take(spots.fold == fold)
        found = _fit(first, inside, math.inf)
        for k in range(len(scores)):
            found = found if k == 0 else _fit(found, inside, PRECISIONS[k - 1])
            for d, factor in enumerate(DISPERSIONS):
                scores[k, d] += float(found.log_likelihood(outside, effects=False, dispersion=factor))
    best, spread = divmod(int(scores.argmax()), len(DISPERSIONS))
    path = (math.inf, *PRECISIONS[:best])
    across = within = DISPERSIONS[spread]
    if len(spots.group.unique()) > 1:
        within = min(across, _dispersion_within(first, spots, path))
    chosen = Chosen(PRECISIONS[max(best - 1, 0)], within, across / within)
    return _fit_along(first, spots, path), chosen


def _dispersion_within(first: Start, spots: Spots, path: Sequence[float]) -> float:
    """Return the factor of the odds that says most of held-out quarters of the sections, whose effects are known."""
    scores = torch.zeros(len(DISPERSIONS), dtype=torch.float64)
    for quarter in spots.quarter.unique().tolist():
        found = _fit_along(first, spots.take(spots.quarter != quarter), path)
        outside = spots.take(spots.quarter == quarter)
        scores += torch.tensor([float(found.log_likelihood(outside, dispersion=d)) for d in DISPERSIONS])
    return DISPERSIONS[int(scores.argmax())]


def _fit_along(first: Start, spots: Spots, path: Sequence[float]) -> Start:
    """Return the start at the last of some precisions, each fitted from the one before."""
    for precision in path:
        first = _fit(first, spots, precision)
    return first


def _blank(spots: Spots, profiles: Tensor, rate: Tensor, logit: Tensor) -> Start:
    n, k = len(profiles), spots.features.shape[1]
    effects = torch.zeros(int(spots.group.max()) + 1, profiles.shape[1])
    one = torch.tensor(math.log(math.expm1(1 / max(float(spots.sizes.median()), 1.0))))
    return Start(torch.zeros(n, k), torch.zeros(n), torch.zeros(k), one, profiles, rate, logit, effects)


def _fit(first: Start, spots: Spots, precision: float) -> Start:
    """Return the most likely start, by Adam along a cosine; at infinite precision weights stay as they are."""
    values = {name: v.detach().clone() for name, v in vars(first).items()}
    fixed = {"to_metagenes", "to_scale", "bias"} if math.isinf(precision) else set()
    free = [v.requires_grad_() for name, v in values.items() if name not in fixed]
    optimizer = torch.optim.Adam(free, lr=RATE)
    found, spread = replace(first, **values), torch.ones(())
    with torch.enable_grad():
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = RATE * (0.02 + 0.98 * (1 + math.cos(math.pi * step / STEPS)) / 2)
            optimizer.zero_grad()
            penalty = found.penalty(0.0 if math.isinf(precision) else precision, spread)
            (penalty - found.log_likelihood(spots)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Start(**{name: v.detach() for name, v in values.items()})

"""A survival model of slides that gives each tile a risk: a linear score per tile, and a network on its extremes.

Arrays only. Tiles of all slides lie one after the other, those of slide s in the rows ``starts[s]`` to
``starts[s + 1]``. All models of a cross-validation are fitted together, as columns of one product of matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred.tl._samples.bags import Bags
from stpred.tl._samples.cox import cox_loss, held_out_likelihood, rescaled, ridge_path
from stpred.tl._samples.sample_folds import folds, share_of_pairs, survival_pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from stpred._core.recipes.tile_risk import TileRisk

PENALTIES = 10.0 ** np.arange(1, -3.1, -0.5)
"""Strengths that the ridge penalty of the first scores is chosen from, as shares of the slides' largest variance."""

MARGIN = 2.0
"""Difference of held-out log-likelihoods that is no reason to prefer a less simple model."""

_ROUNDS = 2
"""How often the first weights look for the highest tiles anew."""

_HEAD_STEPS = 60
"""Steps of the network on the first scores, before these are refined."""


@dataclass(frozen=True)
class TileRisks:
    """Risks of tiles and slides by models that were not fitted to the slide's follow-up.

    Attributes
    ----------
    tiles
        Of each slide the (n,) risks of its tiles, in standard deviations over the tiles of the training slides;
        averages over the repeats.
    slides
        (R, S) log hazard ratios to the mean training slide, by repeat.
    models
        By repeat and fold.
    """

    tiles: list[NDArray[np.float32]]
    slides: NDArray[np.float64]
    models: list[list[TileModels]]


def cross_fitted(
    tiles: Sequence[NDArray[Any]],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    groups: NDArray[Any],
    fold: NDArray[np.int64],
    *,
    settings: TileRisk,
    seed: int,
    device: str = "cpu",
) -> TileRisks:
    """Return risks of each slide's tiles by models that were fitted to the other folds' slides.

    `tiles`: of each slide (n, d) features. `fold`: (R, S) folds of each slide by repeat; no group may be in two.
    """
    rows = [_some(t, settings.max_tiles, seed + s) for s, t in enumerate(tiles)]
    bags = Bags.of(rows, settings.n_top, device=device)
    found = [np.zeros(len(t), dtype=np.float32) for t in tiles]
    risk, models = np.empty(fold.shape), []
    for repeat, of in enumerate(fold):
        fitted = []
        for k in np.unique(of):
            model = _fitted(bags, time, event, groups, of != k, settings=settings, seed=seed + 1000 * repeat + int(k))
            for s in np.flatnonzero(of == k).tolist():
                found[s] += model.tile_risk(tiles[s]) / np.float32(len(fold))
                risk[repeat, s] = model.slide_risk[s]
            fitted.append(model)
        models.append(fitted)
    return TileRisks(found, risk, models)


@dataclass(frozen=True)
class TileModels:
    """Models of one training set, averaged.

    Attributes
    ----------
    weights, bias
        (d,) and scalar: a tile's risk is linear in its features.
    slide_risk
        (S,) log hazard ratios of all slides, those of the training set among them.
    """

    weights: NDArray[np.float64]
    bias: float
    slide_risk: NDArray[np.float64]
    penalty: float
    n_steps: int
    inner_concordance: float

    def tile_risk(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Return the (n,) risks of tiles."""
        return (features.astype(np.float32) @ self.weights.astype(np.float32) + np.float32(self.bias)).astype(
            np.float32
        )


def _fitted(
    bags: Bags,
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    groups: NDArray[Any],
    train: NDArray[np.bool_],
    *,
    settings: TileRisk,
    seed: int,
) -> TileModels:
    """Fit a model without each inner fold of the training slides, and return their average."""
    inner = np.full(len(train), -1)
    most = max(int(event[train].sum()), int((~event[train]).sum()))  # more folds cannot each have one of a class
    n_inner = min(settings.n_inner, len(np.unique(groups[train])), most)
    inner[train] = folds(event[train], groups[train], n=n_inner, seed=seed)
    masks = np.stack([train & (inner != m) for m in range(n_inner)])
    mean, spread = bags.moments(masks)
    start, penalty = _first_weights(bags, mean, spread, time, event, masks, train)
    network = Network(bags, start, mean, spread, hidden=settings.hidden, seed=seed)
    n_steps, risks = _refine(network, time, event, masks, train, settings=settings)
    risks -= np.stack([r[m].mean() for r, m in zip(risks, masks, strict=True)])[:, None]
    validated = np.full(len(train), np.nan)
    for m in range(n_inner):
        validated[inner == m] = risks[m][inner == m]
    concordance = share_of_pairs(survival_pairs(time[train], event[train], validated[train], inner[train]))
    weights, bias = network.linear(masks)
    return TileModels(weights.mean(axis=0), float(bias.mean()), risks.mean(axis=0), penalty, n_steps, concordance)


def _some(features: NDArray[Any], most: int | None, seed: int) -> NDArray[Any]:
    """Return at most so many tiles of a slide."""
    if most is None or len(features) <= most:
        return features
    return features[np.sort(np.random.default_rng(seed).choice(len(features), most, replace=False))]


def _first_weights(
    bags: Bags,
    mean: NDArray[np.float64],
    spread: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    train: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], float]:
    """Return (K, d) weights of standardised features, and their penalty.

    They are those of a Cox ridge regression on the mean tile of each slide, or, where held-out slides bear it out, on
    the mean of the tiles that are highest by the weights before.
    """
    import torch

    seen = bags.slide_means[None].repeat(len(masks), axis=0)
    weights, at, gain = _ridge((seen - mean[:, None]) / spread[:, None], time, event, masks, train)
    found = [(gain, weights, float(PENALTIES[at]))]
    for _ in range(_ROUNDS):
        with torch.no_grad():
            applied = torch.from_numpy((weights / spread).astype(np.float32)).to(bags.features.device)
            top = bags.highest(applied @ bags.features.T)
            seen = np.stack([bags.features[rows].mean(dim=1).double().cpu().numpy() for rows in top])
        weights, at, gain = _ridge((seen - mean[:, None]) / spread[:, None], time, event, masks, train)
        found.append((gain, weights, float(PENALTIES[at])))
    return found[first_within(np.array([g for g, *_ in found]))][1:]


def _ridge(
    X: NDArray[np.float64],
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    train: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], int, float]:
    """Return (K, d) weights by (K, S, d) features of slides, which penalty they have, and their held-out likelihood.

    Each penalty is judged twice: with weights as it shrinks them, and with weights rescaled to what is most likely.
    The strongest ones have the directions least bent to the training slides, but shrink risks to nothing.
    """
    paths, gains = [], []
    for features, mask in zip(X, masks, strict=True):
        x = features - features[mask].mean(axis=0)
        top = np.linalg.eigvalsh(x[mask] @ x[mask].T)[-1]
        path = ridge_path(x[mask], time[mask], event[mask], PENALTIES * max(top, 1e-12))
        shrunk, within = path @ x[train].T, mask[train]
        both = np.concatenate([rescaled(shrunk, time[train], event[train], within), shrunk])
        gains.append([held_out_likelihood(risk, time[train], event[train], within) for risk in both])
        paths.append(path)
    total = np.sum(gains, axis=0)
    best = first_within(total)
    at = best % len(PENALTIES)
    return np.stack([path[at] for path in paths]), at, float(total[best])


def first_within(likelihoods: NDArray[np.float64]) -> int:
    """Return the first, that is the simplest, of settings whose log-likelihood is within `MARGIN` of the best."""
    return int(np.flatnonzero(likelihoods >= likelihoods.max() - MARGIN)[0])


class Network:
    """Linear scores of tiles and, on the extremes of a slide, a network that rises with each of them; K at once.

    It rises since all its weights are positive. So a tile of a higher score never makes a slide's risk lower, and
    scores are risks.
    """

    def __init__(
        self,
        bags: Bags,
        start: NDArray[np.float64],
        mean: NDArray[np.float64],
        spread: NDArray[np.float64],
        *,
        hidden: int,
        seed: int,
    ) -> None:
        import torch

        models, inputs = len(start), 2 * bags.order.shape[1]
        device = bags.features.device
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(models, *shape, generator=generator).to(device)  # noqa: E731
        as_tensor = lambda v: torch.from_numpy(np.asarray(v, dtype=np.float32)).to(device)  # noqa: E731
        self.bags, self.mean, self.scale = bags, as_tensor(mean), as_tensor(1 / spread)
        length = np.linalg.norm(start, axis=1, keepdims=True)
        self.weights = as_tensor(np.where(length > 0, start, 1e-3) / np.where(length > 0, length, 1)).requires_grad_()
        with torch.no_grad():  # scores of standard deviation 1
            self.weights /= self.scores().std(dim=1, keepdim=True).clamp(min=1e-6)
        self.into = (-np.log(inputs) + 0.3 * draw(inputs, hidden)).requires_grad_()
        self.shift = (0.5 * draw(1, hidden)).requires_grad_()
        self.out = (-np.log(hidden) + 0.3 * draw(hidden, 1)).requires_grad_()

    @property
    def head(self) -> list[Tensor]:
        """Parameters of the network on the extremes."""
        return [self.into, self.shift, self.out]

    def scores(self) -> Tensor:
        """Return (K, N) scores of all tiles."""
        applied = self.weights * self.scale
        return applied @ self.bags.features.T - (applied * self.mean).sum(dim=1, keepdim=True)

    def risks(self, extremes: Tensor) -> Tensor:
        """Return (K, S) log hazard ratios."""
        from torch.nn.functional import softplus

        hidden = (extremes @ softplus(self.into) + self.shift).tanh()
        return (hidden @ softplus(self.out))[..., 0]

    def linear(self, masks: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return (K, d) weights and (K,) biases of scores of mean 0 and deviation 1 over the tiles of the slides."""
        import torch

        with torch.no_grad():
            scores = self.scores().double().cpu().numpy()
            weights = (self.weights * self.scale).double().cpu().numpy()
        each = np.diff(self.bags.starts)
        of = np.repeat(np.arange(len(each)), each)
        share = masks[:, of] / each[of]
        share /= share.sum(axis=1, keepdims=True)
        middle = (share * scores).sum(axis=1)
        spread = np.sqrt((share * (scores - middle[:, None]) ** 2).sum(axis=1)).clip(min=1e-12)
        at_zero = -(weights * self.mean.double().cpu().numpy()).sum(axis=1)
        return weights / spread[:, None], (at_zero - middle) / spread


def _refine(
    network: Network,
    time: NDArray[np.float64],
    event: NDArray[np.bool_],
    masks: NDArray[np.bool_],
    train: NDArray[np.bool_],
    *,
    settings: TileRisk,
) -> tuple[int, NDArray[np.float64]]:
    """Fit the network, then refine the scores through it; return how many steps were best held out, and the risks.

    The network is left as it was after these steps.
    """
    import torch

    used = torch.from_numpy(masks).to(network.bags.features.device)
    head = torch.optim.Adam(network.head, lr=settings.learning_rate)

    def step(extremes: Tensor) -> NDArray[np.float64]:
        risk = network.risks(extremes)
        head.zero_grad()
        cox_loss(risk, time, event, used).sum().backward()
        head.step()
        return risk.detach().double().cpu().numpy()

    with torch.no_grad():
        first = network.bags.extremes(network.scores())
    for _ in range(_HEAD_STEPS):
        step(first)
    states, gains, rate = [], [], None
    for _ in range(settings.n_epochs + 1):
        state = [p.detach().clone() for p in (network.weights, *network.head)]
        network.weights.grad = None
        risk = step(network.bags.extremes(network.scores()))
        states.append((state, risk))
        gains.append([
            held_out_likelihood(r[train], time[train], event[train], m[train]) for r, m in zip(risk, masks, strict=True)
        ])  # fmt: skip
        slope = network.weights.grad
        if slope is None:
            raise InputError("The scores have no derivative.")
        with torch.no_grad():
            if rate is None:
                lengths = [v.norm(dim=1, keepdim=True) for v in (network.weights, slope)]
                rate = settings.step * lengths[0] / lengths[1].clamp(min=1e-12)
            network.weights -= rate * slope
    best = first_within(np.sum(gains, axis=1))
    state, risk = states[best]
    with torch.no_grad():
        for parameter, value in zip((network.weights, *network.head), state, strict=True):
            parameter.copy_(value)
    return best, risk

"""Cox's partial likelihood (ties after Breslow), of many models at once, and its ridge regression."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_STEPS, _HALVINGS, _TOLERANCE = 30, 8, 1e-7
"""Most Newton steps and halvings of one, and the gain of log-likelihood below which they end."""

_MAX_SLOPE = 10.0
"""Largest log hazard ratio of a standard deviation: where a risk sorts all samples, the likelihood has no maximum."""


def risk_order(time: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order by falling follow-up, and for each place in it the last one of the same follow-up.

    At risk at the time of a place are all places up to that last one.
    """
    order = np.argsort(-time, kind="stable")
    sorted_ = -time[order]
    return order, np.searchsorted(sorted_, sorted_, side="right") - 1


def cox_loss(risk: Tensor, time: NDArray[Any], event: NDArray[np.bool_], used: Tensor) -> Tensor:
    """Return (K,) negative partial log-likelihoods per event of (K, S) log hazard ratios.

    `used`: (K, S) slides that each model looks at, boolean; the others are in no risk set and count for no event. A
    model without an event has the loss 0.
    """
    import torch

    order, last = (torch.from_numpy(v).to(risk.device) for v in risk_order(time))
    died = torch.from_numpy(np.asarray(event, dtype=bool)).to(risk.device)
    risk, mask = risk[:, order], used[:, order]
    # A finite number far below any risk: infinities have no gradient.
    at_risk = torch.logcumsumexp(risk.masked_fill(~mask, -1e4), dim=1)[:, last]
    counted = mask & died[order]
    return -torch.where(counted, risk - at_risk, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def log_likelihood(risk: NDArray[Any], time: NDArray[Any], event: NDArray[np.bool_]) -> float:
    """Return the partial log-likelihood of (S,) log hazard ratios."""
    order, last = risk_order(time)
    at_risk = np.logaddexp.accumulate(risk[order])[last]
    return float((risk[order] - at_risk)[event[order]].sum())


def held_out_likelihood(
    risk: NDArray[Any], time: NDArray[Any], event: NDArray[np.bool_], train: NDArray[np.bool_]
) -> float:
    """Return what the samples that are not in `train` add to the partial log-likelihood (Verweij and van Houwelingen).

    Their own risk sets would be small, and those without an event empty.
    """
    return log_likelihood(risk, time, event) - log_likelihood(risk[train], time[train], event[train])


def ridge_path(
    X: NDArray[np.float64], time: NDArray[Any], event: NDArray[np.bool_], penalties: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return (P, d) coefficients of Cox models that are penalised by ``penalty / 2 * sum(coefficient ** 2)`` each.

    Newton's method in the space of the samples, of which there may be far fewer than the d columns of `X`; the path
    begins at the strongest penalty, whatever the order of `penalties`.
    """
    order, last = risk_order(time)
    X, died = X[order] - X.mean(axis=0), event[order]
    kernel = X @ X.T
    alpha, found = np.zeros(len(X)), np.empty((len(penalties), X.shape[1]))
    for at in np.argsort(-penalties):
        alpha = _newton(kernel, alpha, died, last, float(penalties[at]))
        found[at] = X.T @ alpha
    return found


def _newton(
    kernel: NDArray[np.float64], alpha: NDArray[np.float64], died: NDArray[np.bool_], last: NDArray[np.int64],
    penalty: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Return the (S,) weights of the samples at which the penalised likelihood is highest, from some others."""

    def objective(a: NDArray[np.float64]) -> float:
        risk = kernel @ a
        at_risk = np.logaddexp.accumulate(risk)[last]
        return float((risk - at_risk)[died].sum() - penalty / 2 * a @ risk)

    height = objective(alpha)
    for _ in range(_STEPS):
        risk = kernel @ alpha
        residual, information = derivatives(risk, died, last)
        system = information @ kernel
        system[np.diag_indices(len(alpha))] += penalty
        step = np.linalg.solve(system, residual - penalty * alpha)
        for _ in range(_HALVINGS):
            if (new := objective(alpha + step)) >= height:
                break
            step /= 2
        else:
            return alpha
        alpha, gain, height = alpha + step, new - height, new
        if gain < _TOLERANCE:
            break
    return alpha


def rescaled(
    risk: NDArray[np.float64], time: NDArray[Any], event: NDArray[np.bool_], used: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return (P, S) risks, each times the factor that is most likely for the `used` samples; 0 where it is below 0.

    A penalty shrinks a risk; which one has the best direction is not to be judged by how much it does so.
    """
    order, last = risk_order(time[used])
    found = np.zeros_like(risk)
    for k, values in enumerate(risk):
        spread = values[used].std()
        if spread <= 0:
            continue
        x = (values[used][order] - values[used].mean()) / spread
        slope = 0.0
        for _ in range(_STEPS):
            hazard = np.exp(slope * x - (slope * x).max())
            total = np.cumsum(hazard)[last]
            first, second = (np.cumsum(hazard * x**p)[last] / total for p in (1, 2))
            died = event[used][order]
            information = (second - first**2)[died].sum()
            if information <= 1e-12:
                break
            step = np.clip((x - first)[died].sum() / information, -1, 1)
            slope = float(np.clip(slope + step, -_MAX_SLOPE, _MAX_SLOPE))
            if abs(step) < 1e-6:
                break
        found[k] = max(slope, 0) * (values - values[used].mean()) / spread
    return found


def derivatives(
    risk: NDArray[np.float64], died: NDArray[np.bool_], last: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (S,) the derivative of the likelihood by the risks (martingale residuals) and (S, S) minus its second one.

    Samples are in the order of :func:`risk_order`, and `last` is from there.
    """
    hazard = np.exp(risk - risk.max())
    ends = last[died]
    # (E, S) of each event, how likely it was to be that of each sample at risk.
    chance = np.where(np.arange(len(risk)) <= ends[:, None], hazard / np.cumsum(hazard)[ends, None], 0)
    expected = chance.sum(axis=0)
    return died - expected, np.diag(expected) - chance.T @ chance


def elastic_net(
    X: NDArray[np.float64],
    time: NDArray[Any],
    event: NDArray[np.bool_],
    *,
    penalizer: float,
    l1_ratio: float,
    n_steps: int = 2000,
    tolerance: float = 1e-7,
) -> NDArray[np.float64]:
    """Return (d,) coefficients of a Cox elastic net, for thousands of columns.

    They minimise ``-log_likelihood / S + penalizer * (l1_ratio * sum(abs(b)) + (1 - l1_ratio) / 2 * sum(b ** 2))``, as
    lifelines does, by accelerated proximal steps (Beck and Teboulle 2009) that start anew where they go back.
    """
    order, last = risk_order(time)
    X, died = X[order] - X.mean(axis=0), event[order]
    n, ridge, lasso = len(X), penalizer * (1 - l1_ratio), penalizer * l1_ratio

    def smooth(at: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        risk = X @ at
        return ridge / 2 * float(at @ at) - float((risk - np.logaddexp.accumulate(risk)[last])[died].sum()) / n, risk

    b = ahead = np.zeros(X.shape[1])
    height, momentum, curvature = np.inf, 1.0, 1e-2
    for _ in range(n_steps):
        below, risk = smooth(ahead)
        slope = ridge * ahead - X.T @ martingale(risk, died, last) / n
        while True:
            moved = ahead - slope / curvature
            new = np.sign(moved) * np.maximum(np.abs(moved) - lasso / curvature, 0)
            step = new - ahead
            level = smooth(new)[0]
            if level <= below + slope @ step + curvature / 2 * step @ step + 1e-12:
                break
            curvature *= 2
        gain = height - (new_height := level + lasso * float(np.abs(new).sum()))
        if gain < 0 and momentum > 1:  # it went back: once more from here, without momentum
            ahead, momentum = b, 1.0
            continue
        following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
        ahead, b = new + (momentum - 1) / following * (new - b), new
        height, momentum = new_height, following
        if gain < tolerance:
            break
    return b


def martingale(risk: NDArray[np.float64], died: NDArray[np.bool_], last: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (S,) martingale residuals of samples in the order of :func:`risk_order`."""
    hazard = np.exp(risk - risk.max())
    per_event = died / np.cumsum(hazard)[last]
    totals = np.bincount(last, weights=per_event, minlength=len(risk))
    return died - hazard * np.cumsum(totals[::-1])[::-1]

from __future__ import annotations

import numpy as np
import pytest
import torch

from stpred.tl._samples.cox import cox_loss, held_out_likelihood, log_likelihood, rescaled, ridge_path

RNG = np.random.default_rng(0)
TIME = np.round(RNG.exponential(size=50), 1) + 0.1  # with ties
EVENT = RNG.random(50) < 0.6
RISK = RNG.normal(size=50)


def slow(risk: np.ndarray, time: np.ndarray, event: np.ndarray) -> float:
    """Sum over events of their risk against that of all who were followed as long."""
    at_risk = [np.log(sum(np.exp(r) for r, t in zip(risk, time, strict=True) if t >= own)) for own in time]
    return sum(r - a for r, a, e in zip(risk, at_risk, event, strict=True) if e)


def test_likelihoods_equal_the_sum_over_risk_sets() -> None:
    assert log_likelihood(RISK, TIME, EVENT) == pytest.approx(slow(RISK, TIME, EVENT), rel=1e-12)
    some = np.arange(50) % 3 > 0
    used = torch.from_numpy(np.stack([np.ones(50, dtype=bool), some, np.zeros(50, dtype=bool)]))
    found = cox_loss(torch.from_numpy(np.stack([RISK] * 3)), TIME, EVENT, used).numpy()
    part = slow(RISK[some], TIME[some], EVENT[some])
    assert found == pytest.approx([-slow(RISK, TIME, EVENT) / EVENT.sum(), -part / EVENT[some].sum(), 0], rel=1e-9)
    assert held_out_likelihood(RISK, TIME, EVENT, some) == pytest.approx(slow(RISK, TIME, EVENT) - part, rel=1e-9)


def test_the_loss_has_the_derivative_that_finite_differences_have() -> None:
    risk = torch.from_numpy(RISK[None]).requires_grad_()
    used = torch.from_numpy((np.arange(50) % 4 > 0)[None])
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, TIME, EVENT, used), (risk,))


def test_the_loss_is_that_of_lifelines() -> None:
    lifelines = pytest.importorskip("lifelines")
    import pandas as pd

    time = RNG.permutation(50) + 1.0  # lifelines treats ties after Efron
    frame = pd.DataFrame({"x": RISK, "time": time, "event": EVENT})
    fitted = lifelines.CoxPHFitter().fit(frame, "time", "event")
    assert log_likelihood(RISK * fitted.params_["x"], time, EVENT) == pytest.approx(fitted.log_likelihood_, rel=1e-6)
    ones = np.ones(50, dtype=bool)
    best = rescaled(np.stack([0.01 * RISK, -RISK]), time, EVENT, ones)
    slope = max(fitted.params_["x"], 0)
    assert best[0] == pytest.approx(slope * (RISK - RISK.mean()), abs=1e-3)
    assert best[1] == pytest.approx(min(fitted.params_["x"], 0) * (RISK - RISK.mean()), abs=1e-3)


@pytest.mark.parametrize("n_features", [3, 200])
def test_ridge_regression_is_where_the_penalised_likelihood_is_highest(n_features: int) -> None:
    X = RNG.normal(size=(50, n_features))
    penalties = np.array([1.0, 100.0, 10.0])
    found = ridge_path(X, TIME, EVENT, penalties)
    lengths = np.linalg.norm(found, axis=1)
    assert lengths[0] > lengths[2] > lengths[1] > 0
    for weights, penalty in zip(found, penalties, strict=True):
        w = torch.from_numpy(weights).requires_grad_()
        loss = cox_loss((torch.from_numpy(X) @ w)[None], TIME, EVENT, torch.ones(1, 50, dtype=torch.bool))[0]
        (loss * EVENT.sum() + penalty / 2 * w.square().sum()).backward()
        assert w.grad.abs().max() < 1e-2 * penalty * np.abs(weights).max()

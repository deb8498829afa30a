"""The ridge path from old weights, against the slow obvious solution."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred.models.parts.linear import Linear, PathFromWeights, Step


def naive(x: np.ndarray, y: np.ndarray, old: np.ndarray, step: Step) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept by the normal equations of augmented rows."""
    n, p = x.shape
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    if np.isinf(step.penalty):
        w = step.kept * old
    else:
        root = np.sqrt(n * step.penalty)
        rows = np.concatenate([centred_x, root * np.eye(p)])
        w = np.linalg.lstsq(rows, np.concatenate([centred_y, root * step.kept * old]), rcond=None)[0]
    return w, y.mean(axis=0) - x.mean(axis=0) @ w


@pytest.mark.parametrize(("n", "width"), [(40, 7), (12, 30)])
@pytest.mark.parametrize("step", [Step(0.3, 1.0), Step(2.0, 0.5), Step(0.01, 0.0), Step(np.inf, 1.0)])
def test_a_step_is_the_solution_of_the_normal_equations(n: int, width: int, step: Step) -> None:
    rng = np.random.default_rng(0)
    x, y, old = rng.normal(2, 1, (n, width)), rng.normal(1, 1, (n, 4)), rng.normal(0, 1, (width, 4))
    path = PathFromWeights(x, y, old)
    coef, intercept = naive(x, y, old, step)
    np.testing.assert_allclose(path.coef(step), coef, atol=1e-8)
    np.testing.assert_allclose(path.intercept(coef), intercept, atol=1e-8)
    fresh = rng.normal(2, 1, (9, width))
    np.testing.assert_allclose(next(path.predictions(fresh, [step])), fresh @ coef + intercept, atol=1e-8)


def test_the_ends_of_the_path_are_the_old_weights_and_the_ridge_of_the_new_data() -> None:
    rng = np.random.default_rng(1)
    x, y, old = rng.normal(0, 1, (50, 6)), rng.normal(0, 1, (50, 2)), rng.normal(0, 1, (6, 2))
    path = PathFromWeights(x, y, old)
    np.testing.assert_allclose(path.coef(Step(np.inf, 1.0)), old)
    alone = PathFromWeights(x, y, np.zeros_like(old))
    np.testing.assert_allclose(path.coef(Step(0.2, 0.0)), alone.coef(Step(0.2, 1.0)), atol=1e-12)
    np.testing.assert_allclose(path.coef(Step(1e9, 1.0)), old, atol=1e-6)


def test_the_penalty_of_a_part_is_that_of_all_locations() -> None:
    rng = np.random.default_rng(2)
    x, y, old = rng.normal(0, 1, (20, 3)), rng.normal(0, 1, (20, 2)), rng.normal(0, 1, (3, 2))
    part = PathFromWeights(x, y, old, n=60).coef(Step(0.5, 1.0))
    np.testing.assert_allclose(part, PathFromWeights(x, y, old).coef(Step(1.5, 1.0)), atol=1e-12)


def test_ridge_is_linear_and_a_baseline_is_not() -> None:
    assert isinstance(st.models.Ridge.Config().build(n_features=3, n_genes=2), Linear)
    assert not isinstance(st.models.Mean.Config().build(n_features=3, n_genes=2), Linear)

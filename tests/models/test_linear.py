"""The ridge path from old weights, against the slow obvious solution."""

from __future__ import annotations

import numpy as np
import pytest

import stpred as st
from stpred.models.parts.linear import PathFromWeights, Step, is_linear


def naive(
    x: np.ndarray, y: np.ndarray, old: np.ndarray, step: Step, scale: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept by the normal equations of augmented rows."""
    n, p = x.shape
    centred_x, centred_y = x - x.mean(axis=0), y - y.mean(axis=0)
    rows = np.concatenate([centred_x * scale, np.sqrt(n * step.penalty) * np.eye(p)])
    left = np.concatenate([centred_y - centred_x @ (step.kept * old), np.zeros_like(old)])
    w = step.kept * old + step.share * scale[:, None] * np.linalg.lstsq(rows, left, rcond=None)[0]
    return w, y.mean(axis=0) - x.mean(axis=0) @ w


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("n", "width"), [(40, 7), (12, 30)])
@pytest.mark.parametrize(
    "step", [Step(1.0, 0.3), Step(0.25, 2.0), Step(1.0, 0.5, 0.5), Step(1.0, 0.01, 0.0), Step(0, 1)]
)
def test_a_step_is_the_solution_of_the_normal_equations(n: int, width: int, step: Step, scaled: bool) -> None:
    rng = np.random.default_rng(0)
    x, y, old = rng.normal(2, 1, (n, width)), rng.normal(1, 1, (n, 4)), rng.normal(0, 1, (width, 4))
    scale = rng.choice([0.0, 0.3, 2.0], width) if scaled else np.ones(width)
    path = PathFromWeights(x, y, old, scale=scale if scaled else None)
    coef, intercept = naive(x, y, old, step, scale)
    np.testing.assert_allclose(path.coef(step), coef, atol=1e-8)
    np.testing.assert_allclose(path.intercept(coef), intercept, atol=1e-8)
    fresh = rng.normal(2, 1, (9, width))
    np.testing.assert_allclose(next(path.predictions(fresh, [step])), fresh @ coef + intercept, atol=1e-8)


def test_the_ends_of_the_path_are_the_old_weights_and_the_ridge_of_the_new_data() -> None:
    rng = np.random.default_rng(1)
    x, y, old = rng.normal(0, 1, (50, 6)), rng.normal(0, 1, (50, 2)), rng.normal(0, 1, (6, 2))
    path = PathFromWeights(x, y, old)
    assert np.array_equal(path.coef(Step(0.0, 1.0)), old)
    np.testing.assert_allclose(path.coef(Step(1.0, 1e9)), old, atol=1e-6)
    centred = x - x.mean(axis=0)
    alone = np.linalg.solve(centred.T @ centred + 50 * 0.2 * np.eye(6), centred.T @ (y - y.mean(axis=0)))
    np.testing.assert_allclose(path.coef(Step(1.0, 0.2, kept=0.0)), alone, atol=1e-12)


@pytest.mark.parametrize("c", [0.5, 3.0])
def test_a_share_is_that_of_the_new_locations_among_all(c: float) -> None:
    """Old weights of c n locations like the new ones resist as the squared change of these locations' predictions."""
    rng = np.random.default_rng(3)
    x, y, old = rng.normal(0, 1, (40, 5)), rng.normal(0, 1, (40, 2)), rng.normal(0, 1, (5, 2))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    root = np.sqrt(40 * 0.4)
    rows = np.concatenate([x, root * np.eye(5), np.sqrt(c) * x, np.sqrt(c) * root * np.eye(5)])
    change = np.linalg.lstsq(rows, np.concatenate([y - x @ old, np.zeros((50, 2))]), rcond=None)[0]
    np.testing.assert_allclose(PathFromWeights(x, y, old).coef(Step(1 / (1 + c), 0.4)), old + change, atol=1e-10)


def test_the_penalty_of_a_part_is_that_of_all_locations() -> None:
    rng = np.random.default_rng(2)
    x, y, old = rng.normal(0, 1, (20, 3)), rng.normal(0, 1, (20, 2)), rng.normal(0, 1, (3, 2))
    part = PathFromWeights(x, y, old, n=60).coef(Step(1.0, 0.5))
    np.testing.assert_allclose(part, PathFromWeights(x, y, old).coef(Step(1.0, 1.5)), atol=1e-12)


def test_ridge_is_linear_and_a_baseline_is_not() -> None:
    assert is_linear(st.models.Ridge.Config().build(n_features=3, n_genes=2))
    assert not is_linear(st.models.Mean.Config().build(n_features=3, n_genes=2))

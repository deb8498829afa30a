"""Out-of-distribution distances of a model that took more slides in."""

from __future__ import annotations

import numpy as np

from stpred.models.ood import TrainingDistribution

WIDTH = 40


def donors(n: int, *, seed: int, shift: float = 0.3, at: float = 0.0) -> list[np.ndarray]:
    """Features of donors that differ a little in their means, with few leading directions."""
    rng = np.random.default_rng(7)
    mix = rng.normal(0, 1, (6, WIDTH))
    rng = np.random.default_rng(seed)
    return [
        (at + rng.normal(0, shift, WIDTH) + rng.normal(0, 1, (300, 6)) @ mix + rng.normal(0, 0.5, (300, WIDTH))).astype(
            np.float32
        )
        for _ in range(n)
    ]


def inside(typical: TrainingDistribution, features: np.ndarray) -> float:
    return float((typical.relative(typical.distance(features)) <= 1).mean())


def test_old_and_new_tiles_are_in_distribution_and_others_stay_out() -> None:
    old, own = donors(5, seed=0), donors(1, seed=1, at=2.0)
    typical = TrainingDistribution(WIDTH)
    typical.fit(old)
    far = donors(1, seed=2, at=-4.0)[0]
    assert inside(typical, own[0]) < 0.5
    typical.extend(own, share=1 / 6)
    assert inside(typical, own[0]) >= 0.98
    assert min(inside(typical, one) for one in (*old, *donors(3, seed=3))) > 0.9
    assert inside(typical, far) < 0.05


def test_slides_like_the_old_ones_change_hardly_anything() -> None:
    old = donors(6, seed=0, shift=0.0)
    typical = TrainingDistribution(WIDTH)
    typical.fit(old)
    fresh = donors(1, seed=5, shift=0.0)[0]
    before = typical.relative(typical.distance(fresh))
    typical.extend(donors(1, seed=4, shift=0.0), share=1 / 7)
    after = typical.relative(typical.distance(fresh))
    np.testing.assert_allclose(np.median(after), np.median(before), rtol=0.1)
    again = TrainingDistribution(WIDTH)
    again.fit([*old, *donors(1, seed=4, shift=0.0)])
    np.testing.assert_allclose(np.asarray(typical.mean), np.asarray(again.mean), atol=1e-5)
    np.testing.assert_allclose(np.asarray(typical.std), np.asarray(again.std), rtol=1e-4)

"""Intervals hold what they state on slides that differ, and say how far they do."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stpred import InputError
from stpred.metrics import conformal_intervals, coverage
from stpred.metrics import intervals as _intervals


def slides(rng: np.random.Generator, n: int, *, shift: float, n_genes: int = 8) -> list[NDArray[np.float64]]:
    """Residuals of slides of which each is shifted and scaled on its own."""
    scale = np.linspace(0.5, 2, n_genes)
    return [
        rng.normal(0, 1, (120, n_genes)) * scale * np.exp(rng.normal(0, 0.2 * shift)) + rng.normal(0, shift, n_genes)
        for _ in range(n)
    ]


def held(found: object, values: NDArray[np.float64]) -> float:
    low, high = (np.broadcast_to(getattr(found, side), values.shape) for side in ("low", "high"))
    return float(coverage(values, low, high).mean())


@pytest.mark.parametrize(("n", "shift"), [(5, 0.0), (5, 0.3), (5, 1.0), (9, 0.5)])
def test_unseen_slides_are_covered_as_stated(n: int, shift: float) -> None:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(50):
        intervals = conformal_intervals(slides(rng, n, shift=shift), level=0.9)
        found.append(np.mean([held(intervals, s) for s in slides(rng, 12 - n, shift=shift)]))
    assert 0.87 < np.mean(found) < 0.93


def test_without_widening_slides_that_differ_are_not_covered() -> None:
    rng = np.random.default_rng(1)
    plain, wide = [], []
    for _ in range(30):
        residuals, new = slides(rng, 4, shift=1.0), slides(rng, 4, shift=1.0)
        low, high = np.quantile(np.concatenate(residuals), [0.05, 0.95], axis=0)
        plain.append(np.mean([coverage(s, np.broadcast_to(low, s.shape), np.broadcast_to(high, s.shape)) for s in new]))
        wide.append(np.mean([held(conformal_intervals(residuals), s) for s in new]))
    assert np.mean(plain) < 0.86  # what the pooled quantiles alone would give
    assert 0.87 < np.mean(wide) < 0.94


def test_quantiles_of_slides_that_do_not_differ() -> None:
    rng = np.random.default_rng(2)
    residuals = [rng.exponential(1, (4000, 2)) - 1 for _ in range(6)]
    found = conformal_intervals(residuals, level=0.8)
    want = np.quantile(np.concatenate(residuals), [0.1, 0.9], axis=0)
    np.testing.assert_allclose(found.low, want[0], atol=0.03)  # not symmetric: the residuals are not
    np.testing.assert_allclose(found.high, want[1], atol=0.06)
    assert found.factor == pytest.approx(1, abs=0.05)
    assert found.coverage.shape == (6,)
    assert found.coverage == pytest.approx(0.8, abs=0.03)


def test_slides_weigh_the_same_and_their_order_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    residuals = slides(rng, 4, shift=0.5)
    found = conformal_intervals(residuals)
    again = conformal_intervals([np.repeat(residuals[0], 7, axis=0), *residuals[:0:-1]])
    np.testing.assert_allclose(again.low, found.low, atol=0.08)
    np.testing.assert_allclose(again.high, found.high, atol=0.08)


def test_genes_that_some_slides_lack() -> None:
    rng = np.random.default_rng(4)
    residuals = slides(rng, 5, shift=0.2, n_genes=4)
    residuals[0][:, 1] = np.nan
    for r in residuals:
        r[:, 3] = np.nan
    found = conformal_intervals(residuals)
    assert np.isfinite(found.low).tolist() == [True, True, True, False]
    values = rng.normal(size=(9, 4))
    assert np.isnan(coverage(values, np.broadcast_to(found.low, (9, 4)), np.broadcast_to(found.high, (9, 4)))[3])


def test_residuals_in_blocks_of_genes_give_the_same_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(6)
    residuals = slides(rng, 4, shift=0.2, n_genes=11)
    residuals[0][:, 4] = np.nan
    residuals[1][::3, 7] = np.nan
    whole = conformal_intervals(residuals)
    monkeypatch.setattr(_intervals, "_BLOCK_VALUES", 2 * len(residuals[0]))
    blocks = conformal_intervals(residuals)
    for name in ("low", "high", "factor", "coverage"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))


def test_what_intervals_cannot_be_made_of() -> None:
    one = np.zeros((5, 2))
    with pytest.raises(InputError, match="at least two slides, got one"):
        conformal_intervals([one])
    with pytest.raises(InputError, match="same genes on every slide"):
        conformal_intervals([one, np.zeros((5, 3))])
    for level in (0, 1, "0.9", True, 90):
        with pytest.raises(InputError, match="`level` must be between 0 and 1"):
            conformal_intervals([one, one], level=level)  # type: ignore[arg-type]
    assert np.isnan(conformal_intervals([one + 1, one]).coverage).all()  # two slides cannot say how well they do


def test_sections_of_a_donor_are_left_out_together() -> None:
    rng = np.random.default_rng(5)
    held_by, stated = {"slide": [], "donor": []}, {"slide": [], "donor": []}
    for _ in range(40):
        of = [rng.normal(0, 1, 6) for _ in range(9)]
        residuals = [rng.normal(0, 1, (100, 6)) + of[d] for d in range(4) for _ in range(3)]
        new = [rng.normal(0, 1, (100, 6)) + of[d] for d in range(4, 9)]
        for name, groups in (("slide", None), ("donor", [str(d) for d in range(4) for _ in range(3)])):
            found = conformal_intervals(residuals, groups=groups)
            held_by[name].append(np.mean([held(found, s) for s in new]))
            stated[name].append(found.coverage.mean())
    assert np.mean(held_by["slide"]) < 0.86  # sections of one donor calibrate each other ...
    assert np.mean(stated["slide"]) > 0.88  # ... and do not notice
    assert 0.87 < np.mean(held_by["donor"]) < 0.94
    with pytest.raises(InputError, match="slides of at least two donors, got one"):
        conformal_intervals(residuals, groups=["a"] * 12)
    with pytest.raises(InputError, match="`groups` has 3 donors for 12 slides"):
        conformal_intervals(residuals, groups=["a", "b", "c"])


def test_genes_of_which_each_slide_has_some() -> None:
    rng = np.random.default_rng(6)
    residuals = slides(rng, 6, shift=1.0, n_genes=12)
    for k, r in enumerate(residuals):
        r[:, k::6] = np.nan  # no gene is on every slide
    found = conformal_intervals(residuals)
    assert found.factor > 1.02
    assert np.isfinite(found.coverage).all()

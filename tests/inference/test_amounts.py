"""Amounts of fine locations that are rescaled to what was counted in coarse ones."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stpred.inference.amounts import NEAREST, Preserved


def reference(
    amounts: NDArray, counts: NDArray, owner: NDArray, coords_um: NDArray, spots_um: NDArray
) -> NDArray[np.float64]:
    """Go through locations one by one."""
    held = [np.flatnonzero(owner == s) for s in range(len(spots_um))]
    out = np.zeros(len(amounts))
    totals = np.zeros(len(spots_um))
    for s, rows in enumerate(held):
        totals[s] = amounts[rows].sum()
        for row in rows:
            if totals[s] > 0:
                out[row] = amounts[row] * counts[s] / totals[s]
            else:
                out[row] = counts[s] / len(rows)
        if totals[s] == 0 and counts[s] > 0:
            totals[s] = len(rows)  # as if one had been predicted everywhere
    for row in np.flatnonzero(owner < 0):
        distance = np.linalg.norm(spots_um - coords_um[row], axis=1)
        above = below = 0.0
        for s in np.argsort(distance, kind="stable")[:NEAREST]:
            if len(held[s]):
                above += counts[s] / distance[s]
                below += totals[s] / distance[s]
        out[row] = amounts[row] * above / below if below > 0 else 0.0
    return out


@pytest.fixture
def drawn() -> dict[str, NDArray]:
    """300 locations among 12 spots: half lie in none, spot 5 holds none, 3 has no counts, in 7 nothing is predicted."""
    rng = np.random.default_rng(0)
    owner = np.where(rng.random(300) < 0.5, rng.integers(0, 12, 300), -1)
    owner[owner == 5] = -1
    amounts = rng.gamma(1.0, 2.0, 300).astype(np.float32)
    amounts[owner == 7] = 0
    counts = rng.poisson(20, 12).astype(np.float64)
    counts[3] = 0
    return {
        "amounts": amounts,
        "counts": counts,
        "owner": owner,
        "coords_um": rng.uniform(0, 400, (300, 2)),
        "spots_um": rng.uniform(0, 400, (12, 2)),
    }


def rescaled(drawn: dict[str, NDArray], **changed: NDArray) -> NDArray[np.float32]:
    d = {**drawn, **changed}
    scale = Preserved(d["owner"], coords_um=d["coords_um"], spots_um=d["spots_um"])
    return scale.rescaled(d["amounts"], d["counts"])


def test_equals_the_slow_loop(drawn: dict[str, NDArray]) -> None:
    out = rescaled(drawn)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, reference(**drawn), rtol=1e-5)


def test_spots_add_up_and_proportions_stay(drawn: dict[str, NDArray]) -> None:
    out, owner, amounts = rescaled(drawn), drawn["owner"], drawn["amounts"]
    for spot, count in enumerate(drawn["counts"]):
        rows = owner == spot
        if spot != 5:
            assert out[rows].sum(dtype=np.float64) == pytest.approx(count, rel=1e-5)
        if spot not in (3, 5, 7):
            np.testing.assert_allclose(out[rows] / out[rows].sum(), amounts[rows] / amounts[rows].sum(), rtol=1e-4)
    assert (out[owner == 3] == 0).all()
    assert np.unique(out[owner == 7]).size == 1  # shared out evenly
    assert (out >= 0).all()


def test_a_second_time_changes_nothing(drawn: dict[str, NDArray]) -> None:
    once = rescaled(drawn)
    np.testing.assert_allclose(rescaled(drawn, amounts=once), once, rtol=1e-5)


def test_neither_unit_nor_order_matters(drawn: dict[str, NDArray]) -> None:
    full = drawn["owner"] != 7  # where nothing is predicted the unit is that of an even share
    part = {k: drawn[k][full] for k in ("owner", "amounts", "coords_um")}
    counts = np.where(np.arange(12) == 7, 0.0, drawn["counts"])
    once = rescaled(drawn, counts=counts, **part)
    np.testing.assert_allclose(rescaled(drawn, counts=counts, **{**part, "amounts": part["amounts"] * 50}), once, 1e-5)
    order = np.random.default_rng(1).permutation(full.sum())
    mixed = {k: v[order] for k, v in part.items()}
    np.testing.assert_allclose(rescaled(drawn, counts=counts, **mixed), once[order], rtol=1e-5)


def test_between_spots_the_nearest_decide() -> None:
    """Two spots, one enriched threefold and one tenfold; locations between them go from one factor to the other."""
    spots = np.array([[0.0, 0.0], [100.0, 0.0]])
    coords = np.array([[0.0, 0.0], [100.0, 0.0], [1e-9, 0.0], [50.0, 0.0], [90.0, 0.0]])
    scale = Preserved(np.array([0, 1, -1, -1, -1]), coords_um=coords, spots_um=spots)
    out = scale.rescaled(np.ones(5, np.float32), np.array([3.0, 10.0]))
    np.testing.assert_allclose(out[[0, 1, 3]], [3, 10, 6.5])
    assert out[2] == pytest.approx(3, abs=1e-3)
    assert out[4] == pytest.approx((3 / 90 + 10 / 10) / (1 / 90 + 1 / 10))


def test_all_in_spots_or_one_spot_only() -> None:
    scale = Preserved(np.array([0, 0]), coords_um=np.zeros((2, 2)), spots_um=np.zeros((1, 2)))
    np.testing.assert_allclose(scale.rescaled(np.array([1, 3], np.float32), np.array([8.0])), [2, 6])
    scale = Preserved(np.array([0, -1]), coords_um=np.array([[0.0, 0], [9, 0]]), spots_um=np.zeros((1, 2)))
    np.testing.assert_allclose(scale.rescaled(np.array([1, 3], np.float32), np.array([8.0])), [8, 24])
    np.testing.assert_allclose(scale.rescaled(np.array([0, 3], np.float32), np.array([0.0])), [0, 0])

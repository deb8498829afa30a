"""Minibatches of several processes: together those of one, apart from each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stpred.models import Batch
from stpred.training._samplers import _steps


def batches(*sizes: int) -> list[Batch]:
    return [Batch.of(np.zeros((n, 2), np.float32), slide=f"s{i}", y=np.zeros((n, 1))) for i, n in enumerate(sizes)]


def steps(given: list[Batch], *, rank: int, world: int, size: int, unit: str, loss: str) -> list[set[tuple[int, int]]]:
    model: Any = SimpleNamespace(config=SimpleNamespace(batch_size=size, loss=loss), unit=unit)
    found = _steps(given, model, np.random.default_rng(0), None, rank=rank, world=world)
    return [{(i, int(r)) for i, rows in step for r in rows} for step in found]


@pytest.mark.parametrize("sizes", [(64, 40), (33, 5), (3, 3, 2), (17, 18)])
@pytest.mark.parametrize(("unit", "loss"), [("locations", "mse"), ("locations", "pearson"), ("slides", "mse")])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_step(sizes: tuple[int, ...], unit: str, loss: str, world: int) -> None:
    size = 1 if unit == "slides" else 5
    given = batches(*sizes)
    alone = steps(given, rank=0, world=1, size=size * world, unit=unit, loss=loss)
    each = [steps(given, rank=r, world=world, size=size, unit=unit, loss=loss) for r in range(world)]
    assert len({len(e) for e in each}) == 1  # one that takes a step more would wait for the others for ever
    seen = set()
    for whole, *parts in zip(alone, *each, strict=False):
        assert set().union(*parts) == whole
        n_units = len({i for i, _ in whole}) if unit == "slides" else len(whole)
        if n_units >= world:  # of fewer, one is seen by several
            assert sum(map(len, parts)) == len(whole)
        seen |= whole
    left = sum(sizes) - len(seen)
    assert left < (2 * world if (unit, loss) == ("locations", "mse") else 1)

"""What a checkpoint is known by: everything that decides the result of a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from stpred.links import Links
from stpred.models import MLP, Batch
from stpred.models.batch import Patches
from stpred.training._run import fingerprint


def batch() -> Batch:
    rng = np.random.default_rng(0)
    made = Batch.of(
        rng.normal(size=(200, 6)).astype(np.float32),
        neighbors=[[(i + 1) % 200] for i in range(200)],
        coords_um=rng.uniform(size=(200, 2)),
        y=rng.uniform(size=(200, 3)).astype(np.float32),
        totals=rng.uniform(size=200),
        scale="counts",
    )
    links = Links(np.arange(201), np.arange(200))
    return replace(
        made,
        truth=made.y + 1,
        parts=links,
        cells=links,
        cell_links=links,
        patches=Patches(
            rng.normal(size=(4, 6)).astype(np.float32), Links(np.arange(201), np.zeros(200, int)), np.arange(2)
        ),
        colour=np.ones((2, 3), np.float32),
        measured=np.ones(3, bool),
        context="region",
        n_measured=3,
    )


def other(value: Any) -> Any:
    """Return it with its last value changed, of whatever it is made."""
    if isinstance(value, Links):
        return replace(value, weights=np.full(len(value.indices), 0.5, np.float32))
    if isinstance(value, Patches):
        return replace(value, features=other(value.features))
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, int):
        return value + 1
    changed = value.copy()
    changed.flat[-1] = ~changed.flat[-1] if changed.dtype == bool else changed.flat[-1] + 1
    return changed


BASE: dict[str, Any] = {"seed": 0, "epochs": 3}


def key(*batches: Batch, config: Any = None, test: tuple[Batch, ...] = (), **changed: Any) -> str:
    config = MLP.Config() if config is None else config
    return fingerprint("mlp", config, batches, test, **(BASE | changed))


@pytest.mark.parametrize(
    "field",
    [
        "slide", "features", "targets", "sources", "coords_um", "links", "parts", "cells", "cell_links", "patches", "y",
        "truth", "totals", "n_measured", "scale", "colour", "context", "measured",
    ],
)  # fmt: skip
def test_every_part_of_a_batch_decides(field: str) -> None:
    changed = replace(batch(), **{field: other(getattr(batch(), field))})
    assert key(batch()) == key(batch())
    assert key(changed) != key(batch())
    assert key(batch(), test=(changed,)) != key(batch(), test=(batch(),))


def test_settings_decide() -> None:
    keys = [
        key(batch()),
        key(batch(), seed=1),
        key(batch(), epochs=4),
        key(batch(), best=True),
        key(batch(), precision="bf16-mixed"),
        key(batch(), config=MLP.Config(dropout=0.123)),
        key(batch(), batch()),
        key(batch(), test=(batch(),)),
        key(replace(batch(), y=csr_matrix(batch().y))),
    ]
    assert len(set(keys)) == len(keys)
    assert key(replace(batch(), y=csr_matrix(batch().y))) != key(replace(batch(), y=csr_matrix(batch().y * 2)))


def test_one_feature_of_one_location_decides() -> None:
    for row in (1, 100, 198):  # not only of some that are looked at
        features = batch().features.copy()
        features[row, 2] += 1e-3
        assert key(replace(batch(), features=features)) != key(batch())

"""Families that a user registers for the session."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import stpred as st
from stpred.models import registry
from stpred.testing import check_model, refused, small_cohort


@dataclass(frozen=True)
class OwnConfig(st.models.BaseConfig):
    family: ClassVar[str] = "own-family"
    default_encoder: ClassVar[str] = "intensity"
    factor: float = 1.0


class Own(st.models.Model):
    Config: ClassVar[type[OwnConfig]] = OwnConfig
    config: OwnConfig

    def __init__(self, config: Any, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.register_buffer("mean", torch.zeros(n_genes))

    def fit(self, batches: Sequence[Any], *, groups: Sequence[str]) -> dict[str, Any]:
        self.set_buffer("mean", np.mean([np.asarray(b.y).mean(axis=0) for b in batches], axis=0))
        return {}

    def predict(self, batch: Any) -> tuple[Any, None]:
        return np.tile(self.config.factor * self.mean.numpy(), (len(batch.targets), 1)), None


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def test_a_registered_family_has_a_name_and_is_loaded() -> None:
    with refused("No model family named 'own-family'"):
        check_model(OwnConfig())
    st.models.register(Own)
    assert "own-family" in st.models.list()
    assert type(check_model(OwnConfig(factor=2.0))) is Own
    model = st.tl.train(small_cohort(), "own-family", genes=["EPCAM"], shapes_key="spots")
    assert isinstance(model, Own)


def test_a_second_class_of_the_name_replaces_the_first() -> None:
    st.models.register(Own)
    again = type("Own", (Own,), {"Config": type("OwnConfig", (OwnConfig,), {})})
    st.models.register(again)
    assert registry.family("own-family") is again


def test_what_cannot_be_registered() -> None:
    taken = type("Taken", (Own,), {"Config": type("TakenConfig", (OwnConfig,), {"family": "ridge"})})
    with refused("'ridge' is taken"):
        st.models.register(taken)
    with refused("subclass of stpred.models.Model", "got 'own'"):
        st.models.register("own")  # type: ignore[arg-type]
    assert not registry._registered

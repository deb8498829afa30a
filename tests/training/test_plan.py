"""The number of fits that is said is the number that runs."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import stpred as st
from stpred import training
from stpred.models import MLP, Ridge
from stpred.models.ensemble import Ensemble, EnsembleConfig
from stpred.training import _loop


def plan(config: Any, groups: str, **how: Any) -> Any:
    family = Ensemble if isinstance(config, EnsembleConfig) else MLP if isinstance(config, MLP.Config) else Ridge
    return training.plan(family, config, list(groups), **how)


@pytest.mark.parametrize(
    ("config", "groups", "how", "n"),
    [
        (MLP.Config(), "abc", {}, 4),
        (MLP.Config(epochs=3), "abc", {}, 4),
        (MLP.Config(epochs=3), "abc", {"scored": False}, 1),
        (MLP.Config(), "abcdefgh", {}, 6),  # five folds of donors
        (MLP.Config(), "aab", {}, 3),
        (MLP.Config(), "a", {}, 1),
        (MLP.Config(epochs_alone=None), "a", {}, 3),
        (MLP.Config(), "abc", {"validated": True}, 1),
        (EnsembleConfig(MLP.Config(), 4), "abc", {}, 7),
        (MLP.Config(), "abc", {"intervals": True}, 4 + 3 * 3),
        (Ridge.Config(), "abc", {}, 4),
    ],
)
def test_numbers_of_fits(config: Any, groups: str, how: dict[str, Any], n: int) -> None:
    found = plan(config, groups, **how)
    assert found.n == n
    assert found.long is not isinstance(config, Ridge.Config)


def test_the_sentence() -> None:
    assert plan(MLP.Config(), "abc").sentence() == (
        "Training mlp takes 4 fits: 3 without a donor each, to choose the number of epochs and to score genes, and 1 "
        "on all 3 slides; each of up to 60 epochs."
    )


@pytest.mark.parametrize("n_members", [None, 2])
def test_as_many_fits_run_as_are_said(
    n_members: int | None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    original = _loop.train
    monkeypatch.setattr(_loop, "train", lambda *a, **k: called.append(k["describe"]) or original(*a, **k))
    slides = st.datasets.toy_cohort(3, size_um=(400, 400), n_genes=12)
    config: Any = MLP.Config(hidden=(4,), max_epochs=2)
    config = config if n_members is None else Ensemble.Config(config, n_members)
    with caplog.at_level(logging.INFO, logger="stpred"):
        st.tl.train(slides, config, encoder="intensity", shapes_key="spots")
    said = next(r.getMessage() for r in caplog.records if r.name == "stpred.fits")
    assert f"takes {len(called)} fits" in said

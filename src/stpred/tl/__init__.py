"""Tools: train, predict, compare, cross-validate."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.tl._compare import compare
    from stpred.tl._cross_validate import cross_validate
    from stpred.tl._distill import distill
    from stpred.tl._predict import predict
    from stpred.tl._pretrain_encoder import pretrain_encoder
    from stpred.tl._probe_encoder import probe_encoder
    from stpred.tl._score_cell_types import score_cell_types
    from stpred.tl._simulation_study import simulation_study
    from stpred.tl._surroundings import surroundings
    from stpred.tl._train import train

__all__ = [
    "compare",
    "cross_validate",
    "distill",
    "predict",
    "pretrain_encoder",
    "probe_encoder",
    "score_cell_types",
    "simulation_study",
    "surroundings",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"stpred.tl._{name}"), name)
    raise AttributeError(f"module 'stpred.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

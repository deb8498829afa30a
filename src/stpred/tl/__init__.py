"""Tools: train, predict, compare, cross-validate, ask a posterior, and put all of it to the test."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.tl._calibration import calibration
    from stpred.tl._compare import compare
    from stpred.tl._cross_validate import cross_validate
    from stpred.tl._differential_expression import differential_expression
    from stpred.tl._distill import distill
    from stpred.tl._metagenes import metagenes
    from stpred.tl._misaligned_spots import misaligned_spots
    from stpred.tl._occluded_tiles import occluded_tiles
    from stpred.tl._predict import predict
    from stpred.tl._pretrain_encoder import pretrain_encoder
    from stpred.tl._probe_encoder import probe_encoder
    from stpred.tl._restarts import restarts
    from stpred.tl._score_cell_types import score_cell_types
    from stpred.tl._simulation_study import simulation_study
    from stpred.tl._surroundings import surroundings
    from stpred.tl._train import train
    from stpred.tl._withheld_sections import withheld_sections
    from stpred.tl._withheld_spots import withheld_spots

__all__ = [
    "calibration",
    "compare",
    "cross_validate",
    "differential_expression",
    "distill",
    "metagenes",
    "misaligned_spots",
    "occluded_tiles",
    "predict",
    "pretrain_encoder",
    "probe_encoder",
    "restarts",
    "score_cell_types",
    "simulation_study",
    "surroundings",
    "train",
    "withheld_sections",
    "withheld_spots",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"stpred.tl._{name}"), name)
    raise AttributeError(f"module 'stpred.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

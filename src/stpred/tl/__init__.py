"""Tools: train, predict, compare, cross-validate, ask a posterior, and put all of it to the test."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.tl._attribution import attribution
    from stpred.tl._calibration import calibration
    from stpred.tl._classify import classify
    from stpred.tl._colocalization import colocalization
    from stpred.tl._compare import compare
    from stpred.tl._compare_bulk import compare_bulk
    from stpred.tl._conformal import conformal
    from stpred.tl._correct import correct
    from stpred.tl._coverage import coverage
    from stpred.tl._cross_validate import cross_validate
    from stpred.tl._differential_expression import differential_expression
    from stpred.tl._differential_rank import differential_rank
    from stpred.tl._distill import distill
    from stpred.tl._enrichment import enrichment
    from stpred.tl._feature_associations import feature_associations
    from stpred.tl._latent import latent
    from stpred.tl._markers import markers
    from stpred.tl._metagenes import metagenes
    from stpred.tl._misaligned_spots import misaligned_spots
    from stpred.tl._occluded_tiles import occluded_tiles
    from stpred.tl._pathway_activity import pathway_activity
    from stpred.tl._predict import predict
    from stpred.tl._pretrain_encoder import pretrain_encoder
    from stpred.tl._probe_encoder import probe_encoder
    from stpred.tl._pseudobulk import pseudobulk
    from stpred.tl._rank_models import rank_models
    from stpred.tl._recalibrate import recalibrate
    from stpred.tl._restarts import restarts
    from stpred.tl._score_cell_types import score_cell_types
    from stpred.tl._simulation_study import simulation_study
    from stpred.tl._summarise import summarise
    from stpred.tl._surroundings import surroundings
    from stpred.tl._survival import survival
    from stpred.tl._train import train
    from stpred.tl._withheld_sections import withheld_sections
    from stpred.tl._withheld_spots import withheld_spots
    from stpred.tl._within_regions import within_regions

__all__ = [
    "attribution",
    "calibration",
    "classify",
    "colocalization",
    "compare",
    "compare_bulk",
    "conformal",
    "correct",
    "coverage",
    "cross_validate",
    "differential_expression",
    "differential_rank",
    "distill",
    "enrichment",
    "feature_associations",
    "latent",
    "markers",
    "metagenes",
    "misaligned_spots",
    "occluded_tiles",
    "pathway_activity",
    "predict",
    "pretrain_encoder",
    "probe_encoder",
    "pseudobulk",
    "rank_models",
    "recalibrate",
    "restarts",
    "score_cell_types",
    "simulation_study",
    "summarise",
    "surroundings",
    "survival",
    "train",
    "withheld_sections",
    "withheld_spots",
    "within_regions",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"stpred.tl._{name}"), name)
    raise AttributeError(f"module 'stpred.tl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Plots of predictions on the tissue, through spatialdata-plot and matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.pl._compare import compare
    from stpred.pl._coverage import coverage
    from stpred.pl._differential_rank import differential_rank
    from stpred.pl._gallery import gallery
    from stpred.pl._genes import genes
    from stpred.pl._markers import markers
    from stpred.pl._models import models
    from stpred.pl._raster import raster
    from stpred.pl._scores.boxes import boxes
    from stpred.pl._scores.critical_difference import critical_difference
    from stpred.pl._scores.donors_per_gene import donors_per_gene
    from stpred.pl._scores.top_genes import top_genes
    from stpred.pl._spatial import spatial
    from stpred.pl._training import training

_SCORES = ("boxes", "critical_difference", "donors_per_gene", "top_genes")

__all__ = [
    "boxes",
    "compare",
    "coverage",
    "critical_difference",
    "differential_rank",
    "donors_per_gene",
    "gallery",
    "genes",
    "markers",
    "models",
    "raster",
    "spatial",
    "top_genes",
    "training",
]

__getattr__, __dir__ = attach(
    __name__, {name: f"_scores.{name}" if name in _SCORES else f"_{name}" for name in __all__}
)

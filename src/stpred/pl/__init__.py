"""Plots of predictions on the tissue, through spatialdata-plot and matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.pl._analyses.composition_by_distance import composition_by_distance
    from stpred.pl._analyses.error_by_std import error_by_std
    from stpred.pl._analyses.metagenes import metagenes
    from stpred.pl._analyses.volcano import volcano
    from stpred.pl._compare import compare
    from stpred.pl._coverage import coverage
    from stpred.pl._differential_rank import differential_rank
    from stpred.pl._gallery import gallery
    from stpred.pl._genes import genes
    from stpred.pl._markers import markers
    from stpred.pl._models import models
    from stpred.pl._raster import raster
    from stpred.pl._registration import registration
    from stpred.pl._samples.cohort_size import cohort_size
    from stpred.pl._samples.rank_agreement import rank_agreement
    from stpred.pl._scores.boxes import boxes
    from stpred.pl._scores.critical_difference import critical_difference
    from stpred.pl._scores.donors_per_gene import donors_per_gene
    from stpred.pl._scores.top_genes import top_genes
    from stpred.pl._spatial import spatial
    from stpred.pl._tiles.attribution import attribution
    from stpred.pl._tiles.latent import latent
    from stpred.pl._tiles.tiles import tiles
    from stpred.pl._training import training

__all__ = [
    "attribution",
    "boxes",
    "cohort_size",
    "compare",
    "composition_by_distance",
    "coverage",
    "critical_difference",
    "differential_rank",
    "donors_per_gene",
    "error_by_std",
    "gallery",
    "genes",
    "latent",
    "markers",
    "metagenes",
    "models",
    "rank_agreement",
    "raster",
    "registration",
    "spatial",
    "tiles",
    "top_genes",
    "training",
    "volcano",
]

_ROOMS = {
    **dict.fromkeys(["composition_by_distance", "error_by_std", "metagenes", "volcano"], "_analyses"),
    **dict.fromkeys(["cohort_size", "rank_agreement"], "_samples"),
    **dict.fromkeys(["boxes", "critical_difference", "donors_per_gene", "top_genes"], "_scores"),
    **dict.fromkeys(["attribution", "latent", "tiles"], "_tiles"),
}

__getattr__, __dir__ = attach(
    __name__, {name: f"{_ROOMS[name]}.{name}" if name in _ROOMS else f"_{name}" for name in __all__}
)

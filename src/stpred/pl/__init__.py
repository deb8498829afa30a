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
    from stpred.pl._spatial import spatial
    from stpred.pl._training import training

__all__ = [
    "compare",
    "coverage",
    "differential_rank",
    "gallery",
    "genes",
    "markers",
    "models",
    "raster",
    "spatial",
    "training",
]

__getattr__, __dir__ = attach(__name__, {name: f"_{name}" for name in __all__})

"""Plots of predictions on the tissue, through spatialdata-plot and matplotlib."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.pl._compare import compare
    from stpred.pl._coverage import coverage
    from stpred.pl._differential_rank import differential_rank
    from stpred.pl._gallery import gallery
    from stpred.pl._genes import genes
    from stpred.pl._map import map
    from stpred.pl._markers import markers
    from stpred.pl._models import models
    from stpred.pl._spatial import spatial
    from stpred.pl._training import training

__all__ = [
    "compare",
    "coverage",
    "differential_rank",
    "gallery",
    "genes",
    "map",
    "markers",
    "models",
    "spatial",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"stpred.pl._{name}"), name)
    raise AttributeError(f"module 'stpred.pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

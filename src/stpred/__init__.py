"""Predict spatial gene expression from H&E images, inside the scverse ecosystem."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred._core.recipes.draws import Draws
from stpred._core.recipes.quality import QC
from stpred._core.recipes.splits import Splits
from stpred._core.recipes.tile_risk import TileRisk
from stpred._core.settings import settings
from stpred._core.specs import FineTuning, GeneRule, Posterior, TileSpec

if TYPE_CHECKING:
    from stpred import datasets, encoders, io, metrics, models, pl, pp, testing, tl
    from stpred._report import report

__version__ = "0.1.0"

_SUBMODULES = ("datasets", "encoders", "io", "metrics", "models", "pl", "pp", "testing", "tl")

__all__ = [
    "QC",
    "Draws",
    "FineTuning",
    "GeneRule",
    "InputError",
    "Posterior",
    "Splits",
    "TileRisk",
    "TileSpec",
    "__version__",
    "datasets",
    "encoders",
    "io",
    "metrics",
    "models",
    "pl",
    "pp",
    "report",
    "settings",
    "testing",
    "tl",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"stpred.{name}")
    if name == "report":
        return import_module("stpred._report").report
    raise AttributeError(f"module 'stpred' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

"""Readers: vendor formats and plain slides to a SpatialData object calibrated in micrometres."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.io._cohort import read_cohort
    from stpred.io._detect import read
    from stpred.io._hest import hest
    from stpred.io._legacy_st import legacy_st
    from stpred.io._visium import visium
    from stpred.io._visium_hd import visium_hd
    from stpred.io._wsi import wsi
    from stpred.io._xenium import xenium

_HOMES = {
    "hest": "_hest",
    "legacy_st": "_legacy_st",
    "read": "_detect",
    "read_cohort": "_cohort",
    "visium": "_visium",
    "visium_hd": "_visium_hd",
    "wsi": "_wsi",
    "xenium": "_xenium",
}

__all__ = ["hest", "legacy_st", "read", "read_cohort", "visium", "visium_hd", "wsi", "xenium"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"stpred.io.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'stpred.io' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

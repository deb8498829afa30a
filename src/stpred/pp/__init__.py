"""Preprocessing: calibrate, find tissue and nuclei, lay grids, subdivide regions, compute features, choose genes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.pp._add_cells import add_cells
    from stpred.pp._aggregate import aggregate
    from stpred.pp._calibrate import calibrate
    from stpred.pp._features import features
    from stpred.pp._grid import grid
    from stpred.pp._nuclei import nuclei
    from stpred.pp._select_genes import select_genes
    from stpred.pp._subdivide import subdivide
    from stpred.pp._tissue import tissue

__all__ = ["add_cells", "aggregate", "calibrate", "features", "grid", "nuclei", "select_genes", "subdivide", "tissue"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(f"stpred.pp._{name}"), name)
    raise AttributeError(f"module 'stpred.pp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

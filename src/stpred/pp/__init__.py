"""Preprocessing: calibrate, find tissue and nuclei, lay grids, subdivide regions, compute features, choose genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

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

__getattr__, __dir__ = attach(__name__, {name: f"_{name}" for name in __all__})

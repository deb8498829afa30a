"""Preprocessing: calibrate, normalise stains, find tissue and nuclei, lay grids, compute features, choose genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.cohort.extraction.features_cohort import features_cohort
    from stpred.pp._add_cells import add_cells
    from stpred.pp._aggregate import aggregate
    from stpred.pp._calibrate import calibrate
    from stpred.pp._features import features
    from stpred.pp._grid import grid
    from stpred.pp._nuclei import nuclei
    from stpred.pp._qc import qc
    from stpred.pp._register import register
    from stpred.pp._select_genes import select_genes
    from stpred.pp._stain_normalize import stain_normalize
    from stpred.pp._stain_reference import StainReference, stain_reference
    from stpred.pp._subdivide import subdivide
    from stpred.pp._tissue import tissue

__all__ = [
    "StainReference",
    "add_cells",
    "aggregate",
    "calibrate",
    "features",
    "features_cohort",
    "grid",
    "nuclei",
    "qc",
    "register",
    "select_genes",
    "stain_normalize",
    "stain_reference",
    "subdivide",
    "tissue",
]

_ELSEWHERE = {
    "StainReference": "_stain_reference",
    "features_cohort": "stpred.cohort.extraction.features_cohort",
}

__getattr__, __dir__ = attach(__name__, {name: _ELSEWHERE.get(name, f"_{name}") for name in __all__})

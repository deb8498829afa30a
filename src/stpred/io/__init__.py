"""Readers of vendor formats and plain slides, calibrated in micrometres, and writers for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.io._cohort import read_cohort
    from stpred.io._detect import read
    from stpred.io._export.write_10x_h5 import write_10x_h5
    from stpred.io._export.write_geojson import write_geojson
    from stpred.io._export.write_tiff_map import write_tiff_map
    from stpred.io._export.write_vitessce import write_vitessce
    from stpred.io._hest import hest
    from stpred.io._hest_bench import hest_bench
    from stpred.io._lazyslide import add_lazyslide
    from stpred.io._legacy_st import legacy_st
    from stpred.io._visium import visium
    from stpred.io._visium_hd import visium_hd
    from stpred.io._wsi import wsi
    from stpred.io._xenium import xenium

_HOMES = {
    "add_lazyslide": "_lazyslide",
    "hest": "_hest",
    "hest_bench": "_hest_bench",
    "legacy_st": "_legacy_st",
    "read": "_detect",
    "read_cohort": "_cohort",
    "visium": "_visium",
    "visium_hd": "_visium_hd",
    "write_10x_h5": "_export.write_10x_h5",
    "write_geojson": "_export.write_geojson",
    "write_tiff_map": "_export.write_tiff_map",
    "write_vitessce": "_export.write_vitessce",
    "wsi": "_wsi",
    "xenium": "_xenium",
}

__all__ = [
    "add_lazyslide",
    "hest",
    "hest_bench",
    "legacy_st",
    "read",
    "read_cohort",
    "visium",
    "visium_hd",
    "write_10x_h5",
    "write_geojson",
    "write_tiff_map",
    "write_vitessce",
    "wsi",
    "xenium",
]

__getattr__, __dir__ = attach(__name__, _HOMES)

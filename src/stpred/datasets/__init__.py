"""Synthetic tissue with known cell-level truth, in memory and in the vendors' formats."""

from __future__ import annotations

from stpred.datasets._hest import toy_hest
from stpred.datasets._legacy_st import toy_legacy_st
from stpred.datasets._simulated.tissue import Tissue, TissueKeywords, TissueSettings, make_tissue
from stpred.datasets._simulated.truth import load_truth
from stpred.datasets._single_cells import toy_reference
from stpred.datasets._subtypes import toy_subtypes
from stpred.datasets._toy import toy, toy_cohort
from stpred.datasets._visium import toy_visium
from stpred.datasets._visium_hd import toy_visium_hd
from stpred.datasets._wsi import toy_wsi
from stpred.datasets._xenium import toy_xenium

__all__ = [
    "Tissue",
    "TissueKeywords",
    "TissueSettings",
    "load_truth",
    "make_tissue",
    "toy",
    "toy_cohort",
    "toy_hest",
    "toy_legacy_st",
    "toy_reference",
    "toy_subtypes",
    "toy_visium",
    "toy_visium_hd",
    "toy_wsi",
    "toy_xenium",
]

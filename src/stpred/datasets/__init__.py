"""Synthetic tissue with known cell-level truth, in memory and in the vendors' formats."""

from __future__ import annotations

from stpred.datasets._tissue import Tissue, make_tissue
from stpred.datasets._toy import toy, toy_cohort
from stpred.datasets._truth import load_truth
from stpred.datasets._visium import toy_visium

__all__ = [
    "Tissue",
    "load_truth",
    "make_tissue",
    "toy",
    "toy_cohort",
    "toy_visium",
]

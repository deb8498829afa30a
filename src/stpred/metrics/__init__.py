"""Scores of predicted against observed expression, one per gene, and their statistics; arrays in, arrays out.

Rows are instances (spots, bins, cells), columns are genes. Every score is computed in float64, gene by gene, and is NaN
where it is not defined, for one where the gene's values hold NaN; `summarise` and `average` say what becomes of those.
"""

from __future__ import annotations

from stpred.metrics._bootstrap import bootstrap_ci
from stpred.metrics._context import RmaxTest, library_size_baseline, neighbour_baseline, reliability, rmax_test
from stpred.metrics._curves import PositiveDonors, TopGenes, positive_donors, top_genes
from stpred.metrics._models import ModelComparison, compare_models, signed_rank_p
from stpred.metrics._p_values import benjamini_hochberg, holm, median_p
from stpred.metrics._scores import auroc, mae, partial_pearson, pearson, r2, rmse, smooth, spearman, ssim
from stpred.metrics._statistics import (
    ConsistentGenes,
    PermutationNull,
    consistent_genes,
    correlation_difference_test,
    fisher_t_test,
    permutation_null,
)
from stpred.metrics.intervals import Intervals, conformal_intervals, coverage
from stpred.metrics.summary import average, summarise

__all__ = [
    "ConsistentGenes",
    "Intervals",
    "ModelComparison",
    "PermutationNull",
    "PositiveDonors",
    "RmaxTest",
    "TopGenes",
    "auroc",
    "average",
    "benjamini_hochberg",
    "bootstrap_ci",
    "compare_models",
    "conformal_intervals",
    "consistent_genes",
    "correlation_difference_test",
    "coverage",
    "fisher_t_test",
    "holm",
    "library_size_baseline",
    "mae",
    "median_p",
    "neighbour_baseline",
    "partial_pearson",
    "pearson",
    "permutation_null",
    "positive_donors",
    "r2",
    "reliability",
    "rmax_test",
    "rmse",
    "signed_rank_p",
    "smooth",
    "spearman",
    "ssim",
    "summarise",
    "top_genes",
]

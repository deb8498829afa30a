"""Tools: train, predict, compare, cross-validate, ask a posterior, and put all of it to the test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.cohort.collected.collect_cohort import collect_cohort
    from stpred.cohort.overview.cohort_overview import cohort_overview
    from stpred.cohort.predict_cohort import predict_cohort
    from stpred.tl._borders.composition_by_distance import composition_by_distance
    from stpred.tl._borders.distance_to_border import distance_to_border
    from stpred.tl._cells.score_cell_types import score_cell_types
    from stpred.tl._downstream.colocalization import colocalization
    from stpred.tl._downstream.differential_rank import differential_rank
    from stpred.tl._downstream.enrichment import enrichment
    from stpred.tl._downstream.feature_associations import feature_associations
    from stpred.tl._downstream.markers import markers
    from stpred.tl._downstream.paired_colocalization import paired_colocalization
    from stpred.tl._downstream.pathway_activity import pathway_activity
    from stpred.tl._downstream.rank_agreement import rank_agreement
    from stpred.tl._evaluation.compare import compare
    from stpred.tl._evaluation.cross_validate import cross_validate
    from stpred.tl._evaluation.paired_tests import paired_tests
    from stpred.tl._evaluation.rank_models import rank_models
    from stpred.tl._evaluation.summarise import summarise
    from stpred.tl._evaluation.superior_genes import superior_genes
    from stpred.tl._evaluation.surroundings import surroundings
    from stpred.tl._evaluation.top_gene_curve import top_gene_curve
    from stpred.tl._evaluation.validate import validate
    from stpred.tl._evaluation.within_regions import within_regions
    from stpred.tl._generative.differential_expression import differential_expression
    from stpred.tl._generative.metagenes import metagenes
    from stpred.tl._latent.cluster_purity import cluster_purity
    from stpred.tl._latent.latent import latent
    from stpred.tl._latent.latent_clusters import latent_clusters
    from stpred.tl._latent.similar_tiles import similar_tiles
    from stpred.tl._latent.typical_tiles import typical_tiles
    from stpred.tl._predictors.distill import distill
    from stpred.tl._predictors.finetune import finetune
    from stpred.tl._predictors.predict import predict
    from stpred.tl._predictors.predict_map import predict_map
    from stpred.tl._predictors.pretrain_encoder import pretrain_encoder
    from stpred.tl._predictors.probe_encoder import probe_encoder
    from stpred.tl._predictors.train import train
    from stpred.tl._reference.annotate_cells import annotate_cells
    from stpred.tl._reference.check_pairs import check_pairs
    from stpred.tl._reference.check_reference import check_reference
    from stpred.tl._reference.impute_genes import impute_genes
    from stpred.tl._reference.trusted import trusted
    from stpred.tl._robustness.alignment import alignment
    from stpred.tl._robustness.calibration import calibration
    from stpred.tl._robustness.misaligned_spots import misaligned_spots
    from stpred.tl._robustness.occluded_tiles import occluded_tiles
    from stpred.tl._robustness.restarts import restarts
    from stpred.tl._robustness.simulation_study import simulation_study
    from stpred.tl._robustness.withheld_sections import withheld_sections
    from stpred.tl._robustness.withheld_spots import withheld_spots
    from stpred.tl._samples.classify import classify
    from stpred.tl._samples.compare_bulk import compare_bulk
    from stpred.tl._samples.pseudobulk import pseudobulk
    from stpred.tl._samples.survival import survival
    from stpred.tl._samples.tile_survival import tile_survival
    from stpred.tl._trust.attribution import attribution
    from stpred.tl._trust.conformal import conformal
    from stpred.tl._trust.correct import correct
    from stpred.tl._trust.coverage import coverage
    from stpred.tl._trust.error_by_std import error_by_std
    from stpred.tl._trust.recalibrate import recalibrate
    from stpred.tl._trust.to_log1p_cp10k import to_log1p_cp10k

_HOMES = {
    "alignment": "_robustness.alignment",
    "annotate_cells": "_reference.annotate_cells",
    "attribution": "_trust.attribution",
    "calibration": "_robustness.calibration",
    "check_pairs": "_reference.check_pairs",
    "check_reference": "_reference.check_reference",
    "classify": "_samples.classify",
    "cluster_purity": "_latent.cluster_purity",
    "cohort_overview": "stpred.cohort.overview.cohort_overview",
    "collect_cohort": "stpred.cohort.collected.collect_cohort",
    "colocalization": "_downstream.colocalization",
    "compare": "_evaluation.compare",
    "compare_bulk": "_samples.compare_bulk",
    "composition_by_distance": "_borders.composition_by_distance",
    "conformal": "_trust.conformal",
    "correct": "_trust.correct",
    "coverage": "_trust.coverage",
    "cross_validate": "_evaluation.cross_validate",
    "differential_expression": "_generative.differential_expression",
    "differential_rank": "_downstream.differential_rank",
    "distance_to_border": "_borders.distance_to_border",
    "distill": "_predictors.distill",
    "enrichment": "_downstream.enrichment",
    "error_by_std": "_trust.error_by_std",
    "feature_associations": "_downstream.feature_associations",
    "finetune": "_predictors.finetune",
    "impute_genes": "_reference.impute_genes",
    "latent": "_latent.latent",
    "latent_clusters": "_latent.latent_clusters",
    "markers": "_downstream.markers",
    "metagenes": "_generative.metagenes",
    "misaligned_spots": "_robustness.misaligned_spots",
    "occluded_tiles": "_robustness.occluded_tiles",
    "paired_tests": "_evaluation.paired_tests",
    "paired_colocalization": "_downstream.paired_colocalization",
    "pathway_activity": "_downstream.pathway_activity",
    "predict": "_predictors.predict",
    "predict_cohort": "stpred.cohort.predict_cohort",
    "predict_map": "_predictors.predict_map",
    "pretrain_encoder": "_predictors.pretrain_encoder",
    "probe_encoder": "_predictors.probe_encoder",
    "pseudobulk": "_samples.pseudobulk",
    "rank_agreement": "_downstream.rank_agreement",
    "rank_models": "_evaluation.rank_models",
    "recalibrate": "_trust.recalibrate",
    "restarts": "_robustness.restarts",
    "score_cell_types": "_cells.score_cell_types",
    "similar_tiles": "_latent.similar_tiles",
    "simulation_study": "_robustness.simulation_study",
    "summarise": "_evaluation.summarise",
    "superior_genes": "_evaluation.superior_genes",
    "surroundings": "_evaluation.surroundings",
    "survival": "_samples.survival",
    "tile_survival": "_samples.tile_survival",
    "to_log1p_cp10k": "_trust.to_log1p_cp10k",
    "top_gene_curve": "_evaluation.top_gene_curve",
    "train": "_predictors.train",
    "trusted": "_reference.trusted",
    "typical_tiles": "_latent.typical_tiles",
    "validate": "_evaluation.validate",
    "withheld_sections": "_robustness.withheld_sections",
    "withheld_spots": "_robustness.withheld_spots",
    "within_regions": "_evaluation.within_regions",
}

__all__ = [
    "alignment",
    "annotate_cells",
    "attribution",
    "calibration",
    "check_pairs",
    "check_reference",
    "classify",
    "cluster_purity",
    "cohort_overview",
    "collect_cohort",
    "colocalization",
    "compare",
    "compare_bulk",
    "composition_by_distance",
    "conformal",
    "correct",
    "coverage",
    "cross_validate",
    "differential_expression",
    "differential_rank",
    "distance_to_border",
    "distill",
    "enrichment",
    "error_by_std",
    "feature_associations",
    "finetune",
    "impute_genes",
    "latent",
    "latent_clusters",
    "markers",
    "metagenes",
    "misaligned_spots",
    "occluded_tiles",
    "paired_tests",
    "paired_colocalization",
    "pathway_activity",
    "predict",
    "predict_cohort",
    "predict_map",
    "pretrain_encoder",
    "probe_encoder",
    "pseudobulk",
    "rank_agreement",
    "rank_models",
    "recalibrate",
    "restarts",
    "score_cell_types",
    "similar_tiles",
    "simulation_study",
    "summarise",
    "superior_genes",
    "surroundings",
    "survival",
    "tile_survival",
    "to_log1p_cp10k",
    "top_gene_curve",
    "train",
    "trusted",
    "typical_tiles",
    "validate",
    "withheld_sections",
    "withheld_spots",
    "within_regions",
]

__getattr__, __dir__ = attach(__name__, _HOMES)

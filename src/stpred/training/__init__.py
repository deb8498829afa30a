"""Fitting a family on batches, and scoring it on held-out slides."""

from stpred.training._distil import Distillation, out_of_fold, standardised
from stpred.training._fit import Fitted, Relabel, fit, fit_and_score
from stpred.training._moco import pretrain
from stpred.training._plan import announce, fold_groups, group_folds, leave_groups_out, plan
from stpred.training._run import Run, add_to_digest, each_its_share, resumable
from stpred.training._scores import HeldOut, criterion_of
from stpred.training._select import Choice, choose_config, held_out_scores
from stpred.training._tuning.networks import copied
from stpred.training._tuning.tune import Tuned, can_tune, tune

__all__ = [
    "Choice",
    "Distillation",
    "Fitted",
    "HeldOut",
    "Relabel",
    "Run",
    "Tuned",
    "add_to_digest",
    "announce",
    "can_tune",
    "choose_config",
    "copied",
    "criterion_of",
    "each_its_share",
    "fit",
    "fit_and_score",
    "fold_groups",
    "group_folds",
    "held_out_scores",
    "leave_groups_out",
    "out_of_fold",
    "plan",
    "pretrain",
    "resumable",
    "standardised",
    "tune",
]

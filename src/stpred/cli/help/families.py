"""Families in a user's words: the question that each answers."""

from __future__ import annotations

from stpred.models import registry

QUESTIONS: dict[str, dict[str, str]] = {
    "Start here": {
        "ridge": "A first model, and one that is hard to beat: linear, fitted in closed form.",
        "auto": "Which model suits my slides? Fits several, keeps those that predict held-out donors.",
        "kernel_ridge": "Is there more than a linear relation? Ridge with a Gaussian kernel.",
    },
    "Do neighbouring tiles help?": {
        "miso": "Each spot with attention to the spots around it (MISO, teacher).",
        "deepspot": "Each spot with its sub-spots and neighbours (DeepSpot).",
        "hist2st": "Whole sections: a transformer and a graph network over all spots (Hist2ST).",
        "histogene": "Whole sections: a transformer with learned positions (HisToGene).",
        "transformer": "Each spot attends to all others of its slide (baseline of MISO).",
    },
    "I have spots and want single cells": {
        "scellst": "Cells whose mean is the spot, learned from spots (sCellST).",
        "deepspot2cell": "Cells that add up to the spot, in the context around them (DeepSpot2Cell).",
        "deepcell": "Cells with measured counts, such as of Xenium, to learn from (DeepCell).",
    },
    "I want maps finer than spots": {
        "student": "Patches of about 8 um whose mean is the spot (MISO, student); then --map.",
        "istar": "Patches of about 8 um that add up to the spot (iStar); then --map.",
        "xfuse": "Pixels with a posterior: maps with uncertainty, metagenes (XFuse).",
    },
    "How sure is the prediction?": {
        "ensemble": "The spread of several members; give it as --model FAMILY --ensemble 5.",
    },
    "I have large cohorts or a GPU": {
        "stnet": "A convolutional network, fine-tuned on the pixels (ST-Net).",
        "mlp": "A network over tile features.",
    },
    "Does my model see more than these?": {
        "mean": "Every gene's mean: the floor.",
        "intensity": "The mean colour of a tile alone.",
        "colour": "Mean and spread of a tile's colour alone.",
        "retrieval": "The mean of the measured spots that match the image best (after BLEEP).",
        "random_forest": "A random forest over the tile's features (baseline of ST-Net).",
        "nmf_composition": "Programmes of genes, predicted from the image (baseline of ST-Net).",
    },
}
"""Families by what a user asks."""


def grouped() -> dict[str, dict[str, str]]:
    """Return the families by question; those of other packages have the first line of their documentation."""
    known = {name for answers in QUESTIONS.values() for name in answers}
    others = {name: _first_line(name) for name in sorted(registry.families()) if name not in known}
    return QUESTIONS | ({"Of other packages": others} if others else {})


def answers() -> dict[str, str]:
    """Return what each family is for, by its name."""
    return {name: what for answers in grouped().values() for name, what in answers.items()}


def _first_line(name: str) -> str:
    """Return the first line of the documentation of a family, which is imported for it."""
    try:
        return (registry.family(name).__doc__ or "").strip().partition("\n")[0]
    except ImportError:
        return "cannot be imported"

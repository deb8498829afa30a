"""Model families, and loading and saving of trained models.

``list`` says what exists, ``load`` and ``save`` work on folders of ``config.json`` + ``model.safetensors``; ``get``
makes a model of a predictor that others trained and published, ``as_lazyslide`` one of theirs of a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stpred._core.lazy import attach

if TYPE_CHECKING:
    from stpred.models._files.averages import average
    from stpred.models._files.reference import load_reference
    from stpred.models.auto import Auto
    from stpred.models.base import BaseConfig, Model, Record
    from stpred.models.baselines import Colour, Intensity, Mean
    from stpred.models.batch import Batch, Needs
    from stpred.models.deepspot import DeepCell, DeepSpot
    from stpred.models.deepspot2cell import DeepSpot2Cell
    from stpred.models.ensemble import Ensemble
    from stpred.models.files import load, save
    from stpred.models.hist2st import Hist2ST
    from stpred.models.histogene import HisToGene
    from stpred.models.istar import IStar
    from stpred.models.kernel_ridge import KernelRidge
    from stpred.models.miso import MISO, Transformer
    from stpred.models.mlp import MLP
    from stpred.models.nmf_composition import NMFComposition
    from stpred.models.parts.network import Network, NetworkConfig
    from stpred.models.random_forest import RandomForest
    from stpred.models.registry import list, register
    from stpred.models.retrieval import Retrieval
    from stpred.models.ridge import Ridge
    from stpred.models.scellst import SCellST
    from stpred.models.stnet import STNet
    from stpred.models.student import Student
    from stpred.models.xfuse.model import XFuse
    from stpred.pretrained.export import as_lazyslide
    from stpred.pretrained.get import get

# Loaded on first use, so that `import stpred.models` does not import torch.
_HOMES = {
    "Auto": "auto",
    "BaseConfig": "base",
    "Batch": "batch",
    "Colour": "baselines",
    "DeepCell": "deepspot",
    "DeepSpot": "deepspot",
    "DeepSpot2Cell": "deepspot2cell",
    "Ensemble": "ensemble",
    "HisToGene": "histogene",
    "Hist2ST": "hist2st",
    "IStar": "istar",
    "Intensity": "baselines",
    "KernelRidge": "kernel_ridge",
    "MISO": "miso",
    "MLP": "mlp",
    "Mean": "baselines",
    "Model": "base",
    "NMFComposition": "nmf_composition",
    "Needs": "batch",
    "Network": "parts.network",
    "NetworkConfig": "parts.network",
    "RandomForest": "random_forest",
    "Record": "base",
    "Retrieval": "retrieval",
    "Ridge": "ridge",
    "SCellST": "scellst",
    "STNet": "stnet",
    "Student": "student",
    "Transformer": "miso",
    "XFuse": "xfuse.model",
    "as_lazyslide": "stpred.pretrained.export",
    "average": "_files.averages",
    "get": "stpred.pretrained.get",
    "list": "registry",
    "load": "files",
    "load_reference": "_files.reference",
    "register": "registry",
    "save": "files",
}

__all__ = [
    "Auto",
    "BaseConfig",
    "Batch",
    "Colour",
    "DeepCell",
    "DeepSpot",
    "DeepSpot2Cell",
    "Ensemble",
    "HisToGene",
    "Hist2ST",
    "IStar",
    "Intensity",
    "KernelRidge",
    "MISO",
    "MLP",
    "Mean",
    "Model",
    "NMFComposition",
    "Needs",
    "Network",
    "NetworkConfig",
    "RandomForest",
    "Record",
    "Retrieval",
    "Ridge",
    "SCellST",
    "STNet",
    "Student",
    "Transformer",
    "XFuse",
    "as_lazyslide",
    "average",
    "get",
    "list",
    "load",
    "load_reference",
    "register",
    "save",
]

__getattr__, __dir__ = attach(__name__, _HOMES)

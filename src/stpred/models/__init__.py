"""Model families, and loading and saving of trained models.

``list`` says what exists, ``load`` and ``save`` work on folders of ``config.json`` + ``model.safetensors``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.models._base import BaseConfig, Batch, Model, Needs, Record
    from stpred.models._files import load, save
    from stpred.models._network import Network, NetworkConfig
    from stpred.models._reference import load_reference
    from stpred.models._registry import list
    from stpred.models.deepcell import DeepCell
    from stpred.models.deepspot import DeepSpot
    from stpred.models.deepspot2cell import DeepSpot2Cell
    from stpred.models.ensemble import Ensemble
    from stpred.models.intensity import Intensity
    from stpred.models.mean import Mean
    from stpred.models.miso import MISO
    from stpred.models.mlp import MLP
    from stpred.models.ridge import Ridge
    from stpred.models.scellst import SCellST
    from stpred.models.stnet import STNet
    from stpred.models.student import Student
    from stpred.models.transformer import Transformer
    from stpred.models.xfuse import XFuse

# Loaded on first use, so that `import stpred.models` does not import torch.
_WHERE = {
    "BaseConfig": "_base",
    "Batch": "_base",
    "DeepCell": "deepcell",
    "DeepSpot": "deepspot",
    "DeepSpot2Cell": "deepspot2cell",
    "Ensemble": "ensemble",
    "Intensity": "intensity",
    "MISO": "miso",
    "MLP": "mlp",
    "Mean": "mean",
    "Model": "_base",
    "Needs": "_base",
    "Network": "_network",
    "NetworkConfig": "_network",
    "Record": "_base",
    "Ridge": "ridge",
    "SCellST": "scellst",
    "STNet": "stnet",
    "Student": "student",
    "Transformer": "transformer",
    "XFuse": "xfuse",
    "list": "_registry",
    "load": "_files",
    "load_reference": "_reference",
    "save": "_files",
}

__all__ = [
    "BaseConfig",
    "Batch",
    "DeepCell",
    "DeepSpot",
    "DeepSpot2Cell",
    "Ensemble",
    "Intensity",
    "MISO",
    "MLP",
    "Mean",
    "Model",
    "Needs",
    "Network",
    "NetworkConfig",
    "Record",
    "Ridge",
    "SCellST",
    "STNet",
    "Student",
    "Transformer",
    "XFuse",
    "list",
    "load",
    "load_reference",
    "save",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"stpred.models.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stpred.models' has no attribute {name!r}")


def __dir__() -> Any:
    return sorted(__all__)

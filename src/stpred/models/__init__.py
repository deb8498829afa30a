"""Model families, and loading and saving of trained models.

``list`` says what exists, ``load`` and ``save`` work on folders of ``config.json`` + ``model.safetensors``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stpred.models._base import BaseConfig, Batch, Model, Needs, Record
    from stpred.models._files import load, save
    from stpred.models._registry import list
    from stpred.models.intensity import Intensity
    from stpred.models.mean import Mean
    from stpred.models.ridge import Ridge

# Loaded on first use, so that `import stpred.models` does not import torch.
_WHERE = {
    "BaseConfig": "_base",
    "Batch": "_base",
    "Intensity": "intensity",
    "Mean": "mean",
    "Model": "_base",
    "Needs": "_base",
    "Record": "_base",
    "Ridge": "ridge",
    "list": "_registry",
    "load": "_files",
    "save": "_files",
}

__all__ = ["BaseConfig", "Batch", "Intensity", "Mean", "Model", "Needs", "Record", "Ridge", "list", "load", "save"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(f"stpred.models.{_WHERE[name]}"), name)
    raise AttributeError(f"module 'stpred.models' has no attribute {name!r}")


def __dir__() -> Any:
    return sorted(__all__)

"""Which model families and bundled models exist. A new method is one file here and one line in `FAMILIES`."""

from __future__ import annotations

import builtins
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    from stpred.models.base import BaseConfig, Model

FAMILIES = {
    "auto": "stpred.models.auto:Auto",
    "colour": "stpred.models.baselines:Colour",
    "deepcell": "stpred.models.deepspot:DeepCell",
    "deepspot": "stpred.models.deepspot:DeepSpot",
    "deepspot2cell": "stpred.models.deepspot2cell:DeepSpot2Cell",
    "ensemble": "stpred.models.ensemble:Ensemble",
    "hist2st": "stpred.models.hist2st:Hist2ST",
    "histogene": "stpred.models.histogene:HisToGene",
    "intensity": "stpred.models.baselines:Intensity",
    "istar": "stpred.models.istar:IStar",
    "kernel_ridge": "stpred.models.kernel_ridge:KernelRidge",
    "mean": "stpred.models.baselines:Mean",
    "miso": "stpred.models.miso:MISO",
    "mlp": "stpred.models.mlp:MLP",
    "nmf_composition": "stpred.models.nmf_composition:NMFComposition",
    "random_forest": "stpred.models.random_forest:RandomForest",
    "retrieval": "stpred.models.retrieval:Retrieval",
    "ridge": "stpred.models.ridge:Ridge",
    "scellst": "stpred.models.scellst:SCellST",
    "stnet": "stpred.models.stnet:STNet",
    "student": "stpred.models.student:Student",
    "transformer": "stpred.models.miso:Transformer",
    "xfuse": "stpred.models.xfuse.model:XFuse",
}

STORED = {"pretrained": "stpred.models.pretrained.model:Pretrained"}
"""Families that are loaded and fine-tuned, but not trained."""

ENTRY_POINTS = "stpred.models"

BUNDLED = Path(__file__).parent / "_bundled"


def families() -> dict[str, str]:
    """Return every family's name and where its class is, third parties' (entry points) included."""
    return FAMILIES | {e.name: e.value for e in entry_points(group=ENTRY_POINTS)}


def bundled() -> builtins.list[str]:
    """Return the names of the trained models that come with the package."""
    return sorted(p.parent.name for p in BUNDLED.glob("*/config.json"))


def list() -> builtins.list[str]:
    """Return the names that `tl.train` and `tl.predict` accept: bundled trained models first, then families to train.

    Returns
    -------
    Names, sorted within the two kinds.

    Examples
    --------
    >>> import stpred as st
    >>> "ridge" in st.models.list()
    True
    """
    return [*bundled(), *sorted(families())]


def family(name: str, *, stored: bool = False) -> type[Model]:
    """Return the class of a family; with `stored`, also of those that are never trained."""
    available = families() | (STORED if stored else {})
    if not isinstance(name, str) or name not in available:
        raise InputError(f"No model family named {name!r}; available: {listing(sorted(available), most=40)}.")
    module, _, attribute = available[name].partition(":")
    return getattr(import_module(module), attribute)


def resolve(model: str | BaseConfig | type[Model]) -> BaseConfig:
    """Return the settings that a family's name, its class or its `Config` stands for."""
    from stpred.models.base import BaseConfig, Model

    if isinstance(model, str):
        return family(model).Config()
    if isinstance(model, BaseConfig) and hasattr(model, "family"):
        return model
    if isinstance(model, type) and issubclass(model, Model) and hasattr(model, "family"):
        return model.Config()
    raise InputError(
        f"`model` must be a family name {listing(sorted(families()), most=40)}, a family or its Config, got {model!r}."
    )

"""Which model families and bundled models exist. A new method is one file here and one line in `FAMILIES`."""

from __future__ import annotations

import builtins
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from stpred._core.checks import InputError, element_name, listing

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

_registered: dict[str, type[Model]] = {}
"""Families of this session, by name."""

BUNDLED = Path(__file__).parent / "_bundled"


def families() -> dict[str, str]:
    """Return every family's name and where its class is, those of entry points and of this session included."""
    own = {name: f"{c.__module__}:{c.__qualname__}" for name, c in _registered.items()}
    return FAMILIES | {e.name: e.value for e in entry_points(group=ENTRY_POINTS)} | own


def register(model: type[Model]) -> None:
    """Register a model family of your own for this session, under the ``family`` of its ``Config``.

    Its name is then known wherever families have names, and :func:`stpred.models.load` reads its saved models. A family
    that comes with a package is registered by an entry point of the group ``stpred.models`` instead, which other
    processes (:func:`stpred.tl.predict_cohort`, the command line) find as well.

    Parameters
    ----------
    model
        Subclass of :class:`stpred.models.Model` with a ``Config`` that names its ``family``. A class registered before
        is replaced by one of the same name, so that a notebook cell can be run twice.

    Raises
    ------
    InputError
        If it is no such class, or the name is that of a family that exists already.

    Examples
    --------
    >>> import stpred as st
    >>> class NothingConfig(st.models.BaseConfig):
    ...     family = "nothing"
    >>> class Nothing(st.models.Model):
    ...     Config = NothingConfig
    ...     def predict(self, batch):
    ...         import numpy as np
    ...         return np.zeros((len(batch.targets), self.n_genes), np.float32), None
    >>> st.models.register(Nothing)
    >>> "nothing" in st.models.list()
    True
    """
    from stpred.models.base import Model

    if not (isinstance(model, type) and issubclass(model, Model) and hasattr(model, "family")):
        raise InputError(
            f"`model` must be a subclass of stpred.models.Model whose Config names its family, got {model!r}."
        )
    taken = {*FAMILIES, *STORED, *bundled(), *(e.name for e in entry_points(group=ENTRY_POINTS))}
    if model.family in taken:
        raise InputError(f"The family name {model.family!r} is taken; give the Config of {model.__name__} another.")
    _registered[element_name(model.family, name="family")] = model


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
    if name in _registered:
        return _registered[name]
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

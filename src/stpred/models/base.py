"""Base classes of model families: settings, and the model itself."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, listing, positive, whole
from stpred._core.disk import stored
from stpred._core.forks import guard
from stpred._core.specs import TileSpec
from stpred._core.targets import scale_of
from stpred.models._files.record import Record as Record
from stpred.models.batch import Batch, Needs
from stpred.models.ood import TrainingDistribution

FORMAT_VERSION = 1

Differentiable = Literal["pixels", "linear", "network"]

MULTISCALE = "morphology-multiscale"
"""Default encoder of families that see nothing of a location but the features of its tile."""

CELLS = "cells-multiscale"
"""Default encoder of families that see the crops of a location's cells beside its tile."""


MAX_UM = 1e5
"""Largest distance that stored settings may have, in micrometres: the width of a slide."""

_MAX_SETTINGS = {"n_neighbors": 100_000, "parts": 64, "depth": 24, "n_phi": 10_000, "n_rho": 10_000}
"""Upper bounds of stored settings that decide the size of contexts and networks."""


@dataclass(frozen=True)
class BaseConfig:
    """Hyperparameters of a family, its needs and its scales; frozen, JSON-able, validated on creation.

    Examples
    --------
    >>> import stpred as st
    >>> config = st.models.Ridge.Config(context_um=150)
    >>> isinstance(config, st.models.BaseConfig), config.family
    (True, 'ridge')
    """

    family: ClassVar[str]
    """Name of the family, as stored with its models."""
    _model_class: ClassVar[type[Model]]
    default_encoder: ClassVar[str] = "morphology"
    default_tile: ClassVar[TileSpec | None] = None
    """Tile that the family uses its default encoder (``"morphology"``, where that is several) with; None: its own."""
    sparse_targets: ClassVar[bool] = False
    """Whether training targets of very many locations may stay sparse (scipy csr)."""
    takes_images: ClassVar[bool] = False
    """Whether slides without counts, or without some of the genes, can be trained on."""
    generative: ClassVar[bool] = False
    """Whether predictions are summaries of posterior samples."""
    seeded: ClassVar[bool] = False
    """Whether two fits on the same data differ by their seed."""
    differentiable: ClassVar[Differentiable | None] = None
    """What of a location's own tile its prediction is a differentiable function of, for attributions: a network of the
    tile's pixels, or a linear map or a network of its features; None: of none alone."""
    per: ClassVar[int | None] = None
    """Library size that predicted counts refer to; None: the measured one."""

    @property
    def model_class(self) -> type[Model]:
        """What `build` makes: the class that names these settings as its `Config`, or what a family says instead."""
        return self._model_class

    @property
    def encoder_is_free(self) -> bool:
        """Whether the encoder of a comparison takes the place of the family's own, which is not part of the method."""
        return self.default_encoder in (BaseConfig.default_encoder, MULTISCALE, CELLS)

    @property
    def needs(self) -> Needs:
        """Inputs that the data layer provides."""
        return Needs()

    def training_target(self, target: str | None) -> str:
        """Return the scale of the training targets for a requested `target` (None: the family's default)."""
        return "log1p_cp10k" if target is None else target

    def output_scale(self, target: str | None) -> str:
        """Return the scale of predictions: ``"log1p_cp10k"``, ``"counts"``, ``"log_share"`` or ``"relative"``."""
        return scale_of(self.training_target(target))

    def build(self, *, n_features: int, n_genes: int) -> Model:
        """Return an untrained model of these settings."""
        return self.model_class(self, n_features=n_features, n_genes=n_genes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Return settings from stored values; unknown fields and wrong types raise `InputError`."""
        names = {f.name for f in fields(cls)}
        if unknown := set(values) - names:
            raise InputError(f"{cls.__qualname__} has no fields {listing(sorted(unknown))}; it takes {sorted(names)}.")
        try:
            hints = get_type_hints(cls)
        except NameError:  # types that a third party imports for type checkers alone
            hints = {}
        found = {k: stored.of_kind(v, hints.get(k, Any), f"`{k}` of {cls.__qualname__}") for k, v in values.items()}
        for name, value in found.items():
            highest = MAX_UM if name.endswith("_um") else _MAX_SETTINGS.get(name)
            numbers = value if isinstance(value, tuple) else (value,)
            if highest is not None and any(isinstance(v, (int, float)) and v > highest for v in numbers):
                raise stored.refuse(f"`{name}` of {cls.__qualname__}", f"at most {highest:g}", value)
        return cls(**found)

    def _values(self, names: Sequence[str]) -> Iterator[tuple[str, Any, bool]]:
        """Yield name, value and whether it may be None of fields that are set."""
        for name in names:
            optional = "None" in (kind := str(type(self).__dataclass_fields__[name].type)) or "Optional" in kind
            if not (optional and getattr(self, name) is None):
                yield name, getattr(self, name), optional

    def check_whole(self, *names: str, zero: bool = False) -> None:
        """Make fields whole numbers of at least 1 (or 0); others are refused."""
        for name, value, optional in self._values(names):
            if not (zero and value == 0):
                object.__setattr__(self, name, whole(value, name=name, unset=optional))

    def check_positive(self, *names: str) -> None:
        """Refuse fields that are not above 0."""
        for name, value, _ in self._values(names):
            positive(value, name=name, unit="micrometres" if name.endswith("_um") else "")

    def check_fraction(self, *names: str, below: float = 1.0) -> None:
        """Refuse fields that are not from 0 to below `below`."""
        for name, value, _ in self._values(names):
            if isinstance(value, (bool, str)) or value is None or not 0 <= float(value) < below:
                raise InputError(f"`{name}` must be a number from 0 to below {below:g}, got {value!r}.")

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Return the settings with distances that default to multiples of the training pitch."""
        return self

    def for_slides(self, slides: Sequence[str]) -> Self:
        """Return the settings with defaults that depend on the training slides."""
        return self


class Model(nn.Module, ABC):
    """One published method: a frozen `Config`, declared needs, ``fit`` or ``loss``, and ``predict``.

    Parameters
    ----------
    config
        Hyperparameters.
    n_features
        Width of the encoder.
    n_genes
        Number of genes.

    Examples
    --------
    >>> import stpred as st
    >>> model = st.models.load("default")
    >>> isinstance(model, st.models.Model), model.family
    (True, 'ridge')
    >>> model
    Ridge 'default': 3,222 genes on the scale log1p_cp10k
        encoder: morphology, tiles of 112 and 448 um at 0.5 and 2 um per pixel
        trained on: 4 slides (donors not stated), ... spots; ...; ...
        cross-validation: median Pearson ...; ... of 3,222 genes trusted
        a value depends on: 1488 um of tissue, and the mean and deviation of the slide's features
    """

    family: ClassVar[str]
    """That of its `Config`."""
    hidden_layer: ClassVar[str | None] = None
    """What :meth:`latent` is made of; None: the family has no hidden layer."""
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls) and hasattr(cls.Config, "family"):
            cls.family, cls.Config._model_class = cls.Config.family, cls

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__()
        guard()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.typical = TrainingDistribution(self.n_ood_features)
        self.record = Record(name=self.family, genes=[])

    def __repr__(self) -> str:
        from stpred.models._files.summary import summary

        return summary(self)

    @property
    def needs(self) -> Needs:
        """Those of its settings."""
        return self.config.needs

    @property
    def n_ood_features(self) -> int:
        """Number of features that out-of-distribution distances are measured in."""
        return self.n_features

    @property
    def _sees_units(self) -> bool:
        """Whether a location is judged by the cells or tokens in it, not by its tile."""
        return self.needs.cells or self.needs.tokens

    def ood_features(self, batch: Batch) -> NDArray[np.float32]:
        """Return (m, n_ood_features) features of a slide's tiles (or units) that `typical` is fitted to."""
        rows = batch.sources if self._sees_units else batch.targets
        return np.asarray(batch.features[rows], dtype=np.float32)

    def ood_distance(self, batch: Batch) -> NDArray[np.float32]:
        """Return (n,) out-of-distribution distances in units of the training limit; NaN of published weights.

        That of a location of cells or tokens is the mean over these.
        """
        if not self._sees_units:
            return self.typical.relative(self.typical.distance(self.ood_features(batch)))
        units = batch.cells if self.needs.cells else batch.parts
        if units is None:
            return self.typical.relative(self.typical.distance(np.asarray(batch.own, dtype=np.float32)))
        return self.typical.mean_distance(batch.features, units)

    def lend(self, other: Model) -> None:
        """Give a copy what is no tensor of this model: of published predictors, the predictor."""

    def as_scored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, n_genes) predictions on the scale that they are scored on."""
        return values

    @property
    def support_um(self) -> float:
        """Width of tissue that a predicted value depends on."""
        tile = self.record.tile.get("mpp", 0.5) * self.record.tile.get("size_px", 224)
        reach = self.record.reach_um if self.needs.context_um is None else self.needs.context_um
        return float(tile + 2 * (reach or 0.0))

    @property
    def id(self) -> str:
        """Short hash of all tensors and the genes: two models of the same id predict the same."""
        digest = hashlib.sha256(repr((self.family, self.record.genes, self.config.to_dict())).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()[:12]

    @property
    def hub(self) -> str | None:
        """``hf:owner/name@commit`` of a model that was loaded from there and is unchanged, else None."""
        found = self.record.hub
        if not found or found.get("model_id") != self.id:
            return None
        return f"hf:{found['repository']}@{found['revision']}"

    def stored(self) -> dict[str, Any]:
        """Return what ``config.json`` holds of it."""
        return {
            "format_version": FORMAT_VERSION,
            "family": self.family,
            "id": self.id,
            "config": self.config.to_dict(),
            "n_features": self.n_features,
            "record": asdict(self.record),
        }

    def push_to_hub(
        self,
        repo_id: str,
        *,
        licence: str | None = None,
        notes: str | None = None,
        private: bool = False,
        branch: str | None = None,
        message: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, with a card made of its record.

        ``config.json``, ``model.safetensors`` and ``README.md`` are written as one commit. The record is public then:
        it holds the names of the training slides and donors, and scores of the genes. Log in before, by
        ``hf auth login`` or the variable ``HF_TOKEN``.

        Parameters
        ----------
        repo_id
            ``"owner/name"``; it is created if it is not there.
        licence
            Of the weights, an SPDX identifier such as ``"cc-by-4.0"``; None leaves it open. That of the encoder is in
            the card in any case.
        notes
            Markdown for the card, such as the study that the slides are from.
        private
            Create the repository closed to others.
        branch
            Branch to commit to, created if it is not there; None is ``main``.
        message
            Of the commit.

        Returns
        -------
        ``"hf:owner/name@commit"``, which :func:`stpred.models.load` takes.

        Raises
        ------
        InputError
            If the model is not trained or a published predictor, huggingface_hub is not installed, or the hub refuses.

        Examples
        --------
        >>> import stpred as st
        >>> st.models.load("default").push_to_hub("no owner")
        Traceback (most recent call last):
        ...
        stpred._core.checks.InputError: 'no owner' names no repository of the Hugging Face hub; ...
        """
        from stpred.models._hub.push import push_model

        return push_model(self, repo_id, licence=licence, notes=notes, private=private, branch=branch, message=message)

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Fit in closed form on training batches (one per slide, `groups` names each one's donor).

        Returns the chosen settings. Families trained by gradient descent are a `Network` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form fit.")

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) mean and, where the model has one, its standard deviation."""

    def latent(self, batch: Batch) -> NDArray[np.float32]:
        """Return the (n, width) values of the targets in the last hidden layer, before the output head."""
        raise InputError(f"A {self.family!r} model of these settings has no hidden layer.")

    def set_buffer(self, name: str, value: NDArray[Any] | Tensor) -> None:
        """Replace a buffer."""
        self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=torch.float32))

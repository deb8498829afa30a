"""What every model family shares: its batch, its needs, its record, and how far a tile is from the training tiles."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, listing, positive, whole
from stpred._core.disk import stored
from stpred._core.forks import guard
from stpred._core.specs import TileSpec
from stpred.models.batch import Batch, Needs
from stpred.models.ood import TrainingDistribution

FORMAT_VERSION = 1


MAX_UM = 1e5
"""Largest distance that stored settings may have, in micrometres: the width of a slide."""

_MAX_SETTINGS = {"n_neighbors": 100_000, "parts": 64, "depth": 24, "n_phi": 10_000, "n_rho": 10_000}
"""Largest values of stored settings that decide how much a prediction looks at, or how many layers there are."""


@dataclass(frozen=True)
class BaseConfig:
    """Hyperparameters of a family, and all that is known of it without a network; frozen, JSON-able, validated."""

    family: ClassVar[str]
    """Name of the family, as stored with its models."""
    model_class: ClassVar[type[Model]]
    """What `build` makes; a `Model` sets it where it names its `Config`."""
    default_encoder: ClassVar[str] = "morphology"
    default_tile: ClassVar[TileSpec | None] = None
    """What the family reads tiles at when the user does not say; None: the encoder's own."""
    sparse_targets: ClassVar[bool] = False
    """Whether training targets of very many locations may stay sparse (scipy csr)."""
    takes_images: ClassVar[bool] = False
    """Whether it also learns from slides without counts, and from slides that lack some of the genes."""
    generative: ClassVar[bool] = False
    """Whether predictions are draws from a posterior, which can be read in several ways."""
    seeded: ClassVar[bool] = False
    """Whether two fits on the same data differ by their seed."""
    per: ClassVar[int | None] = None
    """Of predicted counts: how many counts of a location they are of; None: as many as were measured."""

    @property
    def needs(self) -> Needs:
        """What the data layer has to bring."""
        return Needs()

    def training_target(self, target: str | None) -> str:
        """Return what the model is trained on when the user asks for `target` (None: whatever suits it)."""
        return "log1p_cp10k" if target is None else target

    def output_scale(self, target: str | None) -> str:
        """Return the scale of what it predicts: ``"log1p_cp10k"``, ``"counts"`` or ``"relative"``."""
        return self.training_target(target)

    def build(self, *, n_features: int, n_genes: int) -> Model:
        """Return an untrained model of these settings."""
        return self.model_class(self, n_features=n_features, n_genes=n_genes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Make it from stored values; lists become tuples, unknown fields and values of another kind are refused."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise InputError(f"{cls.__qualname__} has no fields {listing(sorted(unknown))}; it takes {sorted(known)}.")
        try:
            hints = get_type_hints(cls)
        except NameError:  # types that a third party imports for type checkers alone
            hints = {}
        found = {k: stored.of_kind(v, hints.get(k, Any), f"`{k}` of {cls.__qualname__}") for k, v in values.items()}
        for name, value in found.items():
            highest = MAX_UM if name.endswith("_um") else _MAX_SETTINGS.get(name)
            if highest is not None and isinstance(value, (int, float)) and value > highest:
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
        """Return the settings with distances that follow the training locations' pitch filled in."""
        return self

    def for_slides(self, slides: Sequence[str]) -> Self:
        """Return the settings with what depends on the training slides filled in."""
        return self


@dataclass
class Record:
    """Everything about a trained model that is not a tensor; stored as ``config.json``.

    Attributes
    ----------
    name
        What tables are called after.
    genes
        Gene symbols, in output order.
    var
        Per-gene columns, name to values: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted``,
        ``gene_id``.
    encoder, tile, gene_rule
        Recipes (their ``to_dict``).
    target
        Output scale: ``"log1p_cp10k"``, ``"counts"`` or ``"relative"``.
    pitch_um, region
        Median spacing and name of the training locations.
    reach_um
        How far from a location its nearest neighbours went in training, in the median; None without neighbours.
    cells
        Name of the region of cells that locations were seen through; None: by their own tile.
    training
        Slides, donors, numbers of locations, seed, how settings were chosen.
    library
        What library sizes of the training tables were counted over
        (:meth:`stpred._core.expression.library.Library.to_dict`): ``genes``, the ``share`` of all counts that each
        carries, ``median_size`` of a location; empty of models that do not state it.
    intervals
        Conformal intervals, as far as they were calibrated on slides that the model had not seen: ``scale`` on
        which offsets are added (``"identity"`` or ``"sqrt"``), ``slides``, and for each of ``levels``
        the genes' offsets ``low`` and ``high``, ``factor``, ``coverage`` and ``coverage_sd`` over slides.
    """

    name: str
    genes: list[str]
    var: dict[str, list[Any]] = field(default_factory=dict)
    encoder: dict[str, Any] = field(default_factory=dict)
    tile: dict[str, Any] = field(default_factory=dict)
    gene_rule: dict[str, Any] = field(default_factory=dict)
    target: str = "log1p_cp10k"
    pitch_um: float | None = None
    region: str | None = None
    reach_um: float | None = None
    cells: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    library: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, Any] = field(default_factory=dict)


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
    """

    family: ClassVar[str]
    """That of its `Config`."""
    Config: ClassVar[type[BaseConfig]] = BaseConfig

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "Config" in vars(cls) and hasattr(cls.Config, "family"):
            cls.family, cls.Config.model_class = cls.Config.family, cls

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__()
        guard()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.typical = TrainingDistribution(self.n_ood_features)
        self.record = Record(name=self.family, genes=[])

    @property
    def needs(self) -> Needs:
        """What the data layer has to bring."""
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

        That of a location seen through cells or tokens is the mean over these.
        """
        if not self._sees_units:
            return self.typical.relative(self.typical.distance(self.ood_features(batch)))
        units = batch.cells if self.needs.cells else batch.parts
        if units is None:
            return self.typical.relative(self.typical.distance(np.asarray(batch.own, dtype=np.float32)))
        return self.typical.mean_distance(batch.features, units)

    def as_scored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n, n_genes) predictions as they are compared with the measurement."""
        return values

    @property
    def support_um(self) -> float:
        """Width of tissue that one predicted value speaks for."""
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

    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Fit in closed form on training batches (one per slide, `groups` names each one's donor).

        Returns what was chosen. Families that are trained step by step are a `Network` instead.
        """
        raise NotImplementedError(f"{type(self).__name__} has no closed-form fit.")

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) mean and, where the model has one, its standard deviation."""

    def _set(self, name: str, value: NDArray[Any] | Tensor) -> None:
        """Replace a buffer by new values of any shape."""
        self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=torch.float32))

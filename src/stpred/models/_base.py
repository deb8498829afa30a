"""What every model family shares: its batch, its needs, its record, and how far a tile is from the training tiles."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError
from stpred.links import Links

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Needs:
    """What a model asks of the data layer.

    Attributes
    ----------
    context_um
        Radius around a target from which neighbours' features are taken; None: the tile alone.
    slide_statistics
        Whether features are standardised by the slide they come from, which needs the slide's points at the training
        pitch.
    """

    context_um: float | None = None
    slide_statistics: bool = False

    @property
    def sources(self) -> bool:
        """Whether points at the training pitch are needed beside the targets."""
        return self.context_um is not None or self.slide_statistics


@dataclass(frozen=True)
class Batch:
    """Targets of one slide, as every family sees them in training, validation and prediction.

    Attributes
    ----------
    slide
        Name of the slide.
    features
        (m, n_features) float32, every embedded point once.
    targets
        (n,) rows of `features` that are predicted.
    sources
        (p,) rows of `features` at the training pitch: context and slide statistics come from these alone.
    links
        Ragged index from targets to rows of `features`, neighbours within the radius, or None.
    coords_um
        (n, 2) centres of the targets.
    y
        (n, n_genes) float32 training target, or None.
    totals
        (n,) library sizes, or None.
    """

    slide: str
    features: NDArray[np.float32]
    targets: NDArray[np.int64]
    sources: NDArray[np.int64]
    coords_um: NDArray[np.float64]
    links: Links | None = None
    y: NDArray[np.float32] | None = None
    totals: NDArray[np.float64] | None = None

    @property
    def own(self) -> NDArray[np.float32]:
        """(n, n_features) features of the targets themselves."""
        return self.features[self.targets]


@dataclass(frozen=True)
class BaseConfig:
    """Hyperparameters of a family; frozen, JSON-able, validated when made."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Make it from stored values; lists become tuples, unknown fields are refused."""
        known = {f.name for f in fields(cls)}
        if unknown := set(values) - known:
            raise InputError(f"{cls.__qualname__} has no fields {sorted(unknown)}; it takes {sorted(known)}.")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


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
        Per-gene facts, column name to values: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted``,
        ``gene_id``.
    encoder, tile, gene_rule
        Recipes (their ``to_dict``).
    target
        Output scale: ``"log1p_cp10k"``, ``"counts"`` or ``"relative"``.
    pitch_um, region
        Median spacing and name of the training locations.
    training
        Slides, donors, numbers of locations, seed, how settings were chosen.
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
    training: dict[str, Any] = field(default_factory=dict)


class TypicalTiles(nn.Module):
    """How far features lie from those of training: Mahalanobis distance in the leading components plus the rest.

    The score is 0 up to the 99th percentile of distances that tiles of left-out training slides have, and grows
    linearly beyond.
    """

    MAX_COMPONENTS: ClassVar[int] = 24
    mean: Tensor
    std: Tensor
    components: Tensor
    spread: Tensor
    rest: Tensor
    limit: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        k = min(self.MAX_COMPONENTS, n_features)
        self.register_buffer("mean", torch.zeros(n_features))
        self.register_buffer("std", torch.ones(n_features))
        self.register_buffer("components", torch.zeros(k, n_features))
        self.register_buffer("spread", torch.ones(k))
        self.register_buffer("rest", torch.ones(()))
        self.register_buffer("limit", torch.ones(()))

    def fit(self, slides: Sequence[NDArray[np.float32]]) -> None:
        """Learn from the (n, n_features) features of each training slide."""
        distances = []
        if len(slides) > 1:
            for i, held_out in enumerate(slides):
                self._fit_space(np.concatenate([s for j, s in enumerate(slides) if j != i]))
                distances.append(self.distance(held_out))
        self._fit_space(np.concatenate(slides))
        if not distances:
            distances.append(self.distance(slides[0]))
        self.limit.fill_(max(float(np.quantile(np.concatenate(distances), 0.99)), 1e-6))

    def _fit_space(self, features: NDArray[np.float32]) -> None:
        features = features.astype(np.float64)
        mean, std = features.mean(axis=0), features.std(axis=0)
        std[std < 1e-8] = 1.0
        scaled = (features - mean) / std
        # The covariance is small (features x features) however many tiles there are.
        values, vectors = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        values, vectors = values[::-1].clip(1e-6), vectors[:, ::-1]
        # eigh leaves the sign open; the largest entry is made positive so that files are reproducible.
        vectors = vectors * np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
        k = len(self.spread)
        for name, value in {
            "mean": mean,
            "std": std,
            "components": vectors[:, :k].T,
            "spread": np.sqrt(values[:k]),
            "rest": np.sqrt(values[k:].sum() + 1e-3),
        }.items():
            getattr(self, name).copy_(torch.from_numpy(np.asarray(value)))

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the (n,) distances of (n, n_features) features from the training mean."""
        arrays = {k: v.cpu().numpy().astype(np.float64) for k, v in self.named_buffers()}
        scaled = (features.astype(np.float64) - arrays["mean"]) / arrays["std"]
        inside = scaled @ arrays["components"].T
        outside = np.square(scaled).sum(axis=1) - np.square(inside).sum(axis=1)
        return np.sqrt(np.square(inside / arrays["spread"]).mean(axis=1) + outside.clip(0) / arrays["rest"] ** 2)

    def score(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (n,) scores: 0 = like the training tiles."""
        return np.maximum(self.distance(features) / float(self.limit) - 1.0, 0.0).astype(np.float32)


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
    Config: ClassVar[type[BaseConfig]] = BaseConfig
    default_encoder: ClassVar[str] = "morphology"

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.typical = TypicalTiles(n_features)
        self.record = Record(name=self.family, genes=[])

    @property
    def needs(self) -> Needs:
        """What the data layer has to bring."""
        return Needs()

    @property
    def support_um(self) -> float:
        """Width of tissue that one predicted value speaks for."""
        tile = self.record.tile.get("mpp", 0.5) * self.record.tile.get("size_px", 224)
        return float(tile + 2 * (self.needs.context_um or 0.0))

    @property
    def id(self) -> str:
        """Short hash of all tensors and the genes: two models of the same id predict the same."""
        digest = hashlib.sha256(repr((self.family, self.record.genes, self.config.to_dict())).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode() + np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()[:12]

    @abstractmethod
    def fit(self, batches: Sequence[Batch], *, groups: Sequence[str]) -> dict[str, Any]:
        """Fit on training batches (one per slide, `groups` names each one's donor) and return what was chosen."""

    @abstractmethod
    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the (n, n_genes) mean and, where the model has one, its standard deviation."""

    def _set(self, name: str, value: NDArray[Any] | Tensor) -> None:
        """Replace a buffer by new values of any shape."""
        self.register_buffer(name, torch.as_tensor(np.asarray(value), dtype=torch.float32))

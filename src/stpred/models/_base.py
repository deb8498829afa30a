"""What every model family shares: its batch, its needs, its record, and how far a tile is from the training tiles."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Self, get_type_hints

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core import stored
from stpred._core.checks import InputError, listing
from stpred._core.forks import guard
from stpred._core.specs import TileSpec
from stpred.links import Links
from stpred.models._scene import Scene

FORMAT_VERSION = 1

_SLIDE_TILES = 20
"""Tiles from which on a slide is judged as a whole."""

_FEWEST_DONORS = 3
"""Donors, or sections of a single one, from which on slides are judged as a whole."""

_SLIDES_DIFFER = 0.05
"""Least standard deviation between slides of the log of their median distance: few slides may happen to agree."""

MAX_UM = 1e5
"""Largest distance that stored settings may have, in micrometres: the width of a slide."""

_MOST = {"n_neighbors": 100_000, "parts": 64, "depth": 24, "n_phi": 10_000, "n_rho": 10_000}
"""Largest values of stored settings that decide how much a prediction looks at, or how many layers there are."""

_ROWS = 2**16
"""Features whose distances, in double precision, are in memory at a time."""


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
    n_neighbors
        Number of nearest others that a target is linked to, instead of a radius.
    whole_slide
        Whether every point of the slide at the training pitch bears on every target.
    parts
        Sub-tiles along each edge of a target's tile (3: nine sub-tiles), or None.
    slide_colour
        Whether pixels are normalised by the colour of the slide's tissue.
    cells
        Whether locations are seen through the cells in them. Neighbours (`context_um`, `n_neighbors`) are then those of
        each cell, among the slide's cells.
    patch_um
        Of models that see cells: edge of a tile around the location that a cell lies in, and around the locations
        within `patch_context_um` of that one; or None.
    patch_context_um
        Radius between such locations.
    tokens
        Whether locations are seen through the tokens (patches of tiles) in their footprints.
    token_um
        Edge of a token; None: the encoder's own, or about 8 um.
    footprint_um
        Edge of a square around each training location that is its footprint; None: its shape.
    scene
        Whether the model looks at the slide's pixels itself, and locations are sums over the pixels in their shapes.
    """

    context_um: float | None = None
    slide_statistics: bool = False
    n_neighbors: int | None = None
    whole_slide: bool = False
    parts: int | None = None
    slide_colour: bool = False
    cells: bool = False
    patch_um: float | None = None
    patch_context_um: float | None = None
    tokens: bool = False
    token_um: float | None = None
    footprint_um: float | None = None
    scene: bool = False

    @property
    def linked(self) -> bool:
        """Whether targets are linked to their neighbours."""
        return self.context_um is not None or self.n_neighbors is not None

    @property
    def sources(self) -> bool:
        """Whether points at the training pitch are needed beside the targets."""
        return self.linked or self.slide_statistics or self.whole_slide


@dataclass(frozen=True)
class Patches:
    """Tiles of the locations that cells lie in, of models that see both.

    Attributes
    ----------
    features
        (p, n_features) float32, each location at the training pitch once.
    links
        Ragged index from targets to rows of `features`: the location that the target lies in first, then those around.
    sources
        (s,) rows of `features` that speak for the slide as a whole.
    """

    features: NDArray[Any]
    links: Links
    sources: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Patches:
        """Return those of some of the targets, in this order."""
        return replace(self, links=self.links.take(rows))


@dataclass(frozen=True)
class Batch:
    """Targets of one slide, as every family sees them in training, validation and prediction.

    Attributes
    ----------
    slide
        Name of the slide.
    features
        (m, n_features) float32 (uint8 for pixels), every embedded point once.
    targets
        (n,) rows of `features` that are predicted.
    sources
        (p,) rows of `features` at the training pitch: context and slide statistics come from these alone.
    coords_um
        (n, 2) centres of the targets.
    links
        Ragged index from targets to rows of `features`: their neighbours, the target itself not among them; or None.
    parts
        Ragged index from targets to rows of `features`: sub-tiles of the target's tile, or tokens in its footprint,
        with their shares of it as weights; or None.
    cells
        Ragged index from targets to rows of `features`: the cells in each location; of a cell, itself. None for models
        that do not see cells. With cells, the row of `targets` is the cell nearest to the location's centre.
    cell_links
        Ragged index from rows of `features` to rows of `features`: the cells around each cell; or None.
    patches
        Tiles of the locations that cells lie in; or None.
    y
        (n, n_genes) float32 training target, dense or (of families that take it so) csr, or None.
    truth
        (n, n_genes) float32 values that predictions are scored against; None: `y`.
    totals, n_measured
        (n,) library sizes and the number of genes that they are over, or None.
    scale
        What `y` is: ``"log1p_cp10k"``, ``"counts"`` or ``"log_share"``.
    colour
        (2, 3) mean and standard deviation of red, green and blue over the slide's tissue, 0..1, or None.
    context
        Where context is from: ``"region"`` (the targets' own), ``"grid"``, or the name of the slide's training region
        (with ``"+grid"`` where that does not reach all targets).
    scene
        The slide's pixels and which of them lie in each target, for models that look at these; or None.
    known
        (n_genes,) whether each gene was measured on this slide; None: all.
    """

    slide: str
    features: NDArray[Any]
    targets: NDArray[np.int64]
    sources: NDArray[np.int64]
    coords_um: NDArray[np.float64]
    links: Links | None = None
    parts: Links | None = None
    cells: Links | None = None
    cell_links: Links | None = None
    patches: Patches | None = None
    y: NDArray[np.float32] | None = None
    truth: NDArray[np.float32] | None = None
    totals: NDArray[np.float64] | None = None
    n_measured: int | None = None
    scale: str | None = None
    colour: NDArray[np.float32] | None = None
    context: str | None = None
    scene: Scene | None = None
    known: NDArray[np.bool_] | None = None

    @property
    def own(self) -> NDArray[Any]:
        """(n, n_features) features of the targets themselves."""
        return self.features[self.targets]

    @property
    def scored(self) -> NDArray[np.float32]:
        """(n, n_genes) values that predictions are scored against."""
        values = self.y if self.truth is None else self.truth
        if values is None:
            raise InputError(f"Slide {self.slide!r} came without measured expression.")
        return values

    @classmethod
    def of(
        cls,
        features: NDArray[Any],
        *,
        neighbors: Any = None,
        parts: NDArray[Any] | None = None,
        cells: Any = None,
        coords_um: NDArray[np.float64] | None = None,
        slide: str = "slide",
        **measured: Any,
    ) -> Self:
        """Make a batch from features of your own, every location a target.

        Parameters
        ----------
        features
            (n, n_features) features of the locations' tiles; with `cells`, (m, n_features) features of the cells.
        neighbors
            For each location the rows of its neighbours, as (n, k) whole numbers with -1 for none, or as a list of
            lists; a location itself is dropped from its list, since models always see it.
        parts
            (n, p, n_features) features of the sub-tiles.
        cells
            Which cells each of the n locations holds, at least one each: a list of lists of rows, or
            :class:`~stpred.links.Links`.
        coords_um
            (n, 2) centres in micrometres.
        slide
            Name of the slide.
        **measured
            ``y``, ``truth``, ``totals``, ``scale``, ``n_measured``.
        """
        features = np.asarray(features)
        inside = None if cells is None else _links(cells)
        if inside is not None and (inside.counts() == 0).any():
            raise InputError(f"{int((inside.counts() == 0).sum())} locations hold no cell; leave them out.")
        n = len(features) if inside is None else inside.n_targets
        rows = np.arange(n) if inside is None else inside.indices[inside.indptr[:-1]]
        links = around = None
        if neighbors is not None:
            found = _links(neighbors)
            owner = np.repeat(np.arange(found.n_targets), found.counts())
            kept = found.indices != owner
            counts = np.bincount(owner[kept], minlength=found.n_targets)
            links = Links(np.concatenate([[0], np.cumsum(counts)]), found.indices[kept])
        sources = np.arange(len(features))
        if parts is not None:
            each = parts.shape[1]
            around = Links(np.arange(n + 1) * each, n + np.arange(n * each))
            features = np.concatenate([features, np.asarray(parts).reshape(n * each, -1)])
        coords = np.zeros((n, 2)) if coords_um is None else np.asarray(coords_um, dtype=np.float64)
        return cls(slide, features, rows, sources, coords, links=links, parts=around, cells=inside, **measured)

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of some of the targets, in this order; the embedded points stay as they are."""

        def some(values: Any) -> Any:
            return None if values is None else values[rows]

        return replace(
            self,
            targets=self.targets[rows],
            coords_um=self.coords_um[rows],
            links=None if self.links is None else self.links.take(rows),
            parts=None if self.parts is None else self.parts.take(rows),
            cells=None if self.cells is None else self.cells.take(rows),
            patches=None if self.patches is None else self.patches.take(rows),
            y=some(self.y),
            truth=some(self.truth),
            totals=some(self.totals),
            scene=None if self.scene is None else self.scene.take(rows),
        )


def _links(lists: Any) -> Links:
    """Return ragged links from a list of lists of rows, or a matrix of them; negative rows stand for none."""
    if isinstance(lists, Links):
        return lists
    counts = np.fromiter((len(row) for row in lists), dtype=np.int64, count=len(lists))
    flat = np.concatenate([np.empty(0, dtype=np.int64), *(np.asarray(row, dtype=np.int64) for row in lists)])
    known = flat >= 0
    counts = np.bincount(np.repeat(np.arange(len(counts)), counts)[known], minlength=len(counts))
    return Links(np.concatenate([[0], np.cumsum(counts)]), flat[known])


@dataclass(frozen=True)
class BaseConfig:
    """Hyperparameters of a family; frozen, JSON-able, validated when made."""

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
            most = MAX_UM if name.endswith("_um") else _MOST.get(name)
            if most is not None and isinstance(value, (int, float)) and value > most:
                raise stored.refuse(f"`{name}` of {cls.__qualname__}", f"at most {most:g}", value)
        return cls(**found)

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
        Per-gene facts, column name to values: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted``,
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
        What library sizes of the training tables were counted over (:meth:`stpred._core.library.Library.to_dict`):
        ``genes``, the ``share`` of all counts that each carries, ``median_size`` of a location; empty of models that
        do not state it.
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


class TypicalTiles(nn.Module):
    """How far features lie from those of training: Mahalanobis distance in the leading components plus the rest.

    Distances are given as shares of the 99th percentile of what tiles of left-out training donors have. Tiles of a
    slide that was stained, scanned or prepared otherwise may each stay below that and yet all lie too far out, so the
    slide is judged as well, by its median (:func:`unlike_scores`).
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

    def fit(
        self,
        slides: Sequence[NDArray[np.float32]],
        groups: Sequence[str] | None = None,
        *,
        seen: Callable[[int], NDArray[np.float32]] | None = None,
    ) -> float | None:
        """Learn from the (n, n_features) features of each training slide and its donor; None: one each.

        Returns the median distance up to which a whole slide counts as alike; None where fewer than three donors (of
        one donor: slides) cannot tell.
        `seen` gives the distances of a slide's targets as they are judged in prediction; None: those of its tiles.
        """
        self.limit.fill_(1.0)
        donors = [str(i) for i in range(len(slides))] if groups is None else list(groups)
        if len(set(donors)) == 1:  # sections of one donor are left out one by one
            donors = [str(i) for i in range(len(slides))]
        distances, typical = [], []
        for left in dict.fromkeys(donors) if len(slides) > 1 else ():
            self._fit_space(np.concatenate([s for s, d in zip(slides, donors, strict=True) if d != left]))
            for i in [i for i, d in enumerate(donors) if d == left]:
                distances.append(self.distance(slides[i]))
                typical.append((left, float(np.median(distances[-1] if seen is None else seen(i)))))
        self._fit_space(np.concatenate(slides))
        found = distances or [self.distance(slides[0])]
        self.limit.fill_(max(float(np.quantile(np.concatenate(found), 0.99)), 1e-6))
        medians = [
            np.mean(np.log([m for d, m in typical if d == left])) for left in dict.fromkeys(d for d, _ in typical)
        ]
        if len(medians) < _FEWEST_DONORS:
            return None
        return _slide_limit(np.exp(medians) / float(self.limit))

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

    @property
    def known(self) -> bool:
        """Whether training tiles were seen; published weights come without."""
        return bool(self.components.any())

    def distance(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the (n,) distances of (n, n_features) features from the training mean."""
        arrays = {k: v.cpu().numpy().astype(np.float64) for k, v in self.named_buffers()}
        scaled = (features.astype(np.float64) - arrays["mean"]) / arrays["std"]
        inside = scaled @ arrays["components"].T
        outside = np.square(scaled).sum(axis=1) - np.square(inside).sum(axis=1)
        return np.sqrt(np.square(inside / arrays["spread"]).mean(axis=1) + outside.clip(0) / arrays["rest"] ** 2)

    def within(self, features: NDArray[Any], links: Links) -> NDArray[np.float32]:
        """Return (n,) relative distances of targets: the mean of the features that (n,) ragged links give each."""
        distance = np.zeros(len(features), dtype=np.float32)
        rows = np.unique(links.indices)
        for part in np.array_split(rows, -(-len(rows) // _ROWS)):
            distance[part] = self.distance(np.asarray(features[part], dtype=np.float32))
        return self.relative(links.mean(distance))

    def relative(self, distance: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return (n,) distances as shares of the limit of training tiles, NaN where these are not known."""
        if not self.known:
            return np.full(len(distance), np.nan, dtype=np.float32)
        return (distance / float(self.limit)).astype(np.float32)


def _slide_limit(medians: NDArray[np.float64]) -> float:
    """Return what the median distance of one more donor like these stays below in 97.5 % of cases (log-normal)."""
    from scipy.stats import t

    logs, n = np.log(np.maximum(medians, 1e-6)), len(medians)
    spread = max(float(logs.std(ddof=1)), _SLIDES_DIFFER)
    return float(np.exp(logs.mean() + t.ppf(0.975, n - 1) * spread * np.sqrt(1 + 1 / n)))


def unlike_scores(relative: NDArray[np.float32], slide_limit: float | None = None) -> NDArray[np.float32]:
    """Return (n,) scores of one slide's tiles: 0 = like those of training, positive beyond.

    Parameters
    ----------
    relative
        (n,) distances as shares of the training tiles' limit.
    slide_limit
        Median of these up to which the whole slide is alike; what it goes beyond that is added to every tile. None, or
        fewer than 20 tiles: the slide is not judged.
    """
    scores = np.maximum(relative - 1.0, 0.0)
    return (scores + (slide_score(relative, slide_limit) or 0.0)).astype(np.float32)


def slide_score(relative: NDArray[np.float32], slide_limit: float | None) -> float | None:
    """Return how far a slide's median distance goes beyond those of training: 0 = alike, None = not judged."""
    if slide_limit is None or len(relative) < _SLIDE_TILES or np.isnan(relative).any():
        return None
    return max(float(np.median(relative)) / slide_limit - 1.0, 0.0)


def slide_facts(relative: NDArray[np.float32], slide_limit: float | None) -> dict[str, Any]:
    """Return what the provenance says of a slide as a whole; None where it was not judged."""
    score = slide_score(relative, slide_limit)
    unlike = unlike_scores(relative, slide_limit) > 0
    return {
        "score": None if score is None else round(score, 4),
        "in_distribution": None if score is None else score == 0,
        "share_unlike": float(unlike.mean()),
    }


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

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__()
        guard()
        self.config, self.n_features, self.n_genes = config, n_features, n_genes
        self.typical = TypicalTiles(self.typical_width)
        self.record = Record(name=self.family, genes=[])

    @property
    def needs(self) -> Needs:
        """What the data layer has to bring."""
        return Needs()

    @property
    def typical_width(self) -> int:
        """Number of values by which tiles are told from those of training."""
        return self.n_features

    def describe(self, batch: Batch) -> NDArray[np.float32]:
        """Return (n, typical_width) values by which tiles are told from those of training."""
        return np.asarray(batch.own, dtype=np.float32)

    def unlikeness(self, batch: Batch, typical: TypicalTiles | None = None) -> NDArray[np.float32]:
        """Return (n,) distances from the training tiles, as shares of their limit; NaN where those are not known.

        `typical` None: what this model knows of training; an ensemble asks a member with its own.
        """
        typical = typical or self.typical
        return typical.relative(typical.distance(self.describe(batch)))

    def training_target(self, target: str | None) -> str:
        """Return what the model is trained on when the user asks for `target` (None: whatever suits it)."""
        return "log1p_cp10k" if target is None else target

    def output_scale(self, target: str | None) -> str:
        """Return the scale of what it predicts: ``"log1p_cp10k"``, ``"counts"`` or ``"relative"``."""
        return self.training_target(target)

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

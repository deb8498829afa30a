"""Several families and settings, of which held-out donors choose the best and how much each says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred._core.checks import InputError, listing
from stpred._core.disk import stored
from stpred._core.specs import TileSpec
from stpred._core.targets import TARGETS
from stpred.models import registry
from stpred.models.base import MULTISCALE, BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.ensemble import EnsembleConfig
from stpred.models.kernel_ridge import KernelRidgeConfig
from stpred.models.mlp import MLPConfig
from stpred.models.parts.context import seen_by
from stpred.models.ridge import RidgeConfig

PITCHES = (2.6, 5.0)
"""Radii of the default candidates' rings, in training pitches: 520 and 1000 um on legacy ST, 260 and 500 on Visium."""

_SHARED = ("context_um", "radii_um", "slide_statistics", "places", "parts")
"""What candidates may need of their slides."""

MAX_CANDIDATES = 20


@dataclass(frozen=True)
class AutoConfig(BaseConfig):
    """Settings of :class:`Auto`.

    Parameters
    ----------
    candidates
        Family names or ``Config`` of what is tried, all on features of tiles. None: ridge on the tile alone, ridge and
        kernel ridge with the neighbours in two rings (2.6 and 5 training pitches wide), each with locations weighed by
        depth and reduced rank, and an ensemble of three perceptrons with correlation as loss. A trained model has
        those that it predicts with.
    stacked
        Predict the weighted mean of the best instead of the best alone, where that scores better.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "auto"
    default_encoder: ClassVar[str] = MULTISCALE
    seeded: ClassVar[bool] = True
    candidates: tuple[Any, ...] | None = None
    stacked: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.stacked, bool):
            raise InputError(f"`stacked` must be true or false, got {self.stacked!r}.")
        if self.candidates is None:
            return
        if isinstance(self.candidates, (str, BaseConfig)) or not 1 <= len(self.candidates) <= MAX_CANDIDATES:
            raise InputError(f"`candidates` must be a list of up to {MAX_CANDIDATES} families or their Configs.")
        members = tuple(registry.resolve(c) for c in self.candidates)
        for member in members:
            _check_candidate(member, members[0])
        object.__setattr__(self, "candidates", members)
        _common_needs(members)

    @property
    def members(self) -> tuple[BaseConfig, ...]:
        """The candidates."""
        return default_candidates(None) if self.candidates is None else self.candidates

    @property
    def default_tile(self) -> TileSpec | None:  # type: ignore[override]
        """As of the first candidate."""
        return self.members[0].default_tile

    @property
    def needs(self) -> Needs:
        """What all candidates need together."""
        return _common_needs(self.members)

    def training_target(self, target: str | None) -> str:
        """As of the candidates."""
        return self.members[0].training_target(target)

    def output_scale(self, target: str | None) -> str:
        """Return the scale of the training targets: candidates whose scale is open are brought to it."""
        return self.training_target(target)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        members = (
            None if self.candidates is None else [{"family": m.family, "config": m.to_dict()} for m in self.candidates]
        )
        return {"candidates": members, "stacked": self.stacked}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Make it from stored values."""
        if unknown := set(values) - {"candidates", "stacked"}:
            raise InputError(f"AutoConfig has no fields {listing(sorted(unknown))}; it takes candidates, stacked.")
        found = values.get("candidates")
        where = "`candidates` of AutoConfig"
        if found is not None:
            found = tuple(_parse(v, where) for v in stored.items(found, where, lambda v, _: v, most=MAX_CANDIDATES))
        return cls(found, stored.flag(values.get("stacked", True), "`stacked` of AutoConfig"))

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Fill in the candidates and their distances."""
        members = default_candidates(pitch_um) if self.candidates is None else self.candidates
        return replace(self, candidates=tuple(m.at_pitch(pitch_um) for m in members))

    def for_slides(self, slides: Sequence[str]) -> Self:
        """Fill in what of the candidates depends on the training slides."""
        return replace(self, candidates=tuple(m.for_slides(slides) for m in self.members))


def default_candidates(pitch_um: float | None) -> tuple[BaseConfig, ...]:
    """Return the short list for a training pitch; without one, none looks at neighbours."""
    near, both = None, None
    if pitch_um is not None:
        near, far = (round(p * pitch_um, 1) for p in PITCHES)
        both = (near, far)
    ridge: dict[str, Any] = {"location_weights": "depth", "rank": "auto"}
    perceptron = MLPConfig(
        hidden=(256,), dropout=0.5, loss="pearson", epochs=40, lr=1e-3, weight_decay=0.01, batch_size=1024,
        context_um=near,
    )  # fmt: skip
    return (
        RidgeConfig(**ridge),
        RidgeConfig(context_um=both, **ridge),
        KernelRidgeConfig(context_um=both),
        EnsembleConfig(perceptron, n_members=3),
    )


def _parse(value: Any, where: str) -> BaseConfig:
    """Return a candidate from stored values."""
    checks: dict[str, Any] = {"family": stored.text, "config": lambda v, w: stored.mapping(v, w, {}, open_ended=True)}
    found = stored.mapping(value, where, checks, required=("family", "config"))
    return registry.family(found["family"]).Config.parse(found["config"])


def _check_candidate(config: BaseConfig, first: BaseConfig) -> None:
    """Refuse families that do not predict from features of tiles, or that learn another target than the first."""
    inner = config.member if isinstance(config, EnsembleConfig) else config
    if isinstance(inner, AutoConfig):
        raise InputError("An 'auto' model of 'auto' models is a longer list of `candidates`: give these.")
    needs = config.needs
    plain = replace(Needs(), **{k: getattr(needs, k) for k in _SHARED})
    if needs != plain or config.takes_images or not config.encoder_is_free:
        raise InputError(
            f"`candidates` must predict from features of tiles with neighbours within radii, which {inner.family!r} "
            f"does not."
        )
    if config.default_tile != first.default_tile:
        raise InputError(f"`candidates` {inner.family!r} and {first.family!r} see different tiles.")
    if any(config.training_target(t) != first.training_target(t) for t in (None, *TARGETS)):
        raise InputError(f"`candidates` {inner.family!r} and {first.family!r} are trained on different targets.")


def _common_needs(members: Sequence[BaseConfig]) -> Needs:
    """Return what several families need together."""
    each = [m.needs for m in members]
    radii = sorted({r for n in each for r in (n.radii_um or (n.context_um,)) if r is not None})
    parts = {n.parts for n in each if n.parts is not None}
    if len(parts) > 1:
        raise InputError(f"`candidates` cut tiles into different numbers of parts: {sorted(parts)}.")
    return Needs(
        context_um=radii[-1] if radii else None,
        radii_um=tuple(radii) if len(radii) > 1 else (),
        slide_statistics=any(n.slide_statistics for n in each),
        places=any(n.places for n in each),
        parts=next(iter(parts), None),
    )


class Auto(Model):
    """The weighted mean of the families and settings that predict held-out donors best.

    Every candidate is fitted without each donor in turn (in at most five folds) and predicts it. Candidates are
    standardised per gene, and weighed by greedy selection with replacement for the best mean correlation of held-out
    genes; those that have weight are fitted on all slides. Per gene, the scale is that of least squares on the
    held-out predictions, which shrinks genes that cannot be predicted towards their mean. With one donor, blocks of its
    slides are held out. ``record.training["auto"]`` says what was tried, with the scores.

    References
    ----------
    Wolpert (1992), Stacked generalization, Neural Networks 5:241. Caruana et al. (2004), Ensemble selection from
    libraries of models, ICML.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> config = st.models.Auto.Config(candidates=("ridge", st.models.Ridge.Config(rank=5)))
    >>> model = st.tl.train(slides, config, shapes_key="spots")
    >>> len(model.record.training["auto"]["tried"])
    2
    """

    Config: ClassVar[type[AutoConfig]] = AutoConfig  # type: ignore[assignment]
    config: AutoConfig
    weights: Tensor
    center: Tensor
    scale: Tensor
    slope: Tensor
    intercept: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        members = self.config.members
        self.members = nn.ModuleList(m.build(n_features=n_features, n_genes=n_genes) for m in members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))
        self.register_buffer("center", torch.zeros(len(members), n_genes))
        self.register_buffer("scale", torch.ones(len(members), n_genes))
        self.register_buffer("slope", torch.ones(n_genes))
        self.register_buffer("intercept", torch.zeros(n_genes))

    def set_members(
        self,
        members: Sequence[Model],
        weights: NDArray[np.float64],
        batches: Sequence[Batch],
        *,
        slope: NDArray[np.float64],
        intercept: NDArray[np.float64],
    ) -> None:
        """Set fitted members, their weights, and each gene's scale; standardise by the training batches."""
        moments = [training_moments(m, batches) for m in members]
        self.members = nn.ModuleList(members)
        self.config = replace(self.config, candidates=tuple(m.config for m in members))
        values = {"center": np.stack([m for m, _ in moments]), "scale": np.stack([s for _, s in moments])}
        for name, value in (values | {"weights": weights, "slope": slope, "intercept": intercept}).items():
            self.set_buffer(name, value)

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Return the weighted mean of the members on the scale of the targets."""
        center, scale, weights = (t.cpu().numpy().astype(np.float64) for t in (self.center, self.scale, self.weights))
        total = np.zeros((len(batch.targets), self.n_genes))
        for member, m, s, w in zip(self.members, center, scale, weights, strict=True):
            total += w * (predicted(member, batch) - m) / s
        return (total * self.slope.cpu().numpy() + self.intercept.cpu().numpy()).astype(np.float32), None


def predicted(model: Any, batch: Batch) -> NDArray[np.float64]:
    """Return a member's (n, n_genes) prediction from a batch that serves several."""
    seen = seen_by(batch, model.needs)
    return model.predict(replace(seen, parts=None) if model.needs.parts is None else seen)[0].astype(np.float64)


def training_moments(model: Model, batches: Sequence[Batch]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (n_genes,) mean and deviation of a model's predictions on the slides that it was trained on."""
    found = np.concatenate([predicted(model, b) for b in batches])
    std = found.std(axis=0)
    return found.mean(axis=0), np.where(std < 1e-8, 1.0, std)

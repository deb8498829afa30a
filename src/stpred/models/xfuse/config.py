"""Settings of XFuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from stpred._core.checks import InputError, one_of
from stpred._core.specs import TileSpec
from stpred.models.base import MULTISCALE
from stpred.models.batch import Needs
from stpred.models.parts.iterative import IterativeConfig
from stpred.models.xfuse.covariates import Covariates

PIXELS = "pixels"

DEFAULT_TILE = TileSpec(mpp=8.0, size_px=96)


STRATEGIES = ("drop_and_split", "extra")


@dataclass(frozen=True)
class XFuseConfig(IterativeConfig):
    """Settings of :class:`XFuse`; ``XFuse.Config.published()`` gives those of the publication.

    Parameters
    ----------
    depth
        Levels of the networks; level i sees the image at ``1 / 2**i`` of its resolution.
    width
        Channels of the finest level; each further one has twice as many.
    metagenes
        Metagenes to start with: parts that the counts are mixtures of (non-negative factors). 1: a single one.
    max_metagenes
        Most metagenes.
    strategy
        ``"drop_and_split"``: metagenes that the counts are better off without are dropped, the others split in two;
        ``"extra"``: beside those that contribute, `spare` others are kept.
    purge_interval
        Epochs between two such reviews; None: there is only the last, when training is done, in which the metagenes
        that the counts are better off without go one after the other.
    spare, spare_last, spare_epochs
        Of ``"extra"``: spare metagenes at first, at last, and the epochs in which the number falls from one to the
        other.
    covariates
        Slide to covariate to level, such as ``{"s1": {"patient": "a"}, "s2": {"patient": None}}`` (None: missing).
        Each level has an effect on every gene's rate and dispersion. None: each slide is a level of ``section``.
    score_folds
        Also train with each donor held out, to score genes: as many more trainings.
    lr_global
        Rate of what all slides share: baselines take five times as much, posteriors of metagenes and effects twice.
    decay
        Let all rates fall along half a cosine.
    amsgrad
        Use AMSGrad, as published; the large gradients of the first steps then slow down thousands of others.
    features
        Give guide and decoder the features of an encoder beside the pixels: the ``encoder=`` of training, by default
        ``"morphology-multiscale"``. Metagenes and scale then start as linear functions of them, fitted to the spots of
        all sections. False: the image alone, as published. None: where the training images are fine enough for it.
    feature_channels
        Principal components of the features that the networks see.
    lr, batch_size, epochs
        Of Adam on the networks, patches per step, and passes; in a pass each slide gives as many patches as cover
        it.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "xfuse"
    takes_images: ClassVar[bool] = True
    generative: ClassVar[bool] = True
    depth: int = 4
    width: int = 16
    metagenes: int = 8
    max_metagenes: int = 50
    strategy: str = "drop_and_split"
    purge_interval: int | None = None
    spare: int = 4
    spare_last: int = 1
    spare_epochs: int = 10_000
    covariates: Mapping[str, Mapping[str, str | None]] | None = None
    score_folds: bool = False
    lr_global: float = 1e-3
    decay: bool = True
    amsgrad: bool = False
    features: bool | None = None
    feature_channels: int = 24
    epochs: int | None = 100
    lr: float = 1e-3
    batch_size: int = 4
    clip_norm: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_whole("depth", "width", "metagenes", "max_metagenes", "spare_epochs", "purge_interval")
        self.check_whole("feature_channels")
        self.check_whole("spare", "spare_last", zero=True)
        one_of(self.strategy, STRATEGIES, name="strategy")
        if self.epochs is None:
            raise InputError("`epochs` of XFuse must be given: no number of passes is chosen on held-out slides.")
        if self.metagenes > self.max_metagenes:
            raise InputError(f"`metagenes` ({self.metagenes}) exceeds `max_metagenes` ({self.max_metagenes}).")
        if self.covariates is not None:
            object.__setattr__(self, "covariates", Covariates.checked(self.covariates))

    @classmethod
    def published(cls, **changes: Any) -> XFuseConfig:
        """Return the published settings: six levels, one metagene at first, reviews every 1 000 of 20 000 epochs."""
        values = {"depth": 6, "metagenes": 1, "purge_interval": 1000, "epochs": 20_000, "lr": 3e-4, "lr_global": 3e-4}
        values |= {"decay": False, "amsgrad": True, "features": False}
        return cls(**{**values, **changes})

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Return settings from stored values; those stored before there were features have none."""
        return super().parse({"features": False, **values})

    @property
    def default_encoder(self) -> str:  # type: ignore[override]
        """The pixels, and what is beside them."""
        return PIXELS if self.features is False else f"{PIXELS}+{MULTISCALE}"

    @property
    def default_tile(self) -> TileSpec:  # type: ignore[override]
        """Patches of 96 pixels up to four levels; of 24 at the coarsest level where there are more, as published."""
        return DEFAULT_TILE if self.depth <= 4 else TileSpec(DEFAULT_TILE.mpp, 24 * 2 ** (self.depth - 1))

    @property
    def needs(self) -> Needs:
        """The slide's pixels."""
        return Needs(pixel_grid=True)

    def training_target(self, target: str | None) -> str:
        """Return counts: the likelihood is of nothing else."""
        if target not in (None, "counts"):
            raise InputError(f"XFuse models raw counts; leave `target` out, got {target!r}.")
        return "counts"

    def for_slides(self, slides: Sequence[str]) -> XFuseConfig:
        """Return the settings with every slide a level of ``section`` where no covariates are given."""
        if self.covariates is not None:
            return replace(self, covariates=Covariates.restricted_to(self.covariates, slides))
        return replace(self, covariates={s: {"section": s} for s in slides} if len(slides) > 1 else {})

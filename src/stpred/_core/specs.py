"""Frozen, JSON-able recipes: what an encoder sees, which genes are predicted, and how a posterior is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral
from typing import Any, ClassVar

from stpred._core.checks import InputError, fraction_of, one_of, positive, whole


@dataclass(frozen=True)
class TileSpec:
    """What an encoder sees: a square of `size_px` pixels at `mpp` micrometres per pixel.

    Parameters
    ----------
    mpp
        Micrometres per pixel of the tile after resampling.
    size_px
        Height and width of the tile in pixels.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    Examples
    --------
    >>> import stpred as st
    >>> st.TileSpec(mpp=0.5, size_px=224).size_um
    112.0
    """

    mpp: float = 0.5
    size_px: int = 224

    def __post_init__(self) -> None:
        object.__setattr__(self, "mpp", positive(self.mpp, name="TileSpec.mpp", unit="um per pixel"))
        object.__setattr__(self, "size_px", whole(self.size_px, name="TileSpec.size_px", unit="pixels"))

    @property
    def size_um(self) -> float:
        """Edge length in micrometres."""
        return self.mpp * self.size_px

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def parse(cls, value: TileSpec | Mapping[str, Any]) -> TileSpec:
        """Accept a spec or a mapping of its fields."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping):
            unknown = set(value) - {"mpp", "size_px"}
            if unknown:
                raise InputError(f"`tile` has unknown fields {sorted(unknown)}; it takes mpp and size_px.")
            return cls(**value)
        raise InputError(f"`tile` must be a stpred.TileSpec, or a mapping of mpp and size_px, got {value!r}.")


@dataclass(frozen=True)
class GeneRule:
    """Which genes a model predicts; always computed on the training slides alone.

    Parameters
    ----------
    method
        ``"mean"`` (highest mean count), ``"hvg"`` (Seurat v3, per slide as batch), ``"svg"`` (Moran's I),
        ``"rmax"`` (highest attainable Pearson correlation given Poisson noise), ``"all"`` (every shared gene)
        or ``"list"`` (exactly `genes`).
    n
        Number of genes to keep; None keeps every gene that the rule can score.
    genes
        The explicit list of ``"list"``.
    min_total
        Genes with fewer counts than this over all training slides are never chosen (not used by ``"list"``).

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications. Its rule is ``"rmax"``. Stuart et al. (2019), Comprehensive integration of single-cell
    data, Cell 177:1888, for ``"hvg"``. Moran (1950), Notes on continuous stochastic phenomena, Biometrika 37:17,
    for ``"svg"``.

    Examples
    --------
    >>> import stpred as st
    >>> st.GeneRule("rmax", n=1000)
    GeneRule(method='rmax', n=1000, genes=None, min_total=10)
    """

    METHODS: ClassVar[tuple[str, ...]] = ("mean", "hvg", "svg", "rmax", "all", "list")

    method: str = "mean"
    n: int | None = None
    genes: tuple[str, ...] | None = None
    min_total: float = 10

    def __post_init__(self) -> None:
        one_of(self.method, self.METHODS, name="GeneRule.method")
        if self.n is not None:
            object.__setattr__(self, "n", whole(self.n, name="GeneRule.n", unset=True))
        if (self.method == "list") != (self.genes is not None):
            raise InputError("`GeneRule.genes` goes with method='list', and only with it.")
        if self.genes is not None:
            genes = tuple(map(str, self.genes))
            repeated = sorted({g for g in genes if genes.count(g) > 1})
            if not genes or repeated:
                raise InputError(f"`GeneRule.genes` must be distinct and not empty; repeated: {repeated}.")
            object.__setattr__(self, "genes", genes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def parse(cls, value: GeneRule | str | Iterable[str] | Mapping[str, Any] | None) -> GeneRule:
        """Accept a rule, a method name, a list of genes, a mapping of fields, or None (the 250 highest means)."""
        if value is None:
            return cls("mean", n=250)
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value) if value in cls.METHODS else cls("list", genes=(value,))
        if isinstance(value, Mapping):
            known = [f.name for f in fields(cls)]
            if unknown := sorted(set(value) - set(known)):
                raise InputError(f"`genes` has unknown fields {unknown}; a GeneRule takes {known}.")
            return cls(**value)
        if not isinstance(value, Iterable):
            raise InputError(
                f"`genes` must be a stpred.GeneRule, a rule's name {list(cls.METHODS)} or a list of symbols, "
                f"got {value!r}."
            )
        return cls("list", genes=tuple(value))


@dataclass(frozen=True)
class Posterior:
    """How the posterior of a generative model (``"xfuse"``) is read.

    Parameters
    ----------
    n_samples
        Draws of all latents, of which mean and standard deviation are given.
    normalize_scale
        Take the scale of every pixel for 1: expression per pixel of tissue whose density of RNA is everywhere the same.
        The output scale is then ``"relative"``.
    normalize_size
        Divide by the number of pixels in each location (``"relative"``, too).
    normalize_covariates
        Leave the effects of covariates, such as the section, out.
    covariates
        Levels of the slide, such as ``{"patient": "a"}``; None for one that is not known: it is drawn from all of them.
        A training slide has its own, another slide those that are given here.
    seed
        Of the draws. The latents of a place depend on nothing else, whatever locations are asked for.

    Raises
    ------
    InputError
        If a number is not whole or too small, a switch is no bool or `covariates` is no mapping.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476.

    Examples
    --------
    >>> import stpred as st
    >>> st.Posterior(n_samples=50, normalize_size=True).output_scale
    'relative'
    """

    n_samples: int = 10
    normalize_scale: bool = False
    normalize_size: bool = False
    normalize_covariates: bool = False
    covariates: Mapping[str, str | None] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "n_samples", whole(self.n_samples, name="n_samples"))
        for name in ("normalize_scale", "normalize_size", "normalize_covariates"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"`{name}` must be True or False, got {getattr(self, name)!r}.")
        if self.covariates is not None:
            if not isinstance(self.covariates, Mapping):
                raise InputError(f"`covariates` must map names to levels, got {self.covariates!r}.")
            object.__setattr__(self, "covariates", dict(self.covariates))
        if isinstance(self.seed, bool) or not isinstance(self.seed, Integral) or self.seed < 0:
            raise InputError(f"`seed` must be a whole number, at least 0, got {self.seed!r}.")
        object.__setattr__(self, "seed", int(self.seed))

    @property
    def output_scale(self) -> str:
        """Scale of what is read: ``"counts"`` or ``"relative"``."""
        return "relative" if self.normalize_scale or self.normalize_size else "counts"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FineTuning:
    """What moves when a model goes on from its weights on own slides (:func:`stpred.tl.finetune`), and how far.

    Parameters
    ----------
    trains
        Of networks: ``"all"`` layers, or the ``"head"`` alone, which turns the last features into genes.
    epochs
        Of networks: passes over the own slides; 0 corrects each gene's mean alone. None: as many as score best on
        held-out donors, or blocks of the only donor's slides, up to the family's ``max_epochs``; where none of them
        beats the old model there, 0.
    lr
        Of networks: learning rate of the head; None takes 0.3 of the one that the family was trained at.
    input_rate
        Of networks: learning rate of the layer nearest to the input as a share of the head's, 0 (excluded) to 1; the
        layers between have rates in geometric sequence.
    strength
        Of models of closed form (``"ridge"``): penalty, per location, on the distance from the old weights; infinite
        corrects each gene's mean alone. None: chosen like the epochs, together with the share of the way that the
        weights go, among candidates from the old model (share 0) to the ridge of the own slides alone; where nothing
        scores better, the share of the own locations among all, as if the own slides had been among the old ones.

    Raises
    ------
    InputError
        If a value is not of its kind.

    References
    ----------
    Discriminative learning rates: Howard and Ruder, ULMFiT, ACL 2018. Shrinkage towards given weights: van Wieringen
    and Binder, Sequential learning of regression models by penalized estimation, J. Comput. Graph. Stat. 31 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> st.FineTuning(trains="head", epochs=5).input_rate
    0.1
    """

    trains: str = "all"
    epochs: int | None = None
    lr: float | None = None
    input_rate: float = 0.1
    strength: float | None = None

    def __post_init__(self) -> None:
        one_of(self.trains, ("all", "head"), name="FineTuning.trains")
        if self.epochs is not None and not (self.epochs == 0 and not isinstance(self.epochs, bool)):
            object.__setattr__(self, "epochs", whole(self.epochs, name="FineTuning.epochs", unset=True))
        if self.lr is not None:
            object.__setattr__(self, "lr", positive(self.lr, name="FineTuning.lr"))
        if self.input_rate != 1:
            object.__setattr__(self, "input_rate", fraction_of(self.input_rate, name="FineTuning.input_rate"))
        if self.strength is not None and self.strength != float("inf"):
            object.__setattr__(self, "strength", positive(self.strength, name="FineTuning.strength"))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {k: "inf" if v == float("inf") else v for k, v in asdict(self).items()}

"""Ensembles: the mean of several models, and their spread as its uncertainty."""

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
from stpred.models import registry
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.parts.cross_products import one_by_one


@dataclass(frozen=True)
class EnsembleConfig(BaseConfig):
    """Settings of :class:`Ensemble`.

    Parameters
    ----------
    member
        Family name or ``Config`` of the members.
    n_members
        Number of members.
    joined
        Settings of each member of an average of trained models (:func:`stpred.models.average`), whose `member` is the
        first of them. There is nothing to set here.

    Raises
    ------
    InputError
        If a setting is impossible; the message names it and what would be possible.
    """

    family: ClassVar[str] = "ensemble"
    member: Any = "ridge"
    n_members: int = 5
    joined: tuple[BaseConfig, ...] = ()

    def __post_init__(self) -> None:
        if self.joined:
            object.__setattr__(self, "member", self.joined[0])
            object.__setattr__(self, "n_members", len(self.joined))
            return
        member = registry.resolve(self.member)
        if isinstance(member, EnsembleConfig):
            raise InputError("An ensemble of ensembles is one larger ensemble: give its member's settings.")
        if member.family == "auto":
            raise InputError("'auto' weighs several models already: list ensembles among its `candidates` instead.")
        self.check_whole("n_members")
        object.__setattr__(self, "member", member)

    @property
    def members(self) -> tuple[BaseConfig, ...]:
        """Settings of every member."""
        return self.joined or (self.member,) * self.n_members

    @property
    def per(self) -> int | None:  # type: ignore[override]
        """As of the members."""
        return self.member.per

    @property
    def default_encoder(self) -> str:  # type: ignore[override]
        """As of the members."""
        return self.member.default_encoder

    @property
    def default_tile(self) -> TileSpec | None:  # type: ignore[override]
        """As of the members."""
        return self.member.default_tile

    @property
    def needs(self) -> Needs:
        """As of the members."""
        return self.member.needs

    def training_target(self, target: str | None) -> str:
        """As of the members."""
        return self.member.training_target(target)

    def output_scale(self, target: str | None) -> str:
        """As of the members."""
        return self.member.output_scale(target)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        if self.joined:
            return {"joined": [{"family": m.family, "config": m.to_dict()} for m in self.joined]}
        return {"member": self.member.to_dict(), "n": self.n_members, "family": self.member.family}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Make it from stored values."""
        if "joined" in values:
            where = "`joined` of EnsembleConfig"
            if not (members := stored.items(values["joined"], where, _stored_member, most=10_000)) or len(values) > 1:
                raise InputError(f"{where} must be the settings of one or more models, and nothing beside them.")
            return cls(joined=tuple(members))
        if unknown := set(values) - {"member", "n", "family"}:
            raise InputError(
                f"EnsembleConfig has no fields {listing(sorted(unknown))}; it takes ['family', 'member', 'n']."
            )
        family = registry.family(values.get("family", "ridge"))
        member = stored.mapping(values.get("member", {}), "`member` of EnsembleConfig", {}, open_ended=True)
        n_members = stored.whole(values.get("n", 5), "`n` of EnsembleConfig", high=10_000)
        return cls(family.Config.parse(member), n_members)

    def at_pitch(self, pitch_um: float | None) -> Self:
        """Fill in the member's distances."""
        if self.joined:
            raise InputError(
                "These are the settings of an average of trained models, which is not trained itself: pass trained "
                "models to stpred.models.average, or give Ensemble.Config(member=...)."
            )
        return replace(self, member=self.member.at_pitch(pitch_um))

    def for_slides(self, slides: Sequence[str]) -> Self:
        """Fill in what of the member depends on the training slides."""
        return replace(self, member=self.member.for_slides(slides))


def _stored_member(value: Any, where: str) -> BaseConfig:
    """Return a member's settings from stored values."""
    checks: dict[str, Any] = {"family": stored.text, "config": lambda v, w: stored.mapping(v, w, {}, open_ended=True)}
    found = stored.mapping(value, where, checks, required=("family", "config"))
    return registry.family(found["family"]).Config.parse(found["config"])


class Ensemble(Model):
    """Members that differ by seed, or, where a family has no randomness, by a bootstrap of donors and locations.

    :func:`stpred.models.average` makes one of models that were trained before, such as those of a cross-validation.

    Notes
    -----
    The standard deviation (of the population) over members goes into ``layers["std"]``. Outputs whose scale is open
    are brought to one scale per member and gene before they are averaged.

    References
    ----------
    Lakshminarayanan, Pritzel & Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
    ensembles, NeurIPS 30. Breiman (1996), Bagging predictors, Machine Learning 24:123, for families without
    randomness.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Ensemble.Config("ridge", n_members=3), shapes_key="spots")
    >>> st.tl.predict(slides["donor0"], model, shapes_key="spots")
    >>> [name for name in slides["donor0"].tables["spots_ridge"].layers if name]
    ['std']
    """

    hidden_layer = "the members' hidden layers side by side"
    Config: ClassVar[type[EnsembleConfig]] = EnsembleConfig  # type: ignore[assignment]
    config: EnsembleConfig
    scale: Tensor
    columns: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        nn.Module.__init__(self)
        c: EnsembleConfig = config  # type: ignore[assignment]
        members = [m.build(n_features=n_features, n_genes=n_genes) for m in c.members]
        self._first = [members[0]]  # in a list, so that torch does not take it for a child of its own
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.members = nn.ModuleList(members)
        self.register_buffer("scale", torch.ones(c.n_members, n_genes))
        if c.joined:  # models that were trained apart may have their genes in another order
            self.register_buffer("columns", torch.arange(n_genes).repeat(c.n_members, 1))

    @property
    def first(self) -> Model:
        """A member; all have the same needs and scales."""
        return self._first[0]

    @property
    def n_ood_features(self) -> int:
        """As of the members."""
        return self.first.n_ood_features

    def ood_features(self, batch: Batch) -> NDArray[np.float32]:
        """As of the members."""
        return self.first.ood_features(batch)

    def ood_distance(self, batch: Batch) -> NDArray[np.float32]:
        """As of every model; of an average of trained models the mean of its members' distances."""
        if self.typical.fitted:
            return super().ood_distance(batch)
        each = [member.ood_distance(batch) for member in self.members]  # type: ignore[operator]
        return np.mean(each, axis=0, dtype=np.float32)

    def as_scored(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """As of the members."""
        return self.first.as_scored(values)

    def set_members(self, members: Sequence[Model], batches: Sequence[Batch], *, relative: bool) -> None:
        """Set trained members; of `relative` outputs, measure each one's scale on the training batches."""
        self.members = nn.ModuleList(members)
        self._first = [members[0]]
        if relative:
            self.set_scale(np.stack([output_size(m, batches) for m in members]))

    def set_scale(self, size: NDArray[np.float64]) -> None:
        """Bring members of relative outputs to one scale: `size` is the (n_members, n_genes) size of their outputs."""
        self.set_buffer("scale", np.where(size < 1e-12, 1.0, size / size.mean(axis=0).clip(1e-12)))

    def latent(self, batch: Batch) -> NDArray[np.float32]:
        """Return the members' (n, width) values side by side; their axes have nothing to do with each other."""
        return np.concatenate([m.latent(batch) for m in self.members], axis=1)  # type: ignore[operator]

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation over the members, that of their own likelihood included."""
        scale = self.scale.cpu().numpy()
        columns: Any = [slice(None)] * len(scale)
        if self.config.joined:
            columns = self.columns.cpu().numpy()
            if columns.min() < 0 or columns.max() >= self.n_genes:
                raise InputError("The order of genes of an average's members is damaged; save it again.")
        mean: Any = 0.0
        square: Any = 0.0
        own: Any = 0.0
        for k, (member, size, order) in enumerate(zip(self.members, scale, columns, strict=True), start=1):  # Welford
            found, std = member.predict(batch)  # type: ignore[operator]
            value = found[:, order].astype(np.float64) / size
            own = own if std is None else own + (np.square(std[:, order] / size, dtype=np.float64) - own) / k
            step = value - mean
            mean = mean + step / k
            square = square + step * (value - mean)
        return mean.astype(np.float32), np.sqrt(square / len(scale) + own).astype(np.float32)


def output_size(model: Model, batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Return the (n_genes,) root mean square of a model's predictions over slides."""
    if one_by_one(batches):
        squares = sum(np.square(model.predict(b)[0], dtype=np.float64).sum(axis=0) for b in batches)
        return np.asarray(np.sqrt(squares / sum(len(b.targets) for b in batches)))
    found = np.concatenate([model.predict(b)[0] for b in batches])
    return np.asarray(np.sqrt(np.square(found, dtype=np.float64).mean(axis=0)))

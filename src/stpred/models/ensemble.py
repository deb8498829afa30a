"""Ensembles: the mean of several models of one family, and their spread as its uncertainty."""

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


@dataclass(frozen=True)
class EnsembleConfig(BaseConfig):
    """Settings of :class:`Ensemble`.

    Parameters
    ----------
    member
        Family name or ``Config`` of the members.
    n_members
        Number of members.
    """

    family: ClassVar[str] = "ensemble"
    member: Any = "ridge"
    n_members: int = 5

    def __post_init__(self) -> None:
        member = registry.resolve(self.member)
        if isinstance(member, EnsembleConfig):
            raise InputError("An ensemble of ensembles is one larger ensemble: give its member's settings.")
        if member.family == "auto":
            raise InputError("'auto' weighs several models already: list ensembles among its `candidates` instead.")
        self.check_whole("n_members")
        object.__setattr__(self, "member", member)

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
        return {"member": self.member.to_dict(), "n": self.n_members, "family": self.member.family}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Make it from stored values."""
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
        return replace(self, member=self.member.at_pitch(pitch_um))

    def for_slides(self, slides: Sequence[str]) -> Self:
        """Fill in what of the member depends on the training slides."""
        return replace(self, member=self.member.for_slides(slides))


class Ensemble(Model):
    """Members that differ by seed, or, where a family has no randomness, by a bootstrap of donors and locations.

    Notes
    -----
    The standard deviation (of the population) over members goes into ``layers["std"]``. Outputs whose scale is open
    are brought to one scale per member and gene before they are averaged.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Ensemble.Config("ridge", n_members=3), shapes_key="spots")
    >>> st.tl.predict(slides["donor0"], model, shapes_key="spots")
    >>> list(slides["donor0"].tables["spots_ridge"].layers)
    ['std']
    """

    hidden_layer = "the members' hidden layers side by side"
    Config: ClassVar[type[EnsembleConfig]] = EnsembleConfig  # type: ignore[assignment]
    config: EnsembleConfig
    scale: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        nn.Module.__init__(self)
        c: EnsembleConfig = config  # type: ignore[assignment]
        members = [c.member.build(n_features=n_features, n_genes=n_genes) for _ in range(c.n_members)]
        self._first = [members[0]]  # in a list, so that torch does not take it for a child of its own
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self.members = nn.ModuleList(members)
        self.register_buffer("scale", torch.ones(c.n_members, n_genes))

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

    def set_members(self, members: Sequence[Model], batches: Sequence[Batch], *, relative: bool) -> None:
        """Set trained members; of `relative` outputs, measure each one's scale on the training batches."""
        self.members = nn.ModuleList(members)
        self._first = [members[0]]
        if relative:
            outputs = [np.concatenate([m.predict(b)[0] for b in batches]) for m in members]
            size = np.stack([np.sqrt(np.square(o, dtype=np.float64).mean(axis=0)) for o in outputs])
            self.set_buffer("scale", np.where(size < 1e-12, 1.0, size / size.mean(axis=0).clip(1e-12)))

    def latent(self, batch: Batch) -> NDArray[np.float32]:
        """Return the members' (n, width) values side by side; their axes have nothing to do with each other."""
        return np.concatenate([m.latent(batch) for m in self.members], axis=1)  # type: ignore[operator]

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return mean and standard deviation over the members, that of their own likelihood included."""
        scale = self.scale.cpu().numpy()
        mean: Any = 0.0
        square: Any = 0.0
        own: Any = 0.0
        for k, (member, size) in enumerate(zip(self.members, scale, strict=True), start=1):  # Welford
            found, std = member.predict(batch)  # type: ignore[operator]
            value = found.astype(np.float64) / size
            own = own if std is None else own + (np.square(std / size, dtype=np.float64) - own) / k
            step = value - mean
            mean = mean + step / k
            square = square + step * (value - mean)
        return mean.astype(np.float32), np.sqrt(square / len(scale) + own).astype(np.float32)

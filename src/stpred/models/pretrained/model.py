"""A published predictor as a model: its own code and weights behind our interface, with a linear head of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.checks import InputError, listing, one_of
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.models.ood import N_STATISTICS, pixel_statistics
from stpred.models.pretrained.runtime import Runtime

KINDS = ("features", "tiles")

MAX_HEAD_GENES = 4000
"""Outputs that a linear head between genes takes: their square is in memory."""

_SHARE = 8
"""A slide's points at the training pitch for each finer location that is put among them at a time."""


@dataclass(frozen=True)
class PretrainedConfig(BaseConfig):
    """What a published predictor is; made by :func:`stpred.models.get`, there is nothing to set.

    Parameters
    ----------
    source
        Its name, such as ``"lazyslide/stpath"``.
    kind
        What it reads: ``"features"`` of an encoder, or ``"tiles"``.
    whole_slide, needs_coords
        Whether it sees all locations of a slide at once, and where they are.
    revision
        Fingerprint of its weights; others are refused.
    settings
        Keywords that it was built with.
    chosen
        Whether some of its genes were chosen.
    head
        Whether a linear map between its outputs was fine-tuned.
    """

    family: ClassVar[str] = "pretrained"
    source: str = ""
    kind: str = "features"
    whole_slide: bool = False
    needs_coords: bool = False
    revision: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    chosen: bool = False
    head: bool = False

    def __post_init__(self) -> None:
        one_of(self.kind, KINDS, name="kind")
        # A stored tuple comes back as a list.
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in self.settings.items()}
        object.__setattr__(self, "settings", settings)

    @property
    def needs(self) -> Needs:
        """All of the slide's points, and where they are, as far as the predictor asks for them."""
        return Needs(whole_slide=self.whole_slide, places=self.needs_coords)


class Pretrained(Model):
    """A published predictor behind the interface of a model.

    Its outputs go through a line for each gene, which is the identity until :func:`stpred.tl.finetune` puts a linear
    map between the outputs there. The weights are not part of it: a saved one names them, and
    :func:`stpred.models.get` puts them back.
    """

    Config: ClassVar[type[PretrainedConfig]] = PretrainedConfig
    config: PretrainedConfig
    center: Tensor
    unit: Tensor
    scale: Tensor
    intercept: Tensor
    coef: Tensor

    def __init__(self, config: BaseConfig, *, n_features: int, n_genes: int) -> None:
        super().__init__(config, n_features=n_features, n_genes=n_genes)
        self._runtime: Runtime | None = None
        self._columns: NDArray[np.int64] | None = None
        for name, value in (("center", 0.0), ("unit", 1.0), ("scale", 1.0), ("intercept", 0.0)):
            self.register_buffer(name, torch.full((n_genes,), value))
        if self.config.head:
            self.register_buffer("coef", torch.zeros(n_genes, n_genes))

    @property
    def runtime(self) -> Runtime:
        """The predictor itself."""
        if self._runtime is None:
            raise InputError(
                f"The weights of {self.config.source!r} are not part of a saved model: load it with "
                f"stpred.models.get(<folder of the model>, weights=<folder of the weights, or "
                f"stpred.models.get({self.config.source!r})>)."
            )
        return self._runtime

    def run_by(self, runtime: Runtime) -> Self:
        """Attach the predictor, refused if it has other weights or lacks a gene; return the model."""
        if runtime.revision != self.config.revision:
            raise InputError(
                f"These weights of {self.config.source!r} are not those of model {self.record.name!r}: it was made "
                f"with {self.config.revision}, and these are {runtime.revision}."
            )
        at = {g: i for i, g in enumerate(runtime.symbols)}
        if lacking := [g for g in self.record.genes if g not in at]:
            raise InputError(f"{self.config.source!r} does not predict {listing(lacking)} of {self.record.name!r}.")
        self._runtime, self._columns = runtime, np.array([at[g] for g in self.record.genes], dtype=np.int64)
        return self

    def lend(self, other: Model) -> None:
        """Give a copy the predictor and the encoder, which are no tensors of the model."""
        if isinstance(other, Pretrained):
            other._runtime, other._columns = self._runtime, self._columns
            if (encoder := getattr(self, "encoder", None)) is not None:
                other.encoder = encoder

    def __deepcopy__(self, memo: dict[int, Any]) -> Pretrained:
        new = self.config.build(n_features=self.n_features, n_genes=self.n_genes)
        new.load_state_dict(self.state_dict())
        new.record = copy.deepcopy(self.record, memo)
        self.lend(new)
        return new.eval()  # type: ignore[return-value]

    def select(self, columns: NDArray[np.bool_]) -> Pretrained:
        """Return a model of some of the genes."""
        if self.config.head:
            raise InputError(f"Model {self.record.name!r} maps all of its genes to each; its genes cannot be parted.")
        new = self.config.build(n_features=self.n_features, n_genes=int(columns.sum()))
        state = {k: v[torch.from_numpy(columns)] if v.shape == self.unit.shape else v for k, v in self._own().items()}
        new.load_state_dict(state | {k: v for k, v in self.state_dict().items() if k.startswith("typical.")})
        new.record = copy.deepcopy(self.record)
        new.record.genes = [g for g, k in zip(self.record.genes, columns, strict=True) if k]
        new.record.var = {n: [v for v, k in zip(vs, columns, strict=True) if k] for n, vs in self.record.var.items()}
        self.lend(new)
        if self._columns is not None:
            new._columns = self._columns[columns]  # type: ignore[union-attr,assignment]
        return new.eval()  # type: ignore[return-value]

    def _own(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.state_dict().items() if not k.startswith("typical.")}

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move the model and the predictor."""
        super().to(*args, **kwargs)
        device = kwargs.get("device", args[0] if args else None)
        if self._runtime is not None and isinstance(device, (str, torch.device)):
            self._runtime.to(device)
        return self

    @property
    def n_ood_features(self) -> int:
        """The features; of pixels, colours at four scales."""
        return N_STATISTICS if self.config.kind == "tiles" else self.n_features

    def ood_features(self, batch: Batch) -> NDArray[np.float32]:
        """Return what out-of-distribution distances are measured in."""
        if self.config.kind == "tiles":
            return pixel_statistics(batch, np.full(3, 0.5), np.full(3, 0.25))
        return super().ood_features(batch)

    def outputs(self, batch: Batch) -> NDArray[np.float32]:
        """Return the predictor's (n, n_genes) own outputs."""
        runtime = self.runtime
        if not len(batch.targets):
            return np.empty((0, self.n_genes), dtype=np.float32)
        if not self.config.whole_slide:
            return self._run(runtime, batch, batch.targets)
        found = np.empty((len(batch.targets), self.n_genes), dtype=np.float32)
        row_of = np.full(len(batch.features), -1, dtype=np.int64)
        row_of[batch.sources] = np.arange(len(batch.sources))
        at_home = row_of[batch.targets] >= 0
        if at_home.any():
            found[at_home] = self._run(runtime, batch, batch.sources)[row_of[batch.targets[at_home]]]
        finer = np.flatnonzero(~at_home)
        n_parts = -(-len(finer) // max(len(batch.sources) // _SHARE, 1))
        order = finer[np.lexsort(batch.coords_um[finer].T)]
        for k in range(n_parts):  # each part is spread over the slide, so that no place gets denser than another
            part = order[k::n_parts]
            rows = np.concatenate([batch.sources, batch.targets[part]])
            found[part] = self._run(runtime, batch, rows)[len(batch.sources) :]
        return found

    def _run(self, runtime: Runtime, batch: Batch, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        coords = None
        if self.config.needs_coords:
            if batch.places_um is None:
                raise InputError(f"{self.config.source!r} needs the places of locations: give `coords_um`.")
            tile = self.record.tile
            mpp = float(tile.get("mpp", 1.0))
            coords = batch.places_um[rows] / mpp - tile.get("size_px", 0) / 2  # upper left corners, in pixels
        return runtime.predict(batch.features[rows], coords)[:, self._columns]

    def predict(self, batch: Batch) -> tuple[NDArray[np.float32], None]:
        """Return the outputs through the head."""
        values = self.outputs(batch)
        if not self.config.head and bool((self.unit == 1).all() and (self.scale == 1).all()):
            if bool((self.center == 0).all() and (self.intercept == 0).all()):
                return values, None
        z = self._standardised(values)
        mapped = z @ self.weights.cpu().numpy().astype(np.float64) if self.config.head else z * _array(self.scale)
        return (mapped + _array(self.intercept)).astype(np.float32), None

    def _standardised(self, values: NDArray[Any]) -> NDArray[np.float64]:
        return (values.astype(np.float64) - _array(self.center)) / _array(self.unit)

    # What fine-tuning goes on from: a linear map between the standardised outputs.

    @property
    def weights(self) -> Tensor:
        """(n_genes, n_genes) map between standardised outputs."""
        if self.config.head:
            return self.coef
        if self.n_genes > MAX_HEAD_GENES:
            raise InputError(
                f"Fine-tuning puts a linear map between the outputs, and {self.n_genes} are too many for one; choose "
                f"up to {MAX_HEAD_GENES}: stpred.models.get({self.config.source!r}, genes=[...])."
            )
        return torch.diag(self.scale)

    def design(self, batch: Batch) -> NDArray[np.float64]:
        """Return the (n, n_genes) standardised outputs."""
        return self._standardised(self.outputs(batch))

    def set_weights(self, weights: NDArray[np.float64], intercept: NDArray[np.float64]) -> None:
        """Set the map between standardised outputs."""
        self.config = replace(self.config, head=True)
        self.set_buffer("coef", weights)
        self.set_buffer("intercept", intercept)

    def column_scale(self, blocks: Sequence[int] | None) -> None:
        """Columns are standardised."""

    def set_lines(
        self,
        *,
        center: NDArray[np.float64],
        unit: NDArray[np.float64],
        slope: NDArray[np.float64],
        intercept: NDArray[np.float64],
    ) -> None:
        """Predict ``intercept + slope * (output - center)`` of each gene, and count outputs in `unit`."""
        self.set_buffer("center", center)
        self.set_buffer("unit", unit)
        self.set_buffer("scale", slope * unit)
        self.set_buffer("intercept", intercept)


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.cpu().numpy(), dtype=np.float64)

"""Families that are trained by gradient descent: settings and the hooks of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch


@dataclass(frozen=True)
class IterativeConfig(BaseConfig):
    """Settings of the optimiser.

    Parameters
    ----------
    epochs
        Passes over the training data.
    lr
        Of the optimiser.
    batch_size
        Locations, slides or patches per step.
    clip_norm
        Largest norm of the gradient; None leaves it.
    """

    seeded: ClassVar[bool] = True
    epochs: int | None = None
    lr: float = 1e-3
    batch_size: int = 128
    clip_norm: float | None = 5.0

    def __post_init__(self) -> None:
        self.check_whole("batch_size", "epochs")
        self.check_positive("lr", "clip_norm")


class Iterative(Model):
    """A family that is trained by gradient descent: ``forward(sample)``, ``loss`` and the hooks of the training loop.

    Of the hooks, `on_epoch_end` may add or remove parameters: it returns True when it did, and the optimiser is then
    created again.
    """

    unit: ClassVar[Literal["locations", "slides", "patches"]] = "locations"
    """Unit of `batch_size`."""
    criterion: ClassVar[Literal["pearson", "mse"]] = "pearson"
    """Score that chooses the number of epochs on held-out donors."""
    scored_each_epoch: ClassVar[bool] = True
    """Whether slides that validate are scored after each epoch, or only after the last."""
    layer_names: ClassVar[int] = 2
    """Components of a parameter's name that make up its layer."""
    Config: ClassVar[type[IterativeConfig]] = IterativeConfig  # type: ignore[assignment]
    config: IterativeConfig

    def begin(self, batches: Sequence[Batch]) -> None:
        """Set buffers and initial values from the training batches."""

    def recentre(self, batches: Sequence[Batch]) -> None:
        """Shift what is predicted of each gene so that its mean over batches is that of their targets, if it can."""

    def own_targets(self, batch: Batch) -> NDArray[np.float32]:
        """Return the (n, n_genes) targets with which the model would stay as it is."""
        raise NotImplementedError(f"{type(self).__name__} has no targets of its own.")

    def output_layers(self) -> list[nn.Module]:
        """Return the layers that give the output, where they are modules; parameters of the model itself count too."""
        return []

    def layers_by_depth(self) -> list[list[str]]:
        """Return the names of the parameters, layer by layer in the order of the module, the head last."""
        head = {id(p) for layer in self.output_layers() for p in layer.parameters()}
        layers: dict[Any, list[str]] = {}
        for name, p in self.named_parameters():
            place = tuple(name.split(".")[:-1][: self.layer_names])
            layers.setdefault("head" if id(p) in head or not place else place, []).append(name)
        last = layers.pop("head", [])
        return [*layers.values(), *([last] if last else [])]

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's signature
        """Switch to training; batch norms whose parameters are frozen keep their statistics."""
        super().train(mode)
        for layer in self.modules() if mode else ():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm) and not any(
                p.requires_grad for p in layer.parameters()
            ):
                layer.eval()
        return self

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the parameters in groups, as torch's optimisers take them."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser."""
        return torch.optim.AdamW(self.param_groups(), lr=self.config.lr, weight_decay=0.0)

    def loss(self, output: Any, sample: Any) -> Tensor:
        """Return the loss of the output of ``forward``."""
        raise NotImplementedError(f"{type(self).__name__} has no loss.")

    def after_step(self) -> None:
        """Act after an optimiser step (moving averages)."""

    def on_epoch_end(self, epoch: int) -> bool:
        """Act after an epoch; return True if parameters were added or removed."""
        return False

    def review(self, epoch: int, samples: Callable[[], Iterable[Any]]) -> bool:
        """Act after an epoch, with another pass over samples if it is worth that; see `on_epoch_end`."""
        return self.on_epoch_end(epoch)

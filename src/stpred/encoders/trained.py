"""Encoders trained from a user's own slides: a timm backbone whose weights exist nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred.encoders._networks import timm_models
from stpred.encoders.base import TIMM, EncoderCard
from stpred.encoders.modules import TorchEncoder, digest

if TYPE_CHECKING:
    from torch import nn


class TrainedEncoder(TorchEncoder):
    """A timm backbone with weights of its own.

    Parameters
    ----------
    module
        The backbone.
    card
        Its description.
    backbone, kwargs, seed
        Its name in timm, what else `timm.create_model` took, and the seed of its initial weights.
    record
        How it was trained, and what checks said.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        card: EncoderCard,
        backbone: str,
        kwargs: Mapping[str, Any],
        seed: int,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(module, card=card, dense=timm_models.patch_tokens(module), fold=True)
        self.backbone, self.kwargs, self.seed = backbone, dict(kwargs), seed
        self.record: dict[str, Any] = dict(record or {})

    def to(self, device: str | None) -> TrainedEncoder:
        """Move the encoder to a device (None: the GPU if there is one) and return it."""
        super().to(device)
        return self

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self._module

    def untrained(self, tiles: NDArray[np.uint8] | None = None) -> TrainedEncoder:
        """Return the same network with random weights: what any training has to beat.

        With (n, size_px, size_px, 3) tiles its batch norms have their statistics, as those of a trained network do.
        """
        module = build(self.backbone, self.kwargs, seed=self.seed).eval()
        if tiles is not None:
            adapt_statistics(module, (self._prepare(part) for part in np.split(tiles, range(128, len(tiles), 128))))
        card = replace(
            self.card,
            name=f"{self.card.name}-untrained",
            source="random weights",
            revision=digest(module.state_dict()),
            licence="unknown",
        )
        device = next(self._module.parameters()).device
        return TrainedEncoder(module.to(device), card=card, backbone=self.backbone, kwargs=self.kwargs, seed=self.seed)


def build(
    backbone: str, kwargs: Mapping[str, Any], *, seed: int, pretrained: bool = False, weights: str | Path | None = None
) -> nn.Module:
    """Create a backbone of timm; random weights follow the seed, and the global random state is not changed."""
    timm_models.need_timm(f"backbone {backbone!r}")
    name = backbone.removeprefix(TIMM)
    if name.startswith(timm_models.HUB):
        raise InputError(f"`backbone`={backbone!r} takes its architecture from the hub; name one of timm instead.")
    return timm_models.create(name, kwargs, pretrained=pretrained, weights=weights, seed=seed)


def adapt_statistics(module: nn.Module, batches: Iterable[Any]) -> None:
    """Give batch norms the mean and variance of these prepared batches; weights stay as they are."""
    import torch

    norms = [m for m in module.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    kept = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # the plain average over batches
        m.train()
    device = next(module.parameters()).device
    with torch.no_grad():
        for batch in batches:
            module(batch.to(device))
    for m, momentum in zip(norms, kept, strict=True):
        m.momentum = momentum
        m.eval()


def size_for(backbone: str, size_px: int, *, seed: int) -> tuple[dict[str, Any], int]:
    """Return what `timm.create_model` needs to take tiles of a size, and the width of the features."""
    import torch

    kwargs: dict[str, Any] = {"img_size": size_px}  # only networks with a fixed grid of patches know it
    try:
        module = build(backbone, kwargs, seed=seed)
    except TypeError:
        kwargs = {}
        module = build(backbone, kwargs, seed=seed)
    except (AssertionError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"The backbone {backbone!r} cannot be built for tiles of {size_px} px: {error}.") from error
    try:
        with torch.no_grad():
            out = module.eval()(torch.zeros(1, 3, size_px, size_px))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"The backbone {backbone!r} takes no tiles of {size_px} px ({error}); give `tile` another size."
        ) from error
    if out.ndim != 2:
        raise InputError(f"The backbone {backbone!r} gives features of shape {tuple(out.shape[1:])}, not a vector.")
    return kwargs, int(np.prod(out.shape[1:]))

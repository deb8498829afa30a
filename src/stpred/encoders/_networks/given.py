"""A network that a user gives as a torch module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.specs import TileSpec
from stpred.encoders._networks.layers import read_layers
from stpred.encoders.base import EncoderCard
from stpred.encoders.modules import TorchEncoder, digest

if TYPE_CHECKING:
    from torch import nn


def from_module(
    module: nn.Module,
    *,
    tile: TileSpec | None,
    name: str | None = None,
    transform: Callable[[Any], Any] | None = None,
    mean: tuple[float, float, float] | None = None,
    std: tuple[float, float, float] | None = None,
    licence: str = "unknown",
    layers: Any = None,
    pool: str | None = None,
) -> TorchEncoder:
    """Wrap a user's module, see :func:`stpred.encoders.get`."""
    kind = type(module).__name__
    if tile is None:
        raise InputError(
            f"A module needs `tile=` to say what it sees, such as tile=stpred.TileSpec(0.5, 224) ({kind})."
        )
    if (mean is None) != (std is None) or (transform is not None and mean is not None):
        raise InputError("Give `mean` and `std` together, or a `transform` that normalises by itself, or neither.")
    card = EncoderCard(
        keys.slug(kind) if name is None else name,
        tile,
        width=0,  # measured
        source=f"torch.nn.Module {type(module).__module__}.{kind}",
        revision=digest(module.state_dict()),
        licence=licence,
        mean=None if mean is None else _three(mean),
        std=None if std is None else _three(std),
    )
    if layers is None:
        return TorchEncoder(module, card=card, transform=transform)
    return read_layers(copy.deepcopy(module), layers, pool, card=card, transform=transform)  # the user's stays whole


def _three(values: tuple[float, float, float]) -> tuple[float, float, float]:
    r, g, b = (float(v) for v in values)
    return r, g, b

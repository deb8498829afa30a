"""Middle layers of timm networks: stages of convolutional networks, blocks of vision transformers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from stpred._core.checks import InputError, one_of
from stpred.encoders.base import EncoderCard
from stpred.encoders.modules import TorchEncoder

POOLS = ("mean", "mean+std", "max")


class Layers(nn.Module):
    """The maps of some layers of a network, pooled over the tile.

    Layers that nothing needs are removed from the network, and those that come later are not computed.

    Parameters
    ----------
    network
        A network of timm.
    layers
        Checked numbers, ascending, see :func:`checked`.
    pool
        One of :data:`POOLS`.
    """

    def __init__(self, network: Any, layers: tuple[int, ...], pool: str) -> None:
        super().__init__()
        self.network, self.layers, self.pool = network, layers, pool
        # A transformer's blocks are read through its last norm, as its patch tokens are. Stages differ in width.
        self._options: dict[str, Any] = {"norm": True} if is_columnar(network) else {}
        if hasattr(network, "prune_intermediate_layers"):
            network.prune_intermediate_layers(list(layers), prune_norm=not self._options, prune_head=True)

    def maps(self, batch: Tensor) -> list[Tensor]:
        """Return the (n, width, rows, cols) map of each layer."""
        found = self.network.forward_intermediates(
            batch,
            indices=list(self.layers),
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
            **self._options,
        )
        return list(found)

    def forward(self, batch: Tensor) -> Tensor:
        """Return (n, width) features: of each layer its means, or its means and then its standard deviations."""
        return torch.cat([p for m in self.maps(batch) for p in pooled(m, self.pool)], dim=1)

    def tokens(self, batch: Tensor) -> Tensor:
        """Return (n, rows * cols, width) tokens, row by row; finer layers are averaged to the grid of the coarsest."""
        maps = self.maps(batch)
        size = (min(m.shape[-2] for m in maps), min(m.shape[-1] for m in maps))
        grid = [m if m.shape[-2:] == size else nn.functional.adaptive_avg_pool2d(m, size) for m in maps]
        return torch.cat(grid, dim=1).flatten(2).transpose(1, 2)


def read_layers(network: Any, layers: Any, pool: str | None, *, card: EncoderCard, **options: Any) -> TorchEncoder:
    """Return an encoder of some layers of a network, which loses its later ones.

    Parameters
    ----------
    network
        A network of timm.
    layers, pool
        See :func:`stpred.encoders.get`.
    card
        That of the whole network.
    options
        Of :class:`TorchEncoder`.
    """
    numbers, pool = checked(network, layers, pool, name=card.name)
    read = Layers(network, numbers, pool).eval()
    card = replace(card, layers=numbers, pool=pool)
    return TorchEncoder(read, card=card, dense=read.tokens, fold=True, **options)


def pooled(values: Tensor, pool: str) -> list[Tensor]:
    """Pool an (n, width, rows, cols) map over its positions; the deviation is that of the positions themselves."""
    flat = values.flatten(2)
    if pool == "max":
        return [flat.amax(dim=2)]
    if pool == "mean":
        return [flat.mean(dim=2)]
    return [flat.mean(dim=2), flat.std(dim=2, correction=0)]


def checked(network: Any, layers: Any, pool: str | None, *, name: str) -> tuple[tuple[int, ...], str]:
    """Return the numbers of the layers, counted from the first and ascending, and how they are pooled."""
    if not has_layers(network):
        raise InputError(f"`layers`: the network of {name!r} does not give its middle layers; leave `layers` out.")
    info = list(network.feature_info)
    given = [layers] if isinstance(layers, Integral) else layers
    whole = isinstance(given, Iterable) and not isinstance(given, (str, bytes))
    numbers = list(given) if whole else []
    if not numbers or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in numbers):
        raise InputError(f"`layers` must be whole numbers, such as (-1,), got {layers!r}; {_range(info, name)}.")
    if unknown := [int(i) for i in numbers if not -len(info) <= i < len(info)]:
        raise InputError(f"`layers` has {unknown}; {_range(info, name)}.")
    found = sorted(int(i) % len(info) for i in numbers)
    if len(set(found)) < len(found):
        raise InputError(f"`layers` names a layer more than once, got {layers!r}; {_range(info, name)}.")
    return tuple(found), one_of("mean" if pool is None else pool, POOLS, name="pool")


def has_layers(network: Any) -> bool:
    """Return whether a network is one of timm's that give their middle layers."""
    return isinstance(getattr(network, "feature_info", None), list) and hasattr(network, "forward_intermediates")


def is_columnar(network: Any) -> bool:
    """Return whether a network is a plain transformer: blocks of one width and grid, and a norm behind them."""
    kinds = {(f["num_chs"], f["reduction"]) for f in network.feature_info}
    return len(kinds) == 1 and hasattr(network, "norm") and hasattr(network, "blocks")


def _range(info: list[Any], name: str) -> str:
    """Say which layers there are, and how many pixels their positions are apart."""
    steps = [int(f["reduction"]) for f in info]
    each = f"{steps[0]}" if len(set(steps)) == 1 else ", ".join(f"{i}: {s}" for i, s in enumerate(steps))
    return (
        f"{name!r} has layers 0 to {len(info) - 1} (from the end -1 to -{len(info)}), of which a position covers this "
        f"many pixels of the input: {each}"
    )

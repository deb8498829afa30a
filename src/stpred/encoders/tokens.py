"""Any encoder as one that describes the patches ("tokens") of a tile on a regular grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive
from stpred.encoders.base import Encoder
from stpred.encoders.composite import Composite, same_extent

TOKEN_UM = 8.0
"""Approximate width of a sub-tile, of encoders that have no dense tokens."""

_WHOLE = 0.01


def with_tokens(encoder: Encoder, token_um: float | None = None) -> Any:
    """Return the encoder with ``encode_dense`` and ``card.dense``: its own tokens, or a regular grid of sub-tiles.

    Parameters
    ----------
    encoder
        Any encoder of tiles. Of several side by side, the tiles must have the same edge in micrometres, and the tokens
        lie on one grid: that of the members whose tokens are what they are, otherwise as `token_um` says.
    token_um
        Edge of a token in micrometres; None: the encoder's own, or about 8 um. It must divide the tile. Tokens of a
        network are what they are; any other value than theirs is refused.
    """
    card = encoder.card
    edge = card.tile.size_um
    if isinstance(encoder, Composite):
        return _side_by_side(encoder, token_um)
    if token_um is not None:
        token_um = positive(token_um, name="token_um", unit="micrometres")
        if token_um < card.tile.mpp:
            raise InputError(
                f"`token_um` is {token_um:g}, smaller than a pixel of the tile ({card.tile.mpp:g} um); the encoder "
                f"{card.name!r} sees nothing there."
            )
        n = round(edge / token_um)
        if n < 1 or abs(n * token_um - edge) > _WHOLE * token_um:
            raise InputError(
                f"`token_um` must divide the tile of {edge:g} um of the encoder {card.name!r}, got {token_um:g}; "
                f"such as {edge / max(1, n):.6g}."
            )
    if hasattr(encoder, "patched"):
        return encoder if token_um is None else encoder.patched(n)
    if card.dense is not None and hasattr(encoder, "encode_dense"):
        if token_um is not None and n != card.dense[0]:
            raise InputError(
                f"The tokens of the encoder {card.name!r} are {edge / card.dense[0]:g} um wide, `token_um` is "
                f"{token_um:g}; leave it out."
            )
        return encoder
    if getattr(encoder, "dtype", np.float32) == np.uint8:
        raise InputError(f"The encoder {card.name!r} gives pixels; a model of tokens needs one that describes them.")
    return SubTiles(encoder, max(1, round(edge / TOKEN_UM)) if token_um is None else n)


def _side_by_side(encoder: Composite, token_um: float | None) -> Composite:
    """Return the members with tokens on one grid; those of incompatible tiles or grids are refused."""
    cards = [m.card for m in encoder.members]
    if not same_extent(cards):
        said = ", ".join(f"{c.name!r} {c.tile.size_um:g} um" for c in cards)
        raise InputError(
            f"The members of {encoder.card.name!r} have incompatible tiles for a model of patch tokens: their edges "
            f"differ ({said}); give all of them tiles of the same edge in micrometres."
        )
    fixed = {c.name: c.dense[0] for m, c in zip(encoder.members, cards, strict=True) if c.dense and _is_fixed(m)}
    if len(set(fixed.values())) > 1:
        said = ", ".join(f"{name!r} {n} x {n}" for name, n in fixed.items())
        raise InputError(
            f"The members of {encoder.card.name!r} have incompatible tiles for a model of patch tokens: their grids of "
            f"tokens differ ({said}); choose tiles or encoders with the same number of tokens along an edge."
        )
    if token_um is None:
        edge = min(c.tile.size_um for c in cards)
        token_um = edge / next(iter(fixed.values()), max(1, round(edge / TOKEN_UM)))
    return Composite([with_tokens(m, token_um) for m in encoder.members])


def _is_fixed(encoder: Any) -> bool:
    """Return whether an encoder has tokens of its own that cannot be of another size."""
    return not hasattr(encoder, "patched") and hasattr(encoder, "encode_dense")


def with_hierarchy(encoder: Any) -> Any:
    """Return an encoder of tokens each of which comes with the features of its whole tile, and its mean colour."""
    members = encoder.members if isinstance(encoder, Composite) else (encoder,)
    found = [Hierarchy(m, colour=k == 0) for k, m in enumerate(members)]
    return found[0] if len(found) == 1 else Composite(found)  # type: ignore[arg-type]


def token_edge_um(encoder: Encoder, token_um: float | None = None) -> float:
    """Return the edge of the tokens that `with_tokens` gives, in micrometres."""
    described = with_tokens(encoder, token_um)
    return float(encoder.card.tile.size_um / described.card.dense[0])


class SubTiles:
    """An encoder without dense tokens, applied to every sub-tile of a tile.

    A sub-tile is embedded in a window of twice its edge (at the border of the tile moved inwards), resampled to what
    the encoder expects.
    """

    def __init__(self, encoder: Encoder, n: int) -> None:
        self._encoder, self._n = encoder, n
        self.card = replace(encoder.card, dense=(n, n, encoder.card.width))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 features of whole tiles."""
        return self._encoder.encode(tiles)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, rows, cols, width) float32 features of their sub-tiles."""
        out = np.empty((len(tiles), *self.card.dense), np.float32)  # type: ignore[misc]
        size, n = self.card.tile.size_px, self._n
        window = min(size, max(1, round(2 * size / n)))
        starts = [min(max(round((k + 0.5) * size / n - window / 2), 0), size - window) for k in range(n)]
        for i, tile in enumerate(tiles):
            cut = [tile[y : y + window, x : x + window] for y in starts for x in starts]
            out[i] = self._encoder.encode(_resized(np.stack(cut), size)).reshape(n, n, -1)
        return out

    def to(self, device: str | None) -> SubTiles:
        """Move the encoder to a device and return this one."""
        self._encoder = self._encoder.to(device)
        return self


class Hierarchy:
    """Tokens with what is around them: their own features, those of their tile, and optionally their mean colour."""

    def __init__(self, encoder: Any, *, colour: bool = True) -> None:
        self._encoder, self._colour = encoder, colour
        rows, columns, width = encoder.card.dense
        dense = (rows, columns, width + encoder.card.width + 3 * colour)
        name = f"{encoder.card.name}-hierarchy{'' if colour else '-colourless'}"  # features are cached by name
        self.card = replace(encoder.card, name=name, dense=dense)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 features of whole tiles."""
        return self._encoder.encode(tiles)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, rows, cols, width) float32 features of their tokens."""
        own = self._encoder.encode_dense(tiles)
        whole = np.broadcast_to(self._encoder.encode(tiles)[:, None, None], (*own.shape[:3], self.card.width))
        return np.concatenate([own, whole, *([_colours(tiles, own.shape[1])] if self._colour else [])], axis=-1)

    def to(self, device: str | None) -> Hierarchy:
        """Move the encoder to a device and return this one."""
        self._encoder = self._encoder.to(device)
        return self


def _colours(tiles: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """Return the (tiles, n, n, 3) mean red, green and blue of the squares that n make up an edge."""
    edges = np.linspace(0, tiles.shape[1], n + 1).round().astype(int)[:-1]
    sizes = np.diff([*edges, tiles.shape[1]]).astype(np.float32)
    sums = np.add.reduceat(np.add.reduceat(tiles, edges, axis=1, dtype=np.float32), edges, axis=2, dtype=np.float32)
    return np.asarray(sums / (sizes[:, None, None] * sizes[:, None]), dtype=np.float32)


def _resized(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Resample (n, h, w, 3) images to another edge (bicubic, anti-aliased)."""
    import torch

    if images.shape[1] == size:
        return images
    stack = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    large = torch.nn.functional.interpolate(stack, (size, size), mode="bicubic", align_corners=False, antialias=True)
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

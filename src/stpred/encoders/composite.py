"""Several encoders side by side, each with its own tile, as one encoder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError
from stpred.encoders.base import TIMM, Encoder, EncoderCard

MAX_NAME = 80
"""Characters of a name beyond which only the first member is named."""

SAME_EXTENT = 1e-3
"""Relative difference of two tiles' edges in micrometres up to which their tokens lie on one grid."""


class Composite:
    """Several encoders as one: the features of the same place, each member's from its own tile, side by side.

    Made by :func:`stpred.encoders.get` from a list. Wherever stpred embeds locations, the members' tiles are read in
    one pass over the image, in which each chunk is decoded once, and the feature cache keeps each member by itself.

    Parameters
    ----------
    encoders
        Two or more encoders; of a composite among them its members.

    Attributes
    ----------
    members
        The encoders, in the order of their features.
    card
        Its `tile` is the largest of the members', its `revision` follows from theirs, and `members` are their cards. It
        has dense tokens where all members have some on the same grid in micrometres.

    Raises
    ------
    InputError
        If there are fewer than two encoders, one is there twice, or one gives pixels instead of features.

    Examples
    --------
    >>> import stpred as st
    >>> wide = st.encoders.get("intensity", tile=st.TileSpec(1.0, 224))
    >>> both = st.encoders.get(["morphology", wide])
    >>> both.card.name, both.card.tile.size_um, both.card.blocks[1]
    ('morphology-112um+intensity-224um', 224.0, 3)
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        members = [m for e in encoders for m in members_of(e)]
        if len(members) < 2:
            raise InputError(f"A list of encoders holds at least two, got {len(members)}.")
        for member in members:
            if getattr(member, "dtype", np.float32) == np.uint8:
                raise InputError(
                    f"The encoder {member.card.name!r} gives pixels, not features, so it cannot be one of several; "
                    "leave it out of the list."
                )
        cards = [m.card.to_dict() for m in members]
        if repeated := [c["name"] for k, c in enumerate(cards) if c in cards[:k]]:
            raise InputError(
                f"The encoder {repeated[0]!r} is in the list twice with the same tile; name each once, or give one of "
                "them another tile=stpred.TileSpec(mpp, size_px)."
            )
        self.members = tuple(members)
        self.card = _card([m.card for m in members])

    def encode(self, tiles: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Map the members' tiles to (n, width) float32 features.

        Parameters
        ----------
        tiles
            For each member its own (n, size_px, size_px, 3) uint8 tiles of the same n places; or one such array if all
            members see the same tile.
        """
        return self._run(tiles, lambda member, own: member.encode(own))

    def encode_dense(self, tiles: NDArray[np.uint8] | Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Map the members' tiles, as in :meth:`encode`, to (n, rows, cols, width) float32 features of their patches."""
        if self.card.dense is None:
            raise InputError(f"The encoders {self.card.name!r} have no dense tokens on one grid.")
        return self._run(tiles, lambda member, own: member.encode_dense(own))

    def to(self, device: str | None) -> Composite:
        """Move all members to a device (None: the GPU if there is one) and return this one."""
        self.members = tuple(m.to(device) for m in self.members)
        return self

    def _run(self, tiles: Any, encode: Callable[[Any, NDArray[np.uint8]], NDArray[np.float32]]) -> NDArray[np.float32]:
        if isinstance(tiles, np.ndarray):
            specs = dict.fromkeys(m.card.tile for m in self.members)
            if len(specs) > 1:
                raise InputError(
                    f"The encoders {self.card.name!r} see tiles of {len(specs)} kinds ({', '.join(map(str, specs))}); "
                    "give a list of arrays, one for each encoder."
                )
            tiles = [tiles] * len(self.members)
        if len(tiles) != len(self.members):
            raise InputError(f"`tiles` must be {len(self.members)} arrays, one for each encoder, got {len(tiles)}.")
        return np.concatenate([encode(m, own) for m, own in zip(self.members, tiles, strict=True)], axis=-1)


def members_of(encoder: Encoder) -> tuple[Encoder, ...]:
    """Return the encoders that one consists of: those of a composite, or the encoder itself."""
    return encoder.members if isinstance(encoder, Composite) else (encoder,)


def side_by_side(encoders: Sequence[Encoder]) -> Encoder:
    """Return several encoders as one; a single one as it is."""
    if len(encoders) == 0:
        raise InputError("The list of encoders is empty; name at least one, such as ['morphology'].")
    return encoders[0] if len(encoders) == 1 else Composite(encoders)  # type: ignore[return-value]


def _card(cards: Sequence[EncoderCard]) -> EncoderCard:
    """Describe the members as one encoder."""
    parts = _parts(cards)
    return EncoderCard(
        _name(parts, cards),
        max((c.tile for c in cards), key=lambda tile: tile.size_um),
        sum(c.width for c in cards),
        source="; ".join(dict.fromkeys(c.source for c in cards)),
        revision=_digest([[c.name, c.revision] for c in cards]),
        licence=" AND ".join(dict.fromkeys(c.licence for c in cards)),
        gated=any(c.gated for c in cards),
        feature_names=tuple(
            f"{part}_{name}"
            for part, c in zip(parts, cards, strict=True)
            for name in (range(c.width) if c.feature_names is None else c.feature_names)
        ),
        dense=_dense(cards),
        members=tuple(c.to_dict() for c in cards),
    )


def _parts(cards: Sequence[EncoderCard]) -> list[str]:
    """Return what each member's features are called after: its name and the edge of its tile, each different."""
    parts = [f"{keys.slug(c.name.removeprefix(TIMM))}-{_rounded(c.tile.size_um)}um" for c in cards]
    if len(set(parts)) < len(parts):
        parts = [f"{p}-{c.tile.size_px}px" if parts.count(p) > 1 else p for p, c in zip(parts, cards, strict=True)]
    return [f"{p}-{parts[:k].count(p) + 1}" if parts.count(p) > 1 else p for k, p in enumerate(parts)]


def _rounded(size_um: float) -> str:
    return f"{size_um:.0f}" if size_um >= 10 else f"{size_um:.2g}"


def _name(parts: Sequence[str], cards: Sequence[EncoderCard]) -> str:
    """Return a readable name, which is the same whenever the members and their tiles are."""
    whole = "+".join(parts)
    if len(whole) <= MAX_NAME:
        return whole
    which = _digest([[c.name, c.tile.to_dict()] for c in cards])[-8:]
    first = f"{parts[0]}+{len(parts) - 1}-more-{which}"
    return first if len(first) <= MAX_NAME else f"{len(parts)}-encoders-{which}"


def _digest(values: Any) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]}"


def _dense(cards: Sequence[EncoderCard]) -> tuple[int, int, int] | None:
    """Return the grid of the members' tokens side by side, if all have some and these lie on one grid."""
    grids = {c.dense[:2] for c in cards if c.dense is not None}
    if len(grids) != 1 or any(c.dense is None for c in cards) or not same_extent(cards):
        return None
    rows, columns = grids.pop()
    return rows, columns, sum(c.dense[2] for c in cards if c.dense is not None)


def same_extent(cards: Sequence[EncoderCard]) -> bool:
    """Return whether the tiles cover the same square of tissue."""
    edges = [c.tile.size_um for c in cards]
    return max(edges) - min(edges) <= SAME_EXTENT * max(edges)

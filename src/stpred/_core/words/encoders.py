"""Encoders and their tiles in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stpred._core.words.phrases import listed


def encoder_words(card: Mapping[str, Any], tile: Mapping[str, float] | None = None) -> str | None:
    """Name an encoder and its tiles; of several all, those of one name together. None of a card without a name.

    `tile`: of a single encoder, instead of its card's.

    >>> tiles = [{"mpp": mpp, "size_px": 224} for mpp in (0.5, 2.0)]
    >>> encoder_words({"name": "a+a", "members": [{"name": "a", "tile": tile} for tile in tiles]})
    'a, tiles of 112 and 448 um at 0.5 and 2 um per pixel'
    """
    if card.get("name") is None:
        return None
    tiles: dict[str, set[tuple[float, float]]] = {}
    for member in card.get("members") or [{**card, "tile": tile or card.get("tile")}]:
        found = tiles.setdefault(member["name"], set())
        if size := member.get("tile"):
            found.add((size["mpp"] * size["size_px"], size["mpp"]))
    return "; ".join(name + _tiles(sorted(found)) for name, found in tiles.items())


def _tiles(sizes: Sequence[tuple[float, float]]) -> str:
    """Write edges of tiles and micrometres per pixel."""
    if not sizes:
        return ""
    edges, mpp = ([f"{v:.4g}" for v in dict.fromkeys(column)] for column in zip(*sizes, strict=True))
    return f", tiles of {listed(edges)} um at {listed(mpp)} um per pixel"

"""Encoders from the text of ``--encoder``: a name, what it looks at, and which of its layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stpred._core.checks import InputError
from stpred._core.disk import hub
from stpred._core.specs import TileSpec

_SETTINGS = ("layers", "pool")
_TILE = re.compile(r"(?P<mpp>\d+\.?\d*|\.\d+)x(?P<size_px>\d+)")
_RANGE = re.compile(r"(?P<first>-?\d+)(?:-(?P<last>\d+))?")
_HUB = re.compile(r"(?:timm/)?hf[-_]hub:")
"""Names of timm that hold a colon, and a revision behind an @, themselves."""


@dataclass(frozen=True)
class EncoderOption:
    """One ``--encoder``: ``NAME[@MPPxPIXELS][:layers=1-4,pool=mean+std]``, or the folder of a saved encoder.

    Attributes
    ----------
    name
        Name of :func:`stpred.encoders.list` or of timm, or a folder.
    tile, layers, pool
        As of :func:`stpred.encoders.get`; None: the encoder's own.

    Examples
    --------
    >>> EncoderOption.parse("morphology@0.5x224")
    EncoderOption(name='morphology', tile=TileSpec(mpp=0.5, size_px=224), layers=None, pool=None)
    >>> EncoderOption.parse("efficientnet-lite0:layers=1-3+5,pool=mean").layers
    (1, 2, 3, 5)
    """

    name: str
    tile: TileSpec | None = None
    layers: tuple[int, ...] | None = None
    pool: str | None = None

    @classmethod
    def parse(cls, text: str) -> EncoderOption:
        """Read the text of the option; what cannot be read is refused with the part that is wrong."""
        if (text and Path(text).is_dir()) or _HUB.match(text) or hub.is_remote(text):
            return cls(text)
        name, colon, settings = text.partition(":")
        name, at, tile = name.partition("@")
        if not name.strip():
            raise InputError(f"`--encoder` {text!r} names no encoder; it is NAME, NAME@0.5x224 or NAME:layers=1-4.")
        found = _settings(settings, text) if colon else {}
        return cls(
            name.strip(), tile=_tile(tile, text) if at else None, layers=_layers(found.get("layers"), text),
            pool=found.get("pool"),
        )  # fmt: skip

    def load(self) -> Any:
        """Return the name where that says all, else the encoder."""
        from stpred import encoders

        given = {k: v for k in ("tile", *_SETTINGS) if (v := getattr(self, k)) is not None}
        if Path(self.name).is_dir() or hub.is_remote(self.name):
            if given:
                raise InputError(f"The saved encoder {self.name!r} has its own tile and layers; give its folder alone.")
            return encoders.load(self.name)
        return encoders.get(self.name, **given) if given else self.name


def load_encoder(given: Sequence[str] | None) -> Any:
    """Return the encoder or its name; several options are one encoder, their features side by side; None without."""
    from stpred import encoders

    found = [EncoderOption.parse(text).load() for text in given or ()]
    return encoders.get(found) if len(found) > 1 else next(iter(found), None)


def _tile(text: str, whole: str) -> TileSpec:
    if (found := _TILE.fullmatch(text)) is None:
        raise InputError(
            f"`--encoder` {whole!r}: behind the @ come micrometres per pixel, x and pixels, such as @0.5x224, "
            f"got {text!r}."
        )
    return TileSpec(float(found["mpp"]), int(found["size_px"]))


def _settings(text: str, whole: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (p.strip() for p in part.partition("="))
        if key not in _SETTINGS or not equals or not value:
            raise InputError(f"`--encoder` {whole!r}: behind the colon come layers=... and pool=..., got {part!r}.")
        if key in found:
            raise InputError(f"`--encoder` {whole!r} gives {key} twice; join numbers of layers with +, such as 1+3.")
        found[key] = value
    return found


def _layers(text: str | None, whole: str) -> tuple[int, ...] | None:
    """Return the layers of ``1-3+5``: numbers and ranges joined with +."""
    if text is None:
        return None
    layers: list[int] = []
    for part in text.split("+"):
        found = _RANGE.fullmatch(part.strip())
        if found is None or (found["last"] is not None and int(found["last"]) < int(found["first"])):
            raise InputError(
                f"`--encoder` {whole!r}: layers are numbers and ranges joined with +, such as 2, 1-4 or 1-3+5, "
                f"got {part!r}."
            )
        first = int(found["first"])
        layers += range(first, first + 1 if found["last"] is None else int(found["last"]) + 1)
    return tuple(layers)

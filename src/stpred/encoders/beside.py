"""The pixels of a slide with the features of encoders beside them, for models of a slide's whole pixel grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred.encoders.base import Encoder
from stpred.encoders.composite import Composite, members_of

PIXELS = "pixels"


class PixelsBeside(Composite):
    """Pixels at the resolution of one tile, and encoders whose dense tokens are laid on the same pixels.

    Parameters
    ----------
    pixels
        The encoder ``"pixels"``; its tile is the card's.
    features
        Encoders of features; of several side by side their members, each on a lattice of tokens of its own.
    optional
        Whether slides that are too coarse for the features are learned from without them.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, pixels: Encoder, features: Sequence[Encoder], *, optional: bool = False) -> None:
        self.optional = optional
        beside = [m for e in features for m in members_of(e)]
        for member in beside:
            if getattr(member, "dtype", np.float32) == np.uint8:
                raise InputError(
                    f"The encoder {member.card.name!r} gives pixels; beside the pixels there must be features."
                )
        self.members = (pixels, *beside)
        own = beside[0].card if len(beside) == 1 else Composite(beside).card
        edge = "" if len(beside) > 1 else f"-{own.tile.size_um:.4g}um"
        self.card = replace(
            own,
            name=f"{PIXELS}+{own.name}{edge}",
            tile=pixels.card.tile,
            width=sum(m.card.width for m in self.members),
            feature_names=None,
            dense=None,
            mean=None,
            std=None,
            layers=None,
            pool=None,
            views=None,
            members=tuple(m.card.to_dict() for m in self.members),
        )

    @property
    def features(self) -> tuple[Encoder, ...]:
        """The encoders beside the pixels."""
        return self.members[1:]

    def encode(self, tiles: Any) -> NDArray[np.float32]:
        """Refuse: what these give is a plane, not a row for each tile."""
        raise InputError(f"The encoder {self.card.name!r} is of models of a slide's pixels, such as 'xfuse'.")

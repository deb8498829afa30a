"""The encoder protocol: tiles in, features out, with a card that describes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from stpred._core.specs import TileSpec

TIMM = "timm/"
"""How names of timm's models begin."""

RANDOM = "random weights"
"""Source of a network that was not trained; its weights follow a seed."""

LOCAL = "file "
"""How the source of weights begins that a user gave as a file or folder."""


@dataclass(frozen=True)
class EncoderCard:
    """Description of an encoder; travels with every feature table and model.

    Parameters
    ----------
    name
        Registry name, such as ``"morphology"`` or ``"timm/resnet50.a1_in1k"``.
    tile
        The tile that the encoder expects.
    width
        Number of features per tile.
    source
        Where weights come from (a hub id, a local path, ``"built in"``).
    revision
        Revision of the weights or version of the algorithm; features of different revisions are never mixed.
    licence
        Licence of the weights.
    gated
        Whether the weights need an access request.
    feature_names
        Documented names, where features have a meaning.
    mean, std
        Channel normalisation on the 0..1 scale, where the encoder uses one.
    dense
        Rows, columns and width of the dense tokens, where the encoder gives them.
    layers, pool
        Numbers of the network's layers that the features are of, counted from the first, and how each was pooled over
        the tile; None: the network's own output.
    members
        Of several encoders side by side: the members' cards as plain values (:meth:`to_dict`), in the order of their
        features. `tile` is then the largest of theirs.
    input_px
        Height and width that tiles are resampled to for a network of another input size than its own; None: that.
    views
        Number, strength and seed of the stain variations that features are averaged over (:class:`Jittered`); None: of
        the tile as it is.

    Examples
    --------
    >>> import stpred as st
    >>> card = st.encoders.get("morphology").card
    >>> card.name, card.tile, card.width
    ('morphology', TileSpec(mpp=0.5, size_px=224), 212)
    """

    name: str
    tile: TileSpec
    width: int
    source: str = "built in"
    revision: str = "1"
    licence: str = "BSD-3-Clause"
    gated: bool = False
    feature_names: tuple[str, ...] | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    dense: tuple[int, int, int] | None = None
    layers: tuple[int, ...] | None = None
    pool: str | None = None
    members: tuple[dict[str, Any], ...] = ()
    views: dict[str, float] | None = None
    input_px: int | None = None

    @property
    def blocks(self) -> tuple[int, ...]:
        """Widths of the members' features side by side; ``(width,)`` of a single encoder."""
        return tuple(int(m["width"]) for m in self.members) or (self.width,)

    @property
    def dense_blocks(self) -> tuple[int, ...]:
        """Widths of the members' dense tokens side by side; empty where there are none."""
        if self.dense is None:
            return ()
        return tuple(int(m["dense"][2]) for m in self.members) or (self.dense[2],)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as JSON gives them back (without the feature names, which belong in `var`)."""
        record = asdict(self)
        record.pop("feature_names")
        for unset in [k for k in ("layers", "pool", "members", "views", "input_px") if not record[k]]:
            record.pop(unset)  # so that what was written before these fields is still found
        return {k: list(v) if isinstance(v, tuple) else v for k, v in record.items()}


@runtime_checkable
class Encoder(Protocol):
    """Turns uint8 RGB tiles of the card's size into float32 features.

    Examples
    --------
    >>> import stpred as st
    >>> isinstance(st.encoders.get("morphology"), st.encoders.Encoder)
    True
    """

    @property
    def card(self) -> EncoderCard:
        """Description of the encoder."""
        ...

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 features, each from its tile alone."""
        ...

    def to(self, device: str | None) -> Encoder:
        """Return the encoder on a device (None: GPU if there is one); encoders without parameters return themselves."""
        ...

"""Any encoder, averaged over views of a tile whose stains were varied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive, whole
from stpred._image.appearance import jitter
from stpred.encoders.base import Encoder
from stpred.encoders.composite import members_of, side_by_side

SUFFIX = "-jittered"
"""What the name of an encoder ends with here, after that of the encoder whose features are averaged."""

MAX_VIEWS = 256


class Jittered:
    """The mean of an encoder's features over views of each tile with other amounts of the stains.

    Made by :func:`stpred.encoders.get` with ``views=``.

    The variation of the stain that slides differ by is averaged out where it is not much larger than that of the views,
    and with it some of what the stain says. It costs `n_views` times as much as the encoder.

    Parameters
    ----------
    encoder
        A single encoder; of several side by side each is averaged by itself.
    n_views
        Number of views; the first is the tile as it is.
    strength
        How far the amounts of haematoxylin and eosin vary, 0 to 1: their factors are spread evenly on the log scale
        between 1 / (1 + strength) and 1 + strength, and the tint of the light by a tenth of that.
    seed
        Which views: the same ones for every tile.

    Attributes
    ----------
    encoder
        The encoder whose features are averaged.
    card
        That of the encoder, with ``-jittered`` behind the name and `views`, by which a stored model makes it again.

    Raises
    ------
    InputError
        If a number is out of range, or the encoder is one of pixels or several side by side.

    Notes
    -----
    Views are multiplications in the space of stains (colour deconvolution with the vectors of Ruifrok & Johnston 2001),
    as in the augmentation of Tellez et al. 2018, without its offsets, so that glass stays as bright as it is but for
    the tint. Each factor comes with its inverse, so that the views are as often darker as brighter.

    References
    ----------
    Tellez et al. 2018, Whole-slide mitosis detection in H&E breast histology using PHH3 as a reference to train
    distilled stain-invariant convolutional networks, IEEE Trans. Med. Imaging 37(9), 2126-2136.

    Examples
    --------
    >>> import stpred as st
    >>> encoder = st.encoders.get("colour", views=4)
    >>> encoder.card.name, encoder.card.width
    ('colour-jittered', 6)
    """

    def __init__(self, encoder: Encoder, *, n_views: int = 8, strength: float = 0.3, seed: int = 0) -> None:
        self.encoder: Any = encoder
        n_views = whole(n_views, name="n_views")
        if n_views > MAX_VIEWS:
            raise InputError(f"`n_views` must be at most {MAX_VIEWS}, got {n_views}.")
        strength = positive(strength, name="strength")
        if strength > 1:
            raise InputError(f"`strength` must be above 0 and at most 1, got {strength!r}.")
        if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
            raise InputError(f"`seed` must be a whole number of at least 0, got {seed!r}.")
        if isinstance(encoder, type) or not isinstance(encoder, Encoder):
            raise InputError(
                f"`encoder` must be an encoder, such as stpred.encoders.get makes, got {type(encoder).__name__}."
            )
        card = self.encoder.card
        if getattr(self.encoder, "dtype", np.float32) == np.uint8:
            raise InputError(f"The encoder {card.name!r} gives pixels, whose mean over views says nothing.")
        if card.members:
            raise InputError(
                "Several encoders side by side are averaged each by itself: stpred.encoders.get(..., views=)."
            )
        if card.views is not None:
            raise InputError(f"The encoder {card.name!r} is averaged over views already.")
        self.views = {"n": n_views, "strength": strength, "seed": int(seed)}
        self._maps = jitter(n_views, strength=strength, seed=int(seed))
        self.card = replace(card, name=f"{card.name}{SUFFIX}", revision=f"{card.revision}, views 1", views=self.views)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 mean features."""
        return self._mean(tiles, self.encoder.encode)

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, rows, cols, width) float32 mean features of their patches."""
        if self.card.dense is None:
            raise InputError(f"The encoder {self.card.name!r} has no dense tokens.")
        return self._mean(tiles, self.encoder.encode_dense)

    def to(self, device: str | None) -> Jittered:
        """Move the encoder to a device (None: the GPU if there is one) and return this one."""
        self.encoder = self.encoder.to(device)
        return self

    def __getattr__(self, name: str) -> Any:
        # Only encoders whose scales are in micrometres have these, and others ask with hasattr.
        if name not in ("resized", "patched") or not hasattr(self.encoder, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

        def other(value: Any) -> Jittered:
            found: Jittered = with_views(getattr(self.encoder, name)(value), self.views)  # type: ignore[assignment]
            return found

        return other

    def _mean(self, tiles: NDArray[np.uint8], encode: Any) -> NDArray[np.float32]:
        total = encode(tiles).astype(np.float64)
        for view in self._maps[1:]:
            total += encode(view(tiles))
        return (total / len(self._maps)).astype(np.float32)


def with_views(encoder: Encoder, views: int | Mapping[str, float]) -> Encoder:
    """Return an encoder, or each of several side by side, averaged over views: their number, or all their settings."""
    settings = dict(views) if isinstance(views, Mapping) else {"n": views}
    if unknown := sorted(map(str, set(settings) - {"n", "strength", "seed"})):
        raise InputError(f"`views` has the fields 'n', 'strength' and 'seed', got {unknown}.")
    given: dict[str, Any] = {"n_views" if k == "n" else k: v for k, v in settings.items()}
    return side_by_side([Jittered(member, **given) for member in members_of(encoder)])

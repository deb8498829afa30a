"""What encoders contribute to the features of a pass over the image, and where each one's are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.progress import track
from stpred._core.settings import settings
from stpred._core.specs import TileSpec
from stpred._core.words.phrases import listed
from stpred.data._feature_cache import Busy, Entry, FeatureCache
from stpred.data._regions import Region


@dataclass(frozen=True)
class Share:
    """What one encoder contributes: features of its tiles at as many places as every other one's.

    Attributes
    ----------
    encoder, tile
        What sees the tiles, and their size and resolution.
    coords_um
        (n, 2) places.
    what
        Tells features of the same tiles from each other: ``"tiles"``, ``"patches"``, ``"parts"``, ``"wide"``.
    tiles_um
        (m, 2) centres of the tiles that places are parts of, n / m of each one after the other; None: the places.
    """

    encoder: Any
    coords_um: NDArray[np.float64]
    tile: TileSpec
    what: str
    tiles_um: NDArray[np.float64] | None = None

    @property
    def centres_um(self) -> NDArray[np.float64]:
        """Centres of the tiles that the places are, or are parts of."""
        return self.coords_um if self.tiles_um is None else self.tiles_um

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the features of a tile."""
        card = self.encoder.card
        return tuple(card.dense) if self.what == "patches" else (card.width,)

    @property
    def dtype(self) -> np.dtype[Any]:
        """What features are computed in."""
        return np.dtype(getattr(self.encoder, "dtype", np.float32))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the features of tiles."""
        return self.encoder.encode_dense(tiles) if self.what == "patches" else self.encoder.encode(tiles)  # type: ignore[no-any-return]

    def entry(self, region: Region) -> Entry | None:
        """Return where the features are kept on disk, if they are."""
        if settings.cache_dir is None or len(self.coords_um) == 0:
            return None
        card, tile = self.encoder.card.to_dict(), self.tile.to_dict()
        inputs = {"image": region.pyramid.fingerprint, "encoder": card, "tile": tile, "what": self.what}
        kept = "uint8" if self.dtype == np.uint8 else "float16"
        return FeatureCache(settings.cache_dir).entry(inputs, self.coords_um, shape=self.shape, dtype=kept)

    def at(self, coords_um: NDArray[np.float64]) -> Share:
        """Return the share of other places."""
        return replace(self, coords_um=coords_um, tiles_um=None)


def opened(entry: Entry | None, stack: ExitStack) -> tuple[Entry | None, NDArray[np.int64] | None]:
    """Return an entry and its missing rows; None where nothing is kept, or another process is filling it."""
    if entry is None:
        return None, None
    try:
        stack.enter_context(entry)
        return entry, entry.todo()
    except Busy:  # compute beside it
        return None, None


def encoded(
    region: Region, shares: Sequence[Share], todo: Sequence[NDArray[np.bool_]]
) -> Iterator[tuple[int, NDArray[np.int64], NDArray[Any]]]:
    """Yield the position of a share, rows and their features, all from one pass over the image.

    Tiles go through an encoder in the same batches whatever is missing, so that features do not depend on where work
    was interrupted.
    """
    missing = [k for k, needed in enumerate(todo) if needed.any()]
    if not missing:
        return
    kinds = {(shares[k].tile, id(shares[k].coords_um)): k for k in missing}
    views = [(shares[k].coords_um, shares[k].tile) for k in kinds.values()]
    which_view = {k: list(kinds).index((shares[k].tile, id(shares[k].coords_um))) for k in missing}
    wanted = np.any([todo[k] for k in missing], axis=0)
    gpu = any(getattr(shares[k].encoder, "on_gpu", False) for k in missing)
    read = region.pyramid.read_several(views, wanted=wanted, beside=gpu)
    for rows, tiles in track(
        read,
        total=int(wanted.sum()),
        describe=f"{region.slide}, {region.shapes_key}: features of {_names([shares[k] for k in missing])}",
        weight=lambda item: wanted[item[0]].sum(),
        unit="sub-tile" if shares[missing[0]].what == "parts" else "location",
    ):
        for k in missing:
            if (needed := todo[k][rows]).any():
                values = shares[k].encode(tiles[which_view[k]])
                yield k, rows[needed], values if needed.all() else values[needed]


def _names(shares: Sequence[Share]) -> str:
    """Name the encoders of some shares, and their widths where one stands at several.

    >>> from stpred import encoders
    >>> two = [encoders.get("intensity", tile=TileSpec(mpp, 224)) for mpp in (0.5, 2.0)]
    >>> _names([Share(e, np.empty((0, 2)), e.card.tile, "tiles") for e in two])
    'intensity at 112 and 448 um'
    """
    widths: dict[str, list[float]] = {}
    for share in shares:
        widths.setdefault(share.encoder.card.name, []).append(share.tile.size_um)
    each = []
    for name, sizes in widths.items():
        said = [f"{size:.4g}" for size in sorted(set(sizes))]
        each.append(name if len(said) == 1 else f"{name} at {listed(said)} um")
    return " + ".join(each)

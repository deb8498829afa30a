"""Features of tiles: computed in one streaming pass, or taken from where exactly these are kept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.elements import table_instances
from stpred._core.progress import track
from stpred._core.settings import settings
from stpred._core.specs import TileSpec
from stpred._core.tables import read_provenance
from stpred.data._feature_cache import Busy, FeatureCache
from stpred.data._regions import Region
from stpred.encoders.base import Encoder

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stpred")


def embed(region: Region, encoder: Encoder, coords_um: NDArray[np.float64]) -> NDArray[Any]:
    """Return (n, width) features of the tiles at `coords_um`, read in one streaming pass.

    float32 (uint8 of the encoder ``"pixels"``); with ``stpred.settings.cache_dir`` they are kept on disk as float16,
    and read from there where these very tiles of this image were embedded by this encoder before.
    """
    return _stream(region, encoder, coords_um, tile=encoder.card.tile, what="tiles")


def embed_dense(region: Region, encoder: Any, coords_um: NDArray[np.float64]) -> NDArray[Any]:
    """Return (n, rows, columns, width) features of the patches of each tile, of encoders that have dense tokens."""
    return _stream(region, encoder, coords_um, tile=encoder.card.tile, what="patches")


def embed_parts(region: Region, encoder: Encoder, coords_um: NDArray[np.float64], *, parts: int) -> NDArray[Any]:
    """Return (n * parts ** 2, width) features of the sub-tiles of each tile, row by row of a tile.

    An encoder whose scales are in micrometres sees a smaller tile at its own resolution; any other sees the sub-tile
    resampled to the size that it expects.
    """
    size_um = encoder.card.tile.size_um
    offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * size_um
    grid = np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2)
    places = (coords_um[:, None] + grid).reshape(-1, 2)
    return _resized(region, encoder, places, size_um=size_um / parts, what="parts")


def embed_wide(region: Region, encoder: Encoder, coords_um: NDArray[np.float64], *, size_um: float) -> NDArray[Any]:
    """Return (n, width) features of tiles of another edge than the encoder's own, embedded as sub-tiles are."""
    return _resized(region, encoder, coords_um, size_um=size_um, what="wide")


def _resized(
    region: Region,
    encoder: Encoder,
    coords_um: NDArray[np.float64],
    *,
    size_um: float,
    what: str,
) -> NDArray[Any]:
    other = encoder.resized(size_um) if hasattr(encoder, "resized") else encoder
    size_px = encoder.card.tile.size_px
    tile = TileSpec(size_um / size_px, size_px) if other is encoder else other.card.tile
    return _stream(region, other, coords_um, tile=tile, what=what)


def _stream(
    region: Region,
    encoder: Any,
    coords_um: NDArray[np.float64],
    *,
    tile: TileSpec,
    what: str,
) -> NDArray[Any]:
    card = encoder.card
    dtype = np.dtype(getattr(encoder, "dtype", np.float32))
    shape = card.dense if what == "patches" else (card.width,)
    encode = encoder.encode_dense if what == "patches" else encoder.encode

    def values(rows: NDArray[np.int64]) -> Any:
        tiles = region.pyramid.read(coords_um[rows], tile)
        shown = track(tiles, total=len(rows), describe=f"{card.name}: {region.slide}", weight=lambda item: len(item[0]))
        return ((rows[which], encode(images)) for which, images in shown)

    if settings.cache_dir is not None and len(coords_um):
        inputs = {"image": region.pyramid.fingerprint, "encoder": card.to_dict(), "tile": tile.to_dict(), "what": what}
        kept = "uint8" if dtype == np.uint8 else "float16"
        entry = FeatureCache(settings.cache_dir).entry(inputs, coords_um, shape=tuple(shape), dtype=kept)
        try:
            with entry:
                if len(todo := entry.todo()):
                    for rows, part in values(todo):
                        entry.write(rows, part)
                    return entry.finish()
                return entry.read()
        except Busy:  # another process is at it: compute beside it
            pass
    out = np.empty((len(coords_um), *shape), dtype=dtype)
    for rows, part in values(np.arange(len(coords_um))):
        out[rows] = part
    return out


def stored_features(region: Region, encoder: Encoder) -> NDArray[np.float32] | None:
    """Return features that `pp.features` wrote for exactly these locations, image and encoder, or None."""
    key = keys.features(region.shapes_key, encoder.card.name)
    if key not in region.sdata.tables:
        return None
    table = region.sdata.tables[key]
    if keys.UNS not in table.uns:
        logger.info("Table %r has no provenance; its features are computed anew.", key)
        return None
    provenance = read_provenance(table, what=f"table {key!r}")
    if provenance.get("encoder") != encoder.card.to_dict() or provenance.get("image") != region.pyramid.fingerprint:
        return None
    if "digest" not in provenance:
        logger.info("Table %r does not say what its features were when written; they are computed anew.", key)
        return None
    if provenance["digest"] != digest(table.X):
        logger.warning(
            "Table %r was changed since stpred wrote it, so its features are computed anew: values that were scaled "
            "over several slides would carry one into another.",
            key,
        )
        return None
    own, ids = table_instances(table, region.shapes_key)
    found = _match(ids, region.instances)
    if found is None or keys.SPATIAL not in table.obsm:
        return None
    rows = own[found]
    if not np.allclose(table.obsm[keys.SPATIAL][rows], region.coords_um, atol=1e-3):
        return None
    return np.asarray(table.X[rows], dtype=np.float32)


def digest(features: NDArray[Any]) -> str:
    """Return what tells (n, width) features from any others, whatever the order of their rows."""
    bits = np.ascontiguousarray(features, dtype=np.float32).view(np.uint32).astype(np.uint64)
    weights = np.random.default_rng(0).integers(1, 2**63, size=bits.shape[1], dtype=np.uint64) | np.uint64(1)
    rows = (bits * weights).sum(axis=1, dtype=np.uint64)  # all of it modulo 2 ** 64
    rows = (rows ^ (rows >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    return f"{int((rows ^ (rows >> np.uint64(32))).sum(dtype=np.uint64)):016x}"


def _match(have: pd.Index, want: pd.Index) -> NDArray[np.int64] | None:
    if not have.is_unique:
        return None
    rows = have.get_indexer(want)
    return None if (rows < 0).any() else rows

"""Features of tiles: computed in one streaming pass, or taken from where exactly these are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.disk.on_disk import joined
from stpred._core.elements import table_instances
from stpred._core.specs import TileSpec
from stpred._core.tables import read_provenance
from stpred.data import _scratch as scratch
from stpred.data import _strips as strips
from stpred.data._regions import Region
from stpred.data._shares import Share, encoded, opened
from stpred.encoders.base import Encoder
from stpred.encoders.composite import members_of

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger("stpred")

_DIGEST_ROWS = 4096


def embed(region: Region, encoder: Encoder, coords_um: NDArray[np.float64]) -> NDArray[Any]:
    """Return (n, width) features of the tiles at `coords_um`, read in one streaming pass.

    float32 (uint8 of the encoder ``"pixels"``); with ``stpred.settings.cache_dir`` they are kept on disk as float16,
    and read from there where these very tiles of this image were embedded by this encoder before. Of several encoders
    each is kept by itself.
    """
    return _embed(region, members_of(encoder), coords_um)


def _embed(
    region: Region,
    members: Sequence[Encoder],
    coords_um: NDArray[np.float64],
    *,
    on_disk: bool = False,
    spill: bool = False,
) -> Any:
    shares = [Share(m, coords_um, m.card.tile, "tiles") for m in members]
    return _stream(region, shares, on_disk=on_disk, spill=spill)


def embed_dense(region: Region, encoder: Any, coords_um: NDArray[np.float64]) -> NDArray[Any]:
    """Return (n, rows, columns, width) features of the patches of each tile, of encoders that have dense tokens."""
    return _stream(region, [Share(m, coords_um, m.card.tile, "patches") for m in members_of(encoder)])


def embed_parts(
    region: Region,
    encoder: Encoder,
    coords_um: NDArray[np.float64],
    *,
    parts: int,
    on_disk: bool = False,
    spill: bool = False,
) -> Any:
    """Return (n * parts ** 2, width) features of the sub-tiles of each tile, row by row of a tile.

    An encoder whose scales are in micrometres sees a smaller tile at its own resolution; any other sees the sub-tile
    resampled to the size that it expects. Of several encoders each sees the sub-tiles of its own tile. `on_disk`: leave
    what is kept there (:class:`~stpred._core.disk.on_disk.OnDisk`); `spill`: see `embed_region`.
    """
    shares = []
    for member in members_of(encoder):
        size_um = member.card.tile.size_um
        offsets = ((np.arange(parts) + 0.5) / parts - 0.5) * size_um
        grid = np.stack(np.meshgrid(offsets, offsets), axis=-1).reshape(-1, 2)
        places = (coords_um[:, None] + grid).reshape(-1, 2)
        shares.append(_resized(member, places, size_um=size_um / parts, what="parts", tiles_um=coords_um))
    return _stream(region, shares, on_disk=on_disk, spill=spill)


def embed_centre(
    region: Region, encoder: Encoder, coords_um: NDArray[np.float64], *, parts: int, spill: bool = False
) -> Any:
    """Return (n, width) features of a sub-tile about the centre of each tile, of the size that `embed_parts` takes."""
    members = members_of(encoder)
    shares = [_resized(m, coords_um, size_um=m.card.tile.size_um / parts, what="wide") for m in members]
    return _stream(region, shares, on_disk=spill, spill=spill)


def embed_wide(region: Region, encoder: Encoder, coords_um: NDArray[np.float64], *, size_um: float) -> NDArray[Any]:
    """Return (n, width) features of tiles of another edge than the encoder's own, embedded as sub-tiles are."""
    return _stream(region, [_resized(m, coords_um, size_um=size_um, what="wide") for m in members_of(encoder)])


def _resized(
    encoder: Any,
    coords_um: NDArray[np.float64],
    *,
    size_um: float,
    what: str,
    tiles_um: NDArray[np.float64] | None = None,
) -> Share:
    other = encoder.resized(size_um) if hasattr(encoder, "resized") else encoder
    size_px = encoder.card.tile.size_px
    tile = TileSpec(size_um / size_px, size_px) if other is encoder else other.card.tile
    return Share(other, coords_um, tile, what, tiles_um)


def _stream(region: Region, shares: Sequence[Share], *, on_disk: bool = False, spill: bool = False) -> Any:
    """Return the shares' features side by side; what the cache has is read, all others are computed in one pass.

    `on_disk`: what the cache has stays there. `spill`: what is computed is in a file where it is much (`scratch`).
    """
    if (nothing := strips.planned(region, shares)) is not None:
        return nothing
    if several := strips.strips_of(region, shares):
        return strips.embed_strips(several, on_disk=on_disk or spill)
    n = len(shares[0].coords_um)
    with ExitStack() as stack:
        entries, todo = [], []
        for share in shares:
            entry, rows = opened(share.entry(region), stack)
            entries.append(entry)
            todo.append(np.ones(n, dtype=bool) if rows is None else np.isin(np.arange(n), rows))
        widths = [share.shape[-1] if e is None else 0 for share, e in zip(shares, entries, strict=True)]
        memory = scratch.empty((n, *shares[0].shape[:-1], sum(widths)), shares[0].dtype, spill=spill)
        written = 0
        parts: list[Any] = np.split(memory, np.cumsum(widths)[:-1], axis=-1)
        for k, rows, values in encoded(region, shares, todo):
            if (entry := entries[k]) is None:
                parts[k][rows] = values
                if (written := written + values.nbytes) > scratch.RELEASE_BYTES:
                    scratch.release(memory)
                    written = 0
            else:
                entry.write(rows, values)
        if all(entry is None for entry in entries):
            return memory
        for k, entry in enumerate(entries):
            if entry is not None:
                whole = entry.finish() if todo[k].any() else entry.read()
                parts[k] = entry.on_disk() if on_disk else whole
        return joined(parts, axis=-1)


def embed_region(
    region: Region,
    encoder: Encoder,
    *,
    rows: NDArray[np.int64] | None = None,
    points_um: NDArray[np.float64] | None = None,
    on_disk: bool = False,
    spill: bool = False,
) -> Any:
    """Return features of a region's locations, or some `rows` of them, and behind them those of further points.

    What `pp.features` wrote of the region for the encoder is taken from there, and of several encoders also what it
    wrote for each of them. `on_disk`: what the cache has stays there (:class:`~stpred._core.disk.on_disk.OnDisk`).
    `spill`: so it does, and what is computed is in a file that goes with the array, where it is much.
    """
    coords = region.coords_um if rows is None else region.coords_um[rows]
    points = np.empty((0, 2)) if points_um is None else points_um
    members = members_of(encoder)
    whole = stored_features(region, encoder)
    stored = [stored_features(region, m) for m in members] if whole is None and len(members) > 1 else [whole]
    if all(table is None for table in stored):
        return _embed(region, members, np.concatenate([coords, points]), on_disk=on_disk or spill, spill=spill)
    found = [None if table is None else table if rows is None else table[rows] for table in stored]
    if whole is not None:
        members = (encoder,)
    absent = [m for m, table in zip(members, found, strict=True) if table is None]
    present = [m for m, table in zip(members, found, strict=True) if table is not None]
    computed = _each(absent, lambda some: _embed(region, some, np.concatenate([coords, points])))
    beyond = _each(present, lambda some: _embed(region, some, points)) if len(points) else []
    parts = []
    for table in found:
        if table is None:
            parts.append(computed.pop(0))
        else:
            parts.append(np.concatenate([table, beyond.pop(0)]) if beyond else table)
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _each(members: Sequence[Encoder], embed: Callable[[Sequence[Encoder]], NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the features of each of some encoders that are embedded in one pass."""
    if not members:
        return []
    joint = embed([m for member in members for m in members_of(member)])
    return np.split(joint, np.cumsum([m.card.width for m in members])[:-1], axis=1)


def check_resolution(region: Region, encoder: Encoder, *, what: str | None = None) -> None:
    """Refuse an image that is too coarse for an encoder, or for one of several; `what`: the image, in the message."""
    what = f"Image {region.image_key!r} of slide {region.slide!r}" if what is None else what
    for member in (members := members_of(encoder)):
        who = "the encoder" if len(members) == 1 else f"the encoder {member.card.name!r}"
        region.pyramid.check_resolution(member.card.tile, what=what, who=who)


def stored_features(region: Region, encoder: Encoder) -> NDArray[np.float32] | None:
    """Return features that `pp.features` wrote for exactly these locations, image and encoder, or None.

    They may be in a table of several encoders of which this is one.
    """
    own, card = keys.features(region.shapes_key, encoder.card.name), encoder.card.to_dict()
    if own in region.sdata.tables and (found := _read_stored(region, own, card)) is not None:
        return found
    for key in region.sdata.tables:
        if not key.startswith(keys.features(region.shapes_key, "")) or keys.UNS not in region.sdata.tables[key].uns:
            continue
        together = read_provenance(region.sdata.tables[key], what=f"table {key!r}").get("encoder") or {}
        members = together.get("members") or []
        if card in members and (found := _read_stored(region, key, together)) is not None:
            first = sum(m["width"] for m in members[: members.index(card)])
            return found[:, first : first + encoder.card.width]
    return None


def _read_stored(region: Region, key: str, card: dict[str, Any]) -> NDArray[np.float32] | None:
    """Return the features in a table if it is of exactly these locations, this image and the encoder of this card."""
    table = region.sdata.tables[key]
    if keys.UNS not in table.uns:
        logger.info("Table %r has no provenance; its features are computed anew.", key)
        return None
    provenance = read_provenance(table, what=f"table {key!r}")
    if provenance.get("encoder") != card or provenance.get("image") != region.pyramid.fingerprint:
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
    weights = np.random.default_rng(0).integers(1, 2**63, size=features.shape[1], dtype=np.uint64) | np.uint64(1)
    total = 0
    for first in range(0, len(features), _DIGEST_ROWS):
        block = np.ascontiguousarray(features[first : first + _DIGEST_ROWS], dtype=np.float32)
        rows = (block.view(np.uint32).astype(np.uint64) * weights).sum(axis=1, dtype=np.uint64)  # modulo 2 ** 64
        rows = (rows ^ (rows >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
        total += int((rows ^ (rows >> np.uint64(32))).sum(dtype=np.uint64))
    return f"{total % 2**64:016x}"


def _match(have: pd.Index, want: pd.Index) -> NDArray[np.int64] | None:
    if not have.is_unique:
        return None
    rows = have.get_indexer(want)
    return None if (rows < 0).any() else rows

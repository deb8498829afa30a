"""Large synthetic slides in many file layouts, quick to make: a few encoded tiles are written again and again."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TILE_PX = 512
_VARIANTS = 24  # side by side wider than the window in which deflate finds repeats
_GLASS = 241


def texture(size_px: int, *, seed: int = 0) -> np.ndarray:
    """Return (size_px, size_px, 3) uint8 with nuclei-like blobs and sensor noise in H&E colours."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=(size_px, size_px)), s, mode="wrap") * s for s in (6, 12)]
    haematoxylin = 0.9 / (1 + np.exp(-8 * (fields[0] - 0.2)))
    eosin = 0.3 + 0.1 * fields[1]
    density = haematoxylin[..., None] * (0.65, 0.70, 0.29) + eosin[..., None] * (0.07, 0.99, 0.11)
    noise = rng.normal(scale=3, size=(size_px, size_px, 3))
    return np.clip(_GLASS * 10**-density + noise, 0, 255).astype(np.uint8)


def glass(height: int, width: int, *, seed: int = 0) -> np.ndarray:
    """Return empty glass with sensor noise."""
    noise = np.random.default_rng(seed).normal(scale=1, size=(height, width, 3))
    return np.clip(_GLASS + noise, 0, 255).astype(np.uint8)


def on_disc(y: float, x: float, *, size_px: int, share: float = 0.66) -> bool:
    """Say whether there is tissue at a place: on a disc that covers this share of the slide."""
    return (y / size_px - 0.5) ** 2 + (x / size_px - 0.5) ** 2 < share / np.pi


def write_tiled(
    path: Path,
    *,
    size_px: int,
    compression: str = "jpeg",
    levels: int = 1,
    full: bool = True,
    share: float = 0.66,
    first: int = 0,
    **form: Any,
) -> None:
    """Write a tiled tif, each level below the first of half the size; slides of another `first` tile are others.

    Without `full` the tissue is a disc that covers this share of the slide.
    """
    import tifffile

    tissue = [texture(TILE_PX, seed=k) for k in range(_VARIANTS)]
    encode = _encoder(compression)
    encoded = [[encode(tile) for tile in tissue], [encode(glass(TILE_PX, TILE_PX))]]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(levels):
            n = size_px >> level
            file.write(
                _tiles(encoded, n, share=None if full else share, first=first),
                shape=(n, n, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr" if compression == "jpeg" else "rgb",
                compression=compression,
                subfiletype=int(level > 0),
                subifds=levels - 1 if level == 0 and levels > 1 else None,
                metadata=None,
                **form,
            )


def _encoder(compression: str) -> Callable[[np.ndarray], bytes]:
    if compression != "jpeg":
        return lambda tile: zlib.compress(tile.tobytes(), 1)
    import imagecodecs

    colour = {"colorspace": "rgb", "outcolorspace": "ycbcr", "subsampling": "444"}
    return lambda tile: imagecodecs.jpeg8_encode(tile, level=85, **colour)


def _tiles(encoded: list[list[bytes]], size_px: int, *, share: float | None, first: int = 0) -> Iterator[bytes]:
    tissue, empty = encoded
    n = -(-size_px // TILE_PX)
    for row in range(n):
        for column in range(n):
            centre = (row + 0.5) * TILE_PX, (column + 0.5) * TILE_PX
            here = share is None or on_disc(*centre, size_px=size_px, share=share)
            yield tissue[(first * (1 + row % 5) + 7 * row + 3 * column) % len(tissue)] if here else empty[0]


def strips_of(size_px: int, *, rows: int, full: bool = True) -> tuple[list[np.ndarray], list[int]]:
    """Return different strips of (rows, size_px, 3), and which of them follow each other; the last one may be cut.

    Without `full` the tissue is a square that leaves a rim of glass.
    """
    band = np.concatenate([texture(TILE_PX, seed=k) for k in range(_VARIANTS)], axis=1)
    band = np.tile(band, (1, -(-size_px // band.shape[1]), 1))[:, :size_px]
    empty = np.tile(glass(rows, TILE_PX), (1, -(-size_px // TILE_PX), 1))[:, :size_px]
    rim = 0 if full else size_px // 16
    strips = [band[top : top + rows].copy() for top in range(0, TILE_PX, rows)]
    for strip in strips:
        strip[:, :rim] = empty[:, :rim]
        strip[:, size_px - rim :] = empty[:, size_px - rim :]
    tops = range(0, size_px, rows)
    inside = [rim <= top < size_px - rim for top in tops]
    return [*strips, empty], [k % len(strips) if here else len(strips) for k, here in enumerate(inside)]


def write_strips(path: Path, *, size_px: int, rows: int = 64, compressed: bool = True, full: bool = True) -> None:
    """Write a flat tif in strips: deflated, or uncompressed and so one contiguous block."""
    import tifffile

    strips, order = strips_of(size_px, rows=rows, full=full)
    encoded = [zlib.compress(strip.tobytes(), 1) if compressed else strip for strip in strips]
    last = strips[order[-1]][: size_px - rows * (len(order) - 1)]
    tifffile.imwrite(
        path,
        itertools.chain((encoded[k] for k in order[:-1]), [zlib.compress(last.tobytes(), 1) if compressed else last]),
        shape=(size_px, size_px, 3),
        dtype=np.uint8,
        bigtiff=True,
        photometric="rgb",
        rowsperstrip=rows,
        compression="zlib" if compressed else None,
        metadata=None,
    )


def write_jpg(path: Path, *, size_px: int) -> None:
    """Write one large jpg."""
    from PIL import Image

    strips, order = strips_of(size_px, rows=TILE_PX)
    Image.fromarray(np.concatenate([strips[k] for k in order])[:size_px]).save(path, quality=85, subsampling=0)

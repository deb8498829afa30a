"""What an image file declares, judged before work: against the bytes that are there, and against memory."""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stpred._core.checks import InputError

MAX_PX = 10**12 // 2
"""Pixels of the largest image: a whole slide at ten times the usual resolution has fewer."""
TILE_PX = 4096**2
"""Tiles of more pixels are not larger than their image."""
WHOLE_BYTES = 256 * 2**20
"""Up to this decoded size an image is decoded whole without more ado."""
WHOLE_RATIO = 200
"""Decoded bytes for each byte of the file from which on a larger image that must be decoded whole is no picture of
tissue: jpg reaches 70 where half of it is glass, png 3.
"""
MAX_RATIO = 1100
"""The same for any image: deflate and jpg cannot reach it."""
MAX_EXPANSION = {1: 1, 5: 2800, 8: 1040, 32773: 64, 32946: 1040, 34892: 1000, 6: 1000, 7: 1000, 33007: 1000}
"""Decoded bytes for each stored byte that a compression can reach at most; of others `OTHER_EXPANSION`."""
OTHER_EXPANSION = 40_000


def check_directory(path: Path, pages: Iterable[Any]) -> None:
    """Refuse pages of a tif whose directory does not fit the bytes behind it."""
    size = path.stat().st_size
    for page in pages:
        if page is None:
            raise InputError(f"The image {path.name!r} lacks a page of its pixel data; it may be damaged or cut off.")
        _check_page(path, page, size)


def _check_page(path: Path, page: Any, size: int) -> None:
    keyframe = page.keyframe
    width, height = int(keyframe.imagewidth), int(keyframe.imagelength)
    claim = f"The directory of {path.name!r} declares {width} x {height} px"
    tile = [int(n) for n in keyframe.chunks[:2]]
    if min(width, height, *tile) < 1 or width * height > MAX_PX:
        raise InputError(f"{claim} in pieces of {tile[1]} x {tile[0]}, which cannot be; the file is damaged.")
    if keyframe.is_tiled and math.prod(tile) > TILE_PX and (tile[0] >= 2 * height or tile[1] >= 2 * width):
        raise InputError(f"{claim} in tiles of {tile[1]} x {tile[0]} px, which cannot be; the file is damaged.")
    offsets = np.asarray(page.dataoffsets, dtype=np.float64)
    counts = np.asarray(page.databytecounts, dtype=np.float64)
    needed = math.prod(int(n) for n in keyframe.chunked)
    if min(len(offsets), len(counts)) < needed:
        raise InputError(
            f"{claim}, which takes {needed} tiles or strips, but lists {min(len(offsets), len(counts))}; the file is "
            "damaged or cut off, so copy or download it again."
        )
    ends = offsets[: len(counts)] + counts[: len(offsets)]
    if len(ends) and ends.max() > size:
        raise InputError(
            f"The image {path.name!r} is cut off: its directory promises {ends.max():.0f} bytes, it has {size}; copy "
            "or download it again."
        )
    there = (counts[:needed] > 0) & (offsets[:needed] > 0)
    if not there.any():
        raise InputError(f"The image {path.name!r} holds no pixel data: none of its {needed} tiles or strips is there.")
    decoded = _decoded_bytes(keyframe, there)
    expansion = MAX_EXPANSION.get(int(keyframe.compression), OTHER_EXPANSION)
    stored = min(counts[:needed][there].sum(), size)
    if decoded > (stored + 4096) * expansion:
        raise InputError(
            f"{claim}, which is {decoded / 1e9:.3g} GB of pixels, for {stored:.0f} bytes of data; the file is damaged "
            "or no picture."
        )


def _decoded_bytes(keyframe: Any, there: np.ndarray) -> float:
    """Return the decoded bytes of the segments that are there; the last strip, and tiles at the border, count less."""
    samples = int(keyframe.samplesperpixel)
    whole = float(keyframe.imagewidth) * float(keyframe.imagelength) * samples * int(keyframe.bitspersample) / 8
    return whole * float(there.mean())


def check_memory(path: Path, shape: tuple[int, int, int], *, size: int, samples: int = 3) -> None:
    """Refuse an image that must be decoded whole if it does not fit into memory, or cannot be in so few bytes.

    Parameters
    ----------
    path
        The file.
    shape
        c, y, x.
    size
        Bytes of the file.
    samples
        Stored for each pixel.
    """
    decoded = max(samples, 3) * shape[1] * shape[2]
    claim = f"The image {path.name!r} declares {shape[2]} x {shape[1]} px, which is {decoded / 1e9:.3g} GB of pixels"
    if decoded > (WHOLE_RATIO if decoded > WHOLE_BYTES else MAX_RATIO) * (size + 4096):
        raise InputError(f"{claim}, for {size} bytes of data; the file is damaged or no picture of tissue.")
    if decoded <= WHOLE_BYTES:
        return
    free = available_bytes()
    if 2.5 * decoded > free:  # the decoder's own copy, and what is computed from it
        raise InputError(
            f"{claim} that must be decoded at once, and {free / 1e9:.3g} GB of memory are free; convert it to a tiled "
            "tif."
        )


def available_bytes() -> float:
    """Return the memory that this process may still take, as far as the system tells."""
    found = [math.inf]
    try:
        text = Path("/proc/meminfo").read_text()
        found.append(1024.0 * next(int(line.split()[1]) for line in text.splitlines() if line.startswith("MemAvail")))
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            found.append(float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
        except (ValueError, OSError, AttributeError):  # Windows
            pass
    try:  # the limit of a container
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
        found.append(max(0.0, float(limit) - float(used)) if limit != "max" else math.inf)
    except (OSError, ValueError):
        pass
    return min(found)


def check_piece(data: bytes, keyframe: Any) -> None:
    """Refuse a tile or strip whose own header declares far more pixels than the directory: they would be allocated."""
    declared = _DECLARED.get(int(keyframe.compression))
    size = declared(data) if declared is not None else None
    allowed = 4 * max(int(keyframe.chunks[0]), 16) * max(int(keyframe.chunks[1]), 16)
    if size is not None and size[0] * size[1] > allowed:
        raise ValueError(f"it declares {size[0]} x {size[1]} px")


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker == 0xDA:
            return None
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _png_size(data: bytes) -> tuple[int, int] | None:
    return struct.unpack_from(">II", data, 16) if len(data) >= 24 else None


def _jpeg2000_size(data: bytes) -> tuple[int, int] | None:
    at = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # start of the codestream, in a file of boxes too
    if at < 0 or len(data) < at + 24:
        return None
    width, height, x, y = struct.unpack_from(">IIII", data, at + 8)
    return max(width - x, 0), max(height - y, 0)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    if len(data) < 30:
        return None
    if data[12:16] == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def _jpegxl_size(data: bytes) -> tuple[int, int] | None:
    at = data.find(b"\xff\x0a", 0, 256)
    bits = int.from_bytes(data[at + 2 : at + 14], "little") if at >= 0 else 0
    if at < 0 or bits & 1:  # small ones of at most 256 x 256 px
        return None

    def take(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    take(1)
    height = 1 + take((9, 13, 18, 30)[take(2)])
    ratio = take(3)
    width = 1 + take((9, 13, 18, 30)[take(2)]) if ratio == 0 else height
    return width, height


_DECLARED = {
    **dict.fromkeys((6, 7, 34892, 33007), _jpeg_size),
    **dict.fromkeys((33003, 33004, 33005, 34712), _jpeg2000_size),
    **dict.fromkeys((34933,), _png_size),
    **dict.fromkeys((50001, 34927), _webp_size),
    **dict.fromkeys((50002, 52546), _jpegxl_size),
}

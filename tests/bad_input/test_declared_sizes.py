"""Image files that declare more pixels than their bytes or the memory hold, and pieces that do."""

from __future__ import annotations

import contextlib
import io
import resource
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

import stpred as st
from stpred import InputError
from stpred.io._images import scenes, sizes
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_dask

RGB = np.random.default_rng(0).integers(0, 256, (512, 640, 3), dtype=np.uint8)
LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "strips": {"rowsperstrip": 64, "compression": "zlib"},
    "tiles": {"tile": (128, 128), "compression": "zlib"},
    "raw tiles": {"tile": (128, 128)},
}


def tif(path: Path, **options: Any) -> Path:
    tifffile.imwrite(path, RGB, photometric="rgb", metadata=None, **options)
    return path


def lie(path: Path, **tags: Any) -> None:
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name, value in tags.items():
            tag = file.pages[0].tags.get(name)
            if tag is not None:
                tag.overwrite(value, dtype=4 if isinstance(value, int) else None)


@pytest.fixture
def no_memory() -> Any:
    """Fails what takes more than 400 MB beyond what is there."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 * 1024


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "tags",
    [
        {"ImageWidth": 60_000, "ImageLength": 60_000},
        {"ImageWidth": 10**6, "ImageLength": 10**6},
        {"ImageWidth": 2**32 - 1, "ImageLength": 1},
        {"ImageWidth": 3, "ImageLength": 2**30},
        {"ImageLength": 100_000},
    ],
)
def test_directories_that_promise_more_than_there_is(
    layout: str, tags: dict[str, int], refused: Any, tmp_path: Path, no_memory: None
) -> None:
    path = tif(tmp_path / "a.tif", **LAYOUTS[layout])
    lie(path, **tags)
    with refused("'a.tif'"):
        st.io.wsi(path, mpp=0.5)


HUGE = {"TileWidth": 30_000, "TileLength": 30_000}


@pytest.mark.parametrize(
    "tags", [{"RowsPerStrip": 0}, {"TileWidth": 0}, {"TileLength": 2**31 - 1}, {"TileWidth": 16}, HUGE]
)
def test_pieces_of_impossible_size(tags: dict[str, int], refused: Any, tmp_path: Path, no_memory: None) -> None:
    layout = "strips" if "RowsPerStrip" in tags else "tiles"
    path = tif(tmp_path / "a.tif", **LAYOUTS[layout])
    lie(path, **tags)
    with refused("'a.tif'"):
        to_dask(open_pixels(path).levels[0]).compute(scheduler="synchronous")


def test_one_tile_that_stands_for_all_of_a_huge_image(refused: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiles = (np.full((256, 256, 3), 200, np.uint8) for _ in range(16))
    tifffile.imwrite(
        path, tiles, shape=(1024, 1024, 3), dtype=np.uint8, tile=(256, 256), compression="jpeg", photometric="rgb",
        metadata=None,
    )  # fmt: skip
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = file.pages[0]
        first = page.dataoffsets[0], page.databytecounts[0]
    many = 60_000
    with tifffile.TiffWriter(tmp_path / "b.tif", bigtiff=True) as writer:
        data = path.read_bytes()[first[0] : first[0] + first[1]]
        writer.write(
            iter([data]), shape=(256, 256, 3), dtype=np.uint8, tile=(256, 256), compression="jpeg", photometric="rgb",
            metadata=None,
        )  # fmt: skip
    with tifffile.TiffFile(tmp_path / "b.tif", mode="r+b") as file:
        page = file.pages[0]
        at, length = page.dataoffsets[0], page.databytecounts[0]
        page.tags["ImageWidth"].overwrite(256 * 300)
        page.tags["ImageLength"].overwrite(256 * (many // 300))
        page.tags["TileOffsets"].overwrite([at] * many)
        page.tags["TileByteCounts"].overwrite([length] * many)
    # the sum of the byte counts is far larger than the file
    with refused("'b.tif'", "76800 x 51200 px", "11.8 GB of pixels"):
        st.io.wsi(tmp_path / "b.tif", mpp=0.5)


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 100, 150)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.parametrize("side", [9_000, 60_000])
def test_pictures_that_are_larger_than_their_bytes(side: int, refused: Any, tmp_path: Path, no_memory: None) -> None:
    (tmp_path / "a.png").write_bytes(png(side, side, zlib.compress(bytes(1000))))
    (tmp_path / "a.jpg").write_bytes(jpg(side, side))
    for name in ("a.png", "a.jpg"):
        with refused(repr(name), f"{side} x {side} px", "GB of pixels", "bytes of data"):
            st.io.wsi(tmp_path / name, mpp=0.5)


def test_decompression_bombs(refused: Any, tmp_path: Path, no_memory: None) -> None:
    packer, rows = zlib.compressobj(1), bytes(160 * (1 + 3 * 16_000))
    data = b"".join([*(packer.compress(rows) for _ in range(100)), packer.flush()])
    (tmp_path / "a.png").write_bytes(png(16_000, 16_000, data))
    with refused("'a.png'", "0.768 GB", "no picture of tissue"):
        st.io.wsi(tmp_path / "a.png", mpp=0.5)


def test_images_that_do_not_fit_into_memory(monkeypatch: pytest.MonkeyPatch, refused: Any, tmp_path: Path) -> None:
    monkeypatch.setattr(sizes, "available_bytes", lambda: 5e5)
    monkeypatch.setattr(sizes, "WHOLE_BYTES", 10_000)
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with refused("'a.png'", "must be decoded at once", "0.0005 GB of memory are free", "convert it to a tiled tif"):
        st.io.wsi(tmp_path / "a.png", mpp=0.5)


def test_free_memory_is_told() -> None:
    assert 1e6 < sizes.available_bytes() < 1e15


def test_blank_slides_and_missing_tiles_are_no_bombs(tmp_path: Path) -> None:
    blank = np.full((4096, 4096, 3), 255, np.uint8)
    for k, compression in enumerate(("zlib", "lzw", "zstd", "jpeg", "webp", "packbits")):
        if compression == "packbits":
            blank = blank[:512, :512]
        path = tmp_path / f"{k}.tif"
        tifffile.imwrite(path, blank, tile=(512, 512), compression=compression, photometric="rgb", metadata=None)
        level = open_pixels(path).levels[0]
        assert level[slice(0, 3), slice(0, 9), slice(0, 9)].min() >= 254


ENCODE: dict[str, Callable[[np.ndarray], bytes]] = {
    "jpeg": lambda a: imagecodecs.jpeg_encode(a),
    "jpeg2000": lambda a: imagecodecs.jpeg2k_encode(a),
    "png": lambda a: imagecodecs.png_encode(a),
    "webp": lambda a: imagecodecs.webp_encode(a, lossless=True),
    "jpegxl": lambda a: imagecodecs.jpegxl_encode(a, effort=1),
    "zlib": lambda a: zlib.compress(a.tobytes()),
    "zstd": lambda a: imagecodecs.zstd_encode(a.tobytes()),
}


@pytest.mark.parametrize("compression", ENCODE)
def test_tiles_that_hold_more_than_a_tile(compression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec is never asked for them, or gives no more than a tile."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB[:128, :128], tile=(128, 128), compression=compression, photometric="rgb", metadata=None)
    bomb = ENCODE[compression](np.zeros((1500, 1500, 3), np.uint8))
    with tifffile.TiffFile(path, mode="r+b") as file:
        size = path.stat().st_size
        file.pages[0].tags["TileOffsets"].overwrite(size)
        file.pages[0].tags["TileByteCounts"].overwrite(len(bomb))
    path.write_bytes(path.read_bytes()[:size] + bomb)
    level = open_pixels(path).levels[0]
    with pytest.raises(InputError, match=r"Tile 0 of 'a\.tif' cannot be decoded"):
        level[slice(0, 3), slice(0, 128), slice(0, 128)]


@pytest.mark.parametrize("compression", ["jpeg", "jpeg2000", "png", "webp", "jpegxl"])
@pytest.mark.parametrize("shape", [(300, 700), (16, 16), (2000, 90)])
def test_sizes_that_pieces_declare_are_read(compression: str, shape: tuple[int, int]) -> None:
    code = tifffile.COMPRESSION[{"jpegxl": "JPEGXL", "jpeg2000": "JPEG2000"}.get(compression, compression.upper())]
    data = ENCODE[compression](np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8))
    assert sizes._DECLARED[int(code)](data) in (shape[::-1], None)
    assert compression == "jpegxl" or sizes._DECLARED[int(code)](data[:5]) is None


def test_images_without_a_single_tile(refused: Any, tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", tile=(128, 128), compression="zlib")
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages[0].tags["TileByteCounts"].overwrite([0] * 20)
    with refused("'a.tif' holds no pixel data"):
        st.io.wsi(path, mpp=0.5)


def test_stacks_of_pages_are_no_slides(refused: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(scenes, "MAX_PAGES", 5)
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for _ in range(6):
            writer.write(RGB[:8, :8], photometric="rgb", metadata=None)
    with refused("'a.tif'", "a stack of 6 pages"):
        st.io.wsi(tmp_path / "a.tif", mpp=0.5)


def test_directories_in_a_circle_come_to_an_end(tmp_path: Path) -> None:
    path = tif(tmp_path / "a.tif", tile=(128, 128))
    content = bytearray(path.read_bytes())
    (at,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, at)
    struct.pack_into("<I", content, at + 2 + 12 * count, at)
    path.write_bytes(bytes(content))
    with contextlib.suppress(InputError):
        open_pixels(path)


@pytest.mark.parametrize("bomb", ["entities", "nesting"])
def test_headers_that_grow(bomb: str, tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY e{k} "{f"&e{k - 1};" * 10}">' for k in range(1, 12))
    text = {
        "entities": f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "aaaaaaaaaa">{entities}]><OME>&e11;</OME>',
        "nesting": "<OME>" + "<a>" * 50_000 + "</a>" * 50_000 + "</OME>",
    }[bomb]
    path = tif(tmp_path / "a.ome.tif", tile=(128, 128), description=text)
    with tifffile.TiffFile(path) as file:
        assert file.is_ome
    assert open_pixels(path).levels[0].shape == (3, 512, 640)

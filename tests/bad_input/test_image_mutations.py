"""Image files of many kinds with bytes changed, cut, dropped or put in: each is read or refused, soon."""

from __future__ import annotations

import contextlib
import random
import resource
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from stpred import InputError
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_dask

N = 25
SMALL = np.random.default_rng(0).integers(60, 256, (20, 24, 3), dtype=np.uint8)
RGB = np.asarray(Image.fromarray(SMALL).resize((240, 200)))
RGBA = np.dstack([RGB, np.repeat(np.uint8([90, 255]), [30, 170])[:, None].repeat(240, axis=1)])
EXIF = Image.Exif()
EXIF[0x0112] = 6


def tif(array: np.ndarray = RGB, **options: Any) -> Callable[[Path], None]:
    options = {"photometric": "rgb", "metadata": None, **options}
    return lambda path: tifffile.imwrite(path, array, **options)


def picture(array: np.ndarray = RGB, *, colours: int = 0, **options: Any) -> Callable[[Path], None]:
    image = Image.fromarray(array)
    return lambda path: (image.quantize(colours) if colours else image).save(path, **options)


def scenes(path: Path) -> None:
    with tifffile.TiffWriter(path, ome=True) as writer:
        for name, image in (("a", RGB), ("b", RGB[:100])):
            writer.write(image, photometric="rgb", metadata={"axes": "YXS", "Name": name})


PLANES = {"photometric": "minisblack", "ome": True}
NAMES = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "Channel": {"Name": ["r", "g", "b"]}}
KINDS: dict[str, Callable[[Path], None]] = {
    "palette.tif": picture(colours=200),
    "alpha.tif": tif(RGBA, tile=(64, 64), compression="zlib"),
    "premultiplied.tif": tif(RGBA, extrasamples=["assocalpha"]),
    "planar.tif": tif(RGB.transpose(2, 0, 1).copy(), planarconfig="separate", compression="lzw"),
    "turned.tif": tif(tile=(64, 64), compression="zlib", extratags=[(274, 3, 1, 6, True)]),
    "jpeg.tif": tif(tile=(64, 64), compression="jpeg", photometric="ycbcr"),
    "webp.tif": tif(tile=(128, 128), compression="webp"),
    "jpeg2000.tif": tif(tile=(128, 128), compression="jpeg2000"),
    "strip.tif": tif(rowsperstrip=200, compression="lzw", predictor=True),
    "big.tif": tif(tile=(64, 64), bigtiff=True, byteorder=">"),
    "imagej.tif": tif(imagej=True, metadata={"unit": "um"}, resolution=(2, 2)),
    "planes.ome.tif": tif(RGB.transpose(2, 0, 1).copy(), **PLANES, metadata=NAMES),
    "scenes.ome.tif": scenes,
    "exif.png": picture(exif=EXIF, dpi=(50800, 50800)),
    "alpha.png": picture(RGBA),
    "palette.png": picture(colours=90, transparency=3),
    "exif.jpg": picture(exif=EXIF, dpi=(50800, 50800)),
    "progressive.jpg": picture(progressive=True, quality=80),
}


def mutated(data: bytes, rng: random.Random) -> bytes:
    new = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 10])):
        size = len(new)
        near = min(size, 600)  # headers lie at both ends
        at = rng.choice([rng.randrange(size), rng.randrange(near), size - 1 - rng.randrange(near)])
        span = rng.choice([1, 1, 2, 4, 8])
        how = rng.choice(["flip", "flip", "zero", "ones", "random", "random", "cut", "drop", "insert"])
        part = len(new[at : at + span])
        if how == "flip":
            new[at] ^= 1 << rng.randrange(8)
        elif how == "cut":
            del new[max(at, 1) :]
        elif how == "drop":
            del new[at : at + span]
            new = new or bytearray(b"\0")
        elif how == "insert":
            new[at:at] = rng.randbytes(span)
        else:
            new[at : at + span] = {"zero": bytes(part), "ones": b"\xff" * part, "random": rng.randbytes(part)}[how]
    return bytes(new)


def use(path: Path) -> None:
    pixels = open_pixels(path)
    assert all(0.01 <= e.mpp <= 100 for e in pixels.evidence)
    for level in pixels.levels:
        if np.prod(level.shape) < 2e7:
            assert to_dask(level).compute(scheduler="synchronous").shape == level.shape
        else:
            level[slice(0, 3), slice(0, 64), slice(0, 64)]


@pytest.mark.parametrize("kind", KINDS)
def test_mutated_files_are_read_or_refused(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path / kind)
    data = (tmp_path / kind).read_bytes()
    rng = random.Random(kind)
    memory, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        use(tmp_path / kind)
        for _ in range(N):
            (tmp_path / kind).write_bytes(mutated(data, rng))
            with contextlib.suppress(InputError):
                use(tmp_path / kind)
    assert time.process_time() - start < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 2 * 2**20

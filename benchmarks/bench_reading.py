"""Reading tiles: 5 000 overlapping tiles of 224 px at 0.5 um per pixel against decoding the image once.

Resampling is not counted: the kernel is replaced by a crop. What remains is finding, decoding, cutting and handing over
the pixels; it is measured in CPU time, so that other programs on the machine count little.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import _slides

if TYPE_CHECKING:
    from stpred.tiles import Pyramid

N_TILES = 5000
SIZE_PX = 12_000
LIMIT = 1.5

LAYOUTS = ("jpeg_tiles", "deflate_tiles", "deflate_strips", "jpg")


def write(layout: str, folder: Path, *, size_px: int = SIZE_PX) -> Path:
    """Write a slide of a layout and return its path."""
    path = folder / ("slide.jpg" if layout == "jpg" else "slide.tif")
    if layout == "jpg":
        _slides.write_jpg(path, size_px=size_px)
    elif layout == "deflate_strips":
        _slides.write_strips(path, size_px=size_px)
    else:
        _slides.write_tiled(path, size_px=size_px, compression="jpeg" if layout == "jpeg_tiles" else "zlib")
    return path


def decode(path: Path) -> None:
    """Decode the image once, as its own library does it, with one thread."""
    import tifffile
    from PIL import Image

    if path.suffix == ".jpg":
        Image.MAX_IMAGE_PIXELS = None
        np.asarray(Image.open(path))
    else:
        tifffile.imread(path, maxworkers=1)


@contextmanager
def without_resampling() -> Iterator[None]:
    """Replace the resampling kernel by a crop."""
    from stpred.tiles import _view

    kernel = _view.resample
    _view.resample = lambda region, *_, size_px: region[:size_px, :size_px]  # type: ignore[assignment]
    try:
        yield
    finally:
        _view.resample = kernel


def opened(path: Path, *, mpp: float) -> Pyramid:
    """Open a slide; nothing is decoded, and what an earlier run decoded and kept is forgotten."""
    import stpred as st
    from stpred.io._images.pixels import FlatImage
    from stpred.tiles import Pyramid

    FlatImage._kept = None
    return Pyramid.from_image(st.io.wsi(path, mpp=mpp).images["he"])


def read(pyramid: Pyramid, *, n: int = N_TILES) -> None:
    """Read tiles at random places, in the order in which they come."""
    from stpred import TileSpec

    x0, y0, x1, y1 = pyramid.bounds_um
    places = np.random.default_rng(0).uniform((x0, y0), (x1, y1), (n, 2))
    for rows, images in pyramid.read(places, TileSpec(0.5, 224)):
        assert len(rows) == len(images)


def cpu_seconds(call: object) -> float:
    """Return the CPU time of a call in all its threads."""
    start = time.process_time()
    call()  # type: ignore[operator]
    return time.process_time() - start


class Reading:
    """5 000 tiles from 12 000 x 12 000 px."""

    params = (LAYOUTS, (0.5, 0.25))
    param_names = ("layout", "mpp")
    timeout = 300

    def setup(self, layout: str, mpp: float) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="stpred-bench-")
        self.path = write(layout, Path(self.folder.name))
        read(opened(self.path, mpp=mpp), n=10)

    def teardown(self, layout: str, mpp: float) -> None:
        self.folder.cleanup()

    def track_reading_over_decoding(self, layout: str, mpp: float) -> float:
        """CPU time without resampling over that of decoding once; at most 1.5."""
        pyramid = opened(self.path, mpp=mpp)
        with without_resampling():
            return cpu_seconds(lambda: read(pyramid)) / cpu_seconds(lambda: decode(self.path))

    def track_tiles_per_second(self, layout: str, mpp: float) -> float:
        """Tiles per second of wall time, decoding and resampling included, of a fifth as many."""
        pyramid, n = opened(self.path, mpp=mpp), N_TILES // 5
        start = time.perf_counter()
        read(pyramid, n=n)
        return n / (time.perf_counter() - start)

    track_reading_over_decoding.unit = "ratio"  # type: ignore[attr-defined]
    track_tiles_per_second.unit = "tiles/s"  # type: ignore[attr-defined]

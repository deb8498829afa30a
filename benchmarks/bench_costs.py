"""What a slide of a large run costs on a CPU: time by area of tissue, bytes by locations and genes, fingerprints.

``python -m benchmarks costs`` prints the rates that ``scripts/cohort_costs.py`` works with. Slides are at 0.25 um
per pixel with levels of a fourth and a sixteenth of the size, as scanners write svs files; one thread, CPU time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import spatialdata
import tifffile

import stpred as st
from benchmarks import _slides

MPP, STEP = 0.25, 4
"""Micrometres per pixel of the finest level, and from each level to the next coarser one."""

SIZES_PX = (6_144, 14_336)
MAP_PX = 3_072
N_GENES = 1_000
BYTES = 1 << 28


RATES = (
    "seconds_per_mm2", "seconds_per_slide", "thumbnail_bytes_per_value", "bytes_per_slide", "bytes_per_tile",
    "bytes_per_gene", "bytes_per_value", "map_bytes_per_value", "map_seconds_per_mm2", "fingerprint_bytes_per_second",
)  # fmt: skip


class Costs:
    """Rates by name."""

    timeout = 1800
    params = (RATES,)
    param_names = ("rate",)

    def setup_cache(self) -> dict[str, float]:
        return rates()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def track_rate(self, measured: dict[str, float], rate: str) -> float:
        """What it says, in seconds, bytes, or bytes per second."""
        return measured[rate]


def rates() -> dict[str, float]:
    """Measure all."""
    with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
        return {**times(Path(name)), **map_bytes(Path(name)), **fingerprints(Path(name))}


def write_svs_like(path: Path, size_px: int) -> float:
    """Write a slide with a disc of tissue; return its area in square millimetres."""
    size = _slides.TILE_PX

    def encoded(pixels: np.ndarray) -> bytes:
        return imagecodecs.jpeg8_encode(pixels, level=85, colorspace="rgb", outcolorspace="ycbcr", subsampling="444")

    tissue = [encoded(_slides.texture(size, seed=k)) for k in range(23)]
    empty = encoded(_slides.glass(size, size))

    def tiles(n: int) -> list[bytes]:
        places = (divmod(k, n) for k in range(n * n))
        return [
            tissue[(7 * y + 3 * x + y * x) % len(tissue)]
            if _slides.on_disc((y + 0.5) * size, (x + 0.5) * size, size_px=n * size)
            else empty
            for y, x in places
        ]

    levels = [tiles(n) for k in range(3) if (n := size_px // STEP**k // size)]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for k, level in enumerate(levels):
            edge = round(len(level) ** 0.5) * size
            file.write(
                iter(level), shape=(edge, edge, 3), dtype=np.uint8, tile=(size, size), photometric="ycbcr",
                compression="jpeg", subfiletype=int(k > 0), subifds=None if k else len(levels) - 1, metadata=None,
            )  # fmt: skip
    return sum(tile is not empty for tile in levels[0]) * (size * MPP / 1000) ** 2


def predicted(slide: Path, out: Path, **options: Any) -> Any:
    """Predict a slide as a run does, and return its row of the manifest."""
    from distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None) as client:
        named = {out.name: {"path": slide, "mpp": MPP}}
        frame = st.tl.predict_cohort(named, options.pop("model", None), out, client=client, **options)
    if frame["status"].tolist() != ["complete"]:
        sys.exit(frame["error"].iloc[0])
    return frame.iloc[0]


def times(folder: Path) -> dict[str, float]:
    """Seconds by square millimetre of tissue, and bytes of stores by locations and genes."""
    genes = list(st.models.load("default").record.genes)
    rows, areas, seconds, sizes, thumbnails = [], [], [], [], []
    for size_px in SIZES_PX:
        slide = folder / f"{size_px}.tif"
        area = write_svs_like(slide, size_px)
        if not rows:
            predicted(slide, folder / "first", genes=genes[:1])  # compiles, and loads the model
        for n in (None, N_GENES):
            out = folder / f"{size_px}-{n}"
            start = time.process_time()
            row = predicted(slide, out, genes=None if n is None else genes[:n])
            spent = time.process_time() - start
            thumbnail = n_bytes(out / row["store"] / "images")
            rows.append((1.0, row["n_tiles"], row["n_genes"], row["n_tiles"] * row["n_genes"]))
            sizes.append(n_bytes(out / row["store"]) - thumbnail)
            of = f"{size_px} px, {area:.2f} mm2, {row['n_tiles']} tiles, {row['n_genes']} genes"
            print(f"  {of}: {spent:.1f} s, {thumbnail} + {sizes[-1]} bytes", flush=True)
            if n is None:
                thumbnails.append(thumbnail / spatialdata.read_zarr(out / row["store"]).images["he"].size)
                areas.append(area)
                seconds.append(spent)
    by_tissue = (seconds[1] - seconds[0]) / (areas[1] - areas[0])
    fit = np.linalg.solve(np.array(rows, dtype=float), np.array(sizes, dtype=float))
    return {
        "seconds_per_mm2": by_tissue,
        "seconds_per_slide": seconds[0] - by_tissue * areas[0],
        "thumbnail_bytes_per_value": max(thumbnails),
        **dict(zip(("bytes_per_slide", "bytes_per_tile", "bytes_per_gene", "bytes_per_value"), fit, strict=True)),
    }


def map_bytes(folder: Path) -> dict[str, float]:
    """Bytes and seconds by pixel of a map."""
    slides = st.datasets.toy_cohort(1, size_um=(400, 400), n_genes=40)
    config = st.models.Student.Config(hidden=(64,), epochs=2)
    model = st.tl.train(slides["donor0"], config, genes="all", shapes_key="spots")
    slide, out = folder / "map.tif", folder / "with_map"
    area = write_svs_like(slide, MAP_PX)
    start = time.process_time()
    row = predicted(slide, out, model=model, with_map=True)
    spent = time.process_time() - start
    raster = next((out / row["store"] / "images").glob("*_map"))
    values = area * 1e6 / 64 * row["n_genes"]
    print(f"  map of {area:.2f} mm2, {row['n_genes']} genes: {spent:.1f} s, {n_bytes(raster)} bytes", flush=True)
    return {"map_bytes_per_value": n_bytes(raster) / values, "map_seconds_per_mm2": spent / area}


def fingerprints(folder: Path) -> dict[str, float]:
    """Bytes per second of the fingerprint of a file's content, from memory."""
    from stpred.cohort.fingerprint import fingerprint_of
    from stpred.io.samples import Sample

    path = folder / "bytes"
    path.write_bytes(np.random.default_rng(0).bytes(BYTES))
    start = time.process_time()
    fingerprint_of(Sample("bytes", path))
    return {"fingerprint_bytes_per_second": BYTES / (time.process_time() - start)}


def n_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    for name, value in rates().items():
        print(f"{name} = {value:.4g}")

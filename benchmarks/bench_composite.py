"""Several encoders at once on slides of growing size: memory stays flat.

A tile of 112 um at 0.5 um per pixel, and one of 358 um at 1.6 um per pixel that another level is read for: one that the
file holds, or one that is averaged from the finest as it is decoded. Every run is a process of its own; pages of the
file that the system maps count as resident memory too, so what the process holds itself (anonymous memory) is tracked
beside it. From a shell: ``python -m benchmarks.bench_composite``.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import _slides
from benchmarks.bench_memory import Usage, run

SIZES_PX = (5_000, 10_000, 20_000)
LAYOUTS = {"pyramid": 5, "tiles": 1}
MEMBERS = ("joint", "apart")
MPP, PITCH_UM = 0.5, 112.0


def embed(path: Path, how: str) -> float:
    """Embed a grid of tiles over a whole slide by both encoders, in one pass or one after the other; return seconds."""
    import numpy as np
    from spatialdata.models import ShapesModel
    from spatialdata.transformations import Identity

    import stpred as st
    from stpred import data, encoders
    from stpred._core.places import Place
    from stpred.tiles import Pyramid

    sdata = st.io.wsi(path, mpp=MPP)
    edge_um = Pyramid.from_image(sdata.images["he"]).bounds_um[2]
    steps = np.arange(PITCH_UM / 2, edge_um, PITCH_UM)
    centres = np.stack(np.meshgrid(steps, steps), axis=-1).reshape(-1, 2)
    sdata.shapes["grid"] = ShapesModel.parse(
        centres, geometry=0, radius=PITCH_UM / 2, transformations={"um": Identity()}
    )
    region = data.read_region(sdata, Place(shapes_key="grid"))
    both = encoders.get(["colour", encoders.get("intensity", tile=st.TileSpec(1.6, 224))])
    start = time.perf_counter()
    if how == "joint":
        found = data.embed(region, both, region.coords_um)
    else:
        found = np.concatenate([data.embed(region, m, region.coords_um) for m in both.members], axis=1)  # type: ignore[attr-defined]
    assert np.isfinite(found).all()
    return time.perf_counter() - start


def measure(size_px: int, layout: str, how: str) -> Usage:
    """Write a slide and embed it in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
        slide = Path(name) / "slide.tif"
        _slides.write_tiled(slide, size_px=size_px, levels=LAYOUTS[layout])
        return run([sys.executable, "-m", "benchmarks.bench_composite", str(slide), how])


class Composite:
    """Two encoders on slides of 5 000, 10 000 and 20 000 px along each edge."""

    params = (SIZES_PX, tuple(LAYOUTS), MEMBERS)
    param_names = ("size_px", "layout", "how")
    timeout = 1200

    def setup_cache(self) -> dict[tuple[int, str, str], Usage]:
        """Run once per case; all numbers come from that run."""
        return {
            (size, layout, how): measure(size, layout, how)
            for size in SIZES_PX
            for layout in LAYOUTS
            for how in MEMBERS
        }

    setup_cache.timeout = 7200  # type: ignore[attr-defined]

    def track_peak_gb(self, usage: dict[tuple[int, str, str], Usage], size_px: int, layout: str, how: str) -> float:
        return usage[size_px, layout, how].rss_gb

    def track_peak_anonymous_gb(
        self, usage: dict[tuple[int, str, str], Usage], size_px: int, layout: str, how: str
    ) -> float:
        return usage[size_px, layout, how].anonymous_gb

    def track_wall_seconds(
        self, usage: dict[tuple[int, str, str], Usage], size_px: int, layout: str, how: str
    ) -> float:
        return usage[size_px, layout, how].wall_s

    track_peak_gb.unit = track_peak_anonymous_gb.unit = "GB"  # type: ignore[attr-defined]
    track_wall_seconds.unit = "s"  # type: ignore[attr-defined]


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(f"{embed(Path(sys.argv[1]), sys.argv[2]):.1f} s to embed", file=sys.stderr)
    else:
        for how, size, layout in itertools.product(MEMBERS, SIZES_PX, LAYOUTS):
            used = measure(size, layout, how)
            memory = f"peak {used.rss_gb:.2f} GB, anonymous {used.anonymous_gb:.2f} GB"
            print(f"{size:6d} px  {layout:8s} {how:6s} {memory}, {used.cpu_s:.1f} s CPU, {used.wall_s:.1f} s")

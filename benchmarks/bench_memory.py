"""Peak memory of ``stpred predict`` on a 30 000 x 30 000 px tif: under 3 GB, whatever the layout of the file.

The command runs in a process of its own, with the bundled model, on a slide without shapes: tissue, grid, tiles,
features, table, picture and store are all in it. Pages of the file that the system maps count as resident memory too,
so what the process holds itself (anonymous memory) is tracked beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _slides

SIZE_PX = 30_000
LIMIT_GB = 3.0

LAYOUTS: dict[str, Callable[[Path], None]] = {
    "pyramid": lambda path: _slides.write_tiled(path, size_px=SIZE_PX, levels=5, full=False),
    "tiles": lambda path: _slides.write_tiled(path, size_px=SIZE_PX, full=False),
    "contiguous": lambda path: _slides.write_strips(path, size_px=SIZE_PX, compressed=False, full=False),
    "deflate_strips": lambda path: _slides.write_strips(path, size_px=SIZE_PX, full=False),
}


@dataclass(frozen=True)
class Usage:
    """What a process used."""

    rss_gb: float
    anonymous_gb: float
    wall_s: float
    cpu_s: float


def run(command: list[str]) -> Usage:
    """Run a command and watch it."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    anonymous = 0.0
    while True:
        pid, status, used = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        anonymous = max(anonymous, _anonymous_gb(process.pid))
        time.sleep(0.05)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with code {process.returncode}.")
    unit = 1 if sys.platform == "darwin" else 1024
    wall = time.perf_counter() - start
    return Usage(used.ru_maxrss * unit / 1e9, anonymous, wall, used.ru_utime + used.ru_stime)


def _anonymous_gb(pid: int) -> float:
    """Return the anonymous resident memory of a process, where the system tells."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("RssAnon")), float("nan"))


def predict(slide: Path, out: Path) -> Usage:
    """Predict from the command line, as a user does."""
    return run([sys.executable, "-m", "stpred.cli", "--quiet", "predict", str(slide), "-o", str(out), "--mpp", "0.5"])


class Predict:
    """30 000 x 30 000 px at 0.5 um per pixel."""

    params = (tuple(LAYOUTS),)
    param_names = ("layout",)
    timeout = 1200

    def setup_cache(self) -> dict[str, Usage]:
        """Run once per layout; all numbers come from that run."""
        usage = {}
        for layout, write in LAYOUTS.items():
            with tempfile.TemporaryDirectory(prefix="stpred-bench-") as name:
                slide = Path(name) / "slide.tif"
                write(slide)
                usage[layout] = predict(slide, Path(name) / "out.zarr")
        return usage

    setup_cache.timeout = 3600  # type: ignore[attr-defined]

    def track_peak_gb(self, usage: dict[str, Usage], layout: str) -> float:
        return usage[layout].rss_gb

    def track_peak_anonymous_gb(self, usage: dict[str, Usage], layout: str) -> float:
        return usage[layout].anonymous_gb

    def track_wall_seconds(self, usage: dict[str, Usage], layout: str) -> float:
        return usage[layout].wall_s

    track_peak_gb.unit = track_peak_anonymous_gb.unit = "GB"  # type: ignore[attr-defined]
    track_wall_seconds.unit = "s"  # type: ignore[attr-defined]

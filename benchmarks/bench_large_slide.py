"""``stpred predict`` on slides of 20 000 to 100 000 px: flat memory, and time that grows with the tissue alone.

The command runs in a process of its own with one thread and the bundled model, on a pyramidal tif in JPEG tiles at 0.25
um per pixel without shapes: tissue, grid, tiles, features, table, picture and store are all in it. CPU time is of that
process.

    python -m benchmarks large_slide                         # 20 000 and 40 000 px
    python -m benchmarks.bench_large_slide 100000:0.1        # sizes in px, and the share of each that is tissue
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import _slides
from benchmarks.bench_memory import Usage, run

MPP = 0.25
CASES = ((20_000, 0.5), (40_000, 0.125), (40_000, 0.5))
"""Edge in px and share of tissue: twice the same tissue on a larger slide, then four times as much."""


@dataclass(frozen=True)
class Case:
    """What one slide took.

    Attributes
    ----------
    n_tiles
        Locations that were predicted.
    table_gb
        Size of the predicted table, which has to be in memory.
    """

    size_px: int
    share: float
    file_gb: float
    n_tiles: int
    table_gb: float
    usage: Usage

    @classmethod
    def headings(cls) -> str:
        """Return the head of the table of results."""
        return (
            "| slide | tissue | file | tiles | peak | anonymous | without the table | CPU time | wall time |\n"
            "|---|---|---|---|---|---|---|---|---|"
        )

    def line(self) -> str:
        """Return the result as a row of a table."""
        used = self.usage
        return (
            f"| {self.size_px} px | {self.share:.1%} | {self.file_gb:.1f} GB | {self.n_tiles} | {used.rss_gb:.2f} GB | "
            f"{used.anonymous_gb:.2f} GB | {used.anonymous_gb - self.table_gb:.2f} GB | {used.cpu_s:.0f} s | "
            f"{used.wall_s:.0f} s |"
        )


def measure(size_px: int, share: float, *, folder: Path, model: str | None = None) -> Case:
    """Write a slide, predict it and delete it."""
    import anndata as ad

    with tempfile.TemporaryDirectory(prefix="stpred-bench-", dir=folder) as name:
        slide, out = Path(name) / "slide.tif", Path(name) / "out.zarr"
        levels = max(1, int(np.log2(size_px / 1024)) + 1)
        _slides.write_tiled(slide, size_px=size_px, levels=levels, full=False, share=share)
        chosen = [] if model is None else ["--model", model]
        command = [sys.executable, "-m", "stpred.cli", "--quiet", "predict", str(slide), "-o", str(out)]
        usage = run([*command, "--mpp", str(MPP), *chosen])
        (table,) = (out / "tables").glob("grid_*")
        found = ad.read_zarr(table)
        size = found.X.nbytes + sum(layer.nbytes for layer in found.layers.values())
        return Case(size_px, share, slide.stat().st_size / 1e9, found.n_obs, size / 1e9, usage)


class LargeSlide:
    """The same tissue on slides of 20 000 and 40 000 px, and four times as much of it."""

    params = (tuple(range(len(CASES))),)
    param_names = ("case",)
    timeout = 1800

    def setup_cache(self) -> dict[int, Case]:
        """Run each slide once; all numbers come from that run."""
        os.environ["OMP_NUM_THREADS"] = "1"
        return {k: measure(*case, folder=Path(tempfile.gettempdir())) for k, case in enumerate(CASES)}

    setup_cache.timeout = 7200  # type: ignore[attr-defined]

    def track_peak_gb(self, cases: dict[int, Case], case: int) -> float:
        return cases[case].usage.rss_gb

    def track_anonymous_without_table_gb(self, cases: dict[int, Case], case: int) -> float:
        return cases[case].usage.anonymous_gb - cases[case].table_gb

    def track_cpu_seconds(self, cases: dict[int, Case], case: int) -> float:
        return cases[case].usage.cpu_s

    track_peak_gb.unit = track_anonymous_without_table_gb.unit = "GB"  # type: ignore[attr-defined]
    track_cpu_seconds.unit = "s"  # type: ignore[attr-defined]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the slides that were asked for and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=[f"{s}:{share}" for s, share in CASES], metavar="PX:SHARE")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where slides are written")
    parser.add_argument("--model", help="model folder or bundled name; default: the bundled model")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    print(Case.headings(), flush=True)
    for case in asked.cases:
        size, _, share = case.partition(":")
        print(measure(int(size), float(share or 0.5), folder=asked.folder, model=asked.model).line(), flush=True)


if __name__ == "__main__":
    main()

"""Time and peak memory of ``pp.nuclei`` on whole slides."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import _slides

SIZE_PX = 10_000
SMALL_PX = 5_000

_RUN = """
import resource, sys, time
import stpred as st
sdata = st.io.wsi(sys.argv[1], mpp=float(sys.argv[2]))
start = time.perf_counter()
st.pp.nuclei(sdata)
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, len(sdata.shapes["nuclei"]))
"""


class Nuclei:
    """Tissue all over 10 000 x 10 000 px in JPEG tiles, built-in method, in a process of its own."""

    timeout = 1800
    params = ((0.25, 0.5),)
    param_names = ("mpp",)

    def setup(self, mpp: float) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="stpred-bench-")
        self.paths = {size: Path(self.folder.name) / f"{size}.tif" for size in (SMALL_PX, SIZE_PX)}
        for size, path in self.paths.items():
            _slides.write_tiled(path, size_px=size)

    def teardown(self, mpp: float) -> None:
        self.folder.cleanup()

    def _run(self, size_px: int, mpp: float) -> tuple[float, float, float]:
        """Return seconds, peak memory in GB and number of nuclei."""
        command = [sys.executable, "-c", _RUN, str(self.paths[size_px]), str(mpp)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(out[-3]), float(out[-2]), float(out[-1])

    def track_seconds(self, mpp: float) -> float:
        """From the opened file to the shapes."""
        return self._run(SIZE_PX, mpp)[0]

    def track_nuclei_per_second(self, mpp: float) -> float:
        """How many nuclei a second finds."""
        seconds, _, n = self._run(SIZE_PX, mpp)
        return n / seconds

    def track_peak_gb(self, mpp: float) -> float:
        """Most memory resident at a time."""
        return self._run(SIZE_PX, mpp)[1]

    def track_peak_gb_of_a_quarter(self, mpp: float) -> float:
        """The same on a slide of a quarter of the area: all but the result should stay."""
        return self._run(SMALL_PX, mpp)[1]

    track_seconds.unit = "s"  # type: ignore[attr-defined]
    track_peak_gb.unit = track_peak_gb_of_a_quarter.unit = "GB"  # type: ignore[attr-defined]
    track_nuclei_per_second.unit = "1/s"  # type: ignore[attr-defined]

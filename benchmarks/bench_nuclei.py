"""Time and peak memory of ``pp.nuclei`` on whole slides."""

from __future__ import annotations

import os
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
st.pp.nuclei(sdata, method=sys.argv[3])
seconds = time.perf_counter() - start
print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, len(sdata.shapes["nuclei"]))
"""


_FIRST = """
import time
import stpred as st
slide = st.datasets.toy(size_um=(300, 300), n_genes=5)
start = time.perf_counter()
st.pp.nuclei(slide)
print(time.perf_counter() - start)
"""


class FirstCall:
    """The first call of a process on 300 x 300 um, with nothing compiled in the cache."""

    def track_seconds(self) -> float:
        """From the object to the shapes."""
        with tempfile.TemporaryDirectory() as folder:
            environment = os.environ | {"NUMBA_CACHE_DIR": folder}
            command = [sys.executable, "-c", _FIRST]
            out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
        return float(out.split()[-1])

    track_seconds.unit = "s"  # type: ignore[attr-defined]


class Nuclei:
    """Tissue all over 10 000 x 10 000 px in JPEG tiles, stpred's own methods, in a process of its own."""

    timeout = 1800
    params = ((0.25, 0.5), ("network", "builtin"))
    param_names = ("mpp", "method")

    def setup(self, mpp: float, method: str) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="stpred-bench-")
        self.paths = {size: Path(self.folder.name) / f"{size}.tif" for size in (SMALL_PX, SIZE_PX)}
        for size, path in self.paths.items():
            _slides.write_tiled(path, size_px=size)

    def teardown(self, mpp: float, method: str) -> None:
        self.folder.cleanup()

    def _run(self, size_px: int, mpp: float, method: str) -> tuple[float, float, float]:
        """Return seconds, peak memory in GB and number of nuclei."""
        command = [sys.executable, "-c", _RUN, str(self.paths[size_px]), str(mpp), method]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return float(out[-3]), float(out[-2]), float(out[-1])

    def track_seconds(self, mpp: float, method: str) -> float:
        """From the opened file to the shapes."""
        return self._run(SIZE_PX, mpp, method)[0]

    def track_nuclei_per_second(self, mpp: float, method: str) -> float:
        """How many nuclei a second finds."""
        seconds, _, n = self._run(SIZE_PX, mpp, method)
        return n / seconds

    def track_peak_gb(self, mpp: float, method: str) -> float:
        """Most memory resident at a time."""
        return self._run(SIZE_PX, mpp, method)[1]

    def track_peak_gb_of_a_quarter(self, mpp: float, method: str) -> float:
        """The same on a slide of a quarter of the area: all but the result should stay."""
        return self._run(SMALL_PX, mpp, method)[1]

    track_seconds.unit = "s"  # type: ignore[attr-defined]
    track_peak_gb.unit = track_peak_gb_of_a_quarter.unit = "GB"  # type: ignore[attr-defined]
    track_nuclei_per_second.unit = "1/s"  # type: ignore[attr-defined]

"""Time and memory of maps of whole slides: ``tl.predict_map(out=...)`` through the built-in encoder."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import _slides

SIZES_PX = (5_000, 10_000, 20_000)
N_GENES = 100

_TRAIN = """
import sys
import stpred as st
slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=int(sys.argv[2]))
model = st.tl.train(slides["donor0"], st.models.Student.Config(epochs=1), genes="all", shapes_key="spots")
st.models.save(model, sys.argv[1])
"""

_RUN = """
import resource, sys, time
import numpy as np
import stpred as st
path, model, out = sys.argv[1:4]
sdata = st.io.wsi(path, mpp=0.5)
model = st.models.load(model)
st.pp.tissue(sdata)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
st.tl.predict_map(sdata, model, out=out, stride_um=56.0)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
plane = np.asarray(sdata.images["tissue_student_map"]["scale0"].ds["image"][7])
print(seconds, (peak - before) / 1e6, plane.size, time.perf_counter() - start)
"""


class Maps:
    """Tissue all over the slide at 0.5 um/px, patches of 8 um, tiles of 224 px every 112 px, 100 genes."""

    timeout = 7200
    params = (SIZES_PX,)
    param_names = ("size_px",)

    def setup(self, size_px: int) -> None:
        with tempfile.TemporaryDirectory(prefix="stpred-bench-") as folder:
            slide, model, out = (str(Path(folder) / name) for name in ("slide.tif", "model", "out.zarr"))
            _slides.write_tiled(Path(slide), size_px=size_px)
            train = [sys.executable, "-c", _TRAIN, model, str(N_GENES)]
            subprocess.run(train, check=True, capture_output=True)
            command = [sys.executable, "-c", _RUN, slide, model, out]
            done = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        self.seconds, self.extra_gb, self.pixels, self.read_s = (float(v) for v in done[-4:])

    def track_seconds(self, size_px: int) -> float:
        """From the opened slide to the store."""
        return self.seconds

    def track_pixels_per_second(self, size_px: int) -> float:
        """Of the map: the same for any size, where the cost is linear."""
        return self.pixels / self.seconds

    def track_extra_gb(self, size_px: int) -> float:
        """Most memory beyond that of the opened slide."""
        return self.extra_gb

    def track_seconds_per_gene_read(self, size_px: int) -> float:
        """To read one gene of the map."""
        return self.read_s

    track_seconds.unit = track_seconds_per_gene_read.unit = "s"  # type: ignore[attr-defined]
    track_pixels_per_second.unit = "1/s"  # type: ignore[attr-defined]
    track_extra_gb.unit = "GB"  # type: ignore[attr-defined]

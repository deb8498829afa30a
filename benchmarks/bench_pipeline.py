"""What reading, cropping, resampling and writing add to the bare encoder, in CPU time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import _slides

SIZE_PX = 6000
PITCH_UM = 80.0


class Overhead:
    """Features of a grid by the built-in encoder, and their store: 6 000 x 6 000 px in JPEG tiles, 0.5 um per pixel."""

    timeout = 600

    def setup(self) -> None:
        import stpred as st
        from stpred import encoders

        self.folder = tempfile.TemporaryDirectory(prefix="stpred-bench-")
        path = Path(self.folder.name) / "slide.tif"
        _slides.write_tiled(path, size_px=SIZE_PX)
        self.sdata = st.io.wsi(path, mpp=0.5)
        st.pp.grid(self.sdata, pitch_um=PITCH_UM)
        self.encoder = encoders.get("morphology")
        self.tiles = np.stack([_slides.texture(224, seed=k) for k in range(64)])
        self.encoder.encode(self.tiles[:2])

    def teardown(self) -> None:
        self.folder.cleanup()

    def track_pipeline_over_encoder(self) -> float:
        """From file to features in memory, over the encoder alone on as many tiles."""
        return self._seconds(write=False) / self._bare_seconds()

    def track_pipeline_and_store_over_encoder(self) -> float:
        """The same with the thumbnail made and the store written, which does not grow with the number of tiles."""
        return self._seconds(write=True) / self._bare_seconds()

    def _seconds(self, *, write: bool) -> float:
        import stpred as st
        from stpred.stores import write_result

        start = time.process_time()
        key = "grid_feat_morphology"
        if key in self.sdata.tables:
            del self.sdata.tables[key]
        st.pp.features(self.sdata, "morphology", shapes_key="grid")
        if write:
            write_result(self.sdata, Path(self.folder.name) / "out.zarr", overwrite=True)
        return time.process_time() - start

    def _bare_seconds(self) -> float:
        n = len(self.sdata.shapes["grid"])
        start = time.process_time()
        for _ in range(0, n, len(self.tiles)):
            self.encoder.encode(self.tiles)
        return (time.process_time() - start) * n / (-(-n // len(self.tiles)) * len(self.tiles))

    def track_added_ms_per_tile(self) -> float:
        """CPU time that reading, cropping and resampling add to a tile, whatever the encoder."""
        return 1e3 * (self._seconds(write=False) - self._bare_seconds()) / len(self.sdata.shapes["grid"])

    track_added_ms_per_tile.unit = "ms"  # type: ignore[attr-defined]
    track_pipeline_over_encoder.unit = track_pipeline_and_store_over_encoder.unit = "ratio"  # type: ignore[attr-defined]

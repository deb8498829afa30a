"""Speed of the built-in encoder on the CPU, in tiles per second and against one blur of the same pixels."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

N_TILES = 32
SIZE_PX = 224


def fastest(call: Callable[[], object], *, clock: Callable[[], float], repeats: int = 5) -> float:
    """Return the shortest of several runs in seconds: what the machine can do when nobody disturbs it."""
    call()  # compiles
    times = []
    for _ in range(repeats):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def tissue_like_tiles() -> np.ndarray:
    """Return smooth noise in H&E colours: about as many nuclei and edges as real tissue, and no file to read."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    fields = [gaussian_filter(rng.normal(size=(N_TILES, SIZE_PX, SIZE_PX)), (0, s, s)) * s for s in (6, 12)]
    haematoxylin = 0.9 / (1 + np.exp(-8 * (fields[0] - 0.2)))
    eosin = 0.3 + 0.1 * fields[1]
    density = haematoxylin[..., None] * (0.65, 0.70, 0.29) + eosin[..., None] * (0.07, 0.99, 0.11)
    return np.clip(240 * 10**-density, 0, 255).astype(np.uint8)


class Morphology:
    """224-px tiles at 0.5 um per pixel."""

    def setup(self) -> None:
        from stpred.encoders._built_in.morphology import Morphology as Encoder

        self.tiles = tissue_like_tiles()
        self.one, self.all = Encoder(threads=1), Encoder()
        self.one.encode(self.tiles[:2])

    def time_encode_one_thread(self) -> None:
        self.one.encode(self.tiles)

    def time_encode_all_cores(self) -> None:
        self.all.encode(self.tiles)

    def track_tiles_per_second_one_thread(self) -> float:
        return N_TILES / fastest(lambda: self.one.encode(self.tiles), clock=time.process_time)

    def track_tiles_per_second_all_cores(self) -> float:
        return N_TILES / fastest(lambda: self.all.encode(self.tiles), clock=time.perf_counter)

    def track_cost_in_blurs(self) -> float:
        """Time of a tile over that of one SciPy blur (sigma 2) of its three channels, whatever the machine."""
        from scipy.ndimage import gaussian_filter

        planes = np.ascontiguousarray(self.tiles.transpose(0, 3, 1, 2), dtype=np.float32)
        blur = fastest(lambda: gaussian_filter(planes, (0, 0, 2, 2)), clock=time.process_time)
        return fastest(lambda: self.one.encode(self.tiles), clock=time.process_time) / blur

    track_tiles_per_second_one_thread.unit = track_tiles_per_second_all_cores.unit = "tiles/s"  # type: ignore[attr-defined]
    track_cost_in_blurs.unit = "ratio"  # type: ignore[attr-defined]

"""Networks fed from a slide, in tiles per second over those of the bare network on tensors that are ready.

The slide is an svs of 2220 x 2967 px in JPEG tiles at 0.499 um per pixel (`CMU-1-Small-Region.svs`). Tiles overlap and
are 224 px at 0.5 um per pixel; networks have random weights, float32, on the CPU. With torch's own threads times are
those of the clock, which other programs disturb; with one thread they are CPU times. All parties take turns in one
process. LazySlide is measured too where it is installed (``pip install lazyslide``).
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

SLIDE = Path(os.environ.get("STPRED_DATA", "../shared/data")) / "wsi" / "CMU-1-Small-Region.svs"
COLUMNS, ROWS = 23, 30
SIZE_PX, MPP = 224, 0.5
ROUNDS = 3


class Party:
    """Ways to the features of the same tiles by the same network."""

    def __init__(self, network: str) -> None:
        import torch

        import stpred as st
        from stpred import encoders
        from stpred.data import read_image

        self.sdata = st.io.wsi(SLIDE)
        self.region = read_image(self.sdata)
        x0, y0, x1, y1 = self.region.pyramid.bounds_um
        rim = SIZE_PX * MPP / 2 + 3  # no tile reaches beyond the slide
        x, y = np.linspace(x0 + rim, x1 - rim, COLUMNS), np.linspace(y0 + rim, y1 - rim, ROWS)
        self.places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        self.encoder = encoders.get(f"timm/{network}", pretrained=False, device="cpu")
        self.batch_size = st.settings.batch_size
        module: Any = self.encoder
        self.module = module._module
        tiles = next(iter(self.region.pyramid.read(self.places[: self.batch_size], self.encoder.card.tile)))[1]
        ready = torch.from_numpy(tiles).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        self.ready = ready.contiguous(memory_format=torch.channels_last)

    def bare(self) -> None:
        """The module on tensors that are ready, as many as there are tiles."""
        import torch

        with torch.inference_mode():
            for start in range(0, len(self.places), self.batch_size):
                self.module(self.ready[: len(self.places) - start])

    def ours(self) -> None:
        """From the file to the features."""
        from stpred.data import embed

        embed(self.region, self.encoder, self.places)

    def lazyslide(self) -> None:
        """LazySlide's own extraction with the same network, batch size and tiles."""
        import lazyslide

        lazyslide.tl.feature_extraction(
            self._their_slide, self._their_model, batch_size=self.batch_size, device="cpu", pbar=False
        )

    @cached_property
    def _their_model(self) -> Any:
        from lazyslide_models import TimmModel

        network = self.encoder.card.name.removeprefix("timm/")
        return TimmModel(network, pretrained=False)

    @cached_property
    def _their_slide(self) -> Any:
        from wsidata import TileSpec, open_wsi
        from wsidata.io import add_tiles

        self.folder = tempfile.TemporaryDirectory(prefix="stpred-bench-")
        slide = open_wsi(str(SLIDE), store=str(Path(self.folder.name) / "slide.zarr"))
        spec = TileSpec.from_wsidata(slide, SIZE_PX, mpp=MPP)
        corner = np.round(self.places / slide.properties.mpp - spec.base_width / 2).astype(int)
        add_tiles(slide, "tiles", corner, spec, np.zeros(len(corner), int))
        return slide


def seconds(call: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """Return how long a call takes by a clock."""
    start = clock()
    call()
    return clock() - start


def has_lazyslide() -> bool:
    try:
        import lazyslide  # noqa: F401
    except ImportError:
        return False
    return True


class Extraction:
    """Ratios of tiles per second, medians over rounds in which all take turns."""

    params = (["mobilenetv3_small_100", "resnet18", "vit_small_patch16_224"], ["all threads", "one thread"])
    param_names = ("network", "threads")
    timeout = 1200

    def setup(self, network: str, threads: str) -> None:
        import torch

        if not SLIDE.exists():
            raise NotImplementedError(f"The slide {SLIDE} is not there; set STPRED_DATA to the folder of wsi/.")
        warnings.simplefilter("ignore")
        self.threads, alone = torch.get_num_threads(), threads == "one thread"
        torch.set_num_threads(1 if alone else self.threads)
        party = Party(network)
        calls = {"bare": party.bare, "ours": party.ours}
        if has_lazyslide():
            calls["lazyslide"] = party.lazyslide
        for call in calls.values():
            call()  # compiles, fills caches
        taken: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                taken[name].append(seconds(call, time.process_time if alone else time.perf_counter))
        self.rate = {name: len(party.places) / float(np.median(times)) for name, times in taken.items()}

    def teardown(self, network: str, threads: str) -> None:
        import torch

        torch.set_num_threads(self.threads)

    def track_bare_tiles_per_second(self, network: str, threads: str) -> float:
        return self.rate["bare"]

    def track_stpred_over_bare(self, network: str, threads: str) -> float:
        return self.rate["ours"] / self.rate["bare"]

    def track_lazyslide_over_bare(self, network: str, threads: str) -> float:
        """Not a number where LazySlide is not installed."""
        return self.rate.get("lazyslide", float("nan")) / self.rate["bare"]

    track_bare_tiles_per_second.unit = "tiles/s"  # type: ignore[attr-defined]
    track_stpred_over_bare.unit = track_lazyslide_over_bare.unit = "ratio"  # type: ignore[attr-defined]

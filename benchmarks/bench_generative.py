"""XFuse: what it costs to read a posterior out, and to review the metagenes, in forward passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from stpred import Posterior
from stpred.models.batch import Batch
from stpred.models.parts.pixel_grid import Coverage, Window
from stpred.models.xfuse.model import XFuse
from stpred.models.xfuse.sample import PatchSample

GENES = 1000
EDGE = 1000
SAMPLES = 10


class Flat:
    """A slide of noise, every pixel a location."""

    mpp = 1.0
    patch_px = 256

    def __init__(self, edge: int, *, first: int = 0, rows: int | None = None) -> None:
        self.bounds = Window(0, 0, edge, edge)
        self.first, self.rows = first, edge if rows is None else rows
        self.pixels = np.random.default_rng(0).uniform(-0.9, 0.9, (3, edge, edge)).astype(np.float32)

    def boxes(self) -> np.ndarray:
        edge = self.bounds.width
        return np.array([[self.first, 0, self.first + self.rows - 1, edge - 1]])

    def fetch(self, windows: list[Window]) -> None:
        """Everything is there."""

    def image(self, window: Window) -> np.ndarray:
        rows = np.arange(window.row, window.row + window.height) % self.bounds.height
        columns = np.arange(window.column, window.column + window.width) % self.bounds.width
        return np.ascontiguousarray(self.pixels[:, rows][:, :, columns])

    def inside(self, window: Window) -> Coverage:
        y, x = np.mgrid[: window.height, : window.width]
        row, column = y.ravel() + window.row - self.first, x.ravel() + window.column
        kept = np.flatnonzero((row >= 0) & (row < self.rows))
        target = row[kept] * self.bounds.width + column[kept]
        order = np.argsort(target, kind="stable")
        return Coverage(target[order], kept[order], np.ones(len(kept), np.float32))


def model_of(metagenes: int, *, n_genes: int = GENES) -> XFuse:
    """Return an untrained model with published networks."""
    torch.manual_seed(0)
    config = XFuse.Config(depth=6, width=16, metagenes=metagenes, max_metagenes=max(metagenes, 50), covariates={})
    return XFuse(config, n_features=24, n_genes=n_genes).eval()


def seconds(run: Callable[[], Any]) -> float:
    """Return the shorter time of two runs."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


class ReadOut:
    """Mean and deviation of 1 000 genes at each of 1 000 x 1 000 pixels, from 10 draws."""

    def track_forward_passes_per_sample(self) -> float:
        """Return its time in forward passes (encoder and decoder, as one image), per draw."""
        model, scene = model_of(20), Flat(EDGE)
        image = torch.from_numpy(scene.pixels)[None]

        def forward() -> None:
            with torch.inference_mode():
                model.mixture(model.decoder([mean for mean, _ in model.guide(image)]))

        one = seconds(forward)
        start = time.perf_counter()
        rows = 512  # of pixels at a time, so that the table fits into memory
        spent = 0.0
        for part in self._strips(scene, rows):
            model.predict(part, Posterior(n_samples=SAMPLES))
            spent = time.perf_counter() - start
        return spent / SAMPLES / one

    def _strips(self, scene: Flat, rows: int) -> Any:
        for first in range(0, EDGE, rows):
            height = min(rows, EDGE - first)
            n = height * EDGE
            strip = Flat(EDGE, first=first, rows=height)
            at = np.arange(n)
            yield Batch("s", np.zeros((n, 24), np.float32), at, at, np.zeros((n, 2)), pixel_grid=strip)  # type: ignore[arg-type]


class Review:
    """All leave-one-out scores of a step of four patches."""

    params = ([2, 10, 50],)

    def time_leave_one_out(self, metagenes: int) -> None:
        """Decode once and score each metagene."""
        model = model_of(metagenes)
        model.leave_one_out([patches()], draws=1)


def patches(*, edge: int = 256, spots: int = 36, n_genes: int = GENES) -> PatchSample:
    """Return four patches with spots of 24 pixels."""
    rng = np.random.default_rng(0)
    pixel, region, owner = [], [], []
    side = int(spots**0.5)
    y, x = np.mgrid[:edge, :edge]
    for b in range(4):
        for k in range(spots):
            centre = (np.array(divmod(k, side)) + 0.5) * edge / side
            inside = np.flatnonzero(((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= 144).ravel())
            pixel.append(b * edge * edge + inside)
            region.append(np.full(len(inside), len(owner)))
            owner.append(b)
    counts = rng.poisson(rng.gamma(0.5, 2.0, (len(owner), n_genes)))
    return PatchSample(
        image=torch.from_numpy(rng.uniform(-0.9, 0.9, (4, 3, edge, edge)).astype(np.float32)),
        on_image=torch.ones(4, edge, edge, dtype=torch.bool),
        pixel=torch.from_numpy(np.concatenate(pixel)),
        region=torch.from_numpy(np.concatenate(region)),
        owner=torch.tensor(owner),
        counts=torch.from_numpy(counts.astype(np.float32)),
        measured=torch.ones(4, n_genes, dtype=torch.bool),
        slides=("s",) * 4,
        n_patches={"s": 16},
    )

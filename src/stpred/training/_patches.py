"""Random patches of slides: placed by a random affine map, with the regions that are complete in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stpred._core.checks import listing
from stpred._core.targets import dense
from stpred.models.batch import Batch
from stpred.models.parts.pixel_grid import View
from stpred.models.xfuse.sample import PatchSample
from stpred.training.augmentation import jittered

TURN = 180.0
LOG_SCALE = 0.05
SHEAR = 10.0
JITTER = 0.05


class PatchSampler:
    """As many random patches of each slide in an epoch as would cover it; with several processes, each one's share.

    Parameters
    ----------
    batches
        Slides with a pixel grid; without `y` only their images are used.
    model
        Its ``config.batch_size`` patches make a step.
    fabric
        Where the tensors go.
    """

    def __init__(self, batches: Sequence[Batch], model: Any, *, fabric: Any) -> None:
        self.model, self.fabric = model, fabric
        self.batches = [model.on_grid(b) for b in batches] if hasattr(model, "on_grid") else list(batches)
        self.counts = [None if b.y is None else dense(b.y, np.float32) for b in batches]
        grids: list[Any] = [b.pixel_grid for b in batches]
        self.edge = int(grids[0].patch_px)
        for grid in grids:
            grid.fetch([grid.frame])
        self.n_patches = {b.slide: self._number(b) for b in batches}

    def _number(self, batch: Batch) -> int:
        frame = batch.pixel_grid.frame  # type: ignore[union-attr]
        return math.ceil(frame.height / self.edge) * math.ceil(frame.width / self.edge)

    def epoch(self, order: np.random.Generator) -> Iterator[tuple[PatchSample, str]]:
        """Yield samples, and the number of patches of each slide in them."""
        drawn = order.permutation(np.repeat(np.arange(len(self.batches)), list(self.n_patches.values())))
        size = self.model.config.batch_size * self.fabric.world_size
        for start in range(0, len(drawn), size):
            step = drawn[start : start + size]
            edge = min(min(self.edge, self._smallest(i)) for i in step.tolist())
            draws = [(int(i), *self._draw(int(i), edge, order)) for i in step]  # all of them: processes draw alike
            own = draws[self.fabric.global_rank :: self.fabric.world_size] or draws[:1]
            slides = listing(dict.fromkeys(self.batches[i].slide for i, *_ in own))
            yield (
                self._sample([i for i, *_ in own], [self._view(*d, edge) for d in own]),
                (f"{len(own)} patches of slides {slides}"),
            )

    def _smallest(self, number: int) -> int:
        """Return the edge of a slide's largest patch."""
        frame = self.batches[number].pixel_grid.frame  # type: ignore[union-attr]
        return int(min(frame.height, frame.width))

    def _draw(self, number: int, edge: int, order: np.random.Generator) -> tuple[Any, Any, Any]:
        """Return the place of a patch, what happens to its colours, and in which order."""
        grid: Any = self.batches[number].pixel_grid
        frame = grid.frame
        middle = [
            first + (length - edge) * order.random() + edge / 2
            for first, length in ((frame.column, frame.width), (frame.row, frame.height))
        ]
        linear = random_affine(order) * grid.mpp
        affine = np.column_stack([linear, np.array(middle) * grid.mpp - linear @ [edge / 2, edge / 2]])
        return affine, order.uniform(-JITTER, JITTER, 4), order.permutation(4)

    def _view(self, number: int, affine: Any, colour: Any, order: Any, edge: int) -> View:
        view: View = self.batches[number].pixel_grid.view(affine, (edge, edge))  # type: ignore[union-attr]
        return replace(view, image=jittered(view.image, colour, order))

    def _sample(self, slides: list[int], views: list[View]) -> PatchSample:
        n_genes, size = self.model.n_genes, views[0].taken.size
        pixels, regions, owners, counts, measured = [], [], [], [], list[NDArray[np.bool_]]()
        n = 0
        for k, (i, view) in enumerate(zip(slides, views, strict=True)):
            batch, slide_counts = self.batches[i], self.counts[i]
            measured.append(np.ones(n_genes, dtype=bool) if batch.measured is None else batch.measured)
            if slide_counts is None:
                continue
            targets, region = np.unique(view.target, return_inverse=True)
            pixels.append(k * size + view.pixel)
            regions.append(n + region)
            owners += [k] * len(targets)
            counts.append(slide_counts[targets])
            n += len(targets)
            empty = np.flatnonzero(view.on_image.ravel() & ~view.tissue.ravel() & ~view.taken.ravel())
            if len(empty):  # off the tissue nothing is expressed: one region without counts
                pixels.append(k * size + empty)
                regions.append(np.full(len(empty), n))
                owners.append(k)
                counts.append(np.zeros((1, n_genes), dtype=np.float32))
                n += 1
        none = np.empty(0, dtype=np.int64)
        arrays: dict[str, NDArray[Any]] = {
            "image": np.stack([v.image for v in views]),
            "on_image": np.stack([v.on_image for v in views]),
            "pixel": np.concatenate([none, *pixels]),
            "region": np.concatenate([none, *regions]),
            "owner": np.array(owners, dtype=np.int64),
            "counts": np.concatenate([np.empty((0, n_genes), dtype=np.float32), *counts]),
            "measured": np.stack(measured),
        }
        if views[0].features is not None:
            arrays["features"] = np.stack([v.features for v in views])  # type: ignore[misc]
        tensors = {k: torch.from_numpy(v).to(self.fabric.device) for k, v in arrays.items()}
        return PatchSample(**tensors, slides=tuple(self.batches[i].slide for i in slides), n_patches=self.n_patches)


def random_affine(order: np.random.Generator) -> NDArray[np.float64]:
    """Return a (2, 2) map that turns, scales, shears and, every second time, mirrors."""
    turn = math.radians(order.uniform(-TURN, TURN))
    scale = math.exp(order.uniform(-LOG_SCALE, LOG_SCALE))
    across, down = np.tan(np.radians(order.uniform(-SHEAR, SHEAR, 2)))
    mirror = np.diag([1.0, -1.0 if order.random() < 0.5 else 1.0])
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return scale * rotation @ np.array([[1.0, across], [down, 1.0]]) @ mirror

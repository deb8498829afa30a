"""From batches (NumPy, one per slide) to a `Sample`: tensors of the points that a network needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stpred._core.lazy import Lazily
from stpred._core.targets import dense
from stpred.links import Links
from stpred.models.batch import Batch
from stpred.models.parts.cross_products import one_by_one

EXTREME = 8.0
"""Bound of standardised features: one that hardly varied in training must not dominate a prediction."""

_ROWS = 4096


@dataclass  # not frozen, for Fabric casts the tensors of a copy where precision is mixed
class Sample:
    """Targets of one or several slides.

    Attributes
    ----------
    features
        (m, n_features) standardised float32, or uint8 pixels; every point once.
    targets
        (n,) rows of `features`.
    slides
        (n,) number of the slide that each target is from, counted from 0.
    neighbors, parts
        (n, k) rows of `features`, -1 where there is none; or None.
    near
        (n, r) how many of the neighbours, which come nearest first, lie within each of several radii; or None.
    part_weights
        (n, k) weights of the parts, 0 where there is none; None: all alike.
    sources
        (p,) rows of `features` at the training pitch, for whole-slide networks; or None.
    source_parts
        (p, k) rows of `features` that are sub-tiles of the sources; or None.
    places
        (m, 2) places of the rows of `features` in micrometres, from the least of their slide's sources; or None.
    cells, owners
        (m,) rows of `features` of the cells in the targets, in the order of the targets, and the (m,) target of each;
        or None. With cells, `neighbors` are those of each cell.
    patches, patch_rows
        (q, n_features) standardised tiles of locations, and (n, k) which of them are a target's, its own first, -1
        where there is none; or None.
    y, totals
        (n, n_genes) training target and (n,) library sizes, or None.
    """

    features: Tensor
    targets: Tensor
    slides: Tensor
    neighbors: Tensor | None = None
    near: Tensor | None = None
    parts: Tensor | None = None
    part_weights: Tensor | None = None
    sources: Tensor | None = None
    source_parts: Tensor | None = None
    places: Tensor | None = None
    cells: Tensor | None = None
    owners: Tensor | None = None
    patches: Tensor | None = None
    patch_rows: Tensor | None = None
    y: Tensor | None = None
    totals: Tensor | None = None


@dataclass(frozen=True)
class Scaling:
    """Standardisation of features by (n_features,) mean and standard deviation."""

    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[Any]) -> Scaling:
        """Return that of (n, n_features) features; the deviation of constant ones is 1."""
        mean = np.asarray(features).mean(axis=0, dtype=np.float64)
        squares = np.zeros_like(mean)
        for start in range(0, len(features), _ROWS):  # in double precision, but not all of them at once
            squares += np.square(np.asarray(features[start : start + _ROWS], dtype=np.float64) - mean).sum(axis=0)
        std = np.sqrt(squares / len(features))
        return cls(mean.astype(np.float32), np.where(std < 1e-8, 1.0, std).astype(np.float32))

    @classmethod
    def of_parts(cls, parts: Sequence[NDArray[Any]]) -> Scaling:
        """Return that of (n, n_features) features in several parts, one in memory after the other."""
        n = 0
        total: Any = 0.0
        squares: Any = 0.0
        for part in parts:
            n, total = n + len(part), total + np.sum(part, axis=0, dtype=np.float64)
        mean = total / n
        for part in parts:
            for start in range(0, len(part), _ROWS):
                squares = squares + np.square(part[start : start + _ROWS].astype(np.float64) - mean).sum(axis=0)
        std = np.sqrt(np.asarray(squares) / n)
        return cls(np.asarray(mean, dtype=np.float32), np.where(std < 1e-8, 1.0, std).astype(np.float32))

    @classmethod
    def of_slide(cls, batch: Batch) -> Scaling:
        """Return that of the slide that a batch is of."""
        if (found := batch.moments) is None:
            return cls.of(batch.features[batch.sources])
        std = found.std_of_blocks
        return cls(found.mean.astype(np.float32), np.where(std < 1e-8, 1.0, std).astype(np.float32))

    def apply(self, features: NDArray[Any]) -> NDArray[np.float32]:
        """Standardise (n, n_features) features."""
        out = np.asarray(features, dtype=np.float32) - self.mean
        out /= self.std
        return np.clip(out, -EXTREME, EXTREME, out=out)


def scaling_of(batches: Sequence[Batch]) -> Scaling:
    """Return the standardisation of the slides' points, over all slides."""
    if one_by_one(batches):
        return Scaling.of_parts(Lazily(lambda i: batches[i].features[batches[i].sources], len(batches)))
    return Scaling.of(np.concatenate([np.asarray(b.features[b.sources], np.float32) for b in batches]))


def padded(links: Links) -> NDArray[np.int64]:
    """Return ragged links as an (n, k) matrix of source rows, -1 where there is none."""
    counts = links.counts()
    out = np.full((links.n_targets, int(counts.max(initial=0))), -1, dtype=np.int64)
    place = np.arange(links.indices.size) - np.repeat(links.indptr[:-1], counts)
    out[np.repeat(np.arange(links.n_targets), counts), place] = links.indices
    return out


def _weights(links: Links | None) -> NDArray[np.float32] | None:
    """Return the weights of ragged links as an (n, k) matrix, 0 where there is none; None where all weigh the same."""
    if links is None or links.weights is None:
        return None
    counts = links.counts()
    out = np.zeros((links.n_targets, int(counts.max(initial=0))), dtype=np.float32)
    out[np.arange(out.shape[1]) < counts[:, None]] = links.weights
    return out


def gather(
    batches: Sequence[Batch],
    scalings: Sequence[Scaling | None],
    *,
    whole_slide: bool = False,
    device: torch.device | str = "cpu",
) -> Sample:
    """Concatenate the targets of several batches, with the embedded points that they need and no others.

    Parameters
    ----------
    batches
        Targets; all with or all without links, parts and training targets.
    scalings
        How each batch's features are standardised; None leaves them as they are. Patches come standardised.
    whole_slide
        Keep every source of the slides, not only linked ones.
    device
        Where the tensors go.
    """
    features, patches, columns, start, first, n_patches = [], [], [], 0, 0, 0
    for number, (batch, scaling) in enumerate(zip(batches, scalings, strict=True)):
        own = (
            batch.links
            if batch.cells is None or batch.cell_links is None
            else batch.cell_links.take(batch.cells.indices)
        )
        wanted = [batch.targets, *(x.indices for x in (own, batch.parts, batch.cells) if x is not None)]
        if whole_slide:
            wanted += [batch.sources, *([] if batch.source_parts is None else [batch.source_parts.indices])]
        used = np.unique(np.concatenate(wanted))
        values = batch.features if len(used) == len(batch.features) else batch.features[used]
        features.append(_plain(values) if scaling is None else scaling.apply(values))

        def place(rows: NDArray[np.int64], used: NDArray[np.int64] = used, start: int = start) -> NDArray[np.int64]:
            return np.where(rows < 0, -1, np.searchsorted(used, rows) + start)

        column = {
            "targets": place(batch.targets),
            "slides": np.full(len(batch.targets), number),
            "neighbors": None if own is None else place(padded(own)),
            "near": batch.near,
            "parts": None if batch.parts is None else place(padded(batch.parts)),
            "part_weights": _weights(batch.parts),
            "sources": place(batch.sources) if whole_slide else None,
            "source_parts": place(padded(batch.source_parts))
            if whole_slide and batch.source_parts is not None
            else None,
            "places": None if batch.places_um is None else _from_corner(batch, used),
            "cells": None if batch.cells is None else place(batch.cells.indices),
            "owners": None
            if batch.cells is None
            else np.repeat(first + np.arange(len(batch.targets)), batch.cells.counts()),
            "patch_rows": None,
            "y": None if batch.y is None else dense(batch.y, np.float32),
            "totals": None if batch.totals is None else np.asarray(batch.totals, dtype=np.float32),
        }
        if batch.patches is not None:
            shown, rows = np.unique(padded(batch.patches.links), return_inverse=True)
            kept = shown[shown >= 0]
            patches.append(np.asarray(batch.patches.features[kept], dtype=np.float32))
            rows = rows.reshape(len(batch.targets), -1) - (len(shown) - len(kept))
            column["patch_rows"] = np.where(rows < 0, -1, rows + n_patches)
            n_patches += len(kept)
        columns.append(column)
        start += len(used)
        first += len(batch.targets)
    tensors = {k: _join([c[k] for c in columns]) for k in columns[0]}
    tensors |= {"features": _join(features), "patches": _join(patches) if patches else None}
    return Sample(**{k: None if v is None else _on(v, torch.device(device)) for k, v in tensors.items()})  # type: ignore[arg-type]


def _on(values: NDArray[Any], device: torch.device) -> Tensor:
    """Return an array on a device; a GPU copies it from pinned memory while the caller goes on."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _from_corner(batch: Batch, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the places of some rows relative to the least coordinates of the slide's sources."""
    places = batch.places_um
    assert places is not None
    return np.asarray(places[rows] - places[batch.sources].min(axis=0), dtype=np.float32)


def _plain(values: NDArray[Any]) -> NDArray[Any]:
    """Return features as float32, pixels as they are; always an array of its own that torch may hold."""
    return np.array(values, dtype=np.uint8 if values.dtype == np.uint8 else np.float32)


def _join(parts: list[Any]) -> Any:
    """Concatenate along the first axis; matrices of rows are padded to the widest."""
    if any(p is None for p in parts):
        return None
    if parts[0].ndim == 2 and len({p.shape[1] for p in parts}) > 1:
        width = max(p.shape[1] for p in parts)
        nothing = -1 if parts[0].dtype.kind == "i" else 0
        parts = [np.pad(p, ((0, 0), (0, width - p.shape[1])), constant_values=nothing) for p in parts]
    return np.ascontiguousarray(parts[0] if len(parts) == 1 else np.concatenate(parts))

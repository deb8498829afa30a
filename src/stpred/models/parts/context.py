"""Means of the neighbours' features, within one radius or in rings between several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive
from stpred.links import Links
from stpred.models.batch import Batch, Needs

MAX_RADII = 8


def check_context(config: Any) -> None:
    """Check ``context_um`` of settings; several radii become an ascending tuple, a single one in a tuple a number."""
    value = config.context_um
    if value is None or not isinstance(value, Sequence) or isinstance(value, str):
        config.check_positive("context_um")
        return
    radii = tuple(float(positive(v, name="context_um", unit="micrometres")) for v in value)
    if not 1 <= len(radii) <= MAX_RADII or len(set(radii)) < len(radii):
        raise InputError(f"`context_um` must be a radius or up to {MAX_RADII} different ones, got {value!r}.")
    object.__setattr__(config, "context_um", radii[0] if len(radii) == 1 else tuple(sorted(radii)))


def context_needs(context_um: float | tuple[float, ...] | None) -> dict[str, Any]:
    """Return the fields of :class:`Needs` for a radius or several."""
    if isinstance(context_um, tuple):
        return {"context_um": context_um[-1], "radii_um": context_um}
    return {"context_um": context_um}


def n_means(context_um: float | tuple[float, ...] | None) -> int:
    """Return the number of means that stand beside a location's own features."""
    return len(context_um) if isinstance(context_um, tuple) else int(context_um is not None)


def ring_means(batch: Batch) -> list[NDArray[np.float64]]:
    """Return the (n, n_features) mean of the neighbours within the radius, or in each ring between several radii.

    A location without neighbours is its own context, not an average tile; where an outer ring is empty, the next inner
    one stands for it.
    """
    if batch.links is None:
        raise InputError(f"Slide {batch.slide!r} came without neighbours, which this model needs.")
    features = batch.features.astype(np.float64)
    if batch.near is None:
        around = batch.links.mean(features)
        alone = batch.links.counts() == 0
        around[alone] = batch.own[alone]
        return [around]
    found = []
    inner, before = np.zeros(len(batch.targets), dtype=np.int64), batch.own.astype(np.float64)
    for outer in batch.near.T:
        before = np.where((outer > inner)[:, None], _between(batch.links, inner, outer).mean(features, fill=0), before)
        found.append(before)
        inner = outer
    return found


def seen_by(batch: Batch, needs: Needs) -> Batch:
    """Return a batch with only those neighbours that a model needs, of one with those of several models."""
    if needs.n_neighbors is not None:
        return batch
    if needs.context_um is None:
        return replace(batch, links=None, near=None, radii_um=())
    if batch.links is None or (batch.near is None and not needs.radii_um):
        return batch
    radii = needs.radii_um or (needs.context_um,)
    if batch.near is None or (missing := [r for r in radii if r not in batch.radii_um]):
        raise InputError(f"Slide {batch.slide!r} came without neighbours within {missing or radii} um.")
    near = batch.near[:, [batch.radii_um.index(r) for r in radii]]
    found = _between(batch.links, np.zeros_like(near[:, -1]), near[:, -1])
    return replace(batch, links=found, near=near if needs.radii_um else None, radii_um=radii if needs.radii_um else ())


def _between(links: Links, first: NDArray[np.int64], last: NDArray[np.int64]) -> Links:
    """Return the links of each target from its `first` to before its `last`."""
    counts = links.counts()
    place = np.arange(links.indices.size) - np.repeat(links.indptr[:-1], counts)
    kept = (place >= np.repeat(first, counts)) & (place < np.repeat(last, counts))
    indptr = np.concatenate([[0], np.cumsum(last - first)])
    return Links(indptr, links.indices[kept], None if links.weights is None else links.weights[kept])

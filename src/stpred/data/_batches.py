"""From locations to the `Batch` that every model sees, in training, validation and prediction alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred import links
from stpred._core.checks import InputError
from stpred.data._features import embed, embed_parts, stored_features
from stpred.data._regions import Region, read_region
from stpred.encoders._base import Encoder
from stpred.models._base import Batch, Needs
from stpred.regions import Lattice, on_tissue

SAME_PITCH = 0.1
"""Relative difference of pitch up to which a region gives its own context."""

FEW_SOURCES = 30
"""Fewer locations than this are no basis for a slide's own feature statistics."""

COVERED = 0.9
"""Share of targets that must have a training location nearby for the training region to serve as their context."""

PIXEL_BLOCK = 1024
"""Locations whose pixels are in memory at a time in prediction."""


def make_batch(
    region: Region,
    encoder: Encoder,
    needs: Needs,
    *,
    lattice: Lattice | None = None,
    home: str | None = None,
    batch_size: int | None = None,
    allow_upsampling: bool = False,
    **measured: Any,
) -> Batch:
    """Embed a region's locations, and what their context needs, once each.

    Parameters
    ----------
    region
        Locations to embed.
    encoder
        What turns tiles into features.
    needs
        What the model asks for.
    lattice
        Training lattice of the model; None while training, when the region itself is the lattice. A region of another
        pitch takes its context from one shared set of points at the training pitch: the slide's locations of the
        region `home` where they cover the targets, otherwise a grid on the tissue.
    home
        Name of the region that the model was trained on.
    batch_size
        Tiles per encoder call.
    allow_upsampling
        Read an image that is too coarse for the encoder all the same.
    **measured
        ``y``, ``truth``, ``scale`` of the batch, to carry along.
    """
    what = f"Image {region.image_key!r} of slide {region.slide!r}"
    region.pyramid.check_resolution(encoder.card.tile, what=what, allow_upsampling=allow_upsampling)
    n = len(region.coords_um)
    points, context = _sources(region, needs, lattice, home)
    features = stored_features(region, encoder)
    if features is None:
        wanted = region.coords_um if points is None else np.concatenate([region.coords_um, points])
        features = embed(region, encoder, wanted, batch_size=batch_size)
    elif points is not None:
        features = np.concatenate([features, embed(region, encoder, points, batch_size=batch_size)])
    rows = np.arange(n)
    batch = Batch(
        region.slide,
        features,
        rows,
        rows if points is None else np.arange(n, n + len(points)),
        region.coords_um,
        totals=region.totals,
        n_measured=None if region.counts is None else region.counts.shape[1],
        context=context,
        **measured,
    )
    if points is not None and lattice is not None:
        # Training never shows a location to itself, so a point on top of the target is left out as well.
        batch = with_needs(batch, needs, source_um=points, beyond_um=lattice.pitch_um / 2)
    else:
        batch = with_needs(batch, needs)
    return batch if needs.parts is None else with_parts(batch, region, encoder, needs.parts, batch_size=batch_size)


def with_needs(
    batch: Batch, needs: Needs, *, source_um: NDArray[np.float64] | None = None, beyond_um: float = 0.0
) -> Batch:
    """Return the batch with links to its neighbours.

    `source_um` are the places of ``batch.sources``; None: those of the targets.
    """
    if not needs.linked:
        return replace(batch, links=None)
    places = batch.coords_um if source_um is None else source_um
    if needs.n_neighbors is not None:
        around = links.knn(batch.coords_um, places, k=needs.n_neighbors, beyond_um=beyond_um)
    else:
        around = links.radius(batch.coords_um, places, radius_um=needs.context_um, beyond_um=beyond_um)  # type: ignore[arg-type]
    return replace(batch, links=links.Links(around.indptr, batch.sources[around.indices]))


def with_parts(batch: Batch, region: Region, encoder: Encoder, parts: int, *, batch_size: int | None = None) -> Batch:
    """Return the batch with the sub-tiles of its targets embedded behind what is there."""
    found = embed_parts(region, encoder, region.coords_um, parts=parts, batch_size=batch_size)
    n, first, each = len(region.coords_um), len(batch.features), parts**2
    rows = links.Links(np.arange(n + 1) * each, first + np.arange(n * each))
    return replace(batch, features=np.concatenate([batch.features, found]), parts=rows)


def prediction_batches(
    region: Region, encoder: Encoder, needs: Needs, **how: Any
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Yield rows of the region and their batch: all at once, or in blocks where features are the pixels themselves."""
    n = len(region.coords_um)
    if getattr(encoder, "dtype", np.float32) != np.uint8 or n <= PIXEL_BLOCK:
        yield np.arange(n), make_batch(region, encoder, needs, **how)
        return
    # From top to bottom, as the image is stored, so that hardly any chunk is decoded twice.
    order = np.lexsort((region.coords_um[:, 0], np.floor(region.coords_um[:, 1] / (4 * encoder.card.tile.size_um))))
    for rows in np.array_split(order, -(-n // PIXEL_BLOCK)):
        yield rows, make_batch(region.take(rows), encoder, needs, **how)


def _sources(
    region: Region, needs: Needs, lattice: Lattice | None, home: str | None
) -> tuple[NDArray[np.float64] | None, str | None]:
    """Return points at the training pitch (None where the region itself serves), and what they are."""
    if not needs.sources:
        return None, None
    if lattice is None or _serves(Lattice.of(region.coords_um), lattice, len(region.coords_um), needs):
        return None, "region"
    from scipy.spatial import cKDTree

    if home is not None and home != region.shapes_key and home in region.sdata.shapes:
        points = _home(region, home)
        if points is not None and _serves(Lattice.of(points), lattice, len(points), needs):
            near = cKDTree(points).query(region.coords_um, distance_upper_bound=1.01 * lattice.pitch_um)[0]
            if np.isfinite(near).mean() >= COVERED:
                return points, home
    points = lattice.points(region.pyramid.bounds_um)
    points = points[region.pyramid.contains(points)]
    if needs.slide_statistics or needs.whole_slide:
        # What speaks for a slide's tissue is the same whichever targets are asked for.
        points = points[on_tissue(region.pyramid, points)]
    else:
        reach = _reach_um(needs, lattice)
        points = points[np.isfinite(cKDTree(region.coords_um).query(points, distance_upper_bound=reach)[0])]
        if needs.n_neighbors is not None and (tissue := on_tissue(region.pyramid, points)).any():
            points = points[tissue]
    if len(points) == 0:
        raise InputError(f"Slide {region.slide!r} has no tissue to take the context of {region.shapes_key!r} from.")
    return points, "grid"


def _serves(own: Lattice | None, lattice: Lattice, n: int, needs: Needs) -> bool:
    """Whether locations of this lattice can be the context of a model that was trained on the other."""
    same = own is not None and abs(own.pitch_um / lattice.pitch_um - 1) <= SAME_PITCH
    return same and (not needs.slide_statistics or n >= FEW_SOURCES)


def _home(region: Region, home: str) -> NDArray[np.float64] | None:
    """Return the centres of the slide's own training region, as training and prediction on it would take them."""
    try:
        points = read_region(
            region.sdata,
            slide=region.slide,
            shapes_key=home,
            image_key=region.image_key,
            coordinate_system=region.coordinate_system,
        ).coords_um
    except InputError:  # not placed in this frame, or empty: then it is no context either
        return None
    return points


def _reach_um(needs: Needs, lattice: Lattice) -> float:
    """Return how far a target's context may lie: twice as far for the nearest, which thin out at borders."""
    if needs.n_neighbors is None:
        return float(needs.context_um)  # type: ignore[arg-type]
    per_um2 = (2 / np.sqrt(3) if lattice.hexagonal else 1.0) / lattice.pitch_um**2
    return float(2 * np.sqrt((needs.n_neighbors + 1) / (np.pi * per_um2)) + lattice.pitch_um)


def reach_um(batch: Batch) -> float | None:
    """Return how far the context of a training batch goes: the median distance of its targets' farthest neighbours."""
    if batch.links is None or batch.links.indices.size == 0:
        return None
    counts = batch.links.counts()
    target = np.repeat(np.arange(len(counts)), counts)
    distance = np.linalg.norm(batch.coords_um[target] - batch.coords_um[batch.links.indices], axis=1)
    farthest = np.zeros(len(counts))
    np.maximum.at(farthest, target, distance)
    return float(np.median(farthest[counts > 0]))

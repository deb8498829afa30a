"""Nuclei of a whole slide: fields that overlap, each nucleus kept by the field that owns its centre."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, UnsafeResolutionError, positive
from stpred._core.compute.threads import n_threads
from stpred._core.geometry import largest_part
from stpred._core.progress import track
from stpred._core.specs import TileSpec
from stpred._image.labels import means, outlines
from stpred._image.tissue import Survey, survey
from stpred.nuclei import _methods
from stpred.nuclei._methods import DEFAULT, Method, Segmenter, Slide
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from geopandas import GeoDataFrame

MAX_MPP = 1.0
"""Coarser images show nuclei of only a few pixels."""

_THUMBNAIL_MPP = 8.0
_SAMPLE_UM, _SAMPLE_MPP, _SAMPLES = 128.0, 0.5, 48
_MIN_TISSUE_UM2 = 100.0
_MAX_THREADS = 8

COLUMNS = ("area_um2", "eccentricity", "haematoxylin", "eosin")


def check(pyramid: Pyramid, *, image: str = "The image") -> None:
    """Refuse an image on which nuclei cannot be distinguished."""
    if pyramid.mpp > MAX_MPP * 1.01:
        raise UnsafeResolutionError(
            f"{image} has {pyramid.mpp:.4g} um per pixel; nuclei need {MAX_MPP:g} or finer, so use the full-resolution "
            "slide, or bring cells from elsewhere with stpred.pp.add_cells."
        )


def detect(
    pyramid: Pyramid,
    *,
    method: str | Segmenter = DEFAULT,
    tissue: Any = None,
    min_area_um2: float = _methods.MIN_AREA_UM2,
    max_area_um2: float = 350.0,
    chunk_um: float = 512.0,
    device: str | None = None,
) -> GeoDataFrame:
    """Find the nuclei of a slide.

    Parameters
    ----------
    pyramid
        Image placed in micrometres.
    method
        ``"network"``, ``"builtin"``, a nucleus model of lazyslide-models, or a :class:`Segmenter`.
    tissue
        shapely geometry in micrometres; only nuclei whose centre lies in it are kept. None: all.
    min_area_um2, max_area_um2
        Bounds on the area of a nucleus.
    chunk_um
        Edge of the pieces that the slide is worked on in; results do not depend on it. Models that are bound to a field
        size have their own.
    device
        Torch device of a model; None takes a GPU where there is one.

    Returns
    -------
    GeoDataFrame
        Polygons in micrometres, by row and then by column, with ``area_um2``, ``eccentricity`` of the ellipse of equal
        moments, and mean optical density of ``haematoxylin`` and ``eosin``. The index is ``nucleus_id``: 1, 2, ...
    """
    low, high = _areas(min_area_um2, max_area_um2)
    chunk_um = positive(chunk_um, name="chunk_um", unit="micrometres")
    if chunk_um < 64:
        raise InputError(f"`chunk_um` must be at least 64 micrometres, got {chunk_um:g}.")
    check(pyramid)
    segmenter = _methods.make(method, min_area_um2=low, max_area_um2=high, device=device)
    thumbnail, origin_um = pyramid.thumbnail(_THUMBNAIL_MPP)
    found = survey(thumbnail, mpp=_THUMBNAIL_MPP, min_area_um2=_MIN_TISSUE_UM2)
    stained = _stained(found)
    if not stained.any():
        return _frame([])
    slide = segmenter.measure(*_samples(pyramid, stained, found.excluded))
    parts = list(_work(pyramid, segmenter, slide, stained, chunk_um=chunk_um))
    frame = _frame(parts)
    keep = frame["area_um2"].between(low, high).to_numpy(copy=True)
    if found.excluded.any() and len(frame):
        keep &= ~_lies_on(found.excluded, frame.geometry.centroid.get_coordinates().to_numpy() - origin_um)
    if tissue is not None and len(frame):
        import shapely

        keep &= shapely.intersects(tissue, frame.geometry.centroid.to_numpy())
    return _ordered(frame[keep])


def _areas(low: float, high: float) -> tuple[float, float]:
    low = positive(low, name="min_area_um2", unit="square micrometres")
    high = positive(high, name="max_area_um2", unit="square micrometres")
    if low >= high:
        raise InputError(f"`min_area_um2` ({low:g}) must be below `max_area_um2` ({high:g}).")
    return low, high


def _stained(found: Survey) -> NDArray[np.bool_]:
    """Return where there may be nuclei: tissue of any size, with a rim of 16 um, but no fill or pen."""
    from scipy.ndimage import binary_dilation

    return np.asarray(binary_dilation(found.tissue, iterations=2) & ~found.excluded, dtype=bool)


def _lies_on(mask: NDArray[np.bool_], xy_um: NDArray[np.float64]) -> NDArray[np.bool_]:
    column, row = np.floor(xy_um / _THUMBNAIL_MPP).astype(np.int64).T
    return np.asarray(mask[row.clip(0, mask.shape[0] - 1), column.clip(0, mask.shape[1] - 1)], dtype=bool)


def _samples(
    pyramid: Pyramid, stained: NDArray[np.bool_], excluded: NDArray[np.bool_]
) -> tuple[list[NDArray[np.uint8]], list[NDArray[np.bool_] | None]]:
    """Return fields spread evenly over the tissue, and where each is not `excluded`; the same whatever the chunks."""
    block = round(_SAMPLE_UM / _THUMBNAIL_MPP)
    h, w = (-(-n // block) for n in stained.shape)
    padded = np.zeros((h * block, w * block), bool)
    padded[: stained.shape[0], : stained.shape[1]] = stained
    share = padded.reshape(h, block, w, block).mean(axis=(1, 3))
    fullest = np.argwhere(share >= min(0.5, share.max()))
    chosen = fullest[np.unique(np.linspace(0, len(fullest) - 1, _SAMPLES).round().astype(int))]
    corner = np.array(pyramid.bounds_um[:2]) + chosen[:, ::-1] * _SAMPLE_UM
    tile = TileSpec(_SAMPLE_MPP, round(_SAMPLE_UM / _SAMPLE_MPP))
    fields: list[NDArray[np.uint8]] = [np.empty(0, np.uint8)] * len(corner)
    visible: list[NDArray[np.bool_] | None] = [None] * len(corner)
    for rows, tiles in pyramid.read(corner + _SAMPLE_UM / 2, tile, batch_size=16):
        for row, field in zip(rows, tiles, strict=True):
            fields[row] = _on_image(pyramid, field, corner[row], tile.mpp)[0]
            top, left = chosen[row] * block
            if fields[row].size and (away := excluded[top : top + block, left : left + block]).any():
                # Pixels of the thumbnail are whole pixels of a field, and those along fill hold something of it.
                visible[row] = _visible(away, fields[row].shape[:2])
    kept = [i for i, field in enumerate(fields) if field.size and (visible[i] is None or visible[i].any())]  # type: ignore[union-attr]
    return [fields[i] for i in kept], [visible[i] for i in kept]


def _visible(away: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return which pixels of a field are tissue or glass, given what is neither on the thumbnail."""
    from scipy.ndimage import binary_dilation

    fine = round(_THUMBNAIL_MPP / _SAMPLE_MPP)
    grown = np.kron(binary_dilation(away, np.ones((3, 3))), np.ones((fine, fine), bool))
    out = np.ones(shape, bool)
    height, width = min(shape[0], grown.shape[0]), min(shape[1], grown.shape[1])
    out[:height, :width] = ~grown[:height, :width]
    return out


def _work(
    pyramid: Pyramid, segmenter: Method, slide: Slide, stained: NDArray[np.bool_], *, chunk_um: float
) -> Iterator[tuple[Any, ...]]:
    """Yield the nuclei of one field after the other; a bounded number of fields is in memory."""
    reach_um = segmenter.reach_um
    if segmenter.field_px is not None:
        chunk_um = segmenter.field_px * segmenter.mpp - 2 * reach_um
    # Fields begin on a grid, so that another chunk size sees the same pixels.
    chunk_um = max(1, round(min(chunk_um, segmenter.most_um) / segmenter.grid_um)) * segmenter.grid_um
    size_px = round((chunk_um + 2 * reach_um) / segmenter.mpp)
    tile = TileSpec(segmenter.mpp, size_px)
    corners = _corners(pyramid, stained, chunk_um)
    centers = corners + chunk_um / 2
    workers = n_threads(_MAX_THREADS) if segmenter.threads else 1
    at_once = workers if n_threads() > 1 else 0  # with one thread nothing is read while a field is searched

    def one(field: NDArray[np.uint8], corner: NDArray[np.float64]) -> tuple[Any, ...]:
        field, shift = _on_image(pyramid, field, corner - reach_um, segmenter.mpp)
        return _nuclei(field, segmenter, slide, corner - reach_um + shift, (corner, corner + chunk_um))

    waiting: deque[Future[tuple[Any, ...]]] = deque()
    with segmenter.pool(workers) as pool:
        fields = pyramid.read(centers, tile, batch_size=1)
        for rows, tiles in track(fields, total=len(centers), describe=f"{slide}: looking for nuclei", unit="field"):
            waiting.append(pool.submit(one, tiles[0], corners[rows[0]]))
            if len(waiting) > at_once:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _corners(pyramid: Pyramid, stained: NDArray[np.bool_], chunk_um: float) -> NDArray[np.float64]:
    """Return (n, 2) corners of the chunks that hold tissue, on a grid from the image's own corner."""
    x0, y0, x1, y1 = pyramid.bounds_um
    columns, rows = max(1, int(np.ceil((x1 - x0) / chunk_um))), max(1, int(np.ceil((y1 - y0) / chunk_um)))
    y, x = np.nonzero(stained)
    used = np.zeros((rows, columns), bool)
    for dy in (0, 1):  # a pixel of the thumbnail may lie on two chunks
        for dx in (0, 1):
            row = np.minimum(((y + dy) * _THUMBNAIL_MPP - dy * 1e-6) // chunk_um, rows - 1).astype(int)
            column = np.minimum(((x + dx) * _THUMBNAIL_MPP - dx * 1e-6) // chunk_um, columns - 1).astype(int)
            used[row, column] = True
    return np.array([x0, y0]) + np.argwhere(used)[:, ::-1] * chunk_um


def _on_image(
    pyramid: Pyramid, field: NDArray[np.uint8], corner_um: NDArray[np.float64], mpp: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Cut off what lies beyond an upright image, whose padding would look like glass; return the corner's shift too."""
    linear = pyramid.levels[0].to_um[:2, :2]
    if min(np.abs(np.diag(linear)).max(), np.abs(linear[[0, 1], [1, 0]]).max()) > 1e-6 * pyramid.mpp:
        return field, np.zeros(2)
    bounds = np.array(pyramid.bounds_um).reshape(2, 2)
    size = np.array(field.shape[1::-1])
    low, high = np.clip(np.round((bounds - corner_um) / mpp).astype(int), 0, size)
    return np.ascontiguousarray(field[low[1] : high[1], low[0] : high[0]]), low * mpp


def _nuclei(
    field: NDArray[np.uint8],
    segmenter: Method,
    slide: Slide,
    corner_um: NDArray[np.float64],
    own_um: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> tuple[Any, ...]:
    """Return vertices in micrometres, vertices per nucleus, and its columns, of the nuclei that a field owns.

    Area and eccentricity are those of the polygon and filled in later.
    """
    nothing = (np.empty((0, 2)), np.empty(0, np.int64), np.empty((0, 4)))
    if min(field.shape[:2]) == 0:
        return nothing
    labels = segmenter.run(field, slide)
    if labels.max(initial=0) == 0:
        return nothing
    stats = means(labels, *_methods.stains(field, slide.white))
    center = (stats[:, [2, 1]] + 0.5) * segmenter.mpp + corner_um
    owned = (center >= own_um[0]).all(axis=1) & (center < own_um[1]).all(axis=1) & (stats[:, 0] > 0)
    columns = np.column_stack([np.zeros((len(stats), 2)), stats[:, 3:]])
    xy, begin = outlines(labels, inset_px=segmenter.inset_um / segmenter.mpp)
    length = np.diff(begin)
    owned &= length >= 3
    return xy[np.repeat(owned, length)] * segmenter.mpp + corner_um, length[owned], columns[owned]


def _frame(parts: list[tuple[Any, ...]]) -> GeoDataFrame:
    """Build valid polygons of all parts."""
    import geopandas as gpd
    import shapely

    length = np.concatenate([np.empty(0, np.int64), *(p[1] for p in parts)])
    xy = np.concatenate([np.empty((0, 2)), *(p[0] for p in parts)])
    columns = np.concatenate([np.empty((0, 4)), *(p[2] for p in parts)])
    polygons = np.empty(0, object)
    if len(length):
        rings = shapely.linearrings(xy, indices=np.repeat(np.arange(len(length)), length))
        polygons = shapely.polygons(rings)
        for i in np.flatnonzero(~shapely.is_valid(polygons)):
            polygons[i] = largest_part(polygons[i])
    columns[:, 0], columns[:, 1] = shapely.area(polygons), eccentricity(polygons)
    return gpd.GeoDataFrame(dict(zip(COLUMNS, columns.T, strict=True)), geometry=polygons)


def eccentricity(polygons: NDArray[Any]) -> NDArray[np.float64]:
    """Return sqrt(1 - (minor / major)^2) of the ellipse of equal moments of every polygon, holes left out."""
    import shapely

    xy, which = shapely.get_coordinates(shapely.get_exterior_ring(polygons), return_index=True)
    first = np.searchsorted(which, np.arange(len(polygons)))
    x, y = (xy - xy[first[which]]).T if len(xy) else np.empty((2, 0))
    edge = np.flatnonzero(np.diff(which) == 0)
    x0, y0, x1, y1, which = x[edge], y[edge], x[edge + 1], y[edge + 1], which[edge]
    cross = x0 * y1 - x1 * y0

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(which, values * cross, len(polygons)), dtype=np.float64)

    area = total(np.full(len(edge), 0.5))
    area = np.where(area == 0, 1.0, area)
    cx, cy = total(x0 + x1) / 6 / area, total(y0 + y1) / 6 / area
    xx = total(x0 * x0 + x0 * x1 + x1 * x1) / 12 / area - cx * cx
    yy = total(y0 * y0 + y0 * y1 + y1 * y1) / 12 / area - cy * cy
    xy_ = total(x0 * y1 + 2 * x0 * y0 + 2 * x1 * y1 + x1 * y0) / 24 / area - cx * cy
    half, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy_)
    return np.asarray(np.sqrt(np.clip(2 * spread / np.maximum(half + spread, 1e-300), 0, 1)))


def _ordered(frame: GeoDataFrame) -> GeoDataFrame:
    """Sort by place and number from one."""
    import pandas as pd

    center = frame.geometry.centroid
    frame = frame.iloc[np.lexsort((center.x.to_numpy(), center.y.to_numpy()))]
    return frame.set_axis(pd.RangeIndex(1, len(frame) + 1, name="nucleus_id"))

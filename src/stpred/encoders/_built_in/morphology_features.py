"""What the morphology encoder measures on one tile, group by group, and the name of every number."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stpred._image.nuclei import nearest_neighbours, region_stats, segment
from stpred._image.stain import optical_density, unmix
from stpred._image.texture import (
    N_LBP,
    ScaleSpace,
    block_tensor,
    class_means,
    coherence,
    difference_correlation,
    difference_moments,
    distribution,
    gaussian,
    halve,
    lbp_histogram,
    pool,
    scale_space,
)

Values = NDArray[np.float64]
Plane = NDArray[np.float32]

_STAINS = ("haematoxylin", "eosin", "residual")
_CHANNELS = ("red", "green", "blue")
_LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
_BANDS_UM = (0.5, 1.0, 2.0, 4.0, 8.0)
_EDGES_UM = (0.5, 1.0, 2.0)
_LBP_UM = (1.0, 2.0, 4.0)
_CHROMATIN_UM = (0.5, 1.0)
_CENTRE_EDGES_UM = 1.0
_CENTRE = 0.25  # share of rows and columns that the centre leaves out on every side
_BLOCKS = 14
_POOLS = {"fine": 1, "tile": _BLOCKS}
_PER_NUCLEUS = (
    "log_area",
    "elongation",
    "staining",
    "contrast",
    "hollowness",
    "fill",
    "roughness",
    "log_distance",
)
_CENTRE_NUCLEUS = _PER_NUCLEUS[:5]
_AREAS_UM2 = (25.0, 45.0, 80.0)
_SIZES = ("tiny", "small", "medium", "large")
_CLASSES = ("empty", "nuclear", "perinuclear", "stromal")

_ROUND = 0.5  # log ratio of axes that parts round from long nuclei
_EMPTY_DENSITY = 0.12  # grey optical density below which H&E is lumen, fat or glass
_PRIOR = 2.0  # ordinary nuclei that every tile is thought to hold besides its own
_RARE = 0.01  # share of the tile below which a compartment is described as the tile around it
_FLOOR = 1e-3  # optical density of a quarter of a grey value: less is rounding, not texture


def feature_names() -> tuple[str, ...]:
    """Return the name of every number of `describe`, in its order."""
    edge_stats = ("energy", *(f"coherence_{p}" for p in _POOLS))
    return (
        *(f"{s}_{m}" for s in _STAINS for m in ("mean", "std", *(f"q{100 * q:02.0f}" for q in _LEVELS))),
        *(f"{c}_{m}" for c in _CHANNELS for m in ("mean", "std")),
        *(n for p in ("haematoxylin", "eosin", "density") for n in _band_names(p)),
        *(f"{p}_edges_{s:g}um_{m}" for p in _STAINS[:2] for s in _EDGES_UM for m in edge_stats),
        *(f"haematoxylin_lbp_{r:g}um_{k}" for r in _LBP_UM for k in range(N_LBP)),
        *(f"mixing_{s:g}um" for s in _BANDS_UM),
        *("nuclei_threshold", "nuclei_number", "nuclei_share", "nuclei_alignment"),
        *(f"nuclei_{s}_{m}" for s in _PER_NUCLEUS for m in ("mean", "std")),
        *(f"nuclei_{shape}_{size}" for shape in ("round", "long") for size in _SIZES),
        *(f"{where}_texture_{s:g}um" for s in _CHROMATIN_UM for where in ("other", "chromatin")),
        *(f"{c}_share" for c in _CLASSES),
        *(f"{c}_{s}_{m}" for c in _CLASSES[1:] for s in _STAINS for m in ("mean", "std")),
        "empty_patchiness",
        *(f"centre_{n}" for n in _centre_names()),
    )


def _band_names(plane: str) -> list[str]:
    names = [f"{plane}_band_{s:g}um_{m}" for s in _BANDS_UM for m in ("strength", "skewness")]
    return [*names, f"{plane}_band_rest_strength"]


def _centre_names() -> list[str]:
    return [
        *(f"{s}_mean" for s in _STAINS[:2]),
        *(f"{p}_band_{s:g}um_strength" for p in ("haematoxylin", "eosin", "density") for s in _BANDS_UM),
        *(f"{s}_coherence" for s in _STAINS[:2]),
        *(f"haematoxylin_lbp_{_LBP_UM[0]:g}um_{k}" for k in range(N_LBP)),
        *("nuclei_number", "nuclei_share"),
        *(f"nuclei_{s}_mean" for s in _CENTRE_NUCLEUS),
        *(f"nuclei_{shape}_{size}" for shape in ("round", "long") for size in _SIZES),
    ]


def describe(tile: NDArray[np.uint8], *, mpp: float) -> Values:
    """Return the numbers of one (h, w, 3) uint8 tile, in the order of `feature_names`."""
    channels = optical_density(tile)
    stains = unmix(channels)
    density = (channels[0] + channels[1] + channels[2]) * np.float32(1 / 3)
    haematoxylin, eosin, grey = (scale_space(p, [s / mpp for s in _BANDS_UM]) for p in (stains[0], stains[1], density))
    labels, threshold = segment(stains[0], mpp=mpp)
    nuclei = _with_distance(region_stats(labels, stains[0]), labels.shape)
    return np.concatenate(
        [
            *(distribution(plane, -0.5, 2.5, _LEVELS) for plane in stains),
            *(distribution(plane, -0.5, 2.5, _LEVELS[:0]) for plane in channels),
            *(_bands(space) for space in (haematoxylin, eosin, grey)),
            *(_edges(space, mpp) for space in (haematoxylin, eosin)),
            _patterns(haematoxylin, mpp),
            _mixing(haematoxylin, eosin),
            [threshold],
            *_nuclei(nuclei, threshold=threshold, mpp=mpp, shape=labels.shape),
            _chromatin(haematoxylin, labels),
            _compartments(labels, stains, density=density, mpp=mpp),
            *_centre((haematoxylin, eosin, grey), stains, nuclei, threshold=threshold, mpp=mpp),
        ]
    )


def _bands(space: ScaleSpace) -> Values:
    """Log strength and skewness (signed log) of every band, and log strength of the residual below the last."""
    out: list[float] = []
    for fine, coarse in zip(space.fine, space.coarse, strict=False):
        rms, skewness = difference_moments(fine, coarse)
        out += [math.log(rms + _FLOOR), math.copysign(math.log1p(abs(skewness)), skewness)]
    return np.array([*out, math.log(float(space.fine[-1].std(dtype=np.float64)) + _FLOOR)])


def _edges(space: ScaleSpace, mpp: float) -> Values:
    """Log gradient (optical density per um) of the finer blurs, and its coherence within blocks and the tile."""
    out: list[float] = []
    for k in range(1, 1 + len(_EDGES_UM)):
        tensor = block_tensor(space.fine[k], _BLOCKS) / (space.steps[k] * mpp) ** 2
        out.append(0.5 * math.log(tensor[..., :2].sum() + _FLOOR**2))
        out += [coherence(pool(tensor, by), floor=_FLOOR**2) for by in _POOLS.values()]
    return np.array(out)


def _patterns(space: ScaleSpace, mpp: float) -> Values:
    """Square roots of the shares of local binary patterns, each radius on the blur of half its width."""
    shares = []
    for k, radius_um in enumerate(_LBP_UM, start=_BANDS_UM.index(_LBP_UM[0] / 2) + 1):
        radius_px = max(radius_um / mpp / space.steps[k], 1.0)
        shares.append(lbp_histogram(space.fine[k], radius_px, stride_px=2 if space.steps[k] == 1 else 1))
    return np.sqrt(np.concatenate(shares))


def _mixing(first: ScaleSpace, second: ScaleSpace) -> Values:
    """Correlation of two stains in every band: positive where they rise together, negative where they trade places."""
    planes = zip(first.fine, first.coarse, second.fine, second.coarse, strict=False)
    return np.array([difference_correlation(*four, _FLOOR) for four in planes])


def _nuclei(stats: Values, *, threshold: float, mpp: float, shape: Sequence[float]) -> tuple[Values, Values, Values]:
    """Return number, area share and alignment of nuclei; mean and std of each shape statistic; numbers by kind.

    Means are drawn towards an ordinary nucleus with the weight of two: few nuclei say little and none say nothing.
    """
    n, height, width = len(stats), *shape
    per_area = 1e4 / (height * width * mpp**2)  # per 100 x 100 um
    area, _, _, major, minor, angle, perimeter, staining, contrast, hollowness, distance = stats.T
    elongation = np.log(major / minor)
    columns = np.column_stack(
        [
            np.log(area * mpp**2),
            elongation,
            staining,
            contrast,
            hollowness,
            area / (math.pi / 4 * major * minor),
            np.log(perimeter**2 / (4 * math.pi * area)),
            np.log(distance * mpp),
        ]
    )
    ordinary = np.array([math.log(40), 0.4, 1.25 * threshold, 0.1, 1.0, 0.97, 0.1, math.log(15)])
    mean = (columns.sum(axis=0) + _PRIOR * ordinary) / (n + _PRIOR)
    std = np.sqrt(((columns - mean) ** 2).sum(axis=0) / (n + _PRIOR))
    turn = abs((elongation * np.exp(2j * angle)).sum()) / (elongation.sum() + _PRIOR * ordinary[1])
    kind = np.searchsorted(_AREAS_UM2, area * mpp**2, side="right") + len(_SIZES) * (elongation > _ROUND)
    numbers = np.sqrt(np.bincount(kind, minlength=2 * len(_SIZES)) * per_area)
    head = np.array([math.sqrt(n * per_area), area.sum() / (height * width), turn])
    return head, np.column_stack([mean, std]).ravel(), numbers


def _with_distance(stats: Values, shape: Sequence[float]) -> Values:
    """Add the distance to the nearest other nucleus, at most the tile's diagonal, to the columns of `region_stats`."""
    distance = nearest_neighbours(np.ascontiguousarray(stats[:, 1:3]))
    return np.column_stack([stats, np.minimum(distance, math.hypot(*shape))])


def _centre(
    spaces: Sequence[ScaleSpace], stains: Plane, nuclei: Values, *, threshold: float, mpp: float
) -> tuple[Values, ...]:
    """Return the leading statistics again for the middle half of the rows and columns."""
    shape = stains.shape[1:]
    means = np.array([distribution(_middle(plane), -0.5, 2.5, _LEVELS[:0])[0] for plane in stains[:2]])
    pairs = [pair for space in spaces for pair in zip(space.fine, space.coarse, strict=False)]
    bands = np.array([math.log(difference_moments(a, b, margin=_CENTRE)[0] + _FLOOR) for a, b in pairs])
    k = _BANDS_UM.index(_CENTRE_EDGES_UM) + 1
    lines = [coherence(block_tensor(space.fine[k], 1, margin=_CENTRE), floor=_FLOOR**2) for space in spaces[:2]]
    k = _BANDS_UM.index(_LBP_UM[0] / 2) + 1
    radius_px = max(_LBP_UM[0] / mpp / spaces[0].steps[k], 1.0)
    patterns = np.sqrt(lbp_histogram(_middle(spaces[0].fine[k]), radius_px))
    y, x = nuclei[:, 1], nuclei[:, 2]
    inside = (abs(y + 0.5 - shape[0] / 2) < shape[0] / 4) & (abs(x + 0.5 - shape[1] / 2) < shape[1] / 4)
    head, spread, numbers = _nuclei(nuclei[inside], threshold=threshold, mpp=mpp, shape=(shape[0] / 2, shape[1] / 2))
    return means, bands, np.array(lines), patterns, head[:2], spread[: 2 * len(_CENTRE_NUCLEUS) : 2], numbers


def _middle(plane: Plane) -> Plane:
    """Return the middle half of the rows and columns."""
    h, w = plane.shape
    return np.ascontiguousarray(plane[h // 4 : h - h // 4, w // 4 : w - w // 4])


def _chromatin(space: ScaleSpace, labels: NDArray[np.int32]) -> Values:
    """Log strength of the finest bands outside and inside nuclei."""
    out: list[float] = []
    for k in range(len(_CHROMATIN_UM)):
        step = space.steps[k]
        inside = (labels[:: 2 * step, ::step] > 0).astype(np.uint8)  # every other row tells as much
        out += [math.log(s + _FLOOR) for s in _by_class(space.fine[k][::2] - space.coarse[k][::2], inside, 2)[:, 2]]
    return np.array(out)


def _by_class(plane: Plane, classes: NDArray[np.uint8], n: int) -> Values:
    """Return (n, 3) share, mean and std of each class, where a rare class is taken to look like all of the tile."""
    table = class_means(plane, classes, n)
    share = table[:, :1]
    overall = np.array([(share[:, 0] * table[:, 1]).sum(), math.sqrt((share[:, 0] * table[:, 2] ** 2).sum())])
    table[:, 1:] = (share * table[:, 1:] + _RARE * overall) / (share + _RARE)
    return table


def _compartments(labels: NDArray[np.int32], stains: Plane, *, density: Plane, mpp: float) -> Values:
    """Share and staining of empty ground, nuclei, what lies within about 3 um of them, and the rest; size of voids."""
    nuclear = np.ascontiguousarray(labels[::2, ::2] > 0)  # half the rows and columns tell shares and means as well
    near = gaussian(nuclear.astype(np.float32), 0.75 / mpp) > 0.05
    empty = halve(gaussian(density, 0.5 / mpp)) < _EMPTY_DENSITY
    classes = np.where(nuclear, 1, np.where(empty, 0, np.where(near, 2, 3))).astype(np.uint8)
    tables = [_by_class(halve(plane), classes, len(_CLASSES)) for plane in stains]
    staining = np.stack([t[1:, 1:] for t in tables], axis=1)  # (class, stain, mean and std)
    voids = gaussian(empty.astype(np.float32), 2.0 / mpp)
    return np.concatenate([tables[0][:, 0], staining.ravel(), [math.log(float(voids.std(dtype=np.float64)) + 1e-2)]])

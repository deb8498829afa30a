"""The built-in encoder: named statistics of stain, texture, nuclei and compartments; nothing to download."""

from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.specs import TileSpec
from stpred.encoders._base import EncoderCard

if TYPE_CHECKING:
    from stpred._image.texture import ScaleSpace

Values = NDArray[np.float64]
Plane = NDArray[np.float32]

_STAINS = ("haematoxylin", "eosin", "residual")
_CHANNELS = ("red", "green", "blue")
_TEXTURED = ("haematoxylin", "eosin", "density")
_LEVELS = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
_BANDS_UM = (0.5, 1.0, 2.0, 4.0, 8.0)
_EDGES_UM = (0.5, 1.0, 2.0)
_LBP_UM = (0.5, 1.0, 2.0, 4.0)
_BLOCKS = 14
_POOLS = (("fine", 1), ("mid", 2), ("tile", _BLOCKS))
_CLASSES = ("empty", "nuclear", "perinuclear", "stromal")
_NUCLEUS_STATS = (
    "log_area",
    "elongation",
    "density",
    "contrast",
    "fill",
    "roughness",
    "log_distance",
    "relative_distance",
)
_AREAS_UM2 = (25.0, 45.0, 80.0)

_ROUND = 0.5  # log ratio of axes that parts round from elongated nuclei
_EMPTY_DENSITY = 0.12  # grey optical density below which a pixel of H&E is lumen, fat or glass
_FLOOR = 1e-3  # optical density: a quarter of a grey value


class Morphology:
    """Stain, texture, nuclear shape and arrangement of a tile as documented numbers.

    Parameters
    ----------
    tile
        What the tiles look like; None: 224 px at 0.5 um per pixel. Every scale is in micrometres and follows `tile.mpp`.
    threads
        Threads that share a batch; None: one per available core.

    Attributes
    ----------
    card
        Name ``"morphology"``, tile, width and feature names.

    Notes
    -----
    The features, by the start of their names (see `feature_names`):

    - ``haematoxylin_``, ``eosin_``, ``residual_``, ``red_``, ``green_``, ``blue_``: mean, standard deviation and quantiles
      of the stain amounts (colour deconvolution, Ruifrok & Johnston 2001) and optical densities;
    - ``*_band_{s}um_``: log strength, skewness and kurtosis of what a blur of `s` um takes away from the one before;
    - ``*_edges_{s}um_``: log gradient energy at `s` um, and its orientation coherence pooled over 8 um, 16 um and the tile;
    - ``*_lbp_{r}um_{k}``: square root of the share of local binary patterns (Ojala et al. 2002) with `k` ones at radius `r`
      (9: all patterns that are not uniform);
    - ``nuclei_``: number, area share, and per nucleus log area, elongation, staining, contrast inside, fill of the
      ellipse, roughness of the outline, distance to the nearest other; alignment; numbers by size and shape;
    - ``empty_``, ``nuclear_``, ``perinuclear_``, ``stromal_``: share of each compartment and its staining.

    A row depends on its tile alone: the same tile gives the same bits in any batch and with any number of threads.

    Examples
    --------
    >>> import numpy as np
    >>> encoder = Morphology()
    >>> encoder.encode(np.full((2, 224, 224, 3), 240, np.uint8)).shape == (2, encoder.card.width)
    True
    """

    def __init__(self, *, tile: TileSpec | None = None, threads: int | None = None) -> None:
        tile = TileSpec() if tile is None else tile
        if tile.size_px < 32:
            raise InputError(f"Morphology needs tiles of at least 32 px, got {tile}.")
        names = feature_names()
        self.card = EncoderCard("morphology", tile, len(names), revision="1", feature_names=names)
        self._threads = threads

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 tiles to (n, width) float32 features."""
        size = self.card.tile.size_px
        if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8 or tiles.shape[1:] != (size, size, 3):
            kind = f"{tiles.dtype} of shape {tiles.shape}" if isinstance(tiles, np.ndarray) else type(tiles).__name__
            raise InputError(f"Morphology takes uint8 tiles of shape (n, {size}, {size}, 3), got {kind}.")
        out = np.empty((len(tiles), self.card.width), np.float32)

        def fill(row: int) -> None:
            out[row] = describe(tiles[row], mpp=self.card.tile.mpp)

        threads = min(len(tiles), _cores() if self._threads is None else self._threads)
        if threads <= 1:
            for row in range(len(tiles)):
                fill(row)
        else:
            with ThreadPoolExecutor(threads) as workers:
                list(workers.map(fill, range(len(tiles))))
        return out

    def to(self, device: str | None) -> Morphology:
        """Return the encoder itself: it has no parameters and runs on the CPU."""
        return self


def feature_names() -> tuple[str, ...]:
    """Return the name of every feature, in order."""
    colour = [
        f"{p}_{s}" for p in _STAINS + _CHANNELS for s in ("mean", "std", *(f"q{round(100 * q):02d}" for q in _LEVELS))
    ]
    texture = []
    for plane in _TEXTURED:
        texture += [f"{plane}_band_{s:g}um_{m}" for s in _BANDS_UM for m in ("strength", "skewness", "kurtosis")]
        texture += [f"{plane}_coarse_strength"]
        texture += [
            f"{plane}_edges_{s:g}um_{m}" for s in _EDGES_UM for m in ("energy", *(f"coherence_{p}" for p, _ in _POOLS))
        ]
        texture += [f"{plane}_lbp_{r:g}um_{k}" for r in _LBP_UM for k in range(10)]
    texture += [f"haematoxylin_eosin_mixing_{s:g}um" for s in _BANDS_UM]
    nuclei = ["nuclei_threshold", "nuclei_number", "nuclei_share", "nuclei_alignment"]
    nuclei += [f"nuclei_{s}_{m}" for s in _NUCLEUS_STATS for m in ("mean", "std", "q10", "q50", "q90")]
    sizes = ("tiny", "small", "medium", "large")
    nuclei += [f"nuclei_{shape}_{size}" for shape in ("round", "long") for size in sizes]
    compartments = [f"{c}_share" for c in _CLASSES]
    compartments += [f"{c}_{s}_{m}" for c in _CLASSES[1:] for s in _STAINS for m in ("mean", "std")]
    return (*colour, *texture, *nuclei, *compartments, "empty_patchiness")


def describe(tile: NDArray[np.uint8], *, mpp: float) -> Values:
    """Return the features of one (h, w, 3) uint8 tile, in the order of `feature_names`."""
    from stpred._image.nuclei import region_stats, segment
    from stpred._image.stain import optical_density, unmix
    from stpred._image.texture import distribution, scale_space

    density = optical_density(tile)
    stains = unmix(density)
    grey = (density[0] + density[1] + density[2]) * np.float32(1 / 3)
    parts = [distribution(plane, -0.5, 2.5, _LEVELS) for plane in (*stains, *density)]
    spaces = [scale_space(plane, [s / mpp for s in _BANDS_UM]) for plane in (stains[0], stains[1], grey)]
    parts += [f(space, mpp) for space in spaces for f in (_bands, _edges, _patterns)]
    parts.append(_mixing(spaces[0], spaces[1]))
    labels, threshold = segment(stains[0], mpp=mpp)
    parts.append(_nuclei(region_stats(labels, stains[0]), threshold, mpp, grey.size))
    parts.append(_compartments(labels, stains, grey, mpp))
    return np.concatenate(parts)


def _bands(space: ScaleSpace, mpp: float) -> Values:
    """Log strength, and signed logs of skewness and kurtosis, of every band; log strength of what is left."""
    from stpred._image.texture import difference_moments

    out: list[float] = []
    for fine, coarse in zip(space.fine, space.coarse, strict=False):
        rms, skewness, kurtosis = difference_moments(fine, coarse)
        out += [math.log(rms + _FLOOR), math.copysign(math.log1p(abs(skewness)), skewness), math.log1p(kurtosis)]
    return np.array([*out, math.log(float(space.fine[-1].std(dtype=np.float64)) + _FLOOR)])


def _edges(space: ScaleSpace, mpp: float) -> Values:
    """Log gradient (optical density per um) of every fine blur and its coherence over growing neighbourhoods."""
    from stpred._image.texture import block_tensor, coherence, pool

    out: list[float] = []
    for k in range(1, 1 + len(_EDGES_UM)):
        tensor = block_tensor(space.fine[k], _BLOCKS) / (space.steps[k] * mpp) ** 2
        out.append(0.5 * math.log(tensor[..., :2].sum() + _FLOOR**2))
        out += [coherence(pool(tensor, by), floor=_FLOOR**2) for _, by in _POOLS]
    return np.array(out)


def _patterns(space: ScaleSpace, mpp: float) -> Values:
    """Square roots of the shares of local binary patterns, at twice the width of the blur that they are read from."""
    from stpred._image.texture import lbp_histogram

    shares = []
    for radius_um, image, step in zip(_LBP_UM, space.fine, space.steps, strict=False):
        shares.append(lbp_histogram(image, max(radius_um / mpp / step, 1.0), stride_px=2 if step == 1 else 1))
    return np.sqrt(np.concatenate(shares))


def _mixing(first: ScaleSpace, second: ScaleSpace) -> Values:
    """Correlation of two stains in every band: do they vary together, or does one give way to the other?"""
    from stpred._image.texture import difference_correlation

    planes = zip(first.fine, first.coarse, second.fine, second.coarse, strict=False)
    return np.array([difference_correlation(*four, _FLOOR) for four in planes])


def _nuclei(stats: Values, threshold: float, mpp: float, n_px: int) -> Values:
    from stpred._image.nuclei import nearest_neighbours

    tile_um = mpp * math.sqrt(n_px)
    per_area = 1e4 / (n_px * mpp**2)  # numbers are per 100 x 100 um
    n = len(stats)
    area, major, minor = stats[:, 0] * mpp**2, stats[:, 3] * mpp, stats[:, 4] * mpp
    elongation = np.log(major / np.maximum(minor, 1e-9)) if n else np.zeros(0)
    distance = np.minimum(nearest_neighbours(np.ascontiguousarray(stats[:, 1:3])) * mpp, tile_um)
    columns = np.stack(
        [
            np.log(area),
            elongation,
            stats[:, 7],
            stats[:, 8],
            area / (math.pi / 4 * major * minor) if n else area,
            stats[:, 6] ** 2 / (4 * math.pi * stats[:, 0]) if n else area,
            np.log(distance),
            distance / np.sqrt(area) if n else area,
        ],
        axis=1,
    )
    turn = (elongation * np.exp(2j * stats[:, 5])).sum()
    head = [threshold, math.sqrt(n * per_area), area.sum() / tile_um**2, abs(turn) / (elongation.sum() + 1e-9)]
    size = np.searchsorted(_AREAS_UM2, area, side="right") + 4 * (elongation > _ROUND)
    by_kind = np.sqrt(np.bincount(size, minlength=8) * per_area)
    return np.concatenate([head, _spread(columns).ravel(), by_kind])


def _spread(columns: Values) -> Values:
    """Return (k, 5): mean, standard deviation and 10, 50, 90 % quantile of every column; zeros without rows."""
    n, k = columns.shape
    if n == 0:
        return np.zeros((k, 5))
    ranked = np.sort(columns, axis=0)
    at = np.array([0.1, 0.5, 0.9]) * (n - 1)
    low = np.floor(at).astype(int)
    part = (at - low)[:, None]
    quantiles = ranked[low] * (1 - part) + ranked[np.minimum(low + 1, n - 1)] * part
    return np.vstack([columns.mean(axis=0), columns.std(axis=0), quantiles]).T


def _compartments(labels: NDArray[np.int32], stains: Plane, grey: Plane, mpp: float) -> Values:
    """Share and staining of empty ground, nuclei, what lies within about 3 um of them, and the rest."""
    from stpred._image.texture import class_means, gaussian, halve

    nuclear = np.ascontiguousarray(labels[::2, ::2] > 0)  # half the pixels tell shares and means as well
    near = gaussian(nuclear.astype(np.float32), 0.75 / mpp) > 0.05
    empty = halve(gaussian(grey, 0.5 / mpp)) < _EMPTY_DENSITY
    classes = np.where(nuclear, 1, np.where(empty, 0, np.where(near, 2, 3))).astype(np.uint8)
    tables = [class_means(halve(plane), classes, len(_CLASSES)) for plane in stains]
    staining = np.stack([t[1:, 1:] for t in tables], axis=1)  # (class, stain, mean and std)
    holes = gaussian(empty.astype(np.float32), 2.0 / mpp)
    return np.concatenate([tables[0][:, 0], staining.ravel(), [math.log(float(holes.std(dtype=np.float64)) + 1e-2)]])


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Where a picture lies on another, over all turns, mirror images, scales and shifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stpred._image.registration.refine import Level, improve, inverse
from stpred._image.registration.sides import Side

N_ANGLES, N_SCALES = 64, 7
OUTLINE = 0.4
"""Weight of the agreement of the outlines beside that of the structure: where tissue is missing they do not agree."""

COARSE_PX = 56
"""Pixels along the tissue at which all turns are tried."""

_KEPT = (48, 32, 4)
"""Placements that are followed at the first levels; the best one from then on."""

MAX_STRETCH = 0.018
"""By how much a pixel may be longer than it is wide; more than 2 % are not accepted anywhere."""

_APART = 0.08
"""Distance, in extents of the tissue, from which on two placements are different ones."""


@dataclass(frozen=True)
class Options:
    """What is searched.

    Attributes
    ----------
    min_scale, max_scale
        Of the moving side's micrometres.
    finest_um
        Edge of the smallest pixels.
    """

    min_scale: float = 0.8
    max_scale: float = 1.25
    finest_um: float = 2.0


class Pair:
    """Two sides at all the pixel sizes of a search, which are prepared once."""

    def __init__(self, moving: Side, fixed: Side, options: Options | None = None) -> None:
        self.moving, self.fixed = moving, fixed
        self.options = Options() if options is None else options
        self.sizes_um = level_sizes(moving, fixed, self.options)
        self._levels: dict[int, Level] = {}

    def level(self, k: int) -> Level:
        """Return the sides at the pixel size of a level; negative ones from the finest."""
        k = range(len(self.sizes_um))[k]
        if k not in self._levels:
            self._levels[k] = Level.of(self.moving, self.fixed, self.sizes_um[k])
        return self._levels[k]


def find(pair: Pair, *, start: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Return the (3, 3) placement, from moving to fixed micrometres, at which the two sides agree best.

    Turns, mirror images, scales and shifts are tried together and improved from level to level; at the end the tissue
    may be stretched and sheared, as far as pixels stay square.

    Parameters
    ----------
    pair
        Both sides.
    start
        Placement to begin from, instead of trying all.
    """
    placements = coarse(pair) if start is None else [inverse(start)]
    for k in range(len(pair.sizes_um)):
        level = pair.level(k)
        scored = [(level.score(b)[0], b) for b in (improve(level, back, rigid=True) for back in placements)]
        scored.sort(key=lambda one: -one[0])
        placements = distinct([b for _, b in scored], pair.fixed, _KEPT[k + 1] if k + 1 < len(_KEPT) else 1)
    return inverse(stretched(pair, placements[0]))


def stretched(pair: Pair, back: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a placement stretched and sheared to the best agreement; as it was where pixels would not stay square."""
    out = back
    for k in (-2, -1) if len(pair.sizes_um) > 1 else (-1,):
        out = improve(pair.level(k), out, rigid=False)
    largest, smallest = np.linalg.svd(out[:2, :2], compute_uv=False)
    return out if largest / smallest - 1 <= MAX_STRETCH else back


def level_sizes(moving: Side, fixed: Side, options: Options) -> list[float]:
    """Return the pixel sizes of the search, from coarse to fine."""
    extent = max(moving.extent_um, fixed.extent_um)
    finest = max(options.finest_um, fixed.min_px_um, moving.min_px_um, extent / 1000)
    sizes = [max(extent / COARSE_PX, finest)]
    while sizes[-1] > 1.5 * finest:
        sizes.append(sizes[-1] / 2)
    return sizes


def coarse(pair: Pair) -> list[NDArray[np.float64]]:
    """Return the best placements of all turns, mirror images, scales and shifts, as fixed to moving micrometres."""
    scan = Scan.of(pair.moving, pair.fixed, pair.sizes_um[0])
    scales = np.geomspace(pair.options.min_scale, pair.options.max_scale, N_SCALES + 2)[1:-1]
    found = [scan.best(linear) for linear in orientations(scales)]
    found.sort(key=lambda scored: -scored[0])
    return distinct([back for _, back in found], pair.fixed, _KEPT[0])


def orientations(scales: NDArray[np.float64], n_angles: int = N_ANGLES) -> Iterator[NDArray[np.float64]]:
    """Yield (2, 2) maps from fixed to moving micrometres: turns by equal steps, with and without a mirror, scaled."""
    for mirror in (1.0, -1.0):
        for angle in np.arange(n_angles) * 2 * np.pi / n_angles:
            c, s = np.cos(angle), np.sin(angle)
            for scale in scales:
                yield np.array([[c, -s], [s * mirror, c * mirror]]) / scale


@dataclass(frozen=True)
class Scan:
    """Both sides on coarse pixels, ready to be compared at all shifts at once.

    Attributes
    ----------
    spectra
        Fourier transforms of the fixed side: its mask, and its planes.
    norms
        (1 + c,) roots of their sums of squares.
    moving
        (1 + q, h, w) mask and planes of the moving side.
    shape
        Of the fixed grid.
    size, canvas
        Edges of the transforms, and of the part that holds the moving tissue however it is turned.
    """

    spectra: NDArray[np.complexfloating]
    norms: NDArray[np.float64]
    moving: NDArray[np.float32]
    shape: tuple[int, int]
    size: int
    canvas: int
    px_um: float
    fixed_corner_um: NDArray[np.float64]
    moving_px_um: float
    moving_corner_um: NDArray[np.float64]
    moving_centre_um: NDArray[np.float64]
    signed: bool

    @classmethod
    def of(cls, moving: Side, fixed: Side, px_um: float) -> Scan:
        """Prepare two sides at a pixel size."""
        from scipy.fft import next_fast_len, rfft2

        one, other = fixed.at(px_um), moving.at(px_um)
        signed = min(moving.n_nuclear, fixed.n_nuclear) > 0
        if signed:
            one = replace(one, planes=one.planes[: fixed.n_nuclear])
            other = replace(other, planes=other.planes[: moving.n_nuclear])
        planes, grid = _compared(one), _compared(other)
        rows, columns = np.nonzero(other.mask)
        at = np.column_stack([columns + 0.5, rows + 0.5]) * other.px_um + other.corner_um
        reach = float(np.linalg.norm(at - other.centre_um, axis=1).max())
        canvas = int(np.ceil(2 * reach * 1.25 / one.px_um)) + 2
        size = next_fast_len(max(planes.shape[1:]) + canvas, real=True)
        return cls(
            rfft2(planes, (size, size)), _norms(planes), grid, planes.shape[1:], size, canvas, one.px_um,
            one.corner_um, other.px_um, other.corner_um, other.centre_um, signed,
        )  # fmt: skip

    def best(self, linear: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Return the score of the best shift for a (2, 2) map from fixed to moving micrometres, and that placement.

        The score is `OUTLINE` times the agreement of the outlines (their common area over the root of the product of
        both), plus the correlation of the structure.
        """
        from scipy.fft import irfft2, rfft2
        from scipy.ndimage import affine_transform

        # From pixels of the canvas, row first, to pixels of the moving grid.
        matrix = linear[::-1, ::-1] * self.px_um / self.moving_px_um
        centre = ((self.moving_centre_um - self.moving_corner_um) / self.moving_px_um - 0.5)[::-1]
        middle = (self.canvas - 1) / 2
        turned = np.stack(
            [
                affine_transform(plane, matrix, centre - matrix @ [middle, middle], (self.canvas, self.canvas), order=1)
                for plane in self.moving
            ]
        )
        norms = np.maximum(_norms(turned), 1e-9)
        spectra = np.conj(rfft2(turned, (self.size, self.size)))
        score = OUTLINE * irfft2(self.spectra[0] * spectra[0], (self.size, self.size)) / (self.norms[0] * norms[0])
        squares = np.zeros_like(score)
        for c in range(1, len(self.spectra)):
            for q in range(1, len(spectra)):
                r = irfft2(self.spectra[c] * spectra[q], (self.size, self.size)) / (self.norms[c] * norms[q])
                squares += (np.maximum(r, 0) if self.signed else r) ** 2
        score += np.sqrt(squares / ((len(self.spectra) - 1) * (len(spectra) - 1)))
        row, column = np.unravel_index(int(np.argmax(score)), score.shape)
        shift = np.array([column, row], dtype=np.float64)
        shift -= self.size * (shift >= np.array(self.shape[::-1]))  # negative ones wrap around
        at = self.fixed_corner_um + (shift + self.canvas / 2) * self.px_um
        back = np.eye(3)
        back[:2, :2], back[:2, 2] = linear, self.moving_centre_um - linear @ at
        return float(score[row, column]), back


def _compared(side: Side) -> NDArray[np.float32]:
    """Return the (1 + c, h, w) mask and structure of a side."""
    return np.concatenate([side.mask[None].astype(np.float32), side.structure()])


def _norms(planes: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sqrt(np.maximum((planes.astype(np.float64) ** 2).sum(axis=(1, 2)), 1e-12))


def distinct(placements: list[NDArray[np.float64]], fixed: Side, n: int) -> list[NDArray[np.float64]]:
    """Return the first `n` placements that bring the tissue to different places."""
    angle = np.arange(8) * np.pi / 4
    rim = fixed.centre_um + fixed.extent_um / 2 * np.column_stack([np.cos(angle), np.sin(angle)])
    kept: list[NDArray[np.float64]] = []
    places: list[NDArray[np.float64]] = []
    for back in placements:
        at = rim @ back[:2, :2].T + back[:2, 2]
        limit = _APART * fixed.extent_um
        if all(np.sqrt(((at - other) ** 2).sum(axis=1).mean()) > limit for other in places):
            kept.append(back)
            places.append(at)
        if len(kept) == n:
            break
    return kept

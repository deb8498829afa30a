"""How far a placement can be believed: against wrong placements of the same two pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stpred._image.registration.refine import improve, inverse
from stpred._image.registration.search import Pair, Scan, distinct, orientations
from stpred._image.registration.sides import Side

N_NULL_ANGLES = 8

DECISION_LEVEL = 2

MIN_Z, MIN_RATIO = 5.0, 1.25
"""By how many standard deviations a right placement is above the mean of wrong ones, and how much above the best."""

_N_BLOCKS = 6
_MIN_BLOCK_SHARE = 0.6
_MIN_BLOCK_SCORE = 0.15


@dataclass(frozen=True)
class Quality:
    """What a placement is worth.

    Attributes
    ----------
    score
        Agreement of the structure of both sides, as `Level.score`.
    null
        (k,) of the best placements at wrong turns and mirror images, improved in the same way.
    overlap
        Dice coefficient of the outlines.
    residual_um
        Median distance by which parts of the tissue would agree still better; NaN where no part is clear.
    """

    score: float
    null: NDArray[np.float64]
    overlap: float
    residual_um: float

    @property
    def z(self) -> float:
        """Standard deviations of the null by which the score is above its mean."""
        return float((self.score - self.null.mean()) / max(float(self.null.std(ddof=1)), 0.01))

    @property
    def convincing(self) -> bool:
        """Whether no wrong placement comes near."""
        return self.z >= MIN_Z and self.score >= MIN_RATIO * float(self.null.max())


def judge(pair: Pair, affine: NDArray[np.float64]) -> Quality:
    """Compare a (3, 3) placement, from moving to fixed micrometres, with wrong ones."""
    back = inverse(affine)
    k = min(DECISION_LEVEL, len(pair.sizes_um) - 1)
    level = pair.level(k)
    scan = Scan.of(pair.moving, pair.fixed, pair.sizes_um[0])
    null = []
    for turn in list(orientations(np.ones(1), N_NULL_ANGLES))[1:]:
        wrong = scan.best(back[:2, :2] @ turn)[1]
        for step in range(k + 1):
            wrong = improve(pair.level(step), wrong, rigid=True, max_steps=20)
        if len(distinct([back, wrong], pair.fixed, 2)) == 2:  # none that was led back to the placement itself
            null.append(level.score(wrong)[0])
    return Quality(level.score(back)[0], np.array(null), overlap(pair, back), residual_um(pair, back))


def overlap(pair: Pair, back: NDArray[np.float64]) -> float:
    """Return the Dice coefficient of the outlines; of the moving one the part that is on the fixed grid."""
    size = pair.sizes_um[min(1, len(pair.sizes_um) - 1)]
    fixed, moving = pair.fixed.at(size), pair.moving.at(size)
    there = on_grid(moving.mask[None].astype(np.float32), moving, fixed, back)[0] > 0.5
    return float(2 * (there & fixed.mask).sum() / max(int(there.sum() + fixed.mask.sum()), 1))


def on_grid(planes: NDArray[np.float32], moving: Side, fixed: Side, back: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return (k, h, w) planes of the moving side's grid on the fixed one, 0 beyond them."""
    from scipy.ndimage import affine_transform

    matrix = back[:2, :2][::-1, ::-1] * fixed.px_um / moving.px_um
    first = fixed.corner_um + fixed.px_um / 2
    offset = ((back[:2, :2] @ first + back[:2, 2] - moving.corner_um) / moving.px_um - 0.5)[::-1]
    return np.stack([affine_transform(p, matrix, offset, fixed.mask.shape, order=1) for p in planes])


def residual_um(pair: Pair, back: NDArray[np.float64]) -> float:
    """Return the median shift that would bring parts of the tissue to a still better agreement.

    The tissue is cut into squares, a sixth of it along each edge, and each is compared with its surroundings at all
    shifts of up to a quarter of its edge.
    """
    from scipy.fft import irfft2, rfft2

    size = pair.sizes_um[-1]
    fixed, moving = pair.fixed.at(size), pair.moving.at(size)
    f = fixed.structure()[0]
    m = on_grid(moving.structure()[:1], moving, fixed, back)[0]
    edge = max(16, int(fixed.extent_um / _N_BLOCKS / fixed.px_um))
    reach = max(2, edge // 4)
    shifts = []
    for row in range(0, f.shape[0] - edge + 1, edge):
        for column in range(0, f.shape[1] - edge + 1, edge):
            part = np.s_[row : row + edge, column : column + edge]
            one, other = f[part], m[part]
            norm = float(np.sqrt((one**2).sum() * (other**2).sum()))
            if min((one != 0).mean(), (other != 0).mean()) < _MIN_BLOCK_SHARE or norm == 0:
                continue
            full = irfft2(rfft2(one, (2 * edge, 2 * edge)) * np.conj(rfft2(other, (2 * edge, 2 * edge)))) / norm
            near = np.roll(full, (reach, reach), axis=(0, 1))[: 2 * reach + 1, : 2 * reach + 1]
            if near.max() >= _MIN_BLOCK_SCORE:
                shifts.append(np.hypot(*(np.array(np.unravel_index(int(near.argmax()), near.shape)) - reach)))
    return float(np.median(shifts)) * fixed.px_um if shifts else float("nan")

"""Placements of a picture on another improved by the correlation of their structure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.compute.jit import kernel
from stpred._image.registration.sides import Side

MAX_POINTS = 10_000

_STEP = 20.0
"""Scores are multiplied by this, so that the first step of the search is about a pixel."""

MIN_SHARE = 0.5
"""Of the smaller tissue, that has to lie on the other before the correlation counts in full."""


def inverse(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the (3, 3) map the other way."""
    return np.asarray(np.linalg.inv(affine), dtype=np.float64)


@dataclass(frozen=True)
class Level:
    """Both sides at one pixel size, ready to be compared.

    Attributes
    ----------
    fixed
        (c, n) structure of the fixed side at n points.
    points_um
        (n, 2) where they lie.
    moving
        (h, w, 3 q) structure of the q planes of the moving side, then their change per micrometre along x and along y.
    px_um, corner_um
        Grid of the moving side.
    signed
        Whether all planes are the higher the more nuclei there are; otherwise any relation of two planes counts.
    centre_um, radius_um
        Of the fixed tissue, so that all parameters of a placement have one size.
    floor
        (q,) least sums of squares of the moving side, so that a sliver of it cannot agree by chance.
    """

    fixed: NDArray[np.float32]
    points_um: NDArray[np.float64]
    moving: NDArray[np.float32]
    px_um: float
    corner_um: NDArray[np.float64]
    signed: bool
    centre_um: NDArray[np.float64]
    radius_um: float
    floor: NDArray[np.float64]

    @classmethod
    def of(cls, moving: Side, fixed: Side, px_um: float) -> Level:
        """Prepare two sides at a pixel size."""
        from scipy.ndimage import binary_dilation

        one, other = fixed.at(px_um), moving.at(px_um)
        f, m = one.structure(), other.structure()
        signed = min(moving.n_nuclear, fixed.n_nuclear) > 0
        if signed:
            f, m = f[: fixed.n_nuclear], m[: moving.n_nuclear]
        rows, columns = np.nonzero(binary_dilation(one.mask, iterations=2))
        if len(rows) > MAX_POINTS:
            chosen = np.sort(np.random.default_rng(0).choice(len(rows), MAX_POINTS, replace=False))
            rows, columns = rows[chosen], columns[chosen]
        points = np.column_stack([columns + 0.5, rows + 0.5]) * one.px_um + one.corner_um
        planes = np.concatenate([m, *np.gradient(m, other.px_um, axis=(2, 1))]).astype(np.float32)
        n_moving = float(other.mask.sum()) * (other.px_um / one.px_um) ** 2 * len(rows) / max(int(one.mask.sum()), 1)
        square = (m**2).sum(axis=(1, 2)) / max(int(other.mask.sum()), 1)
        floor = np.maximum(MIN_SHARE * min(len(rows), n_moving) * square, 1e-9)
        return cls(
            f[:, rows, columns], points, np.ascontiguousarray(np.moveaxis(planes, 0, -1)), other.px_um,
            other.corner_um, signed, fixed.centre_um, max(fixed.extent_um / 2, 1.0), floor,
        )  # fmt: skip

    def score(self, back: NDArray[np.float64], *, slope: bool = False) -> tuple[float, NDArray[np.float64]]:
        """Return how well a placement brings the sides together, and its change with the placement.

        Parameters
        ----------
        back
            (3, 3) from the fixed to the moving side's micrometres.
        slope
            Whether the change is wanted.

        Returns
        -------
        The root mean square of the correlations of any two planes, without negative ones where the planes are signed;
        and the (2, 3) derivative by `back[:2]`, zero where it is not asked for.
        """
        at = self.points_um @ back[:2, :2].T + back[:2, 2]
        column, row = ((at - self.corner_um) / self.px_um - 0.5).T
        sampled = np.empty((self.moving.shape[2], len(at)), np.float32)
        _sample(self.moving, row, column, sampled)
        n, fixed = len(self.floor), self.fixed
        m, along_x, along_y = sampled[:n], sampled[n : 2 * n], sampled[2 * n :]
        found = np.array([float(plane @ plane) for plane in m])
        mm = np.maximum(found, self.floor)
        ff = np.array([max(float(plane @ plane), 1e-9) for plane in fixed])
        r = (fixed @ m.T).astype(np.float64) / np.sqrt(ff[:, None] * mm)
        r = np.maximum(r, 0) if self.signed else r
        value = float(np.sqrt((r**2).mean()))
        gradient = np.zeros((2, 3))
        if slope:
            outer = r / max(value, 1e-9) / r.size
            # By the quotient rule: of each plane and point, what its value does to the correlations.
            weight = (outer / np.sqrt(ff[:, None] * mm)).T.astype(np.float32) @ fixed
            weight -= ((outer * r).sum(axis=0) / mm * (found > self.floor)).astype(np.float32)[:, None] * m
            for axis, change in enumerate((along_x, along_y)):
                along = np.einsum("qn,qn->n", weight, change)
                gradient[axis] = *(along @ self.points_um), along.sum()
        return value, gradient


@kernel
def _sample(planes: Any, row: Any, column: Any, out: Any) -> None:
    """Fill (k, n) with values of (h, w, k) planes between pixels, 0 off the grid."""
    h, w, k = planes.shape
    for n in range(len(row)):
        y, x = row[n], column[n]
        if not (0 <= y < h - 1 and 0 <= x < w - 1):
            out[:, n] = 0
            continue
        i, j = int(y), int(x)
        dy, dx = y - i, x - j
        for c in range(k):
            top = planes[i, j, c] * (1 - dx) + planes[i, j + 1, c] * dx
            below = planes[i + 1, j, c] * (1 - dx) + planes[i + 1, j + 1, c] * dx
            out[c, n] = top * (1 - dy) + below * dy


def improve(level: Level, back: NDArray[np.float64], *, rigid: bool, max_steps: int = 40) -> NDArray[np.float64]:
    """Return the placement near `back` at which the sides agree best.

    Parameters
    ----------
    level
        Both sides.
    back
        (3, 3) from the fixed to the moving side's micrometres.
    rigid
        Turn, scale and shift only; otherwise any affine.
    max_steps
        Of the quasi-Newton search (L-BFGS).
    """
    from scipy.optimize import minimize

    basis = _basis(back, level, rigid=rigid)

    def moved(p: NDArray[np.float64]) -> NDArray[np.float64]:
        out = back.copy()
        out[:2] += np.tensordot(p, basis, axes=1)
        return out

    def loss(p: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = level.score(moved(p), slope=True)
        return -_STEP * value, -_STEP * np.einsum("kij,ij->k", basis, gradient)

    options = {"maxiter": max_steps, "maxfun": 2 * max_steps, "ftol": 1e-5, "gtol": 1e-3}
    found = minimize(loss, np.zeros(len(basis)), jac=True, method="L-BFGS-B", options=options)
    return moved(found.x) if -found.fun >= _STEP * level.score(back)[0] else back


def _basis(back: NDArray[np.float64], level: Level, *, rigid: bool) -> NDArray[np.float64]:
    """Return (k, 2, 3) changes of a placement, each of which moves the rim of the tissue by a pixel."""
    linear = back[:2, :2]
    turn = np.array([[0.0, -1.0], [1.0, 0.0]])
    size = np.sqrt(abs(np.linalg.det(linear)))
    if rigid:
        parts = [linear / size, linear @ turn / size]
    else:
        parts = [np.outer(a, b) for a in np.eye(2) for b in np.eye(2)]
    out = [np.column_stack([p, -p @ level.centre_um]) / level.radius_um for p in parts]
    out += [np.column_stack([np.zeros((2, 2)), e]) for e in np.eye(2)]
    return np.stack(out) * level.px_um

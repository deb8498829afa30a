"""Stain separation by the Beer-Lambert law: optical density and colour deconvolution of batches of RGB pixels."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, positive

HAEMATOXYLIN = (0.65, 0.70, 0.29)
EOSIN = (0.07, 0.99, 0.11)
DAB = (0.27, 0.57, 0.78)


def stain_matrix(*vectors: tuple[float, float, float]) -> NDArray[np.float64]:
    """Return the (3, 3) matrix whose rows are the unit optical-density vectors of the stains.

    With two stains the third row is the residual, perpendicular to both.

    Parameters
    ----------
    vectors
        Two or three stain vectors in optical density of red, green and blue. Without any: haematoxylin and eosin of
        Ruifrok & Johnston 2001 (Anal. Quant. Cytol. Histol. 23:291) and their residual.

    Examples
    --------
    >>> stain_matrix().shape
    (3, 3)
    """
    rows = np.asarray(vectors or (HAEMATOXYLIN, EOSIN), dtype=np.float64)
    if rows.shape not in ((2, 3), (3, 3)):
        raise InputError(f"A stain matrix takes two or three vectors of three densities, got shape {rows.shape}.")
    if len(rows) == 2:
        rows = np.vstack([rows, np.cross(rows[0], rows[1])])
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (lengths > 1e-9).all() or abs(np.linalg.det(rows / np.maximum(lengths, 1e-9))) < 1e-6:
        raise InputError(f"The stain vectors are not independent: {rows.tolist()}.")
    return rows / lengths


def optical_density(rgb: NDArray[np.uint8], *, background: float = 255.0) -> NDArray[np.float32]:
    """Return -log10 of the transmitted light of every channel, as planes.

    Parameters
    ----------
    rgb
        (..., 3) uint8 pixels. Grey value 0 counts as 1, the darkest that 8 bits can tell from nothing.
    background
        Grey value of light that met no tissue.

    Returns
    -------
    (3, ...) float32 densities of red, green and blue, one contiguous plane each; 0 where the pixel is as bright as
    `background`.

    Examples
    --------
    >>> import numpy as np
    >>> optical_density(np.full((4, 5, 3), 255, np.uint8)).shape
    (3, 4, 5)
    """
    if not isinstance(rgb, np.ndarray) or rgb.dtype != np.uint8:
        raise InputError(f"Pixels must be a uint8 array, got {getattr(rgb, 'dtype', type(rgb).__name__)}.")
    if rgb.ndim < 2 or rgb.shape[-1] != 3:
        raise InputError(f"Pixels must have 3 colour channels in the last axis, got an array of shape {rgb.shape}.")
    from stpred._image.stain_kernels import look_up

    table = (-np.log10(np.maximum(np.arange(256), 1) / positive(background, name="background"))).astype(np.float32)
    return look_up(np.ascontiguousarray(rgb).reshape(-1, 3), table).reshape(3, *rgb.shape[:-1])


def unmix(density: NDArray[np.float32], *, matrix: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Return the amount of each stain from (3, ...) optical densities (colour deconvolution).

    Parameters
    ----------
    density
        (3, ...) float32 planes from `optical_density`.
    matrix
        (3, 3) rows of stain vectors from `stain_matrix`; None: haematoxylin, eosin and residual.

    Returns
    -------
    (3, ...) float32 amounts, in optical density along the unit vectors, one contiguous plane per stain.
    """
    from stpred._image.stain_kernels import combine

    inverse = he_inverse() if matrix is None else np.linalg.inv(matrix).astype(np.float32)
    planes = np.ascontiguousarray(density, dtype=np.float32).reshape(3, -1)
    return combine(planes, inverse).reshape(density.shape)


def separate(rgb: NDArray[np.uint8], *, matrix: NDArray[np.float64] | None = None) -> NDArray[np.float32]:
    """Return the (3, ...) amounts of each stain in (..., 3) uint8 pixels: `unmix` of the `optical_density`."""
    return unmix(optical_density(rgb), matrix=matrix)


@cache
def he_inverse() -> NDArray[np.float32]:
    """Return what densities are multiplied by for haematoxylin, eosin and residual, (3, 3)."""
    return np.linalg.inv(stain_matrix()).astype(np.float32)

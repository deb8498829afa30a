"""The same tissue under another camera: rotated, mirrored, at another resolution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def placement(
    size_um: tuple[float, float], *, mpp: float, rotation_deg: float, flip: bool
) -> tuple[NDArray[np.float64], tuple[int, int]]:
    """Return the (3, 3) affine from new pixels (x, y) to micrometres, and the (rows, columns) that hold the slide.

    The slide is turned by `rotation_deg` about its centre (from x towards y) and, with `flip`, mirrored left to right.
    """
    angle = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    if flip:
        turn = turn @ np.diag([-1.0, 1.0])
    extent = np.abs(turn.T) @ np.asarray(size_um) / mpp
    columns, rows = (int(np.ceil(e - 1e-6)) for e in extent)
    affine = np.eye(3)
    affine[:2, :2] = turn * mpp
    affine[:2, 2] = np.asarray(size_um) / 2 - affine[:2, :2] @ (np.array([columns, rows]) / 2)
    return affine, (rows, columns)


def warp(
    image: NDArray[np.uint8], *, mpp: float, affine: NDArray[np.float64], shape: tuple[int, int]
) -> NDArray[np.uint8]:
    """Resample an image of `mpp` (bicubic) onto pixels that `affine` places in micrometres; outside is glass."""
    from PIL import Image

    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    glass = tuple(np.median(border, axis=0).astype(int).tolist())
    to_source = tuple((affine[:2] / mpp).ravel().tolist())
    warped = Image.fromarray(image).transform(
        shape[::-1], Image.Transform.AFFINE, to_source, resample=Image.Resampling.BICUBIC, fillcolor=glass
    )
    return np.asarray(warped)

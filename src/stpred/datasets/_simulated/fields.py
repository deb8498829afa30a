"""Smooth random fields over a slide, and their place in micrometres."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]


@dataclass(frozen=True)
class Canvas:
    """A coarse grid over a slide on which fields live; fields are read at points or brought to pixels.

    Parameters
    ----------
    size_um
        Width (x) and height (y) of the slide.
    step_um
        Wanted grid step; the true one divides the size evenly.
    """

    size_um: tuple[float, float]
    step_um: float = 4.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return (max(4, round(self.size_um[1] / self.step_um)), max(4, round(self.size_um[0] / self.step_um)))

    def centres(self) -> tuple[Field, Field]:
        """Return x (1, columns) and y (rows, 1) of the grid's cell centres in micrometres."""
        rows, columns = self.shape
        x = (np.arange(columns, dtype=np.float32)[None] + 0.5) * np.float32(self.size_um[0] / columns)
        y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) * np.float32(self.size_um[1] / rows)
        return x, y

    def noise(self, rng: np.random.Generator, scale_um: float) -> Field:
        """Return Gaussian noise smoothed with a kernel of `scale_um`, standardised to mean 0 and sd 1."""
        sigma = scale_um / self.step_um
        pad = int(np.ceil(4 * sigma))  # so that opposite borders do not know of each other
        rows, columns = self.shape
        smooth = wrapped_noise(rng, (rows + pad, columns + pad), sigma)[:rows, :columns]
        return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)

    def at(self, field: NDArray, x_um: NDArray, y_um: NDArray) -> NDArray:
        """Return the field's value in the grid cell that holds each point."""
        rows, columns = self.shape
        i = np.clip((np.asarray(y_um) / self.size_um[1] * rows).astype(int), 0, rows - 1)
        j = np.clip((np.asarray(x_um) / self.size_um[0] * columns).astype(int), 0, columns - 1)
        return field[i, j]

    def to_pixels(self, field: NDArray, shape: tuple[int, int]) -> Field:
        """Interpolate the field to an image of `shape` (rows, columns) that covers the same slide."""
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
        return np.asarray(image.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Fibres:
    """The course of the fibres: `across` changes across them and `along` runs with them, both in micrometres."""

    across: Field
    along: Field
    angle: Field

    @classmethod
    def random(cls, canvas: Canvas, rng: np.random.Generator) -> Fibres:
        """Draw wavy fibres: a straight course in a random direction, bent by two smooth fields."""
        direction = rng.uniform(0, np.pi)
        x, y = canvas.centres()
        bend, shift = canvas.noise(rng, 110.0), canvas.noise(rng, 110.0)
        across = -x * np.sin(direction) + y * np.cos(direction) + 70.0 * bend
        along = x * np.cos(direction) + y * np.sin(direction) + 30.0 * shift
        down, right = np.gradient(across)
        return cls(across.astype(np.float32), along.astype(np.float32), np.arctan2(-right, down).astype(np.float32))


def wrapped_noise(
    rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float] | float
) -> NDArray[np.float32]:
    """Return noise that tiles without a seam, smoothed by `sigma` pixels and standardised."""
    from scipy import fft

    down, right = np.broadcast_to(sigma, 2)
    damp = [
        np.exp(-2 * np.square(np.pi * s * f))
        for s, f in ((down, fft.fftfreq(shape[0])), (right, fft.rfftfreq(shape[1])))
    ]
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32))
    spectrum *= np.outer(*damp).astype(np.float32)
    smooth = fft.irfft2(spectrum, s=shape)
    return (smooth - smooth.mean()) / max(float(smooth.std()), 1e-9)

"""The pixel grid of a slide: windows of it, and the pixels in each target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

DESCRIBED = 24
"""Numbers that a location is described by, for its distance from those of training: colours in windows around it."""


@dataclass(frozen=True)
class Window:
    """A rectangle of the slide's lattice of pixels, which is anchored at the frame's origin.

    Attributes
    ----------
    row, column
        First of them; pixel (row, column) begins at ``(column, row) * mpp`` micrometres.
    height, width
        Numbers of pixels.
    """

    row: int
    column: int
    height: int
    width: int

    def wider(self, by: int) -> Window:
        """Return it with a margin on every side."""
        return Window(self.row - by, self.column - by, self.height + 2 * by, self.width + 2 * by)


@dataclass(frozen=True)
class Coverage:
    """Pixels of a window that lie in targets.

    Attributes
    ----------
    target
        (p,) row of the target, ascending.
    pixel
        (p,) number of the pixel in the window, row by row.
    share
        (p,) float32 part of the pixel that lies in the target.
    """

    target: NDArray[np.int64]
    pixel: NDArray[np.int64]
    share: NDArray[np.float32]


@dataclass(frozen=True)
class View:
    """A patch of a slide, placed by any affine map, as it is trained on.

    Attributes
    ----------
    image
        (3, h, w) float32, -0.9 to 0.9 over the slide's range of each channel.
    on_image
        (h, w) whether the pixel lies on the image at all.
    tissue
        (h, w) whether it lies on tissue, or among the targets.
    target, pixel
        (p,) complete targets, ascending, and the pixels that lie in them; each pixel in one target at most.
    taken
        (h, w) whether the pixel lies in any target, complete or not.
    features
        (k, h, w) features of encoders beside the pixels; or None.
    """

    image: NDArray[np.float32]
    on_image: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    target: NDArray[np.int64]
    pixel: NDArray[np.int64]
    taken: NDArray[np.bool_]
    features: NDArray[np.float32] | None = None


class PixelGrid(Protocol):
    """A slide's pixels, and the shapes of its targets."""

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""

    @property
    def patch_px(self) -> int:
        """Edge of a training patch in pixels."""

    @property
    def frame(self) -> Window:
        """The part of the slide that is used: around the targets, or all tissue."""

    @property
    def bounds(self) -> Window:
        """The pixels that touch the image."""

    @property
    def identity(self) -> str:
        """Fingerprint of image and targets."""

    @property
    def n_features(self) -> int:
        """Number of features of encoders beside the pixels; 0: none."""

    def reduced(self, centre: NDArray[np.float32], axes: NDArray[np.float32]) -> Self:
        """Return it with linear combinations of these: (width,) `centre` taken off, times (width, k) `axes`."""

    def features(self, window: Window) -> NDArray[np.float32]:
        """Return the (k, h, w) features of a window's pixels, standardised on the slide's tissue."""

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return it with some of the targets."""

    def sizes(self) -> NDArray[np.float64]:
        """Return the (n,) areas of the targets in pixels, about."""

    def boxes(self) -> NDArray[np.int64]:
        """Return (n, 4) first row and column, and last row and column, of the pixels that targets may touch."""

    def fetch(self, windows: list[Window]) -> None:
        """Read these windows in the order of the image, so that no part is decoded twice."""

    def image(self, window: Window) -> NDArray[np.float32]:
        """Return the (3, h, w) pixels of a window, scaled as in `View`; beyond the image, its background."""

    def inside(self, window: Window) -> Coverage:
        """Return which pixels of a window lie in which targets, in full or in part; targets may overlap."""

    def view(self, affine: NDArray[np.float64], shape: tuple[int, int]) -> View:
        """Return a patch; `affine` (2, 3) takes its pixels' x and y to micrometres."""

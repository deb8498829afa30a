"""The built-in encoder: named statistics of stain, texture, nuclei and compartments; nothing to download."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, whole
from stpred._core.compute.threads import in_threads
from stpred._core.specs import TileSpec
from stpred.encoders.base import EncoderCard

PATCH_UM = 8.0
"""Approximate width of a patch of the dense features."""

SMALLEST_PATCH_UM = 2.0
"""What the coarsest plane that is averaged over patches resolves."""

_SMALLEST_PX = 32


class Morphology:
    """Stain, texture, nuclear shape and arrangement of a tile as named numbers.

    Parameters
    ----------
    tile
        What the tiles look like; None: 224 px at 0.5 um per pixel. Scales are in micrometres, whatever ``tile.mpp``.
    threads
        Threads that share a batch; None: one per core.
    patches
        Patches along each edge of a tile, of the dense features; None: as many as are about 8 um wide.

    Attributes
    ----------
    card
        Name ``"morphology"``, the tile, and ``feature_names`` in the order of the columns.

    Notes
    -----
    Stains are amounts in optical density by colour deconvolution (Ruifrok & Johnston 2001). By the start of the names:

    - ``haematoxylin_``, ``eosin_``, ``residual_`` (mean, std, quantiles), ``red_``, ``green_``, ``blue_`` (optical
      density);
    - ``*_band_{s}um_``: log strength and skewness of what a Gaussian of `s` um removes from the blur before it;
      ``density`` is the mean optical density of the channels;
    - ``*_edges_{s}um_``: log gradient of the blur of `s` um, and the coherence of its direction within 1/14 of the
      tile's edge and over the tile (structure tensor, Bigun & Granlund 1987);
    - ``haematoxylin_lbp_{r}um_{k}``: square root of the share of local binary patterns (Ojala et al. 2002) with `k`
      ones on the circle of radius `r`; 9 is every pattern that is not uniform;
    - ``mixing_{s}um``: correlation of haematoxylin and eosin in each band;
    - ``nuclei_``: threshold, number per 100 x 100 um (square root), area share, alignment; mean and std over nuclei of
      log area (um2), elongation (log ratio of axes), staining, contrast, hollowness (above 1: chromatin at the rim),
      fill of its ellipse, log roughness, log distance to the nearest other (um), all drawn towards an ordinary nucleus
      with the weight of two; numbers of round and long ones below 25, 45, 80 um2 and above (square root);
    - ``chromatin_texture_``, ``other_texture_``: log strength of the finest bands inside and outside nuclei;
    - ``empty_``, ``nuclear_``, ``perinuclear_``, ``stromal_``: share of each compartment and its staining;
    - ``centre_``: the leading ones of these for the middle half of the rows and columns.

    A row depends on its tile alone: the same tile gives the same bits in any batch and with any number of threads. All
    numbers are finite for any pixels, blank and constant tiles included.

    Examples
    --------
    >>> import numpy as np
    >>> encoder = Morphology()
    >>> encoder.encode(np.full((2, 224, 224, 3), 240, np.uint8)).shape == (2, encoder.card.width)
    True
    """

    def __init__(self, *, tile: TileSpec | None = None, threads: int | None = None, patches: int | None = None) -> None:
        from stpred.encoders._built_in.morphology_dense import dense_names
        from stpred.encoders._built_in.morphology_features import feature_names  # compiles nothing, but imports numba

        tile = TileSpec() if tile is None else tile
        if tile.size_px < _SMALLEST_PX:
            raise InputError(f"Morphology needs tiles of at least {_SMALLEST_PX} px, got {tile}.")
        if threads is not None and threads < 1:
            raise InputError(f"`threads` must be at least 1 or None, got {threads!r}.")
        names = feature_names()
        grid = max(1, round(tile.size_um / PATCH_UM)) if patches is None else whole(patches, name="patches")
        if tile.size_px // grid < 2 or tile.size_um / grid < SMALLEST_PATCH_UM * (1 - 1e-9):
            raise InputError(
                f"Morphology cannot cut a tile of {tile.size_px} px at {tile.mpp:g} um per pixel into {grid} x {grid} "
                f"patches; they must be at least {SMALLEST_PATCH_UM:g} um and 2 pixels wide."
            )
        self.card = EncoderCard(
            "morphology", tile, len(names), revision="1", feature_names=names, dense=(grid, grid, len(dense_names()))
        )
        self._threads = threads

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 RGB tiles to (n, width) float32 features."""
        from stpred.encoders._built_in.morphology_features import describe

        return self._each(tiles, (self.card.width,), partial(describe, mpp=self.card.tile.mpp))

    def encode_dense(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map (n, size_px, size_px, 3) uint8 RGB tiles to (n, rows, cols, width) float32 features of their patches.

        Each patch is described alone and within Gaussian windows around it (see `dense_names`), which end at the border
        of the tile.
        """
        from stpred.encoders._built_in.morphology_dense import describe_patches

        shape = self.card.dense
        describe = partial(describe_patches, mpp=self.card.tile.mpp, n=shape[0])  # type: ignore[index]
        return self._each(tiles, shape, describe)  # type: ignore[arg-type]

    def _each(
        self, tiles: NDArray[np.uint8], shape: tuple[int, ...], describe: Callable[[NDArray[np.uint8]], Any]
    ) -> NDArray[np.float32]:
        """Describe every tile by itself, in threads."""
        size = self.card.tile.size_px
        if not isinstance(tiles, np.ndarray) or tiles.dtype != np.uint8 or tiles.shape[1:] != (size, size, 3):
            given = f"{tiles.dtype} of shape {tiles.shape}" if isinstance(tiles, np.ndarray) else type(tiles).__name__
            raise InputError(f"Morphology takes uint8 tiles of shape (n, {size}, {size}, 3), got {given}.")
        out = np.empty((len(tiles), *shape), np.float32)

        def fill(row: int) -> None:
            out[row] = describe(tiles[row])

        in_threads(fill, range(len(tiles)), threads=self._threads)
        return out

    def resized(self, size_um: float) -> Morphology:
        """Return the encoder of tiles of another edge, at the same resolution if they are not tiny."""
        size = max(_SMALLEST_PX, round(size_um / self.card.tile.mpp))
        return Morphology(tile=TileSpec(size_um / size, size), threads=self._threads)

    def patched(self, patches: int) -> Morphology:
        """Return the encoder with another number of patches along each edge of its tiles."""
        return Morphology(tile=self.card.tile, threads=self._threads, patches=patches)

    def to(self, device: str | None) -> Morphology:
        """Return the encoder itself: it has no parameters and runs on the CPU."""
        return self

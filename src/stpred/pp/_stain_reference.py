"""What a slide looks like, and what slides are normalised to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.elements import find_image
from stpred._core.names import named
from stpred._core.specs import TileSpec
from stpred._image.appearance import METHODS, StainReference, densities, describe
from stpred._image.tissue import survey
from stpred.regions.tissue import TISSUE_MPP, TissueMask
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from spatialdata import SpatialData

MPP = 1.0
"""Micrometres per pixel at which colours are measured, or those of a coarser image."""

MIN_PIXELS = 5000
"""Pixels of stained tissue below which a slide's colours are not measured."""

_N_TILES, _TILE_PX = 128, 64
_MIN_DENSITY = 0.08  # of a pixel, mean of the channels; less is glass and lumina within the outline
_GLASS_BAND = 15.0
_MIN_GLASS_SHARE = 0.003

BUILT_IN = StainReference(
    glass=(255.0, 255.0, 255.0),
    stains=((0.651, 0.676, 0.344), (0.227, 0.874, 0.430)),
    amounts=(1.23, 0.53),
    lab_mean=(-0.513, -0.090, 0.014),
    lab_std=(0.280, 0.060, 0.010),
    second_moments=(0.106, 0.136, 0.0705, 0.203, 0.1035, 0.055),
    mpp=1.0,
)
"""Mean of six public H&E images: HER2ST C2 and C4, OpenSlide's CMU-1, fields of InstanSeg, StarDist and TIAToolbox.

Glass is white.
"""


def stain_reference(
    slides: SpatialData | Mapping[str, SpatialData],
    *,
    image_key: str | None = None,
    mpp: float | None = None,
    coordinate_system: str = keys.UM,
    seed: int = 0,
) -> StainReference:
    """Measure the colours of one slide, or of several taken together, for :func:`stain_normalize`.

    Parameters
    ----------
    slides
        Object with a calibrated H&E image, or several by name: each counts as much as any other.
    image_key
        H&E image; None takes the one in the micrometre frame.
    mpp
        Micrometres per pixel at which the colours are measured; None takes 1, or that of a coarser image.
    coordinate_system
        The slide's micrometre frame.
    seed
        Which places on the tissue are looked at.

    Returns
    -------
    Glass, stain vectors and their amounts, colour statistics; see :class:`StainReference`.

    Raises
    ------
    InputError
        If there is no calibrated H&E image, or too little tissue on it.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> len(st.pp.stain_reference(slide).stains)
    2
    """
    by_name = named(slides, what="slides") if isinstance(slides, Mapping) else {"": slides}
    if not by_name:
        raise InputError("`slides` is empty; give at least one SpatialData object.")
    pyramids = {}
    for name, sdata in by_name.items():
        key = find_image(sdata, image_key, coordinate_system=coordinate_system)
        what = f"image {key!r}" + (f" of slide {name!r}" if name else "")
        pyramids[what] = Pyramid.from_image(sdata.images[key], coordinate_system=coordinate_system)
    coarsest = max(MPP, *(p.mpp for p in pyramids.values())) if mpp is None else mpp
    parts = [sample(p, what=what, mpp=coarsest, seed=seed) for what, p in pyramids.items()]
    n = min(len(density) for density, _ in parts)
    rng = np.random.default_rng(seed)
    even = [
        density if len(density) == n else density[rng.choice(len(density), n, replace=False)] for density, _ in parts
    ]
    return describe(np.concatenate(even), np.mean([glass for _, glass in parts], axis=0), mpp=coarsest)


def resolve(reference: Any, *, like: Pyramid, seed: int) -> StainReference:
    """Return the reference that a user gave; one measured here is as coarse as the slide that is normalised."""
    from spatialdata import SpatialData

    if reference is None:
        return BUILT_IN
    if isinstance(reference, StainReference):
        return reference
    if isinstance(reference, (str, Path)):
        return StainReference.load(reference)
    if isinstance(reference, SpatialData) or (
        isinstance(reference, Mapping) and any(isinstance(v, SpatialData) for v in reference.values())
    ):
        found = stain_reference(reference, seed=seed)
        return found if found.mpp >= like.mpp else stain_reference(reference, mpp=like.mpp, seed=seed)
    if isinstance(reference, Mapping):
        return StainReference.from_dict(reference)
    raise InputError(
        "`reference` must be a SpatialData, several by name, a StainReference, its dictionary or JSON file, or None, "
        f"got {type(reference).__name__}."
    )


def measure(pyramid: Pyramid, *, what: str, method: str, mpp: float, seed: int) -> StainReference:
    """Return the appearance of one slide, with what a method needs."""
    density, glass = sample(pyramid, what=what, mpp=mpp, seed=seed)
    try:
        return describe(density, glass, mpp=mpp, need_stains=method == METHODS[0])
    except InputError as error:
        raise InputError(f"On {what} {error}; use method='reinhard' or 'moments'.") from error


def sample(pyramid: Pyramid, *, what: str, mpp: float, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (n, 3) optical densities of stained pixels, of tiles all over the tissue, and the (3,) colour of glass."""
    coarse = pyramid.coarse_mpp(TISSUE_MPP)
    thumbnail, origin_um = pyramid.thumbnail(coarse)
    found = survey(thumbnail, mpp=coarse)
    glass = _glass(thumbnail[~(found.tissue | found.excluded)], thumbnail[~found.excluded], found.glass)
    places = np.argwhere(found.tissue)[:, ::-1]
    rng = np.random.default_rng(seed)
    chosen = places[np.sort(rng.choice(len(places), min(_N_TILES, len(places)), replace=False))]
    centers_um = origin_um + (chosen + 0.5) * coarse
    offsets = (np.arange(_TILE_PX) + 0.5 - _TILE_PX / 2) * mpp
    on_tissue = TissueMask(found.tissue, origin_um, coarse)
    kept = [np.empty((0, 3))] * len(centers_um)
    for rows, tiles in pyramid.read(centers_um, TileSpec(mpp, _TILE_PX)):
        for row, pixels in zip(rows, tiles, strict=True):
            x, y = centers_um[row][:, None] + offsets
            density = densities(pixels.reshape(-1, 3), glass)
            places_um = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
            kept[row] = density[on_tissue(places_um) & (density.mean(axis=1) >= _MIN_DENSITY)]
    densest = np.concatenate([np.empty((0, 3)), *kept])
    if len(densest) < MIN_PIXELS:
        raise InputError(
            f"Too little stained tissue on {what} to measure its colours: {len(densest)} pixels of {mpp:g} um, "
            f"{MIN_PIXELS} are needed."
        )
    return densest, glass


def _glass(around: NDArray[np.uint8], there: NDArray[np.uint8], brightness: float) -> NDArray[np.float64]:
    """Return the colour of glass: the median off the tissue, or of the brightest pixels where all is tissue."""
    grey = around.mean(axis=1)
    clear = around[grey >= brightness - _GLASS_BAND]
    if len(clear) >= max(_MIN_GLASS_SHARE * len(there), 8):
        return np.median(clear, axis=0).clip(1, 255)
    return np.quantile(there, 0.999, axis=0).clip(215, 255) if len(there) else np.full(3, 255.0)

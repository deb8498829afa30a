"""Bringing a picture of tissue and what was measured of it into one frame. Arrays only."""

from stpred._image.registration.landmarks import from_landmarks
from stpred._image.registration.quality import Quality, judge, on_grid
from stpred._image.registration.refine import Level, inverse
from stpred._image.registration.search import MAX_STRETCH, Options, Pair, find
from stpred._image.registration.sides import (
    Side,
    blocks,
    fluorescence_planes,
    from_fluorescence,
    from_he,
    from_locations,
    from_spots,
    he_planes,
    limits,
    of_nuclei,
    scaled_brightness,
    tissue_of,
)

__all__ = [
    "MAX_STRETCH",
    "Level",
    "Options",
    "Pair",
    "Quality",
    "Side",
    "blocks",
    "find",
    "fluorescence_planes",
    "from_fluorescence",
    "from_he",
    "from_landmarks",
    "from_locations",
    "from_spots",
    "he_planes",
    "inverse",
    "judge",
    "limits",
    "of_nuclei",
    "on_grid",
    "scaled_brightness",
    "tissue_of",
]

"""Finding nuclei on a whole slide, with the built-in kernel or any model that labels fields."""

from stpred.nuclei._detect import MAX_MPP, check, detect, eccentricity
from stpred.nuclei._methods import BUILTIN, DEFAULT, MIN_AREA_UM2, NETWORK, Segmenter, names
from stpred.nuclei._outline import outline

__all__ = [
    "BUILTIN",
    "DEFAULT",
    "MAX_MPP",
    "MIN_AREA_UM2",
    "NETWORK",
    "Segmenter",
    "check",
    "detect",
    "eccentricity",
    "names",
    "outline",
]

"""Every element name and key that stpred reads or writes, in one place."""

from __future__ import annotations

import re

UM = "um"
"""The coordinate system in which 1 unit = 1 micrometre."""

IMAGE = "he"
SPOTS = "spots"
CELLS = "cells"
NUCLEI = "nuclei"
GRID = "grid"
TISSUE = "tissue"
SPATIAL = "spatial"
"""`obsm` key of centroids in micrometres."""

UNS = "stpred"
"""`uns` key of the one JSON string that explains a table."""

NORMALISED = "normalised_image"
"""Kind, in its provenance, of an H&E image whose colours were mapped to those of another slide."""

OOD_SCORE = "ood_score"
IN_DISTRIBUTION = "in_distribution"
STD = "std"


LIBRARY_SIZE, NEIGHBOUR_AVERAGE, TRAINING_MEAN, CEILING = CONTEXT = (
    "library_size", "neighbour_average", "training_mean", "ceiling"
)  # fmt: skip
"""Rows of scores that are no models: what scores are to be read against."""

ERRORS = ("rmse", "mae")
"""Metrics of which less is better."""


def zero_is_nothing(metric: str) -> bool:
    """Whether a score of 0 says that nothing was predicted, so that a missing one may count as that."""
    return metric.startswith(("pearson", "spearman")) or metric == "ssim"


def bins(size_um: int) -> str:
    """Name of the shapes element of Visium HD bins, such as ``bins_008um``."""
    return f"bins_{size_um:03d}um"


def in_words(shapes_key: str) -> str:
    """Name the locations of a region, such as ``8 µm bins``, in a title or a sentence."""
    found = re.fullmatch(r"bins_0*(\d+)um", shapes_key)
    return shapes_key.replace("_", " ") if found is None else f"{found[1]} µm bins"


def squares(shapes_key: str, size_um: float) -> str:
    """Name of the squares into which a region is cut, such as ``spots_008um``."""
    size = f"{int(size_um):03d}" if float(size_um).is_integer() else f"{size_um:g}"
    return f"{shapes_key}_{size}um"


def counts(shapes_key: str) -> str:
    """Name of the measured table of a region."""
    return f"{shapes_key}_counts"


def features(shapes_key: str, encoder: str) -> str:
    """Name of the feature table of a region."""
    return f"{shapes_key}_feat_{slug(encoder)}"


def predicted(shapes_key: str, model: str) -> str:
    """Name of the predicted table of a region."""
    return f"{shapes_key}_{slug(model)}"


def predicted_map(shapes_key: str, model: str) -> str:
    """Name of the map that covers a region."""
    return f"{predicted(shapes_key, model)}_map"


def map_std(key: str) -> str:
    """Name of the map of the standard deviations that belong to a map."""
    return f"{key}_std"


def in_frame(name: str, coordinate_system: str) -> str:
    """Name of an element of the slide in `coordinate_system`: as it is in ``"um"``, else with the frame's suffix.

    ``spatialdata.concatenate`` turns ``"um"`` into ``"um-a"`` and ``spots`` into ``spots-a``; so does this.
    """
    suffix = coordinate_system.removeprefix(UM) if coordinate_system.startswith(UM) else f"-{coordinate_system}"
    return name + re.sub(r"[^A-Za-z0-9_.-]+", "-", suffix)


def slug(name: str) -> str:
    """Turn any registry or hub name into an element-safe one: lower case, anything else becomes ``-``."""
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-.")

"""Slides that a trained model has learned from, and provenance of tables by slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stpred._core.checks import InputError
from stpred._core.elements import find_image, table_regions
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred import data
    from stpred.models import Model


_OF_ONE_SLIDE = ("slide", "left_out", "n_predicted")
"""Provenance of the one slide that a table of predictions was of."""


def provenance_in_frame(
    sdata: SpatialData, table_key: str, provenance: dict[str, Any], *, coordinate_system: str
) -> dict[str, Any]:
    """Return the provenance of a table; of one of several slides, which is that of one, with this slide's image."""
    if len(table_regions(sdata.tables[table_key])) < 2:
        return provenance
    found = {k: v for k, v in provenance.items() if k not in _OF_ONE_SLIDE}
    try:
        image = sdata.images[find_image(sdata, coordinate_system=coordinate_system)]
    except InputError:  # none in the frame, or several
        return found | {"image": None}
    return found | {"image": Pyramid.from_image(image, coordinate_system=coordinate_system).fingerprint}


def is_of_training(provenance: dict[str, Any]) -> bool:
    """Whether predictions are of an image that their model was trained on."""
    slides = (provenance.get("training") or {}).get("slides") or {}
    images = {slide.get("image") for slide in slides.values() if isinstance(slide, dict)}
    return provenance.get("image") in images - {None}


def said_of_training(slide: str) -> str:
    """Say what predictions of a training slide are worth."""
    return (
        f"{slide} is one of the slides that the model was trained on, so its values look better here than on a new "
        "slide."
    )


def trained_on(model: Model, region: data.Region, donor: str) -> bool:
    """Whether a model was trained on this slide's counts, by the image, or by name or donor where that is unknown."""
    slides = model.record.training.get("slides", {})
    images = [slide.get("image") for slide in slides.values()]
    if region.pyramid.fingerprint in images:
        return True
    if model.record.training.get("donors_given") and donor in [slide.get("donor") for slide in slides.values()]:
        return True
    return None in images and region.slide in slides

"""Slides that a trained model has not learned from, and what it predicts for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred._core.checks import InputError
from stpred._core.elements import find_image, table_regions
from stpred.inference.predictor import context_of, encoder_for
from stpred.tiles import Pyramid

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import Model


_OF_ONE_SLIDE = ("slide", "left_out", "n_predicted")
"""Facts of the one slide that a table of predictions was of."""


def predicted(model: Model, region: data.Region, *, encoder: Any = None) -> NDArray[np.float32]:
    """Return what a trained model predicts, as :func:`stpred.tl.predict` does; `encoder` None: the model's own."""
    out = np.empty((len(region.coords_um), model.n_genes), dtype=np.float32)
    used = encoder_for(model, encoder, device=None)
    for rows, batch in data.reader_for(region, used, model.needs, context_of(model)).blocks():
        out[rows] = model.predict(batch)[0]
    return out


def facts_in_frame(
    sdata: SpatialData, table_key: str, facts: dict[str, Any], *, coordinate_system: str
) -> dict[str, Any]:
    """Return the facts of a table; of one of several slides, whose facts are those of one, with this slide's image."""
    if len(table_regions(sdata.tables[table_key])) < 2:
        return facts
    facts = {k: v for k, v in facts.items() if k not in _OF_ONE_SLIDE}
    try:
        image = sdata.images[find_image(sdata, coordinate_system=coordinate_system)]
    except InputError:  # none in the frame, or several
        return facts | {"image": None}
    return facts | {"image": Pyramid.from_image(image, coordinate_system=coordinate_system).fingerprint}


def saw(model: Model, region: data.Region, donor: str) -> bool:
    """Whether a model was trained on this slide's counts, by the image, or by name or donor where that is unknown."""
    slides = model.record.training.get("slides", {})
    images = [facts.get("image") for facts in slides.values()]
    if region.pyramid.fingerprint in images:
        return True
    if model.record.training.get("donors_given") and donor in [facts.get("donor") for facts in slides.values()]:
        return True
    return None in images and region.slide in slides

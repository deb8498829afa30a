"""Slides that a trained model has not learned from, and what it predicts for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred.tl._predict import context_of, encoder_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from stpred.models import Model


def predicted(
    model: Model, region: data.Region, reading: dict[str, Any], *, encoder: Any = None
) -> NDArray[np.float32]:
    """Return what a trained model predicts, as :func:`stpred.tl.predict` does; `encoder` None: the model's own."""
    out = np.empty((len(region.coords_um), model.n_genes), dtype=np.float32)
    used = encoder_for(model, encoder, device=None)
    for rows, batch in data.prediction_batches(region, used, model.needs, **reading, **context_of(model)):
        out[rows] = model.predict(batch)[0]
    return out


def saw(model: Model, region: data.Region, donor: str) -> bool:
    """Whether a model was trained on this slide's counts, by the image, or by name or donor where that is unknown."""
    slides = model.record.training.get("slides", {})
    images = [facts.get("image") for facts in slides.values()]
    if region.pyramid.fingerprint in images:
        return True
    if model.record.training.get("donors_given") and donor in [facts.get("donor") for facts in slides.values()]:
        return True
    return None in images and region.slide in slides

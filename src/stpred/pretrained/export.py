"""Models as predictors of LazySlide."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError
from stpred.models.base import Model
from stpred.models.batch import Batch, Needs

if TYPE_CHECKING:
    from numpy.typing import NDArray


def as_lazyslide(model: Model) -> Any:
    """Return a trained model as a feature predictor of LazySlide.

    Parameters
    ----------
    model
        A model that reads the features of single tiles, such as ``"ridge"`` or ``"mlp"`` on an encoder of
        lazyslide-models; not one of pixels, cells, patches or neighbours.

    Returns
    -------
    lazyslide_models.FeaturePredictionModel
        For ``lazyslide.tl.feature_prediction(wsi, model)``: ``predict(features)`` returns the values of each gene.
        ``features_model_name`` is the encoder's name, whose tile (``model.record.tile``) the slide must be cut into.
        A model that standardises features by slide asks for the whole slide at once, and takes all of its tiles for
        that (:func:`stpred.tl.predict` takes those at the pitch of training).

    Raises
    ------
    InputError
        If lazyslide-models is not installed, or the model reads more than the features of a tile.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, "ridge", genes=["EPCAM"], shapes_key="spots", encoder="colour")
    >>> try:
    ...     predictor = st.models.as_lazyslide(model).features_model_name
    ... except st.InputError:  # where lazyslide-models is not installed
    ...     predictor = "colour"
    >>> predictor
    'colour'
    """
    if not isinstance(model, Model) or not model.record.genes:
        raise InputError(f"`model` must be a trained model, got {type(model).__name__}.")
    if find_spec("lazyslide_models") is None:
        raise InputError("LazySlide's predictors need lazyslide-models: `pip install 'stpred[encoders]'`.")
    needs = model.needs
    more = [f for f in vars(needs) if getattr(needs, f) != getattr(Needs(), f) and f not in ("slide_statistics",)]
    if model.record.encoder.get("name") == "pixels":
        more.append("pixels")
    if more:
        raise InputError(
            f"Model {model.record.name!r} ({model.family!r}) reads more than the features of a tile "
            f"({', '.join(more)}), which LazySlide does not hand over; predict with stpred.tl.predict."
        )
    from lazyslide_models import FeaturePredictionModel

    class StpredPredictor(FeaturePredictionModel):
        """A trained model of stpred."""

        features_model_name = model.record.encoder.get("name")
        needs_coords = False
        whole_slide = needs.slide_statistics

        def __init__(self) -> None:
            self.model = model.eval()

        @property
        def name(self) -> str:
            return model.record.name

        def predict(self, features: Any, coords: Any = None) -> dict[str, NDArray[np.float32]]:
            values = np.asarray(getattr(features, "cpu", lambda: features)(), dtype=np.float32)
            if values.ndim != 2 or values.shape[1] != model.n_features:
                raise InputError(
                    f"Model {model.record.name!r} takes (n, {model.n_features}) features, got {values.shape}."
                )
            found = model.predict(Batch.of(values))[0]
            return dict(zip(model.record.genes, found.T, strict=True))

    return StpredPredictor()

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.checks import distinct, fraction_of, one_of, positive
from stpred._core.places import Place
from stpred.tl._robustness.engine import COLUMNS, Trial, score_withheld
from stpred.tl._robustness.transforms import occlude

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.models import BaseConfig, Model


def occluded_tiles(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "xfuse",
    *,
    fractions: Sequence[float] = (0, 0.25, 0.5),
    tile_um: float | None = 200.0,
    fill: str = "glass",
    fraction: float = 0.2,
    n_genes: int = 100,
    levels: Sequence[float] = (0.5, 0.9),
    n_samples: int = 100,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    seed: int = 0,
    device: str | None = None,
    train_options: Mapping[str, Any] | None = None,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Hide parts of the training images, and score the model at withheld spots on the images as they are.

    It shows the cost of artefacts such as folds, ink and torn tissue, and whether a model needs the image at all. The
    model is trained once for every fraction.

    Parameters
    ----------
    slides
        As in :func:`stpred.tl.withheld_spots`; they are left as they are.
    model
        Family name, class or ``Config`` of the model that is trained.
    fractions
        Fractions of the squares of each training image that are painted over, at random; the squares of a smaller
        fraction are among those of a larger one. Images are painted lazily, as they are read.
    tile_um
        Edge of the squares in micrometres; None: a hundredth of the image's longer side, about as published (there, 100
        x 100 rectangles).
    fill
        ``"glass"``, the colour of the slide's empty glass, or ``"mean"``, its mean colour, as published.
    fraction, n_genes, levels, n_samples, seed, train_options
        As in :func:`stpred.tl.withheld_spots`, to which an occluded fraction of 0 is the same; the same
        spots are withheld.
    shapes_key, table_key, image_key, device, coordinate_system
        As in :func:`stpred.tl.train`.

    Returns
    -------
    As of :func:`stpred.tl.withheld_spots`, with a column ``occluded_share``.

    Raises
    ------
    InputError
        As in :func:`stpred.tl.withheld_spots`, or if the squares are too large for an image.

    References
    ----------
    Bergenstråhle et al., Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology 40 (2022).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(600, 600), n_genes=20)
    >>> scores = st.tl.occluded_tiles(slide, "ridge", fractions=(0, 0.5), n_genes=5, shapes_key="spots")
    >>> scores["occluded_share"].unique().tolist()
    [0.0, 0.5]
    """
    hidden = [fraction_of(f, name="fractions", zero=True) for f in distinct(fractions, name="fractions")]
    one_of(fill, ("glass", "mean"), name="fill")
    if tile_um is not None:
        tile_um = positive(tile_um, name="tile_um", unit="um")
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    trial = Trial(model, place, seed, device, train_options, n_genes, levels, n_samples)
    transforms = {f: partial(occlude, fraction=f, tile_um=tile_um, fill=fill, seed=seed) if f else None for f in hidden}
    found = score_withheld(trial, slides, fraction, transforms, column="occluded_share")
    return found.assign(check="occluded_tiles")[[*COLUMNS, "occluded_share"]]

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics, regions
from stpred._core import keys
from stpred._core.checks import InputError, positive, whole
from stpred._core.elements import need_sdata
from stpred._core.places import Place
from stpred.inference.default_regions import with_default_regions
from stpred.inference.predictor import Predictor, load_trained
from stpred.models.batch import Batch

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import Model


def surroundings(
    sdata: SpatialData,
    model: Model | str | Path,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    genes: Iterable[str] | None = None,
    n_patches: int = 500,
    keep_um: float | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure the part of a patch's prediction that comes from its surroundings.

    A patch is described within its tile: by a transformer that attends to all of it, or by windows wider than the
    patch. So a map of 8 um is not a measurement of 8 um of tissue. Here the rest of the tile is painted in the mean
    colour of the tissue, and the change of the prediction is returned gene by gene.

    Parameters
    ----------
    sdata
        Slide with a calibrated H&E image.
    model
        A trained model of patches (``"student"``), or its folder.
    shapes_key
        Locations at whose centres patches are looked at; None: those that the model was trained on, or points on the
        tissue.
    image_key, genes, encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.
    n_patches
        Number of patches, each at a random place in its tile.
    keep_um
        Edge of the square around the patch that is left as it is; None: the patch itself.
    seed
        Of the choice.

    Returns
    -------
    DataFrame indexed by gene: ``change`` (root mean square of the change, relative to the standard deviation of the
    prediction over the patches: 0 where surroundings have no part in it), ``pearson`` (of the prediction with and
    without them), ``n_patches``. It paints what no slide shows, so that a change says that surroundings are used, not
    that they mislead.

    Raises
    ------
    InputError
        If the model is no model of patches, or the image is missing or too coarse.

    References
    ----------
    Schmauch et al. 2025 name this limitation of MISO's maps.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(400, 400), n_genes=20)
    >>> model = st.tl.train(slides, st.models.Student.Config(hidden=(32,), epochs=2), shapes_key="spots")
    >>> found = st.tl.surroundings(slides["donor0"], model, n_patches=50)
    >>> found.columns.tolist()
    ['change', 'pearson', 'n_patches']
    """
    trained = load_trained(model)
    if not trained.needs.tokens:
        raise InputError(f"{trained.record.name!r} is no model of patches; its predictions are of whole tiles.")
    n_patches = whole(n_patches, name="n_patches")
    if keep_um is not None:
        keep_um = positive(keep_um, name="keep_um", unit="micrometres")
    predictor = Predictor.of(trained, genes=genes, encoder=encoder, device=device)
    place = Place(shapes_key, image_key, coordinate_system=coordinate_system)
    need_sdata(sdata)
    if shapes_key is None and trained.record.region not in sdata.shapes:
        sdata = with_default_regions(sdata, place, cells=False)
    region = predictor.region(sdata, place)
    reader = data.TokenReader.of(region, predictor.encoder, trained.needs, predictor.context)
    fill = np.rint(regions.tissue_colour(region.pyramid)[0] * 255).astype(np.uint8)
    centres, plain, alone = data.masked_tokens(
        region, predictor.encoder, trained.needs, n=n_patches, keep_um=keep_um, fill=fill, seed=seed
    )
    features = np.concatenate([plain, alone, reader.sample])
    sources = 2 * n_patches + np.arange(len(reader.sample))
    both = Batch(region.slide, features, np.arange(2 * n_patches), sources, np.concatenate([centres, centres]))
    found = predictor.predict(both)[0].astype(np.float64)
    with_them, without = found[:n_patches], found[n_patches:]
    spread = with_them.std(axis=0)
    moved = np.sqrt(np.square(without - with_them).mean(axis=0))
    return pd.DataFrame(
        {
            "change": np.divide(moved, spread, out=np.full(len(predictor.genes), np.nan), where=spread > 0),
            "pearson": metrics.pearson(without, with_them),
            "n_patches": n_patches,
        },
        index=pd.Index(predictor.genes, name="gene"),
    )

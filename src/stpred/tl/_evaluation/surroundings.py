from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, metrics, regions
from stpred._core import keys
from stpred._core.checks import InputError, positive, whole
from stpred._core.places import Place
from stpred.encoders.modules import pick_device
from stpred.inference.predictor import context_of, encoder_for, gene_columns, trained_model, with_regions
from stpred.models import Model
from stpred.models.batch import Batch

if TYPE_CHECKING:
    from spatialdata import SpatialData


def surroundings(
    sdata: SpatialData,
    model: Model | str | Path,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    genes: Iterable[str] | None = None,
    n: int = 500,
    keep_um: float | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how much of a patch's prediction comes from what is around it.

    A patch is described within its tile: by a transformer that attends to all of it, or by windows wider than the
    patch. So a map of 8 um is not a measurement of 8 um of tissue. Here the rest of the tile is painted in the mean
    colour of the tissue, and what the prediction changes by is told gene by gene.

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
    n
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
    >>> found = st.tl.surroundings(slides["donor0"], model, n=50)
    >>> found.columns.tolist()
    ['change', 'pearson', 'n_patches']
    """
    trained = trained_model(model)
    if not trained.needs.tokens:
        raise InputError(f"{trained.record.name!r} is no model of patches; its predictions are of whole tiles.")
    columns = gene_columns(trained, genes)
    n = whole(n, name="n")
    if keep_um is not None:
        keep_um = positive(keep_um, name="keep_um", unit="micrometres")
    used = encoder_for(trained, encoder, device=device)
    region = data.read_region(
        _with_locations(sdata, trained, shapes_key, image_key=image_key, coordinate_system=coordinate_system),
        Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system),
        prefer=trained.record.region,
    )
    trained.to(pick_device(device))
    reader = data.TokenReader.of(region, used, trained.needs, context_of(trained))
    fill = np.rint(regions.tissue_colour(region.pyramid)[0] * 255).astype(np.uint8)
    centres, plain, alone = data.masked_tokens(region, used, trained.needs, n=n, keep_um=keep_um, fill=fill, seed=seed)
    features = np.concatenate([plain, alone, reader.sample])
    sources = 2 * n + np.arange(len(reader.sample))
    both = Batch(region.slide, features, np.arange(2 * n), sources, np.concatenate([centres, centres]))
    found = trained.predict(both)[0][:, columns].astype(np.float64)
    with_them, without = found[:n], found[n:]
    spread = with_them.std(axis=0)
    moved = np.sqrt(np.square(without - with_them).mean(axis=0))
    return pd.DataFrame(
        {
            "change": np.divide(moved, spread, out=np.full(len(columns), np.nan), where=spread > 0),
            "pearson": metrics.pearson(without, with_them),
            "n_patches": n,
        },
        index=pd.Index([trained.record.genes[i] for i in columns], name="gene"),
    )


def _with_locations(
    sdata: SpatialData, model: Model, shapes_key: str | None, *, image_key: str | None, coordinate_system: str
) -> SpatialData:
    """Return the object, with points on its tissue where it has no locations."""
    if shapes_key is not None or model.record.region in sdata.shapes:
        return sdata
    return with_regions(sdata, model, image_key=image_key, coordinate_system=coordinate_system)

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError, listing
from stpred._core.elements import need_sdata
from stpred._core.places import Place
from stpred.comparison.slide_tables import named_slides
from stpred.inference.predictor import Predictor, load_trained
from stpred.inference.tables import ood_columns, put_result, result_key
from stpred.models import registry

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import Model


def latent(
    slides: Mapping[str, SpatialData] | SpatialData,
    model: Model | str | Path,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    key_added: str | None = None,
    encoder: Any = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | dict[str, AnnData] | None:
    """Write the values of a trained network's last hidden layer for every location: what its output head sees.

    Two locations of the same values have the same prediction; so the layer says what the network takes to be alike,
    whether or not a gene of the model tells it. scanpy works on the table as it is (``sc.pp.neighbors(table,
    use_rep="X")``, ``sc.tl.umap``), and :func:`stpred.tl.latent_clusters`, :func:`stpred.tl.typical_tiles` and
    :func:`stpred.tl.similar_tiles` on those of several slides.

    Parameters
    ----------
    slides
        Slides by name, or one slide, each with a calibrated H&E image.
    model
        A trained model with a hidden layer, the folder that it was saved in, or its name. ``"stnet"``: the 1 024 pooled
        channels of DenseNet-121 (1 280 of the EfficientNets), mean over the views; ``"mlp"``, ``"student"``,
        ``"scellst"``: the last hidden layer; ``"deepspot"``, ``"deepcell"``, ``"deepspot2cell"``: the pools of phi,
        which rho maps; ``"miso"``, ``"transformer"``: the stream before the last layer; ``"retrieval"``: the projection
        of the image; ``"ensemble"``: those of its members side by side. Models of cells: the mean over the cells of a
        location, and on cells each one's own.
    shapes_key, image_key, cells_key, encoder, device, coordinate_system
        As in :func:`stpred.tl.predict`.
    key_added
        Name of the table; None makes ``{shapes}_{model}_latent``.
    inplace
        With False the table (of several slides a dict of them) is returned and the objects are left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData. The table (validated by ``TableModel``) has

    - ``X``: float32 (n_instances, width) values; ``var_names``: ``latent_0``, ``latent_1``, ...;
    - ``obs``: ``region``, ``instance_id``, ``ood_score``, ``in_distribution``, as of :func:`stpred.tl.predict`;
    - ``obsm["spatial"]``: float64 (n_instances, 2) centroids in micrometres;
    - ``uns["stpred"]``: one JSON string with ``"kind": "latent"``, the model, what the layer is, and the image.

    Raises
    ------
    InputError
        If the model has no hidden layer (linear and kernel models, and means of several families), or as
        :func:`stpred.tl.predict`.

    References
    ----------
    He et al. (2020), Integrating spatial gene expression and breast tumour morphology via deep learning, Nature
    Biomedical Engineering 4:827: the 1 024 values before the last layer, their clusters and nearest neighbours.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, st.models.MLP.Config(hidden=(64, 16), epochs=2), shapes_key="spots")
    >>> st.tl.latent(slides, model)
    >>> slides["donor0"].tables["spots_mlp_latent"].n_vars
    16
    """
    by_name = named_slides(slides)
    for sdata in by_name.values():
        need_sdata(sdata)
    trained = load_trained(model)
    check_hidden_layer(trained)
    predictor = Predictor.of(trained, encoder=encoder, device=device)
    if cells_key is not None and not trained.needs.cells:
        raise InputError(f"`cells_key` is for models that see cells; {trained.record.name!r} sees tiles.")
    place = Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    found = {}
    for name, sdata in by_name.items():
        region = predictor.region(sdata, place, create=True, cells_key=cells_key)
        key = result_key(sdata, region, f"{predictor.name}_latent", key_added) if inplace else ""
        found[name] = _table(predictor, region)
        if inplace:
            put_result(sdata, key, found[name], region)
    if inplace:
        return None
    return found if isinstance(slides, Mapping) else found[next(iter(found))]


def check_hidden_layer(model: Model) -> None:
    """Refuse models without a hidden layer, and say which have one."""
    if model.config.generative:
        raise InputError(
            f"A {model.family!r} model has latents of pixels and no hidden layer of a location; its metagenes are what "
            "it takes to be alike (stpred.tl.metagenes)."
        )
    inner = getattr(model, "first", model)
    if inner.hidden_layer is None:
        having = [name for name in registry.FAMILIES if registry.family(name).hidden_layer is not None]
        raise InputError(
            f"A {inner.family!r} model{' (of an ensemble)' if inner is not model else ''} has no hidden layer: it maps "
            f"what it sees to genes in one step, or averages models of several kinds; a hidden layer have "
            f"{listing(having, most=40)}. The features that it sees are those of stpred.pp.features."
        )


def _table(predictor: Predictor, region: data.Region) -> AnnData:
    """Return the table of one slide."""
    import pandas as pd

    model, n = predictor.model, len(region.coords_um)
    values: NDArray[np.float32] | None = None
    distance, context = np.empty(n, np.float32), None
    for rows, batch in predictor.batches(region):
        part = model.latent(batch)
        values = np.empty((n, part.shape[1]), np.float32) if values is None else values
        values[rows], distance[rows] = part, model.ood_distance(batch)
        context = batch.context
    assert values is not None
    obs, slide = ood_columns(model, distance)
    provenance = predictor.provenance(region, context) | slide
    del provenance["output_scale"]  # these are values of no scale
    return tables.build_table(
        values,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame(index=pd.Index([f"latent_{i}" for i in range(values.shape[1])], dtype=object)),
        spatial_um=region.coords_um,
        obs=obs,
        provenance=provenance | {"kind": "latent", "layer": model.hidden_layer},
    )

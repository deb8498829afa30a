from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.elements import need_sdata
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred._core.tables import read_provenance
from stpred.inference.intervals import check_level
from stpred.inference.predictor import Predictor
from stpred.inference.preserve import Spots
from stpred.inference.provenance import is_of_training, said_of_training
from stpred.inference.tables import predict_table, put_result, result_key

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred._core.specs import Posterior
    from stpred.models import Model

logger = logging.getLogger("stpred")


def predict(
    sdata: SpatialData,
    model: Model | str | Path | None = None,
    *,
    shapes_key: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    key_added: str | None = None,
    genes: Iterable[str] | None = None,
    encoder: Any = None,
    stride_um: float | None = None,
    preserve: str | None = None,
    posterior: Posterior | None = None,
    interval: float | None = None,
    qc: QC | bool | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Predict expression for every location of a region from the H&E image.

    Parameters
    ----------
    sdata
        Object whose H&E image is calibrated in micrometres (every stpred reader leaves it so; see
        :func:`stpred.pp.calibrate`).
    model
        A trained model, a folder that :func:`stpred.models.save` wrote, the name of a bundled model,
        ``"hf:owner/name@revision"`` of the Hugging Face hub (:func:`stpred.models.load`), or None: the bundled default.
    shapes_key
        Region to predict on; None takes the model's own training region when present, else the slide's only one. A
        slide without any gets ``tissue`` and ``grid`` (points 100 um apart), or for a model that sees cells
        ``nuclei`` (see :func:`stpred.pp.nuclei`). For every pixel of an area: :func:`stpred.tl.predict_map`.
    image_key
        H&E image; None takes the one in the micrometre frame.
    cells_key
        Of a model that sees cells: their shapes. On these the prediction is of each cell, on any other region of the
        cells in each location. None: the region itself where its shapes are cells, else the region of cells that the
        model was trained through, else ``nuclei``, else ``cells``. Locations without cells are skipped.
    key_added
        Name of the table; None makes ``{shapes}_{model}``. An existing one is overwritten in memory with a warning.
    genes
        Genes to keep; None keeps all that the model knows.
    encoder
        The encoder that the model was trained with, when it cannot be loaded by its name (a module of your own,
        local weights); any other is refused. None makes it.
    stride_um
        Of a model of patches (``"student"``): distance of the overlapping tiles that hold a patch and whose
        predictions are averaged, a multiple of the patch. None: half a tile, or a whole one on regions that are no
        finer than those of training.
    preserve
        Measured shapes, such as ``"spots"``: predictions on a finer region are turned into amounts and rescaled, gene
        by gene, so that those whose centres lie in a spot add up to its counts; between spots by what the three nearest
        have. The output scale is then ``"counts"``.
    interval
        Also write the borders between which the measurement of a location lies with this probability, such as 0.9, for
        a model whose intervals are calibrated (:func:`stpred.tl.conformal`) on locations of this size or smaller.
    qc
        Limits on what the image shows (:class:`stpred.QC`; True: its defaults): locations on little tissue, pen marks,
        fill, folds or out of focus are left out, and counted by reason in the provenance (``left_out``). Limits on
        counts are not judged. None: all are predicted.
    posterior
        Of a generative model (``"xfuse"``): options of its posterior; mean and standard deviation are returned.
        None takes ``Posterior()``.
    device
        Where encoder and model run; None takes a GPU if there is one.
    coordinate_system
        The slide's micrometre frame: ``"um"``, or of one slide among several in an object, such as ``"um-a"`` after
        ``spatialdata.concatenate({"a": a, "b": b})``.
    inplace
        With False the table is returned and the object is not changed; of a slide without shapes it names the
        locations of a ``grid`` that only :func:`stpred.pp.grid` or a prediction in place adds to the object.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData. The table (validated by ``TableModel``) has

    - ``X``: float32 (n_instances, n_genes) mean prediction on the model's output scale;
    - ``layers["std"]`` where the model gives an uncertainty, ``layers["lower"]`` and ``["upper"]`` with `interval`;
    - ``obs``: ``region``, ``instance_id``, ``ood_score`` (float32, 0 = like the training tiles, on a slide that is like
      the training slides), ``in_distribution`` (bool); of published weights without a reference of their training
      tiles NaN and False, with a warning;
    - ``obsm["spatial"]``: float64 (n_instances, 2) centroids in micrometres;
    - ``var``: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted`` and more, where measured, and
      ``interval_low`` and ``interval_high``: what to add to ``X`` (to its root, for counts) for the 90 % interval;
    - ``uns["stpred"]``: one JSON string with model, encoder, tile, gene rule, output scale, ``support_um``, skipped
      locations, out-of-distribution distance of the slide, versions.

    Raises
    ------
    InputError
        If there is no (or more than one) H&E image, it is not calibrated or too coarse, or many locations lie off it;
        if a stride is no multiple of the patch; if no location passes `qc`.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20, donor=2)
    >>> cohort = st.datasets.toy_cohort(2, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(cohort, genes=["EPCAM", "COL1A2"], shapes_key="spots")
    >>> st.tl.predict(slide, model)
    >>> slide.tables["spots_ridge"].var_names.tolist()
    ['EPCAM', 'COL1A2']
    """
    predictor = Predictor.of(
        model, genes=genes, encoder=encoder, device=device, posterior=posterior, stride_um=stride_um
    )
    need_sdata(sdata)
    trained = predictor.model
    if cells_key is not None and not trained.needs.cells:
        raise InputError(f"`cells_key` is for models that see cells; {trained.record.name!r} sees tiles.")
    check_level(trained, interval)
    if interval is not None and preserve is not None:
        raise InputError("`interval` is of tables on the model's own scale; leave `preserve` out.")
    place = Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    limits = QC.of_image(qc)
    spots = None if preserve is None else Spots.of(sdata, preserve, predictor, place)
    region = predictor.region(sdata, place, create=True, cells_key=cells_key)
    if limits is not None:
        region = data.passing(region, limits)
    key = result_key(sdata, region, predictor.name, key_added) if inplace else ""
    table = predict_table(predictor, region, interval=interval, spots=spots)
    if is_of_training(read_provenance(table)):
        logger.info(said_of_training(region.slide))
    if not inplace:
        return table
    put_result(sdata, key, table, region)
    return None

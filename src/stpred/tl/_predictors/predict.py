from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred._core import keys, tables
from stpred._core.checks import InputError, key_in, listing
from stpred._core.elements import need_sdata
from stpred.encoders.modules import pick_device
from stpred.inference.intervals import HIGH, LOW, check_level, facts_of, hold_on, put_intervals
from stpred.inference.predictor import (
    context_of,
    encoder_for,
    gene_columns,
    gene_frame,
    provenance_of,
    put_result,
    region_for,
    trained_model,
    trust,
    warn_unlike,
)
from stpred.inference.preserve import Spots, as_amounts, preserved
from stpred.inference.raster import Job, predict_map

if TYPE_CHECKING:
    from spatialdata import SpatialData

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
    raster: bool = False,
    resolution_um: float | None = None,
    out: str | Path | None = None,
    interval: float | None = None,
    n_samples: int | None = None,
    normalize_scale: bool = False,
    normalize_size: bool = False,
    normalize_covariates: bool = False,
    covariates: Mapping[str, str | None] | None = None,
    device: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> Any:
    """Predict expression for every location of a region, or every pixel of a map, from the H&E image.

    Parameters
    ----------
    sdata
        Object whose H&E image is calibrated in micrometres (every stpred reader leaves it so; see
        :func:`stpred.pp.calibrate`).
    model
        A trained model, a folder that :func:`stpred.models.save` wrote, the name of a bundled model, or None: the
        bundled default.
    shapes_key
        Region to predict on; None takes the model's own training region when present, else the slide's only one. A
        slide without any gets ``tissue`` and ``grid`` (points 100 um apart), or for a model that sees cells
        ``nuclei`` (see :func:`stpred.pp.nuclei`).
    image_key
        H&E image; None takes the one in the micrometre frame.
    cells_key
        Of a model that sees cells: their shapes. On these the prediction is of each cell, on any other region of the
        cells in each location. None: the region itself where its shapes are cells, else the region of cells that the
        model was trained through, else ``nuclei``, else ``cells``. Locations without cells are left out.
    key_added
        Name of the table; None makes ``{shapes}_{model}``. An existing one is overwritten in memory with a warning.
    genes
        Genes to keep; None keeps all that the model knows.
    encoder
        The encoder that the model was trained with, when it cannot be made again from its name (a module of your own,
        local weights); any other is refused. None makes it.
    stride_um
        Of a model of patches (``"student"``): distance of the overlapping tiles that a patch is seen in and whose
        predictions are averaged, a multiple of the patch. None: half a tile, or a whole one on regions that are no
        finer than those of training.
    preserve
        Measured shapes, such as ``"spots"``: predictions on a finer region are turned into amounts and rescaled, gene
        by gene, so that those whose centres lie in a spot add up to its counts; between spots by what the three nearest
        have. The output scale is then ``"counts"``.
    raster
        Instead of a table, write a map: an image element with genes as channels (float32, NaN where nothing is
        predicted, multiscale), whose pixels are those with their centre in the shapes `shapes_key` (None: ``tissue``,
        found if need be).
    resolution_um
        Edge of the map's pixels; None takes the model's patches.
    out
        Store (new, or of SpatialData) to which a map is written block by block, so that it need not fit into memory. An
        interrupted call goes on where it was when it is called again. The object gets the map as a lazy image.
    interval
        Also write the borders between which the measurement of a location lies with this probability, such as 0.9, for
        a model whose intervals are calibrated (:func:`stpred.tl.conformal`) on locations of this size or smaller.
    n_samples
        Of a generative model (``"xfuse"``): draws from its posterior, whose mean and standard deviation are given; None
        takes 10.
    normalize_scale
        Of a generative model: expression per pixel of tissue whose density of RNA is everywhere the same. The output
        scale is then ``"relative"``.
    normalize_size
        Of a generative model: divide by the number of pixels in each location (``"relative"``, too).
    normalize_covariates
        Of a generative model: leave the effects of covariates, such as the section, out.
    covariates
        Of a generative model: this slide's levels, such as ``{"patient": "a"}``; None for one that is not known: it is
        drawn from all of them. A training slide has its own, another slide those that are given here.
    device
        Where encoder and model run; None takes a GPU if there is one.
    coordinate_system
        The slide's micrometre frame: ``"um"``, or of one slide among several in an object, such as ``"um-a"`` after
        ``spatialdata.concatenate({"a": a, "b": b})``.
    inplace
        With False the table is returned and the object is left alone.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData (or the image element). A map is
    ``sdata.images["{shapes}_{model}_map"]``, and ``sdata.attrs["stpred"]`` holds its provenance. The table (validated
    by ``TableModel``) has

    - ``X``: float32 (n_instances, n_genes) mean prediction on the model's output scale;
    - ``layers["std"]`` where the model gives an uncertainty, ``layers["lower"]`` and ``["upper"]`` with `interval`;
    - ``obs``: ``region``, ``instance_id``, ``ood_score`` (float32, 0 = like the training tiles, on a slide that is like
      the training slides), ``in_distribution`` (bool);
    - ``obsm["spatial"]``: float64 (n_instances, 2) centroids in micrometres;
    - ``var``: ``cv_pearson``, ``cv_spearman``, ``rmax``, ``n_slides``, ``trusted`` and more, as far as known, and
      ``interval_low`` and ``interval_high``: what to add to ``X`` (to its root, for counts) for the 90 % interval;
    - ``uns["stpred"]``: one JSON string with model, encoder, tile, gene rule, output scale, ``support_um``, left-out
      locations, how far the slide as a whole is from those of training, versions.

    Raises
    ------
    InputError
        If there is no (or more than one) H&E image, it is not calibrated or too coarse, or many locations lie off it;
        if a stride is no multiple of the patch; if a map is larger than memory or disk (told before anything is done).

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
    trained = trained_model(model)
    columns = gene_columns(trained, genes)
    used = encoder_for(trained, encoder, device=device)
    need_sdata(sdata)
    if out is not None and not raster:
        raise InputError("`out` is where a map is written; pass raster=True with it.")
    if resolution_um is not None and not raster:
        raise InputError("`resolution_um` is of a map (raster=True); cut shapes finer with stpred.pp.subdivide.")
    if preserve is not None:
        key_in(preserve, sdata.shapes, what="shapes element", name="preserve")
        as_amounts(np.zeros(1, np.float32), trained)  # refuses relative outputs before any work
        if normalize_scale or normalize_size:
            raise InputError("`preserve` needs amounts that add up; leave normalize_scale and normalize_size out.")
    how: dict[str, Any] = {"stride_um": stride_um, "context": context_of(trained)}
    if cells_key is not None and not trained.needs.cells:
        raise InputError(f"`cells_key` is for models that see cells; {trained.record.name!r} sees tiles.")
    check_level(trained, interval)
    if interval is not None and (raster or preserve is not None):
        raise InputError("`interval` is of tables on the model's own scale; leave `raster` and `preserve` out.")
    reading = _reading(
        trained,
        n_samples=n_samples,
        normalize_scale=normalize_scale,
        normalize_size=normalize_size,
        normalize_covariates=normalize_covariates,
        covariates=covariates,
    )
    if raster:
        if trained.needs.cells:
            raise InputError(f"{trained.record.name!r} sees cells, so it has no map; predict on the cells' shapes.")
        trained.to(pick_device(device))
        return predict_map(
            sdata,
            Job(trained, used, columns, how, reading),
            shapes_key=shapes_key,
            image_key=image_key,
            key_added=key_added,
            resolution_um=resolution_um,
            preserve=preserve,
            out=out,
            coordinate_system=coordinate_system,
            provenance=lambda region, context: provenance_of(trained, used, region, context) | _read_facts(reading),
            inplace=inplace,
        )
    if inplace and key_added is not None:
        tables.check_writable(sdata, key_added)
    region = region_for(
        sdata, trained, shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system, make=inplace
    )
    if trained.needs.cells:
        region = data.with_cells(region, cells_key=cells_key, prefer=trained.record.cells)
    key = keys.predicted(region.shapes_key, trained.record.name) if key_added is None else key_added
    if inplace:
        tables.check_writable(sdata, key)
        tables.check_name(region.sdata, key, kind="tables")
    finer = bool(trained.record.intervals) and not hold_on(trained, data.median_width_um(region))
    if finer and interval is not None:
        raise InputError(
            f"The intervals of model {trained.record.name!r} are of locations {trained.record.intervals['width_um']:g} "
            f"um wide, and those of {region.shapes_key!r} are finer: they are measured with fewer counts and more "
            "noise. Calibrate them on such locations with stpred.tl.conformal(model, slides, shapes_key=...)."
        )
    trained.to(pick_device(device))
    spots = None
    if preserve is not None:
        asked = [trained.record.genes[i] for i in columns]
        spots = Spots.of(sdata, preserve, asked, image_key=image_key, coordinate_system=coordinate_system)
    n = len(region.coords_um)
    mean, distance = np.empty((n, len(columns)), np.float32), np.empty(n, np.float32)
    std: np.ndarray | None = None
    context: str | None = None
    for rows, batch in data.reader_for(region, used, trained.needs, **how).blocks():
        found, spread = trained.predict(batch, **reading)
        mean[rows], distance[rows] = found[:, columns], trained.ood_distance(batch)
        if spread is not None:
            std = np.empty_like(mean) if std is None else std
            std[rows] = spread[:, columns]
        context = batch.context
    obs, unlike = trust(trained, distance)
    facts = provenance_of(trained, used, region, context) | _read_facts(reading) | unlike
    rescaled = spots is not None or "output_scale" in _read_facts(reading)
    if trained.record.target == "counts":
        mean = np.maximum(mean, 0)
    if spots is not None:
        mean, std = preserved(mean, region.coords_um, spots, trained), None
        facts |= {"output_scale": "counts", "preserved": preserve}
    var = gene_frame(trained).iloc[columns]
    if rescaled or finer:  # the model's intervals are not of these values
        var = var.drop(columns=[LOW, HIGH], errors="ignore")
    else:
        facts |= facts_of(trained)
    table = tables.build_table(
        mean,
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=var,
        spatial_um=region.coords_um,
        obs=obs,
        layers=None if std is None else {keys.STD: std},
        provenance=facts,
    )
    if not (rescaled or finer):
        put_intervals(table, trained, columns, interval)
    warn_unlike(trained, obs[keys.OOD_SCORE])
    if not inplace:
        return table
    put_result(sdata, key, table, region)
    return None


def _reading(model: Model, **asked: Any) -> dict[str, Any]:
    """Return how a generative model's posterior is read; nothing for other models, of which nothing may be asked."""
    given = {k: v for k, v in asked.items() if v not in (None, False)}
    if not model.config.generative:
        if given:
            raise InputError(f"{listing(given)} is for generative models, such as 'xfuse'; got {model.family!r}.")
        return {}
    from stpred.models.xfuse.readout import Readout

    readout = Readout(**given)
    model.covariates.of("", readout.covariates)  # type: ignore[union-attr,operator]  # refused before any work
    return {"readout": readout}


def _read_facts(reading: dict[str, Any]) -> dict[str, Any]:
    """Return what the provenance says of a posterior's read-out."""
    if not reading:
        return {}
    readout = reading["readout"]
    return {"readout": asdict(readout), "output_scale": readout.output_scale}

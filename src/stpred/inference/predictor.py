"""A trained model applied to the locations of a region."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders, models, nuclei, regions
from stpred._core import keys, tables
from stpred._core.checks import InputError, listing
from stpred._core.elements import shapes_in
from stpred._core.expression.library import LIBRARY, Library
from stpred._core.places import Place
from stpred._core.specs import TileSpec
from stpred.models.base import FORMAT_VERSION
from stpred.models.ood import ood_scores, slide_ood_summary

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.encoders.base import Encoder
    from stpred.models import Model

logger = logging.getLogger("stpred")


def known_as(model: Model, region: data.Region) -> str:
    """Return what a slide was called in the model's training, if it was among those slides."""
    there: dict[str, Any] = model.record.training.get("slides", {})
    return next((s for s, facts in there.items() if facts.get("image") == region.pyramid.fingerprint), region.slide)


UNLIKE_LIMIT = 0.5
"""Share of tiles unlike those of training from which on the user is warned."""


def region_for(
    sdata: SpatialData,
    model: Model,
    *,
    shapes_key: str | None,
    image_key: str | None,
    coordinate_system: str,
    make: bool = False,
) -> data.Region:
    """Return the locations that a model is applied to, under the name that their slide had in training, if any.

    With `make`, a slide without a region gets one: in an object of its own (``region.sdata``), for `put_result` to put
    into the slide together with the table, when all has gone well.
    """
    if make and shapes_key is None and not shapes_in(sdata, coordinate_system):
        sdata = with_regions(sdata, model, image_key=image_key, coordinate_system=coordinate_system)
    place = Place(shapes_key=shapes_key, image_key=image_key, coordinate_system=coordinate_system)
    region = data.read_region(sdata, place, prefer=model.record.region)
    return replace(region, slide=known_as(model, region))


def put_result(sdata: SpatialData, key: str, table: Any, region: data.Region) -> None:
    """Put a table into the object, with the regions that were made for it."""
    for made in [k for k in region.sdata.shapes if k not in sdata.shapes]:
        sdata.shapes[made] = region.sdata.shapes[made]
    tables.put_table(sdata, key, table)


def need_generative(model: Model) -> None:
    """Refuse models without a posterior."""
    if not model.config.generative:
        raise InputError(
            f"Model {model.record.name!r} ({model.family!r}) has no posterior to draw from; this is for generative "
            "models, such as one of stpred.tl.train(slides, 'xfuse')."
        )


def gene_frame(model: Model) -> pd.DataFrame:
    """Return what is known of each gene, indexed by symbol."""
    import pandas as pd

    frame = pd.DataFrame(index=pd.Index(model.record.genes, dtype=object))
    for name, values in model.record.var.items():
        if name == "gene_id":
            frame[name] = np.asarray(values, dtype=object)
        elif name == "trusted":
            frame[name] = np.asarray(values, dtype=bool)
        else:
            frame[name] = np.asarray([np.nan if v is None else v for v in values])
    return frame


def trained_model(model: Any) -> Model:
    """Return a trained model from whatever names it."""
    if model is None:
        return models.load("default")
    if isinstance(model, (str, Path)):
        return models.load(model)
    if not isinstance(model, models.Model):
        raise InputError(
            f"`model` must be a trained model, its folder or a bundled name, got {type(model).__name__}; train one "
            f"with stpred.tl.train."
        )
    if not model.record.genes:
        raise InputError(f"The {model.family!r} model is not trained; make it with stpred.tl.train.")
    return model


def encoder_for(model: Model, given: Any, *, device: str | None) -> Encoder:
    """Return the encoder that the model was trained with, and nothing else."""
    wanted = model.record.encoder
    if "name" not in wanted or not {"mpp", "size_px"} <= set(model.record.tile):
        raise InputError(f"Model {model.record.name!r} does not say which encoder and tile it was trained with.")
    own = getattr(model, "encoder", None) if given is None else encoders.get(given, tile=TileSpec(**model.record.tile))
    encoder = own.to(device) if own is not None else _remade(model, device=device)
    found = encoder.card.to_dict()
    if different := [k for k in ("name", "width", "revision", "tile") if found[k] != wanted.get(k)]:
        said = "; ".join(f"{k}: trained with {wanted.get(k)}, found {found[k]}" for k in different)
        raise InputError(f"The encoder is not the one that model {model.record.name!r} was trained with ({said}).")
    return encoder


def _remade(model: Model, *, device: str | None) -> Encoder:
    """Make the encoder from its name; say what to do where the name alone is not enough."""
    wanted = model.record.encoder
    try:
        return encoders.get(wanted["name"], tile=TileSpec(**model.record.tile), device=device)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}; model {model.record.name!r} was trained with the encoder {wanted['name']!r} "
            f"({wanted.get('source')}): pass it as `encoder=`, such as encoder=stpred.encoders.load(folder) for one "
            "that was saved, or make its name known with stpred.encoders.register(name, folder)."
        ) from error


def context_of(model: Model) -> data.Context:
    """Return what prediction depends on of the locations that a model was trained on."""
    record = model.record
    hexagonal = bool(record.training.get("hexagonal"))
    lattice = None if record.pitch_um is None else regions.Lattice(record.pitch_um, hexagonal)
    return data.Context(lattice, record.region, record.training.get("width_um"))


def gene_columns(model: Model, genes: Iterable[str] | None) -> list[int]:
    """Return positions of the wanted genes."""
    known = model.record.genes
    if genes is None:
        return list(range(len(known)))
    if not isinstance(genes, Iterable):
        raise InputError(f"`genes` must be a list of symbols or None, got {genes!r}.")
    wanted = [genes] if isinstance(genes, str) else [str(g) for g in genes]
    if not wanted:
        raise InputError(
            f"`genes` is empty; model {model.record.name!r} knows {len(known)}, such as {listing(known[:5])}."
        )
    position = {g: i for i, g in enumerate(known)}
    if missing := [g for g in wanted if g not in position]:
        raise InputError(
            f"Model {model.record.name!r} does not predict {listing(missing)}; it knows {len(known)} genes, such as "
            f"{listing(known[:5])}."
        )
    return [position[g] for g in dict.fromkeys(wanted)]


def with_regions(sdata: SpatialData, model: Model, *, image_key: str | None, coordinate_system: str) -> SpatialData:
    """Return a slide without a region with its tissue and a grid of 100 um, or with its nuclei.

    The object is left alone.
    """
    from spatialdata import SpatialData as Object

    sdata = Object(images=dict(sdata.images), shapes=dict(sdata.shapes))
    where: dict[str, Any] = {"image_key": image_key, "coordinate_system": coordinate_system}
    if model.needs.cells:
        key = keys.in_frame(keys.NUCLEI, coordinate_system)
        found = nuclei.outline(sdata, **where)
        regions.put_shapes(sdata, key, found, coordinate_system=coordinate_system)
        logger.info("The slide has no region: found %d nuclei, %r.", len(found), key)
        return sdata
    tissue_key, grid_key = (keys.in_frame(k, coordinate_system) for k in (keys.TISSUE, keys.GRID))
    if tissue_key not in sdata.shapes:
        tissue = regions.outline_tissue(sdata, **where)
        regions.put_shapes(sdata, tissue_key, tissue, coordinate_system=coordinate_system)
    grid = regions.lay_grid(sdata, tissue_key=tissue_key, **where)
    regions.put_shapes(sdata, grid_key, grid, coordinate_system=coordinate_system)
    logger.info("The slide has no region: made %r with %d points on %r.", grid_key, len(grid), tissue_key)
    return sdata


def trust(model: Model, distance: NDArray[np.float32]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a table says of how far its locations, and its slide, are from those of training.

    `distance` is of all its locations, as shares of the training tiles' limit.
    """
    limit = model.record.training.get("slide_limit")
    score = ood_scores(distance, limit)
    obs = {keys.OOD_SCORE: score, keys.IN_DISTRIBUTION: score <= 0}
    return obs, {"slide": slide_ood_summary(distance, limit)}


def warn_unlike(model: Model, score: np.ndarray) -> None:
    """Warn where most tiles are out of the distribution of the training tiles."""
    share = float((score > 0).mean())
    if share > UNLIKE_LIMIT:
        warnings.warn(
            f"{share:.0%} of the tiles look unlike those that model {model.record.name!r} was trained on "
            f"(obs['in_distribution'] is False); "
            "its predictions here are guesses. Train on slides like this one.",
            UserWarning,
            stacklevel=3,
        )


def _cell_facts(region: data.Region) -> dict[str, Any]:
    """Return how many locations hold no cell, and which (the first thousand)."""
    if region.cells is None:
        return {}
    return {"no_cells": len(region.without_cells), "without_cells": [str(i) for i in region.without_cells[:1000]]}


def provenance_of(model: Model, encoder: Encoder, region: data.Region, context: str | None) -> dict[str, Any]:
    """Return the provenance of predictions for a region."""
    record = model.record
    cells = {} if region.cells is None else {"cells": region.cells.region.shapes_key}
    return {
        "kind": "prediction",
        **cells,
        "model": record.name,
        "model_id": model.id,
        "family": model.family,
        "config": model.config.to_dict(),
        "format_version": FORMAT_VERSION,
        "encoder": encoder.card.to_dict(),
        "tile": record.tile,
        "gene_rule": record.gene_rule,
        "training": record.training,
        **({} if (library := Library.parse(record.library)) is None else {LIBRARY: library.packed()}),
        "output_scale": record.target,
        **({} if model.config.per is None else {"per": model.config.per}),
        "support_um": model.support_um,
        "context": context,
        "image": region.pyramid.fingerprint,
        "image_key": region.image_key,
        "mpp": region.pyramid.mpp,
        "upsampled": region.pyramid.mpp > encoder.card.tile.mpp * 1.01,
        "n_predicted": len(region.coords_um),
        "left_out": {
            "off_image": region.n_outside,
            **_cell_facts(region),
        },
        "versions": tables.package_versions(),
    }

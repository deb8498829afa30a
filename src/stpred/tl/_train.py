from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import TARGETS
from stpred.models import Model, _registry
from stpred.models.ensemble import Ensemble, EnsembleConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from spatialdata import SpatialData

    from stpred.encoders._base import Encoder
    from stpred.models import BaseConfig

logger = logging.getLogger("stpred")

PIXELS = "pixels"


def train(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "ridge",
    *,
    genes: GeneRule | str | Iterable[str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    target: str | None = None,
    encoder: Any = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    groups: Mapping[str, str] | None = None,
    validation: Iterable[str] | None = None,
    seed: int = 0,
    device: str | None = None,
    precision: str | None = None,
    n_ensemble: int | None = None,
    checkpoint: str | Path | None = None,
    fabric: Fabric | None = None,
    batch_size: int | None = None,
    name: str | None = None,
    allow_upsampling: bool = False,
    coordinate_system: str = keys.UM,
) -> Model:
    """Train a model that predicts expression from H&E tiles.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them: calibrated image, region and measured raw counts.
    model
        A family (``"ridge"``, ``"stnet"``, ``"deepspot"``, ``"miso"``, ...; see :func:`stpred.models.list`), its
        class, or its ``Config``.
    genes
        A :class:`~stpred.GeneRule`, a rule's name, or a list of symbols; None takes the 250 genes of highest mean
        count. Rules are computed on these slides alone.
    shapes_key, table_key, image_key
        Region, its raw counts and the H&E image; None finds them.
    cells_key
        Of families that see a location through the cells in it (``"scellst"``, ``"deepcell"``,
        ``"deepspot2cell"``): the shapes of the cells, on every slide. None: the region itself where its shapes are
        cells, else ``nuclei``, else ``cells``. Locations without cells are left out and counted in the record.
    target
        ``"log1p_cp10k"`` or ``"counts"``; None takes the family's own, mostly the former.
    encoder
        An encoder's name (None: the family's own, mostly ``"morphology"``), an encoder, or a ``torch.nn.Module``.
    tile
        :class:`~stpred.TileSpec` to read tiles at; None takes the family's or the encoder's own.
    groups
        Donor of each slide. With two or more donors, penalties and numbers of epochs are chosen and genes are scored by
        leaving donors out; None takes each slide for its own donor and says so in the record.
    validation
        Slides, all those of their donors, that are not trained on but end the training: the model is the one of the
        epoch that they score best at, and genes are scored on them. It costs one training, where None costs up to six:
        it chooses the number of epochs, and scores genes, by leaving donors out, and then trains on all slides.
    seed
        Seed of whatever is random.
    device
        Where encoder and training run; None takes a GPU if there is one.
    precision
        Of training: ``"32-true"`` (None), ``"bf16-mixed"`` or ``"16-mixed"``.
    n_ensemble
        Train so many models that differ by seed (closed forms: by a bootstrap of donors and locations); the prediction
        is their mean, and their spread goes into ``layers["std"]``. Per-gene scores are those of the first member.
    checkpoint
        Folder to keep the state of the training in after each epoch. Called again with the same arguments, an
        interrupted training goes on from there to the same result; the files go when it is done.
    fabric
        A launched Lightning Fabric, for several GPUs; instead of `device` and `precision` of the training.
    batch_size
        Tiles per encoder call; None takes ``stpred.settings.batch_size``.
    name
        What the model and its tables are called after; None takes the family's name.
    allow_upsampling
        Train on images that are too coarse for the encoder all the same.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    Model
        Apply it with :func:`stpred.tl.predict`, keep it with :func:`stpred.models.save`. ``model.record.var`` holds
        per gene ``cv_pearson`` and ``cv_spearman`` (mean over left-out slides; missing with a single slide), ``rmax``,
        ``mean``, ``n_slides`` and ``trusted`` (``cv_pearson`` above 0.1 and, by its number of locations, beyond
        chance).

    Raises
    ------
    InputError
        If slides lack an image, counts or shared genes, if counts are not raw, an image is too coarse, a device is not
        there, or the loss is not finite.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3)
    >>> model = st.tl.train(slides, "ridge", genes=st.GeneRule("rmax", n=50), shapes_key="spots")
    >>> len(model.record.genes)
    50
    """
    slides = data.as_slides(slides)
    family, config = _registry.resolve(model)
    if n_ensemble is not None:
        family, config = Ensemble, EnsembleConfig(config, n=n_ensemble)
    rule = GeneRule.parse(genes)
    if target is not None:
        one_of(target, TARGETS, name="target")
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    called = keys.slug(_plain_name(config, family) if name is None else name)
    if not called:
        raise InputError(f"`name` must hold a letter or digit, got {name!r}.")
    run = training.Run(device=device, precision=precision, checkpoint=checkpoint, fabric=fabric)
    blank = _registry.probe(family, config)
    encoder = encoder_of(blank, encoder, tile=tile, device=device)
    regions = [
        data.read_region(
            sdata,
            slide=slide,
            shapes_key=shapes_key,
            image_key=image_key,
            table_key=table_key,
            measured=True,
            coordinate_system=coordinate_system,
        )
        for slide, sdata in slides.items()
    ]
    if blank.needs.cells:
        regions = [data.with_cells(r, cells_key=cells_key) for r in regions]
    elif cells_key is not None:
        raise InputError(f"`cells_key` is for families that see cells; {family.family!r} sees tiles.")
    left = _validation(validation, donors)
    learned = [r for r in regions if r.slide not in left]
    chosen = data.choose_genes(learned, rule)
    chosen = chosen.loc[[all(g in r.var.index for r in regions) for g in chosen.index]]  # type: ignore[union-attr]
    names = chosen.index.tolist()
    lattice = data.common_lattice(learned)
    config = config.at_pitch(None if lattice is None else lattice.pitch_um)
    needs = _registry.probe(family, config).needs
    reading: dict[str, Any] = {"batch_size": batch_size, "allow_upsampling": allow_upsampling}
    all_batches = [
        data.make_batch(r, encoder, needs, **reading, **measured(r, names, blank, target=target)) for r in regions
    ]
    batches = [b for b in all_batches if b.slide not in left]
    order = [donors[b.slide] for b in batches]
    held = [b for b in all_batches if b.slide in left]
    fitted, facts, scores = training.fit_and_score(
        family, config, batches, groups=order, validation=held, seed=seed, run=run
    )
    var: dict[str, Any] = {c: chosen[c].to_numpy() for c in ("mean", "rmax") if c in chosen}
    var |= _held_out(family, config, batches, order, seed=seed, run=run) if scores is None else scores.columns()
    if (ids := _gene_ids(regions, names)) is not None:
        var["gene_id"] = ids
    record = fitted.record
    record.name = called
    record.genes = names
    record.var = {k: _plain(v) for k, v in var.items()}
    record.encoder, record.tile = encoder.card.to_dict(), encoder.card.tile.to_dict()
    record.gene_rule, record.target = rule.to_dict(), blank.output_scale(target)
    record.region = regions[0].shapes_key
    record.pitch_um = None if lattice is None else round(lattice.pitch_um, 3)
    reaches = [r for b in batches if (r := data.reach_um(b)) is not None]
    record.cells = None if regions[0].cells is None else regions[0].cells.region.shapes_key
    record.reach_um = round(float(np.median(reaches)), 3) if reaches else None
    record.training = {
        "slides": {r.slide: {"donor": donors[r.slide], "n_locations": len(r.coords_um)} for r in regions},
        "validation": sorted(left),
        "n_donors": len(set(order)),
        "donors_given": groups is not None,
        "hexagonal": bool(lattice is not None and lattice.hexagonal),
        **_cell_facts(regions),
        "mpp": {r.slide: round(r.pyramid.mpp, 5) for r in regions},
        "seed": seed,
        "target": batches[0].scale,
        "scored_on": scored_scale(blank, target),
        **facts,
    }
    fitted.encoder = encoder
    run.clear()
    return fitted


def _validation(slides: Iterable[str] | None, donors: dict[str, str]) -> set[str]:
    """Return the slides that are left out to end the training; their donors must not be trained on."""
    if slides is None:
        return set()
    left = {slides} if isinstance(slides, str) else {str(s) for s in slides}
    if not left or left - donors.keys() or left == donors.keys():
        raise InputError(f"`validation` must name some of the slides {listing(donors)}, not all, got {listing(left)}.")
    if shared := sorted({donors[s] for s in left} & {g for s, g in donors.items() if s not in left}):
        raise InputError(
            f"`validation` shares donors {listing(shared)} with the training slides; leave all theirs out."
        )
    return left


def encoder_of(model: Model, given: Any, *, tile: Any, device: str | None) -> Encoder:
    """Return the encoder that a family is trained through: the one given, or its own."""
    used = model.default_encoder if given is None else given
    spec = model.default_tile if tile is None and used == model.default_encoder else tile
    found = encoders.get(used, tile=None if spec is None else TileSpec.parse(spec), device=device)
    if model.default_encoder == PIXELS and found.card.name != PIXELS:
        raise InputError(
            f"{model.family} sees the world through its own encoder {PIXELS!r}, not {found.card.name!r}; leave "
            f"`encoder` out."
        )
    return found


def scored_scale(model: Model, target: str | None) -> str:
    """Return the scale that a model's predictions are scored on while it is trained.

    Relative outputs are scored on log1p CP10k: on raw counts, the library size alone would make any gene look good.
    """
    scale = model.output_scale(target)
    return scale if scale in TARGETS and model.per is None else "log1p_cp10k"


def measured(
    region: data.Region, names: list[str], model: Model, *, target: str | None, scored_on: str | None = None
) -> dict[str, Any]:
    """Return what a batch carries of the measurement: training target, what it is, and what is scored against."""
    scale = model.training_target(target)
    scored = scored_scale(model, target) if scored_on is None else scored_on
    truth = None if scored == scale else region.target(names, scored)
    return {"y": region.target(names, scale), "scale": scale, "truth": truth}


def _cell_facts(regions: list[data.Region]) -> dict[str, Any]:
    """Return how many cells the locations were seen through, and how many locations had none."""
    if regions[0].cells is None:
        return {}
    cells = {r.slide: int(r.cells.links.indices.size) for r in regions if r.cells is not None}
    return {"n_cells": cells, "without_cells": {r.slide: len(r.without_cells) for r in regions}}


def _plain_name(config: Any, family: type[Model]) -> str:
    """Return what a model is called by default; an ensemble is called after its members."""
    return config.family if isinstance(config, EnsembleConfig) else family.family


def _held_out(
    family: Any, config: Any, batches: list[Any], groups: list[str], *, seed: int, run: training.Run
) -> dict[str, Any]:
    """Return per-gene scores on left-out donors; unknown (NaN) where there is a single one."""
    n_genes = batches[0].y.shape[1]
    if len(set(groups)) < 2:
        logger.warning("One donor only: no gene can be scored on unseen tissue, so none is marked as trusted.")
        unknown = np.full(n_genes, np.nan)
        none = np.zeros(n_genes, dtype=int)
        return {"cv_pearson": unknown, "cv_spearman": unknown, "n_slides": none, "trusted": none.astype(bool)}
    return training.held_out_scores(family, config, batches, groups=groups, seed=seed, run=run).columns()


def _gene_ids(regions: list[data.Region], names: list[str]) -> Any:
    """Return Ensembl ids of the genes if a slide knows them."""
    for region in regions:
        for column in ("gene_id", "gene_ids"):
            if region.var is not None and column in region.var:
                return region.var.loc[names, column].astype(str).to_numpy()
    return None


def _plain(values: Any) -> list[Any]:
    """Return a JSON list; NaN becomes None, numbers keep six digits."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return [None if not np.isfinite(v) else float(f"{v:.6g}") for v in array]

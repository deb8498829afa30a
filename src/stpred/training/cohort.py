"""What training and distillation share: the slides' regions, their genes, batches, and the trained model's record."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, encoders, training
from stpred._core import keys
from stpred._core.checks import InputError, UnsafeResolutionError
from stpred._core.elements import normalisation
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred._core.settings import settings
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import LOG_SHARE, SCALES
from stpred.encoders.beside import PIXELS, PixelsBeside
from stpred.models import Model
from stpred.models.base import CELLS, MULTISCALE, BaseConfig
from stpred.models.batch import Batch, Needs
from stpred.models.ensemble import EnsembleConfig, output_size
from stpred.regions import Lattice

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.encoders.base import Encoder

logger = logging.getLogger("stpred")


@dataclass(frozen=True)
class Cohort:
    """Training slides: their locations with counts, donors, and the genes that the rule chose on them.

    Attributes
    ----------
    regions
        One per slide.
    donors
        Slide to donor.
    validation
        Slides that are not learned from.
    rule, genes
        The gene rule and the frame of the chosen genes, measured on every slide.
    lattice
        Arrangement of the training locations.
    shared
        The genes that library sizes are counted over, where the slides measured different ones.
    """

    regions: list[data.Region]
    donors: dict[str, str]
    validation: Collection[str]
    rule: GeneRule
    genes: pd.DataFrame
    lattice: Lattice | None
    shared: data.SharedLibrary | None = None

    @classmethod
    def of(
        cls,
        regions: list[data.Region],
        donors: dict[str, str],
        *,
        rule: GeneRule,
        validation: Collection[str] = (),
        partial: bool = False,
        qc: QC | None = None,
    ) -> Cohort:
        """Choose genes on the slides that are learned from; `partial`: slides may lack some of the named ones.

        `qc`: limits on the genes that are chosen among. Unless `partial`, slides that measured different genes are
        brought to one library.
        """
        shared = None if partial else data.shared_library(regions)
        if shared is not None:
            regions = [r if r.counts is None else r.over(shared.genes) for r in regions]
        learned = [r for r in regions if r.slide not in validation]
        if not any(r.counts is not None for r in learned):
            raise InputError("No training slide has counts.")
        allowed = None if qc is None else data.good_genes(learned, qc)
        chosen = data.choose_genes(learned, rule, partial=partial, allowed=allowed)
        if not partial:
            chosen = chosen.loc[np.all([r.measures(chosen.index.tolist()) for r in regions], axis=0)]
        return cls(regions, donors, validation, rule, chosen, data.common_lattice(learned), shared)

    @property
    def names(self) -> list[str]:
        """The chosen genes."""
        return self.genes.index.tolist()

    @property
    def pitch_um(self) -> float | None:
        """Median spacing of the training locations."""
        return None if self.lattice is None else self.lattice.pitch_um

    @property
    def training_groups(self) -> list[str]:
        """Donor of each slide that is learned from."""
        return [self.donors[r.slide] for r in self.regions if r.slide not in self.validation]

    def groups(self, batches: Sequence[Batch]) -> list[str]:
        """Return the donor of each batch."""
        return [self.donors[b.slide] for b in batches]

    def batches(self, config: BaseConfig, encoder: Encoder, *, target: str | None) -> list[Batch]:
        """Embed every slide for a family; features that are kept on disk stay there."""
        how: dict[str, Any] = {"target": target, "n_measured": n_measured(config, self.regions)}
        how["among"] = sum(len(r.coords_um) for r in self.regions)

        def read(region: data.Region) -> Batch:
            return data.reader_for(region, encoder, config.needs).whole()

        if settings.cache_dir is not None:
            training.each_its_share(settings.fabric, self.regions, read)
        return [measured(r, self.names, config, **how).put(read(r)) for r in self.regions]

    def describe(
        self,
        fitted: Model,
        *,
        name: str,
        encoder: Encoder,
        batches: Sequence[Batch],
        config: BaseConfig,
        target: str | None,
        scores: training.HeldOut,
    ) -> None:
        """Write the provenance of the training into the model's record, and keep its encoder with it."""
        regions, lattice, record, needs = self.regions, self.lattice, fitted.record, fitted.needs
        var: dict[str, Any] = {c: self.genes[c].to_numpy() for c in ("mean", "rmax") if c in self.genes}
        var |= scores.columns()
        if (ids := _gene_ids(regions, self.names)) is not None:
            var["gene_id"] = ids
        record.name, record.genes = name, self.names
        record.var = {k: json_list(v) for k, v in var.items()}
        record.encoder, record.tile = encoder.card.to_dict(), encoder.card.tile.to_dict()
        record.gene_rule, record.target = self.rule.to_dict(), config.output_scale(target)
        if not config.takes_images:  # those take each slide's counts as they are, of whatever genes
            record.library = data.library_of([r for r in regions if r.slide not in self.validation]).to_dict()
        record.region = next(r.shapes_key for r in regions if r.counts is not None)
        record.pitch_um = None if lattice is None else round(lattice.pitch_um, 3)
        reaches = [r for b in batches if (r := data.reach_um(b)) is not None]
        record.cells = None if regions[0].cells is None else regions[0].cells.region.shapes_key
        record.reach_um = round(float(np.median(reaches)), 3) if reaches else None
        record.training = {
            "slides": {
                r.slide: {
                    "donor": self.donors[r.slide],
                    "n_locations": len(r.coords_um),
                    "image": r.pyramid.fingerprint,
                }
                for r in regions
            },
            "validation": sorted(self.validation),
            "n_donors": len(set(self.groups(batches))),
            "hexagonal": bool(lattice is not None and lattice.hexagonal),
            **_cell_summary(regions),
            **(_token_summary(regions, encoder, needs) if needs.tokens else {}),
            "mpp": {r.slide: round(r.pyramid.mpp, 5) for r in regions},
            "target": next(b.scale for b in batches if b.y is not None),
            "scored_on": scored_scale(config, target),
            **({"n_measured": n_measured(config, regions)} if config.training_target(target) == LOG_SHARE else {}),
            **_normalisation(regions),
            **({} if self.shared is None else {"shared_library": self.shared.to_dict()}),
            **_left_out(regions),
        }
        if record.target == "relative":
            record.output_size = [float(f"{v:.6g}") for v in output_size(fitted, batches)]
        fitted.encoder = encoder  # type: ignore[assignment]


def read_cohort(
    slides: Mapping[str, SpatialData],
    config: BaseConfig,
    place: Place,
    *,
    cells_key: str | None = None,
    qc: QC | None = None,
) -> list[data.Region]:
    """Read the measured region of every slide, with its cells for a family that sees these.

    `qc`: what does not pass is left out, and how much that is is logged.
    """
    regions = [
        data.read_image(sdata, place, slide=slide)
        if config.takes_images and not data.has_counts(sdata)
        else data.read_region(sdata, place, slide=slide, measured=True)
        for slide, sdata in slides.items()
    ]
    if qc is not None:
        regions = [r if r.counts is None else data.passing(r, qc) for r in regions]
    if config.needs.cells:
        return [data.with_cells(r, cells_key=cells_key) for r in regions]
    if cells_key is not None:
        raise InputError(f"`cells_key` is for families that see cells; {config.family!r} sees tiles.")
    return regions


def encoder_of(config: BaseConfig, given: Any, *, tile: Any, device: str | None) -> Encoder:
    """Return the encoder that a family is trained through: the one given, or its own."""
    if config.needs.pixel_grid:
        return _of_pixels(config, given, tile=tile, device=device)
    used = config.default_encoder if given is None else given
    single = BaseConfig.default_encoder if config.default_encoder in (MULTISCALE, CELLS) else config.default_encoder
    if given is None and tile is not None:
        used = single  # one tile is given
    spec = config.default_tile if tile is None and used == single else tile
    found = encoders.get(used, tile=None if spec is None else TileSpec.parse(spec), device=device)
    if config.default_encoder == PIXELS and found.card.name != PIXELS:
        raise InputError(
            f"{config.family} has its own encoder, {PIXELS!r}, and takes no other, such as {found.card.name!r}; leave "
            f"`encoder` out."
        )
    return found


def _of_pixels(config: BaseConfig, given: Any, *, tile: Any, device: str | None) -> Encoder:
    """Return the encoder of a model of pixel grids: the pixels, and features beside them where its settings say so."""
    found = encoders.get(PIXELS, tile=config.default_tile if tile is None else TileSpec.parse(tile), device=device)
    name = getattr(getattr(given, "card", None), "name", given)
    beside = getattr(config, "features", False)
    if name not in (None, PIXELS) and beside is False:
        raise InputError(
            f"{config.family} has its own encoder, {PIXELS!r}, and takes others beside it only with features=True in "
            f"its settings; got {given!r}. Leave `encoder` out."
        )
    if beside is False:
        return found
    own = name in (None, PIXELS)
    return PixelsBeside(
        found, [encoders.get(MULTISCALE if own else given, device=device)], optional=own and beside is None
    )


def suited(encoder: Encoder, regions: Iterable[data.Region]) -> Encoder:
    """Return the encoder for slides, of which any may be too coarse for features that are optional: then the pixels."""
    if not (isinstance(encoder, PixelsBeside) and encoder.optional):
        return encoder
    for region in regions:
        try:
            for member in encoder.features:
                data.check_resolution(region, member)
        except UnsafeResolutionError as error:
            logger.info("No features beside the pixels: %s", error)
            return encoder.members[0]
    return encoder


def scored_scale(config: BaseConfig, target: str | None) -> str:
    """Return the scale that a family's predictions are scored on while it is trained.

    Relative outputs are scored on log1p CP10k: on raw counts, the library size alone would make any gene look good.
    """
    scale = config.output_scale(target)
    return scale if scale in SCALES and config.per is None else "log1p_cp10k"


def n_measured(config: BaseConfig, regions: Iterable[data.Region]) -> int | None:
    """Return the number of genes in the denominator of log shares: the family's setting, or all that were measured."""
    genes = [r.var.index for r in regions if r.var is not None]
    return getattr(config, "n_measured", None) or (len(set().union(*genes)) if genes else None)


def measured(
    region: data.Region,
    names: list[str],
    config: BaseConfig,
    *,
    target: str | None,
    n_measured: int | None,
    scored_on: str | None = None,
    among: int | None = None,
) -> data.Targets:
    """Return what a batch carries of the measurement: training target, what it is, and what is scored against.

    `scored_on` is for correlations: a family whose epochs are chosen by squared error is scored on its own scale.
    `among`: locations of all slides, of so many that targets are sparse whatever the family.
    """
    if config.takes_images and region.counts is None:
        return data.Targets()
    scale = config.training_target(target)
    by_error = training.criterion_of(config.model_class, config) == "mse"
    scored = scored_scale(config, target) if scored_on is None or by_error else scored_on
    how: dict[str, Any] = {"sparse": config.sparse_targets, "n_measured": n_measured, "among": among}
    truth = None if scored == scale else region.target(names, scored, **how)
    y = region.target(names, scale, **how)
    return data.Targets(y, truth, scale, region.measures(names) if config.takes_images else None)


def _left_out(regions: list[data.Region]) -> dict[str, Any]:
    """Return how many locations were left out by quality, slide by slide and reason by reason, if any were judged."""
    found = {r.slide: r.left_out for r in regions if r.left_out is not None}
    return {"left_out_by_quality": found} if found else {}


def _token_summary(regions: list[data.Region], encoder: Encoder, needs: Needs) -> dict[str, float]:
    """Return the width of tokens, and the locations that are made up of them."""
    width = float(np.median([data.median_width_um(r) for r in regions]))
    return {"token_um": data.token_width_um(encoder, needs), "width_um": round(width, 3)}


def _normalisation(regions: list[data.Region]) -> dict[str, Any]:
    """Return how the images were normalised, and to what reference, where all were normalised alike."""
    found = [normalisation(r.sdata, r.image_key) or {} for r in regions]
    alike = [{k: f.get(k) for k in ("method", "reference")} for f in found]
    return {"normalised": alike[0]} if found[0] and all(a == alike[0] for a in alike) else {}


def _cell_summary(regions: list[data.Region]) -> dict[str, Any]:
    """Return the numbers of cells in the locations, and of locations without any."""
    if regions[0].cells is None:
        return {}
    cells = {r.slide: int(r.cells.links.indices.size) for r in regions if r.cells is not None}
    return {"n_cells": cells, "without_cells": {r.slide: len(r.without_cells) for r in regions}}


def model_name(config: BaseConfig, name: str | None) -> str:
    """Return what a model is called: `name`, or its family (an ensemble: that of its members)."""
    default = config.member.family if isinstance(config, EnsembleConfig) else config.family
    called = keys.slug(default if name is None else name)
    if not called:
        raise InputError(f"`name` must hold a letter or digit, got {name!r}.")
    return called


def fit_cohort(
    cohort: Cohort,
    config: BaseConfig,
    encoder: Encoder,
    *,
    target: str | None,
    name: str,
    donors_given: bool,
    seed: int,
    run: training.Run,
    relabel: training.Relabel | None = None,
) -> tuple[Model, list[Batch]]:
    """Fit a family, score its genes on held-out donors, and write its record; also return the training batches."""
    every = cohort.batches(config, encoder, target=target)
    batches, validation = ([b for b in every if (b.slide in cohort.validation) is v] for v in (False, True))
    options: dict[str, Any] = {"groups": cohort.groups(batches), "seed": seed, "run": run, "relabel": relabel}
    fitted = training.fit_and_score(config.model_class, config, batches, validation=validation, **options)
    scores = fitted.validation
    if scores is None:
        scores = _held_out_scores(config, batches, folds=fitted.folds, **options)
    model = fitted.model
    cohort.describe(model, name=name, encoder=encoder, batches=batches, config=config, target=target, scores=scores)
    model.record.training |= {"donors_given": donors_given, "seed": seed, **fitted.chosen}
    return model, batches


def _held_out_scores(config: Any, batches: list[Batch], *, groups: list[str], **options: Any) -> training.HeldOut:
    """Return per-gene scores on held-out donors; of no slide where there are too few to hold any out."""
    why = "One donor only"
    if not getattr(config, "score_folds", True):
        why = "Held-out donors are scored only with score_folds=True"
    elif len(set(groups)) > 1:
        try:
            return training.held_out_scores(config.model_class, config, batches, groups=groups, **options)
        except data.TooSmall as error:
            why = str(error).rstrip(".")
    logger.warning("%s: no gene can be scored on held-out tissue, so none is marked as trusted.", why)
    none = np.empty((0, next(b.y.shape[1] for b in batches if b.y is not None)))
    return training.HeldOut(none, none, np.empty(0, dtype=np.int64))


def _gene_ids(regions: list[data.Region], names: list[str]) -> Any:
    """Return Ensembl ids of the genes if a slide knows them."""
    for region in regions:
        for column in ("gene_id", "gene_ids"):
            if region.var is not None and column in region.var and region.measures(names).all():
                return region.var.loc[names, column].astype(str).to_numpy()
    return None


def json_list(values: Any) -> list[Any]:
    """Return a JSON list; NaN becomes None, numbers keep six digits."""
    array = np.asarray(values)
    if array.dtype.kind != "f":
        return array.tolist()
    return [None if not np.isfinite(v) else float(f"{v:.6g}") for v in array]

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, one_of
from stpred._core.names import names_of
from stpred._core.places import Place
from stpred._core.recipes.quality import QC
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import TRAINED_ON
from stpred.inference.intervals import calibrate, refused, residual_sketch
from stpred.models import Model, registry
from stpred.models.auto import Auto
from stpred.models.batch import Batch
from stpred.models.ensemble import Ensemble
from stpred.models.parts.iterative import Iterative
from stpred.training.cohort import Cohort, encoder_of, fit_cohort, model_name, read_cohort, suited

if TYPE_CHECKING:
    from spatialdata import SpatialData

    from stpred.models import BaseConfig

MIN_DONORS = 3
"""Of which two remain when one is held out."""


def train(
    slides: SpatialData | Mapping[str, SpatialData],
    model: str | BaseConfig | type[Model] = "ridge",
    *,
    genes: GeneRule | str | Iterable[str] | None = None,
    groups: Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    target: str | None = None,
    encoder: Any = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    validation: Iterable[str] | None = None,
    intervals: bool | None = None,
    qc: QC | bool | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> Model:
    """Train a model that predicts expression from H&E tiles.

    With ``stpred.settings.checkpoint_dir``, an interrupted training that is called again goes on where it was;
    ``settings.precision`` and ``settings.fabric`` say how networks are trained. With ``settings.cache_dir``, features
    stay on disk (see :func:`stpred.pp.features_cohort`), from which each minibatch takes its rows, whatever slides they
    are of. Where the features of all slides would take more than 512 MB in double precision, closed forms take one
    slide after the other, to the same result, and hold donors out in five folds instead of each by itself; beyond 2^28
    values in all, training targets are sparse.

    Parameters
    ----------
    slides
        One SpatialData object, or a mapping of slide names to them: calibrated image, region and measured raw counts.
        Where slides measured materially different genes (those that all share carry less than 95 % of the counts of
        some, as a panel and a whole transcriptome), library sizes are counted over the shared ones, and a warning says
        so: log1p CP10k is one scale only over one set of genes.
    model
        A family (``"ridge"``, ``"stnet"``, ``"deepspot"``, ``"miso"``, ...; see :func:`stpred.models.list`), its
        class, or its ``Config``. ``stpred.models.Ensemble.Config("mlp", n_members=5)`` trains several members: the
        prediction is their mean, their spread goes into ``layers["std"]``.
    genes
        A :class:`~stpred.GeneRule`, a rule's name, or a list of symbols; None takes the 250 genes of highest mean
        count. Rules are computed on these slides alone.
    groups
        Donor of each slide. With two or more donors, penalties and numbers of epochs are chosen and genes are scored by
        leaving donors out; None takes each slide for its own donor and says so in the record. Names of slides and
        donors are text in records and results: a whole number is its digits, so that 1 and "1" are one name.
    shapes_key, table_key, image_key
        Region, its raw counts and the H&E image; None finds them.
    layer
        Layer of the table that holds the raw counts; None: ``X``.
    cells_key
        Of families that see a location through the cells in it (``"scellst"``, ``"deepcell"``,
        ``"deepspot2cell"``): the shapes of the cells, on every slide. None: the region itself where its shapes are
        cells, else ``nuclei``, else ``cells``. Locations without cells are skipped and counted in the record.
    target
        ``"log1p_cp10k"`` or ``"counts"``; None takes the family's own, mostly the former. Or
        ``"log1p_cp10k_given_library"``: log1p CP10k without what the log library size explains on each slide, or
        ``"log1p_cp10k_half_library"``, without half of it. How much RNA a location caught is learned along with log1p
        CP10k and rarely holds on other donors; with these, predictions are of what is left, on the same scale and
        about the same means. Scores stay those on log1p CP10k.
    encoder
        An encoder's name (None: the family's own, mostly ``"morphology-multiscale"`` or ``"morphology"``; with `tile`
        alone the latter), an encoder, or a ``torch.nn.Module``;
        or a list of these, whose features are put side by side.
    tile
        :class:`~stpred.TileSpec` to read tiles at; None takes the family's or the encoder's own.
    validation
        Slides, all those of their donors, that are not trained on but end the training: the model is the one of the
        epoch that they score best at, and genes are scored on them. It costs one training, where None costs up to six:
        it chooses the number of epochs, and scores genes, by leaving donors out, and then trains on all slides.
    qc
        Limits on locations and genes (:class:`stpred.QC`; True: its defaults): what does not pass is not learned from,
        and the record says how many locations of each slide that were, by reason. None: all are taken.
    intervals
        Calibrate conformal intervals on predictions of each slide by models that were trained without its donor, in at
        most five folds (:func:`stpred.tl.conformal` does so on slides outside training). None does it for
        families of closed form with three donors or more, where it costs little; True costs a network up to five more
        trainings.
    name
        What the model and its tables are called after; None takes the family's name.
    seed
        Seed of whatever is random.
    device
        Where encoder and training run; None takes a GPU if there is one.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    Model
        Apply it with :func:`stpred.tl.predict`, keep it with :func:`stpred.models.save`. ``model.record.var`` holds
        per gene ``cv_pearson`` and ``cv_spearman`` (mean over held-out slides; missing with a single slide), ``rmax``,
        ``mean``, ``n_slides`` and ``trusted`` (``cv_pearson`` above 0.1 and, by its number of locations, beyond
        chance), and where intervals are calibrated ``interval_low`` and ``interval_high``.

    Raises
    ------
    InputError
        If slides lack an image, counts or shared genes, if counts are not raw, an image is too coarse, a device is not
        there, or the loss is not finite.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(500, 500), n_genes=20)
    >>> model = st.tl.train(slides, "ridge", genes=st.GeneRule("rmax", n=10), shapes_key="spots")
    >>> len(model.record.genes)
    10
    """
    slides = data.as_slides(slides)
    config = registry.resolve(model)
    if target is not None:
        one_of(target, TRAINED_ON, name="target")
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    name = model_name(config, name)
    run = training.Run(device=device)
    encoder = encoder_of(config, encoder, tile=tile, device=device)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    limits = None if qc is None or qc is False else QC.parse(qc)
    regions = read_cohort(slides, config, place, cells_key=cells_key, qc=limits)
    encoder = suited(encoder, regions)
    held_out = _validation(validation, donors)
    rule = GeneRule.parse(genes)
    cohort = Cohort.of(regions, donors, rule=rule, validation=held_out, partial=config.takes_images, qc=limits)
    config = config.at_pitch(cohort.pitch_um)
    plan = training.plan(
        config.model_class, config, cohort.training_groups, validated=bool(held_out), intervals=bool(intervals)
    )
    if plan.long:
        training.announce([plan.sentence()])
    with training.resumable(run, planned=plan.networks):
        fitted, batches = fit_cohort(
            cohort, config, encoder, target=target, name=name, donors_given=groups is not None, seed=seed, run=run
        )
        if _wanted(fitted, cohort.training_groups, intervals=intervals):
            _calibrate(fitted, config, batches, cohort, seed=seed, run=run)
    return fitted


def _wanted(model: Model, groups: list[str], *, intervals: bool | None) -> bool:
    """Whether intervals are calibrated; requested where there can be none, say why."""
    reason = refused(model)
    if reason is None and len(set(groups)) < MIN_DONORS:
        reason = f"slides of {len(set(groups))} donors leave too few out-of-fold models"
    if intervals and reason is not None:
        raise InputError(f"`intervals`: model {model.record.name!r} can have none: {reason}.")
    cheap = not isinstance(model, (Iterative, Ensemble, Auto))
    return reason is None and (cheap if intervals is None else intervals)


def _calibrate(
    model: Model, config: BaseConfig, batches: list[Batch], cohort: Cohort, *, seed: int, run: training.Run
) -> None:
    """Calibrate intervals on out-of-fold predictions."""
    batches = [b for b in batches if b.y is not None]
    groups, slides = cohort.groups(batches), {b.slide for b in batches}
    width_um = float(np.median([data.median_width_um(r) for r in cohort.regions if r.slide in slides]))
    predictions, _ = training.out_of_fold(type(model), config, batches, groups=groups, seed=seed, run=run)
    scale = model.record.target
    sketches = [residual_sketch(b.scored, predictions.pop(b.slide), scale) for b in batches]
    calibrate(
        model,
        sketches,
        slides=[b.slide for b in batches],
        groups=groups,
        width_um=width_um,
        calibrated_on="models that were trained without their donors",
        donors_given=bool(model.record.training["donors_given"]),
    )


def _validation(slides: Iterable[str] | None, donors: dict[str, str]) -> set[str]:
    """Return the slides that only end the training; their donors must not be trained on."""
    if slides is None:
        return set()
    held_out = {slides} if isinstance(slides, str) else set(names_of(slides, what="slide in `validation`"))
    if not held_out or held_out - donors.keys() or held_out == donors.keys():
        raise InputError(
            f"`validation` must name some of the slides {listing(donors)}, not all, got {listing(held_out)}."
        )
    if shared := sorted({donors[s] for s in held_out} & {g for s, g in donors.items() if s not in held_out}):
        raise InputError(
            f"`validation` shares donors {listing(shared)} with the training slides; leave all theirs out."
        )
    return held_out

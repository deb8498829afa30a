from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, training
from stpred._core import keys
from stpred._core.checks import InputError, listing, warn
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import Library
from stpred._core.places import Place
from stpred._core.specs import FineTuning
from stpred._core.targets import LOG_SHARE, WITHOUT_LIBRARY
from stpred.inference.intervals import HIGH, LOW, as_stable, calibrate, refused
from stpred.inference.predictor import Predictor, gene_columns, load_trained
from stpred.inference.provenance import trained_on
from stpred.metrics.intervals import sketch
from stpred.models.ensemble import Ensemble
from stpred.models.parts.iterative import Iterative
from stpred.models.pretrained.model import Pretrained
from stpred.tl._predictors.published import standardise, with_target
from stpred.training.cohort import json_list, model_name

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from spatialdata import SpatialData

    from stpred.models import Model
    from stpred.models.batch import Batch

MIN_UNITS = 3
"""Held-out donors or blocks from which on intervals are calibrated: two remain when one is held out."""

SCORES = ("cv_pearson", "cv_spearman", "n_slides", "trusted")
"""Columns that are made anew; the old ones stay as ``base_...``."""


def finetune(
    model: Model | str | Path,
    slides: SpatialData | Mapping[str, SpatialData],
    *,
    genes: Iterable[str] | None = None,
    groups: Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    cells_key: str | None = None,
    encoder: Any = None,
    options: FineTuning | None = None,
    intervals: bool | None = None,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> Model:
    """Go on from a trained model on own measured slides.

    A model of other donors knows which tissue expresses what; an own slide knows its stain, its protocol and its
    donor. Ridge is solved again with its weights shrunk towards the old ones instead of towards zero; networks go on
    for a few epochs, layers near the input slower than the head. How far the weights move is chosen by holding out own
    donors, or blocks of the only donor's slides with a gap around them, and the old weights are a candidate. A network
    keeps them unless others score better by more than the standard error of the difference; ridge goes on as if the own
    slides had been among the old ones, unless others (or the old weights) are better by that much. Where own counts do
    not correlate with any prediction, the old weights stay. Each gene's mean is always corrected
    to that of the own slides. With ``stpred.settings.checkpoint_dir``, an interrupted call goes on where it
    was.

    Parameters
    ----------
    model
        The old model: a trained one, the folder it was saved in, a bundled name, or ``"hf:owner/name@revision"`` of the
        Hugging Face hub; it is not changed. Families:
        ``"ridge"``, every network of features, cells, patches or pixels, and ensembles of these; and published
        predictors (:func:`stpred.models.get`), which stay as they are and get a linear map between their outputs. Of a
        relative one the learned genes are kept, on the scale of log1p CP10k.
    slides
        One SpatialData object, or a mapping of slide names to them: calibrated image, region and measured raw counts.
        They are read as :func:`stpred.tl.predict` reads them: through the encoder of the old model, with context at
        the pitch that it was trained at.
    genes
        Those of the model's genes to learn; None takes all that every own slide measured. The others keep the old
        model's predictions (exactly with ridge, nearly with networks, whose shared layers move): ``var["finetuned"]``
        tells them apart. Genes that the old model does not predict are not added; for these train a model of its own.
    groups
        Donor of each slide; None takes each slide for its own.
    shapes_key, table_key, image_key, layer, cells_key
        As in :func:`stpred.tl.train`; of several regions, the one that the model was trained on is preferred.
    encoder
        The encoder of the old model, where it is not found by its name; another one is refused.
    options
        What moves and how far (:class:`stpred.FineTuning`); None chooses how far.
    intervals
        Calibrate conformal intervals on the held-out own donors, or on the held-out blocks of the only one, as if these
        were slides (so that they hold for its tissue). None does it for families of closed form with three of them or
        more; True costs a network its held-out trainings once more.
    name
        What the new model and its tables are called after; None takes the old one's name.
    seed
        Seed of whatever is random.
    device
        Where encoder and training run; None takes a GPU if there is one.
    coordinate_system
        The slides' micrometre frame.

    Returns
    -------
    Model
        A new one, saved and applied like any other. In ``record.var``, ``cv_pearson``, ``cv_spearman``, ``n_slides``
        and ``trusted`` of learned genes are those of held-out own slides (or blocks, whose number is then in
        `n_slides`, and which say less about other donors), each predicted by a model that was fine-tuned, and whose
        strength was chosen, without it; what they were before is in ``base_cv_pearson`` and so on.
        ``record.training["finetuned"]`` holds the old model's name and id, what moved, how far, and by what that was
        chosen. Out-of-distribution scores are of the old training tiles and the own ones together.

    Raises
    ------
    InputError
        If the slides share no gene with the model, lack an image or counts, or counts are not raw, if the encoder is
        another one, or the family has no weights that this goes on from (``"mean"``, ``"intensity"``, ``"xfuse"``,
        ``"kernel_ridge"``, ``"auto"``).

    References
    ----------
    As of :class:`stpred.FineTuning`. Genes that are not learned: Li and Hoiem, Learning without forgetting, ECCV 2016.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    >>> own = slides.pop("donor2")
    >>> model = st.tl.train(slides, "ridge", shapes_key="spots")
    >>> new = st.tl.finetune(model, own, shapes_key="spots")
    >>> new.record.training["finetuned"]["base"] == model.id
    True
    """
    base = load_trained(model)
    slides = data.as_slides(slides)
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    options = _options(base, options)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    regions = [data.read_region(s, place, slide=n, measured=True, prefer=base.record.region) for n, s in slides.items()]
    learned = _learned(base, regions, genes)
    published, base_id, relative = isinstance(base, Pretrained), base.id, base.record.target == "relative"
    if isinstance(base, Pretrained):
        base, learned = with_target(base, learned)
    regions, library = _on_one_library(base, regions)
    if known := [r.slide for r in regions if trained_on(base, r, donors[r.slide] if groups is not None else "")]:
        warn(
            f"Model {base.record.name!r} was trained on {listing(known, most=4)} (or on their donors): it scores too "
            "well there for fine-tuning to be chosen."
        )
    run = training.Run(device=device)
    predictor = Predictor.of(training.copied(base), encoder=encoder, device=device)
    if base.needs.cells:
        regions = [data.with_cells(r, cells_key=cells_key, prefer=base.record.cells) for r in regions]
    elif cells_key is not None:
        raise InputError(f"`cells_key` is for families that see cells; {base.family!r} sees tiles.")
    batches = [_measured(base, r).put(predictor.reader(r).whole()) for r in regions]
    of = [donors[r.slide] for r in regions]
    if isinstance(predictor.model, Pretrained):
        standardise(predictor.model, batches, relative=relative)
    with training.resumable(run):
        tuned = training.tune(predictor.model, batches, groups=of, genes=learned, options=options, seed=seed, run=run)
        new = tuned.model
        _describe(
            new, base, tuned, regions, donors, learned, options=options, seed=seed, donors_given=groups is not None
        )
        if published:
            new.record.training["finetuned"]["base"] = base_id
            library = data.library_of(regions) if relative else None
        if library is not None and learned.all():
            new.record.library = library.to_dict()
        new.record.name = base.record.name if name is None else model_name(base.config, name)
        _widen(new, batches, set(of))
        new.encoder = predictor.encoder  # type: ignore[assignment]
        if _wanted(new, tuned, intervals=intervals):
            _calibrate(new, tuned, regions, donors, learned)
    return new


def _options(model: Model, options: Any) -> FineTuning:
    """Return the options; refuse families without weights to go on from."""
    if options is not None and not isinstance(options, FineTuning):
        raise InputError(f"`options` must be a stpred.FineTuning, got {options!r}.")
    if not training.can_tune(model):
        instead = (
            "a generative model is trained again, with the own slides among the others"
            if model.config.generative
            else "train it on the own slides, or fine-tune a 'ridge' or a network"
        )
        raise InputError(
            f"Model {model.record.name!r} ({model.family!r}) has no weights to go on from by fine-tuning: {instead}."
        )
    if "target" not in model.record.training and not isinstance(model, Pretrained):
        raise InputError(
            f"Model {model.record.name!r} does not say what it was trained on (published weights do not), so it cannot "
            "go on from there; use it as a teacher: stpred.tl.distill."
        )
    options = FineTuning() if options is None else options
    network = _is_network(model)
    others = ("strength",) if network else ("trains", "epochs", "lr", "input_rate")
    if given := [o for o in others if getattr(options, o) != getattr(FineTuning, o)]:
        kind, other = ("a network", "models of closed form") if network else ("solved in closed form", "networks")
        raise InputError(f"Model {model.record.name!r} is {kind}; {listing(given)} of `options` are for {other}.")
    return options


def _is_network(model: Model) -> bool:
    return isinstance(model.first if isinstance(model, Ensemble) else model, Iterative)


def _learned(model: Model, regions: list[data.Region], genes: Iterable[str] | None) -> NDArray[np.bool_]:
    """Return which of the model's genes are learned: those that every own slide measured, or the given ones."""
    names = model.record.genes
    measured = np.all([r.measures(names) for r in regions], axis=0)
    if genes is not None:
        wanted = np.zeros(len(names), dtype=bool)
        wanted[gene_columns(model, genes)] = True
        if (wanted & ~measured).any():
            missing = [g for g, k in zip(names, wanted & ~measured, strict=True) if k]
            raise InputError(f"Not every slide measured the genes {listing(missing)}.")
        measured = wanted
    if measured.any():
        return measured
    for region in regions:
        theirs = [] if region.var is None else [str(g) for g in region.var.index]
        if not region.measures(names).any():
            hint = mismatch(names, theirs)
            raise InputError(
                f"Slide {region.slide!r} and model {model.record.name!r} share no gene: the model predicts "
                f"{listing(names[:3])}, the slide measured {listing(theirs[:3])}{'; ' + hint if hint else ''}."
            )
    raise InputError(
        f"No gene of model {model.record.name!r} is on all slides; leave out the slide with another panel."
    )


def _on_one_library(model: Model, regions: list[data.Region]) -> tuple[list[data.Region], Library | None]:
    """Return the slides with library sizes over the model's genes; or over their own, then that library, and warn."""
    library = Library.parse(model.record.library)
    if library is None or model.record.training["target"] not in (*WITHOUT_LIBRARY, "log1p_cp10k", LOG_SHARE):
        return regions, None
    found = [data.on_library(r, library) for r in regions]
    different = [r.slide for r, o in found if o is not None and not (o.same or o.wider)]
    if not different:
        return [r for r, _ in found], None
    shared = data.shared_library(regions)
    if shared is not None:
        regions = [r.over(shared.genes) for r in regions]
    worst = min(min(o.share_model, o.share_measured) for _, o in found if o is not None)
    warn(
        f"The slides {listing(different, most=4)} and the training tables of model {model.record.name!r} count library "
        f"sizes over different genes (those that both have carry as little as {worst:.0%} of the counts of one), so "
        "log1p CP10k is not one scale: learned genes get the scale of the slides, others keep that of the model."
    )
    return regions, data.library_of(regions)


def _measured(model: Model, region: data.Region) -> data.Targets:
    """Return what a batch carries of the measurement, on the scales that the model was trained and scored on."""
    names, trained = model.record.genes, model.record.training
    scale, scored = trained["target"], trained.get("scored_on") or trained["target"]
    how: dict[str, Any] = {"sparse": model.config.sparse_targets, "n_measured": model.record.n_measured}
    y = region.target(names, scale, **how)
    truth = None if scored == scale else region.target(names, scored, **how)
    return data.Targets(y, truth, scale)


def _describe(
    new: Model,
    base: Model,
    tuned: training.Tuned,
    regions: list[data.Region],
    donors: Mapping[str, str],
    learned: NDArray[np.bool_],
    *,
    options: FineTuning,
    seed: int,
    donors_given: bool,
) -> None:
    """Write what was learned from what into the record, beside what is known of the old model."""
    record, old = new.record, base.record.training
    var: dict[str, Any] = {k: v for k, v in record.var.items() if k not in (LOW, HIGH)}
    var |= {f"base_{k}": var[k] for k in SCORES if k in var}
    for column, values in tuned.scores.columns().items():
        before = var.get(column)
        whole = list(before) if before is not None else [False if column == "trusted" else None] * len(learned)
        for at, value in zip(np.flatnonzero(learned), json_list(values), strict=True):
            whole[at] = value
        var[column] = whole
    record.var, record.intervals, record.output_size = var | {"finetuned": learned.tolist()}, {}, []
    taken = set(old.get("slides", {}))
    called = {r.slide: r.slide if r.slide not in taken else f"{r.slide} (own)" for r in regions}
    own = {
        called[r.slide]: {
            "donor": donors[r.slide],
            "n_locations": len(r.coords_um),
            "image": r.pyramid.fingerprint,
        }
        for r in regions
    }
    chosen = {k: v for k, v in tuned.chosen.items() if k not in ("curve", "loss")}
    record.training = {
        **{k: v for k, v in old.items() if k not in ("curve", "loss", "finetuned")},
        "slides": {**old.get("slides", {}), **own},
        "mpp": {**old.get("mpp", {}), **{called[r.slide]: round(r.pyramid.mpp, 5) for r in regions}},
        "n_donors": int(old.get("n_donors", 1)) + len({donors[r.slide] for r in regions}),
        "donors_given": bool(old.get("donors_given")) or donors_given,
        "finetuned": {
            "base": base.id,
            "base_name": base.record.name,
            **({"base_hub": base.hub} if base.hub is not None else {}),
            "slides": list(own),
            "n_genes": int(learned.sum()),
            "options": options.to_dict(),
            "seed": seed,
            **chosen,
            **({"before": old["finetuned"]} if "finetuned" in old else {}),
        },
        **{k: tuned.chosen[k] for k in ("curve", "loss", "epochs") if k in tuned.chosen},
    }


def _widen(new: Model, batches: list[Batch], donors: set[str]) -> None:
    """Take the own tiles into what out-of-distribution distances are measured from, donors weighing alike."""
    features, blocks = [new.ood_features(b) for b in batches], batches[0].blocks
    trained = new.record.training
    if not new.typical.fitted:
        new.typical.fit(features, blocks=blocks)
        return
    new.typical.extend(features, share=len(donors) / trained["n_donors"], blocks=blocks)
    if trained.get("slide_limit") is not None:
        medians = [float(np.median(new.ood_distance(b))) for b in batches]
        trained["slide_limit"] = round(max(trained["slide_limit"], *medians) + 5e-5, 4)


def _wanted(model: Model, tuned: training.Tuned, *, intervals: bool | None) -> bool:
    """Whether intervals are calibrated; requested where there can be none, say why."""
    reason = refused(model)
    if reason is None and len(tuned.units) < MIN_UNITS:
        reason = f"{len(tuned.units)} held-out donors or blocks are too few"
    if intervals and reason is not None:
        raise InputError(f"`intervals`: model {model.record.name!r} can have none: {reason}.")
    return reason is None and (not _is_network(model) if intervals is None else intervals)


def _calibrate(
    model: Model, tuned: training.Tuned, regions: list[data.Region], donors: Mapping[str, str], learned: Any
) -> None:
    """Calibrate intervals of the learned genes on what was held out."""
    residuals = tuned.residuals(lambda values: as_stable(values, model.record.target))  # type: ignore[misc]
    for one in residuals:
        one[:, ~learned] = np.nan
    calibrate(
        model,
        list(sketch(residuals)),
        slides=tuned.units,
        groups=tuned.units if tuned.by_block else [donors[s] for s in tuned.units],
        width_um=float(np.median([data.median_width_um(r) for r in regions])),
        calibrated_on=f"own {'blocks' if tuned.by_block else 'donors'}, by models that were fine-tuned without them",
        donors_given=bool(model.record.training.get("donors_given")),
    )
    model.record.intervals["n_donors"] = len(set(donors.values()))

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data, metrics, training
from stpred._core import keys, tables
from stpred._core.checks import InputError, listing, one_of
from stpred._core.places import Place
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import TARGETS
from stpred.inference.predictor import Predictor
from stpred.inference.provenance import trained_on
from stpred.models import Model, registry
from stpred.models.batch import Batch
from stpred.training.cohort import PIXELS, Cohort, encoder_of, fit_cohort, model_name, read_cohort, suited

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stpred.models import BaseConfig

logger = logging.getLogger("stpred")

Teacher = Callable[[list[str], list[str]], tuple[dict[str, Any], dict[str, Any]]]


def distill(
    slides: Mapping[str, SpatialData],
    teacher: Any = "ridge",
    student: str | BaseConfig | type[Model] = "student",
    *,
    genes: GeneRule | str | Iterable[str] | None = None,
    groups: Mapping[str, str] | None = None,
    shapes_key: str | None = None,
    table_key: str | None = None,
    layer: str | None = None,
    image_key: str | None = None,
    target: str | None = None,
    measured_fraction: float = 0.5,
    encoder: Any = None,
    tile: TileSpec | Mapping[str, float] | None = None,
    teacher_encoder: Any = None,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    coordinate_system: str = keys.UM,
) -> Model:
    """Train a model of patches on what other models predict for slides outside their training.

    Pseudo-labels of a slide come only from teachers that were trained without its donor. Each teacher's are
    standardised per gene and slide before they are averaged, then brought to the scale of the measurement with the
    spread that they explain of it. The student learns them as the mean of its patches; it then predicts any finer
    region (see :class:`stpred.models.Student`). The naive variant, a student on the counts themselves, is
    ``stpred.tl.train(slides, "student")``.

    Parameters
    ----------
    slides
        Names to SpatialData objects: calibrated image, region and measured raw counts.
    teacher
        A family, its ``Config`` (each trained here, with donors held out), a trained model, or a list of these. Trained
        models, such as those of a cross-validation, label the slides outside their training.
    student
        ``"student"`` or its ``Config``.
    genes, groups, shapes_key, table_key, layer, image_key
        As in :func:`stpred.tl.train`. Trained teachers must predict the genes.
    target
        Scale of the measurement, ``"log1p_cp10k"`` (None) or ``"counts"``.
    measured_fraction
        Fraction of the (standardised) measurement itself in what is learned, from 0 (as published: pseudo-labels alone)
        to below 1. Half of each was better than either on synthetic tissue and on HER2ST.
    encoder, tile
        What the student sees patches through; None: the family's own.
    teacher_encoder
        What teachers that are trained here see tiles through, at its own tile (``stpred.encoders.get(name, tile=...)``
        sets another); None: as the student, unless the family has its own.
    name, seed, device, coordinate_system
        As in :func:`stpred.tl.train`.

    Returns
    -------
    Model
        The student. ``model.record.var["cv_pearson"]`` and ``trusted`` are scores on measured counts of held-out
        donors, for which teachers *and* student were trained without them (needs three donors);
        ``model.record.training["distilled"]`` lists the teachers of each slide and their agreement;
        ``model.pseudo_labels`` holds
        the pseudo-labels as tables, slide by slide (in memory; add them to your objects to keep them).

    Raises
    ------
    InputError
        If there are fewer than two donors, a trained teacher was trained on all donors but one, lacks a gene, or the
        student is no model of patches.

    References
    ----------
    Schmauch et al. (2025), A deep learning-based multiscale integration of spatial omics with tumor morphology,
    Nature Communications. There, labels are raw means over the models of a cross-validation whose training sets
    *include* the slide.

    Examples
    --------
    >>> import stpred as st
    >>> slides = st.datasets.toy_cohort(3, size_um=(600, 600), n_genes=20)
    >>> config = st.models.Student.Config(hidden=(32,), epochs=3)
    >>> model = st.tl.distill(slides, "ridge", config, shapes_key="spots")
    >>> sorted(model.pseudo_labels)
    ['donor0', 'donor1', 'donor2']
    """
    slides = data.as_slides(slides)
    config = registry.resolve(student)
    if target is not None:
        one_of(target, TARGETS, name="target")
    if isinstance(measured_fraction, (bool, str)) or not 0 <= float(measured_fraction) < 1:
        raise InputError(f"`measured_fraction` must be a number from 0 to below 1, got {measured_fraction!r}.")
    if not config.needs.tokens:
        raise InputError(f"`student` must be a model of patches, such as 'student', not {config.family!r}.")
    if getattr(config, "loss", None) == "nb":
        raise InputError("Pseudo-labels are no counts, so a student of them cannot have loss='nb'; use 'mse'.")
    donors = data.donor_folds(list(slides), "slide" if groups is None else groups)
    if len(set(donors.values())) < 2:
        raise InputError(
            "Distillation needs two donors or more, so that every slide has a teacher trained without its counts; on "
            "a single one, train on the counts: stpred.tl.train(slides, 'student')."
        )
    name = model_name(config, name)
    run = training.Run(device=device)
    used = encoder_of(config, encoder, tile=tile, device=device)
    place = Place(shapes_key, image_key, table_key, layer, coordinate_system)
    cohort = Cohort.of(read_cohort(slides, config, place), donors, rule=GeneRule.parse(genes))
    listed = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
    if not listed:
        raise InputError("`teacher` is empty; give a family such as 'ridge', a Config, or trained models.")
    inputs = (encoder, tile) if teacher_encoder is None else (teacher_encoder, None)
    ready = [t for t in listed if isinstance(t, Model)]
    teachers = [_trained(ready, cohort)] if ready else []
    teachers += [
        _untrained(t, cohort, *inputs, target=target, seed=seed, run=run) for t in listed if not isinstance(t, Model)
    ]
    training.announce(_plans(config, listed, cohort.training_groups))
    distillation = training.Distillation(teachers, float(measured_fraction))
    with training.resumable(run):
        fitted, batches = fit_cohort(
            cohort, config, used, target=target, name=name, donors_given=groups is not None, seed=seed, run=run,
            relabel=distillation,
        )  # fmt: skip
        labels, taught = distillation.labels([b.slide for b in batches], cohort.training_groups)
    final = training.Distillation(teachers).blend(batches, labels)
    agreed = {b.slide: float(np.nan_to_num(metrics.pearson(b.y, b.truth)).mean()) for b in final}
    fitted.record.training["distilled"] = {
        "teachers": [_teacher_provenance(t) for t in listed],
        "measured_share": float(measured_fraction),
        "taught": taught,
        "label_pearson": {slide: round(r, 4) for slide, r in agreed.items()},
    }
    fitted.pseudo_labels = {b.slide: _table(b, r, cohort) for b, r in zip(final, cohort.regions, strict=True)}  # type: ignore[assignment]
    return fitted


def _plans(config: BaseConfig, teachers: Sequence[Any], groups: list[str]) -> list[str]:
    """Say what is fitted: the student, and the teachers anew for each set of slides that it is fitted on."""
    sentences = [training.plan(config.model_class, config, groups).sentence()]
    for teacher in teachers:
        if isinstance(teacher, Model):
            continue
        resolved = registry.resolve(teacher)
        sets = [g for g in (groups, *training.fold_groups(groups)) if len(set(g)) > 1]
        n = sum(
            training.plan(resolved.model_class, resolved, part, scored=False).n
            for g in sets
            for part in training.fold_groups(g)
        )
        sentences.append(
            f"Its teacher {resolved.family} takes {n} fits: for each of {len(sets)} sets of slides that the student "
            "is fitted on, one without each slide's donor."
        )
    return sentences


def _untrained(
    given: Any,
    cohort: Cohort,
    encoder: Any,
    tile: Any,
    *,
    target: str | None,
    seed: int,
    run: training.Run,
) -> Teacher:
    """Return a teacher whose labels are out-of-fold predictions of a family."""
    config = registry.resolve(given).at_pitch(cohort.pitch_um)
    family = config.model_class
    if config.needs.cells:
        raise InputError(f"The teacher {config.family!r} takes cells; teachers take tiles.")
    if config.default_encoder.startswith(PIXELS):
        encoder = tile = None
    used = suited(encoder_of(config, encoder, tile=tile, device=run.device), cohort.regions)
    batches = {b.slide: b for b in cohort.batches(config, used, target=target)}
    cache: dict[tuple[str, ...], Any] = {}

    def teach(slides: list[str], groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        key = tuple(slides)
        if key not in cache:
            own = [batches[s] for s in slides]
            cache[key] = training.out_of_fold(family, config, own, groups=groups, seed=seed, run=run)
        return cache[key]

    return teach


def _trained(models: Sequence[Model], cohort: Cohort) -> Teacher:
    """Return a teacher of trained models, each labelling only slides outside its training."""
    columns, trained_slides = [], []
    for model in models:
        if model.needs.cells:
            raise InputError(f"The teacher {model.record.name!r} takes cells; teachers take tiles.")
        position = {g: i for i, g in enumerate(model.record.genes)}
        if missing := [g for g in cohort.names if g not in position]:
            raise InputError(
                f"The teacher {model.record.name!r} does not predict {listing(missing)}; pass genes= that all predict."
            )
        columns.append([position[g] for g in cohort.names])
        known_donors = {cohort.donors[r.slide] for r in cohort.regions if trained_on(model, r, cohort.donors[r.slide])}
        trained_slides.append({s for s, donor in cohort.donors.items() if donor in known_donors})
    predictions: dict[tuple[int, str], Any] = {}
    regions = {r.slide: r for r in cohort.regions}

    def teach(slides: list[str], groups: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        held_out = regions.keys() - set(slides)
        labels, teachers = {}, {}
        for s in slides:
            # In a fold, neither the held-out slides nor the labelled one may be in the training of the teacher.
            able = [k for k in range(len(models)) if s not in trained_slides[k] and not held_out & trained_slides[k]]
            if not able:
                what = f"slide {s!r}" + (f" (or the held-out {listing(sorted(held_out))})" if held_out else "")
                raise data.TooSmall(f"No teacher was trained without the counts of {what}.")
            for k in able:
                if (k, s) not in predictions:
                    predictions[k, s] = Predictor.of(models[k]).values(regions[s])[:, columns[k]]
            labels[s] = np.mean([training.standardised(predictions[k, s]) for k in able], axis=0)
            teachers[s] = [models[k].id for k in able]
        return labels, teachers

    return teach


def _teacher_provenance(teacher: Any) -> dict[str, Any]:
    if isinstance(teacher, Model):
        return {"family": teacher.family, "id": teacher.id, "trained": True}
    config = registry.resolve(teacher)
    return {"family": config.family, "config": json.loads(json.dumps(config.to_dict()))}


def _table(batch: Batch, region: data.Region, cohort: Cohort) -> AnnData:
    """Return a slide's pseudo-labels as a predicted table."""
    import pandas as pd

    return tables.build_table(
        np.asarray(batch.y, dtype=np.float32),
        shapes_key=region.shapes_key,
        instances=region.instances,
        var=pd.DataFrame(index=pd.Index(cohort.names, dtype=object)),
        spatial_um=region.coords_um,
        provenance={"kind": "prediction", "output_scale": batch.scale, "pseudo_labels": True},
    )

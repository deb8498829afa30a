"""Fitting a family: in closed form, or for as many epochs as are best on held-out donors; alone or in number."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from stpred._core.checks import InputError
from stpred._core.lazy import Lazily
from stpred._core.targets import dense, stored
from stpred.data import BLOCK_FOLDS, TooSmall, blocks_of, far_from
from stpred.models.auto import AutoConfig
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.ensemble import Ensemble, EnsembleConfig
from stpred.models.parts.cross_products import one_by_one
from stpred.models.parts.iterative import Iterative
from stpred.training import _loop
from stpred.training._checkpoint import Checkpoint
from stpred.training._plan import INNER_FOLDS, group_folds
from stpred.training._run import Run, fingerprint
from stpred.training._samplers import bootstrap
from stpred.training._scores import Curve, HeldOut, best_epoch, criterion_of, held_out, mean_pearson
from stpred.training._stacking.fit import fit_auto

logger = logging.getLogger("stpred")

Relabel = Callable[[Sequence[Batch], Sequence[str]], list[Batch]]
"""Gives training batches other targets, from these batches and their donors alone; called anew in every fold."""

EPOCHS_UNCHOSEN = 50
"""Epochs where nothing can be held out to choose by."""


@dataclass(frozen=True)
class Fitted:
    """A fitted model, and what came of fitting it.

    Attributes
    ----------
    model
        On the CPU.
    chosen
        What the fit chose, JSON-able: epochs, penalties, losses.
    folds
        Curves of the held-out donors that chose the number of epochs; empty where none did.
    validation
        Scores of the slides that ended the training; or None.
    """

    model: Model
    chosen: dict[str, Any]
    folds: list[Curve] = field(default_factory=list)
    validation: HeldOut | None = None


def fit(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    typical: bool = True,
    run: Run | None = None,
    folds: Sequence[Curve] = (),
) -> tuple[Model, dict[str, Any]]:
    """Return a fitted model and what its fit chose; the parameters are those of :func:`fit_and_score`."""
    fitted = fit_and_score(family, config, batches, groups=groups, seed=seed, typical=typical, run=run, folds=folds)
    return fitted.model, fitted.chosen


def fit_and_score(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    validation: Sequence[Batch] = (),
    seed: int = 0,
    typical: bool = True,
    run: Run | None = None,
    relabel: Relabel | None = None,
    folds: Sequence[Curve] = (),
) -> Fitted:
    """Fit a family.

    Parameters
    ----------
    family, config
        What to fit.
    batches
        One per training slide, with targets.
    groups
        Donor of each batch.
    validation
        Slides that only end the training: the model is that of the epoch that they score best at. Without any, epochs
        are chosen by holding out donors of the training slides.
    seed
        For what is random; global random state is not changed.
    typical
        Also learn what training tiles look like; not needed by a model that is only scored.
    run
        Device, precision, checkpoints.
    relabel
        Replaces training targets; None: as measured.
    folds
        Curves of held-out donors that were computed before, by :func:`choose_config`.
    """
    run = Run() if run is None else run
    family = config.model_class if family is config._model_class else family  # a family may have several classes
    for batch in (*batches, *validation):
        _check_targets(batch, config)
    options: dict[str, Any] = {
        "groups": groups, "seed": seed, "run": run, "validation": validation, "folds": folds, "relabel": relabel,
    }  # fmt: skip
    if isinstance(config, EnsembleConfig):
        model, chosen, curves, curve = _fit_ensemble(config, batches, **options)
    else:
        model, chosen, curves, curve = _fit_one(family, config, batches, **options)
    if typical:
        shown = Lazily(lambda i: model.ood_features(batches[i]), len(batches))
        limit = model.typical.fit(
            shown if one_by_one(batches) else list(shown),
            groups,
            blocks=batches[0].blocks,
            target_distances=lambda i: model.ood_distance(batches[i]),
        )
        chosen = {**chosen, "slide_limit": None if limit is None else round(limit, 4)}
    held = None if curve is None else held_out([curve], criterion_of(type(model), model.config), epochs=None)
    return Fitted(model.to("cpu").eval(), chosen, curves, held)


def _check_targets(batch: Batch, config: BaseConfig) -> None:
    """Refuse a batch without targets, or with values that are not finite."""
    if batch.y is None and config.takes_images:
        return
    if batch.y is None:
        raise InputError(f"Slide {batch.slide!r} came without training targets.")
    for what, values in (("targets", batch.y), ("features", batch.own)):
        if values.dtype.kind == "f" and not np.isfinite(stored(values)).all():
            rows = np.flatnonzero(~np.isfinite(dense(values)).all(axis=1))
            raise InputError(
                f"Slide {batch.slide!r} has {what} that are not finite at {len(rows)} locations, first in row "
                f"{rows[0]}."
            )


def _fit_one(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int,
    run: Run,
    validation: Sequence[Batch] = (),
    epochs: int | None = None,
    relabel: Relabel | None = None,
    folds: Sequence[Curve] = (),
) -> tuple[Model, dict[str, Any], list[Curve], Curve | None]:
    """Return a fitted model, what was chosen, the curves that chose the epochs, and that of the validation slides."""
    if isinstance(config, AutoConfig):
        options: dict[str, Any] = {"seed": seed, "run": run, "relabel": relabel}
        auto, tried, scored = fit_auto(config, batches, groups=groups, fit=partial(_fit_candidate, options))
        return auto, tried, scored, _loop.score_once(auto, validation) if validation else None
    model: Any = _new(family, config, batches, seed=seed)
    if not issubclass(family, Iterative):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            chosen = model.fit(_learned_targets(batches, groups, relabel), groups=groups)
        return model, chosen, [], _loop.score_once(model, validation) if validation else None
    by = "given"
    curves: list[Curve] = []
    if epochs is None and validation and model.config.epochs is None:
        epochs, by = model.config.max_epochs, "validation slides"
    elif epochs is None:
        epochs, by, curves = _epochs(
            family, model, batches, groups=groups, seed=seed, run=run, relabel=relabel, folds=folds
        )
    batches = _learned_targets(batches, groups, relabel)
    curve, chosen = _loop.train(
        model,
        batches,
        epochs=epochs,
        seed=seed,
        run=run,
        validation=validation,
        patience=model.config.patience if by == "validation slides" else None,
        keep_best=by == "validation slides",
        checkpoint=_checkpoint(config, batches, validation, seed=seed, epochs=epochs, best=bool(validation), run=run),
        describe=f"{family.family}: {epochs} epochs",
    )
    if curves or curve is not None:
        chosen["curve"]["pearson"] = mean_pearson(curves or [curve])  # type: ignore[list-item]
    if curve is not None:  # of the model as it is: at its best epoch, or at the end
        at = min(chosen["epochs"], len(curve.pearson)) - 1
        curve = replace(curve, **{k: getattr(curve, k)[at : at + 1] for k in ("pearson", "spearman", "error")})
    return model, {**chosen, "epochs_chosen_by": by}, curves, curve


def _fit_candidate(
    options: dict[str, Any], config: BaseConfig, batches: Sequence[Batch], groups: Sequence[str]
) -> tuple[Model, dict[str, Any]]:
    """Fit one of several candidates, each of which may be an ensemble."""
    if isinstance(config, EnsembleConfig):
        return _fit_ensemble(config, batches, groups=groups, validation=(), folds=(), **options)[:2]
    return _fit_one(config.model_class, config, batches, groups=groups, **options)[:2]


def _learned_targets(batches: Sequence[Batch], groups: Sequence[str], relabel: Relabel | None) -> Sequence[Batch]:
    return batches if relabel is None else relabel(batches, groups)


def _checkpoint(
    config: BaseConfig, train: Sequence[Batch], test: Sequence[Batch], *, run: Run, **options: Any
) -> Checkpoint | None:
    """Return where the state of a training is kept, by all that decides it."""
    if run.checkpoint is None:
        return None
    return run.file(fingerprint(config.family, config, train, test, precision=run.precision, **options))


def _new(family: type[Model], config: BaseConfig, batches: Sequence[Batch], *, seed: int) -> Model:
    """Return a model with initial weights that the seed decides."""
    n_genes = next(b.y.shape[1] for b in batches if b.y is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = config.for_slides([b.slide for b in batches])
        return family(config, n_features=batches[0].width, n_genes=n_genes)


def _epochs(
    family: type[Model],
    model: Any,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int,
    run: Run,
    relabel: Relabel | None,
    folds: Sequence[Curve],
) -> tuple[int, str, list[Curve]]:
    """Return the number of epochs, how it was chosen, and the curves of the folds that chose it, if any."""
    if model.config.epochs is not None:
        return model.config.epochs, "given", []
    if len(set(groups)) < 2:
        alone = model.config.epochs_alone
        if alone is None and relabel is None:
            try:
                best = _epochs_by_blocks(family, model.config, batches, seed=seed, run=run)
            except TooSmall as error:
                logger.warning("%s Training takes %d epochs.", error, EPOCHS_UNCHOSEN)
                return (
                    min(EPOCHS_UNCHOSEN, model.config.max_epochs),
                    "nothing, for the slides are too small for blocks",
                    [],
                )
            return best, "left-out blocks of the only donor", []
        return *_alone(family, model), []
    try:
        curves = list(folds) or fold_curves(
            family, model.config, batches, groups=groups, seed=seed, run=run, relabel=relabel
        )
    except TooSmall:  # no targets without the held-out donors
        return *_alone(family, model), []
    return best_epoch(curves, criterion_of(family, model.config)), "left-out donors", curves


def _alone(family: type[Model], model: Any) -> tuple[int, str]:
    """Return the number of epochs where no donor can be held out."""
    alone = min(EPOCHS_UNCHOSEN, model.config.max_epochs)
    alone = alone if model.config.epochs_alone is None else model.config.epochs_alone
    logger.info("No donor can be held out: %s is trained for %d epochs.", family.family, alone)
    return alone, "epochs_alone, for there is no other donor to choose by"


def _epochs_by_blocks(family: type[Model], config: Any, batches: Sequence[Batch], *, seed: int, run: Run) -> int:
    """Return the number of epochs that is best on compact parts of the slides, two in turn, with a gap around them."""
    parts = {b.slide: blocks_of(b.coords_um, BLOCK_FOLDS, slide=b.slide) for b in batches}
    curves = []
    for k in (0, BLOCK_FOLDS - 1):
        train, held = [], []
        for batch in batches:
            test = np.flatnonzero(parts[batch.slide] == k)
            far = far_from(batch.coords_um, test, slide=batch.slide)
            train.append(batch.take(far))
            held.append(batch.take(test))
        curves.append(_curve(family, config, train, held, describe=f"without block {k}", seed=seed, run=run))
    return best_epoch(curves, criterion_of(family, config))


def _fit_ensemble(
    config: EnsembleConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    validation: Sequence[Batch],
    seed: int,
    run: Run,
    relabel: Relabel | None,
    folds: Sequence[Curve],
) -> tuple[Model, dict[str, Any], list[Curve], Curve | None]:
    """Fit members that differ by seed or, where a family has no randomness, by what they are fitted on."""
    family = config.member.model_class
    config = config.for_slides([b.slide for b in batches])
    model = Ensemble(config, n_features=batches[0].features.shape[1], n_genes=batches[0].y.shape[1])  # type: ignore[union-attr]
    members: list[Model] = []
    first: dict[str, Any] = {}
    curves: list[Curve] = []
    for k in range(config.n_members):
        drawn, donors = list(batches), list(groups)
        if not config.member.seeded and k > 0:
            drawn, donors = bootstrap(batches, groups, seed=seed + k)
        # Without slides that validate each member, the number of epochs is chosen once.
        epochs = None if validation else first.get("epochs")
        member, chosen, found, _ = _fit_one(
            family,
            config.member,
            drawn,
            groups=donors,
            seed=seed + k,
            run=run,
            validation=validation,
            epochs=epochs,
            relabel=relabel,
            folds=folds,
        )
        first, curves = first or chosen, curves or found
        members.append(member.to("cpu").eval())
    model.set_members(members, batches, relative=config.output_scale(batches[0].scale) == "relative")
    curve = _loop.score_once(model, validation) if validation else None
    return model, {**first, "n_ensemble": config.n_members}, curves, curve


def fold_curves(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int,
    run: Run,
    relabel: Relabel | None,
) -> list[Curve]:
    """Return the scores of held-out slides, fold by fold."""
    network = issubclass(family, Iterative)
    slides = {b.slide: b for b in batches}
    donors = dict(zip(slides, groups, strict=True))
    curves = []
    few = network or one_by_one(batches)
    for fold, train, test in group_folds(donors, n_folds=INNER_FOLDS if few else None):
        training, held = [slides[s] for s in train], [slides[s] for s in test if slides[s].y is not None]
        if not held:  # nothing but images, which no score can be had on
            continue
        of = [donors[s] for s in train]
        if not network:
            model, *_ = _fit_one(family, config, training, groups=of, seed=seed, run=run, relabel=relabel)
            curves.append(_loop.score_once(model, held))
            continue
        learned = _learned_targets(training, of, relabel)
        curves.append(_curve(family, config, learned, held, describe=f"without {fold}", seed=seed, run=run))
    return curves


def _curve(
    family: type[Model],
    config: Any,
    train: Sequence[Batch],
    held: Sequence[Batch],
    *,
    describe: str,
    seed: int,
    run: Run,
) -> Curve:
    """Return the scores, after each epoch, of what is held out of a network's training."""
    epochs = config.max_epochs if config.epochs is None else config.epochs
    net: Any = _new(family, config, train, seed=seed)
    found, _ = _loop.train(
        net,
        train,
        epochs=epochs,
        seed=seed,
        run=run,
        validation=held,
        patience=config.patience if config.epochs is None else None,
        checkpoint=_checkpoint(config, train, held, seed=seed, epochs=epochs, run=run),
        describe=f"{family.family}: {describe}",
    )
    return found  # type: ignore[return-value]

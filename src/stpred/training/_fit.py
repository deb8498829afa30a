"""Fitting a family: in closed form, or for as many epochs as unseen donors find best; alone or in number."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stpred._core.checks import InputError
from stpred._core.targets import dense, stored
from stpred.data import BLOCK_FOLDS, TooSmall, blocks_of, far_from
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch
from stpred.models.ensemble import Ensemble, EnsembleConfig
from stpred.models.parts.iterative import Iterative
from stpred.training import _loop
from stpred.training._folds import group_folds
from stpred.training._plan import INNER_FOLDS
from stpred.training._run import Run, fingerprint
from stpred.training._scores import Curve, HeldOut, best_epoch, held_out, mean_pearson

logger = logging.getLogger("stpred")

EPOCHS_UNCHOSEN = 50
"""Epochs where nothing can be left out to choose by."""


def fit(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    typical: bool = True,
    run: Run | None = None,
) -> tuple[Model, dict[str, Any]]:
    """Return a fitted model and what its fit chose.

    Parameters
    ----------
    family, config
        What to fit.
    batches
        One per training slide, with targets.
    groups
        Donor of each batch.
    seed
        For what is random; global random state is left alone.
    typical
        Also learn what training tiles look like; not needed by a model that is only scored.
    run
        Device, precision, checkpoints.
    """
    model, facts, _ = fit_and_score(family, config, batches, groups=groups, seed=seed, typical=typical, run=run)
    return model, facts


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
) -> tuple[Model, dict[str, Any], HeldOut | None]:
    """Return a fitted model, what its fit chose, and the scores of the slides that validate it.

    Parameters
    ----------
    family, config, batches, groups, seed, typical, run
        As in :func:`fit`.
    validation
        Slides that are only looked at to end the training: the model is the one of the epoch that they score best at.
        Without any, epochs are chosen by leaving out donors of the training slides.
    """
    run = Run() if run is None else run
    for batch in (*batches, *validation):
        if batch.y is None and config.takes_images:
            continue
        if batch.y is None:
            raise InputError(f"Slide {batch.slide!r} came without training targets.")
        for what, values in (("targets", batch.y), ("features", batch.own)):
            if values.dtype.kind == "f" and not np.isfinite(stored(values)).all():
                rows = np.flatnonzero(~np.isfinite(dense(values)).all(axis=1))
                raise InputError(
                    f"Slide {batch.slide!r} has {what} that are not finite at {len(rows)} locations, first in row "
                    f"{rows[0]}."
                )
    if isinstance(config, EnsembleConfig):
        model, facts, curve = _fit_ensemble(config, batches, groups=groups, validation=validation, seed=seed, run=run)
    else:
        model, facts, curve = _fit_one(
            family, config, batches, groups=groups, validation=validation, seed=seed, run=run
        )
    if typical:
        limit = model.typical.fit(
            [model.ood_features(b) for b in batches], groups, target_distances=lambda i: model.ood_distance(batches[i])
        )
        facts = {**facts, "slide_limit": None if limit is None else round(limit, 4)}
    held = None if curve is None else held_out([curve], getattr(model, "criterion", "pearson"), epochs=None)
    return model.to("cpu").eval(), facts, held


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
) -> tuple[Model, dict[str, Any], Curve | None]:
    model: Any = _new(family, config, batches, seed=seed)
    if not issubclass(family, Iterative):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            facts = model.fit(run.labelled(batches, groups), groups=groups)
        return model, facts, _score_once(model, validation) if validation else None
    how = "given"
    followed: list[Curve] = []
    if epochs is None and validation and model.config.epochs is None:
        epochs, how = model.config.max_epochs, "validation slides"
    elif epochs is None:
        epochs, how, followed = _epochs(family, model, batches, groups=groups, seed=seed, run=run)
    batches = run.labelled(batches, groups)
    key = fingerprint(family.family, config, batches, validation, seed=seed, epochs=epochs, best=bool(validation))
    curve, facts = _loop.train(
        model,
        batches,
        epochs=epochs,
        seed=seed,
        run=run,
        validation=validation,
        patience=model.config.patience if how == "validation slides" else None,
        keep_best=how == "validation slides",
        checkpoint=run.file(key),
        describe=f"{family.family}: {epochs} epochs",
    )
    if followed or curve is not None:
        facts["curve"]["pearson"] = mean_pearson(followed or [curve])  # type: ignore[list-item]
    if curve is not None:  # of the model as it is: at its best epoch, or at the end
        at = min(facts["epochs"], len(curve.pearson)) - 1
        curve = replace(curve, **{k: getattr(curve, k)[at : at + 1] for k in ("pearson", "spearman", "error")})
    return model, {**facts, "epochs_chosen_by": how}, curve


def _score_once(model: Model, batches: Sequence[Batch]) -> Curve:
    """Return the scores of slides as a curve of one epoch."""
    scores = [_loop.score_slide(model, b) for b in batches]
    pearson, spearman, error = (np.stack([np.asarray(s[i]) for s in scores])[None] for i in range(3))
    return Curve([b.slide for b in batches], np.array([len(b.targets) for b in batches]), pearson, spearman, error)


def _new(family: type[Model], config: BaseConfig, batches: Sequence[Batch], *, seed: int) -> Model:
    """Return a model with initial weights that the seed decides."""
    n_genes = next(b.y.shape[1] for b in batches if b.y is not None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = config.for_slides([b.slide for b in batches])
        return family(config, n_features=batches[0].features.shape[1], n_genes=n_genes)


def _epochs(
    family: type[Model], model: Any, batches: Sequence[Batch], *, groups: Sequence[str], seed: int, run: Run
) -> tuple[int, str, list[Curve]]:
    """Return the number of epochs, how it was chosen, and the curves of the folds that chose it, if any."""
    if model.config.epochs is not None:
        return model.config.epochs, "given", []
    if len(set(groups)) < 2:
        alone = model.config.epochs_alone
        if alone is None and run.relabel is None:
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
        curves = _fold_curves(family, model.config, batches, groups=groups, seed=seed, run=run)
    except TooSmall:  # targets cannot be made anew without the left-out donors
        return *_alone(family, model), []
    return best_epoch(curves, model.criterion), "left-out donors", curves


def _alone(family: type[Model], model: Any) -> tuple[int, str]:
    """Return the number of epochs where no donor can be left out."""
    alone = min(EPOCHS_UNCHOSEN, model.config.max_epochs)
    alone = alone if model.config.epochs_alone is None else model.config.epochs_alone
    logger.info("No donor can be left out: %s is trained for %d epochs.", family.family, alone)
    return alone, "epochs_alone, for there is no other donor to choose by"


def _epochs_by_blocks(family: type[Model], config: Any, batches: Sequence[Batch], *, seed: int, run: Run) -> int:
    """Return the number of epochs that is best on compact parts of the slides, two in turn, with a gap around them."""
    parts = {b.slide: blocks_of(b.coords_um, BLOCK_FOLDS, slide=b.slide) for b in batches}
    curves = []
    for k in (0, BLOCK_FOLDS - 1):
        train, left = [], []
        for batch in batches:
            test = np.flatnonzero(parts[batch.slide] == k)
            far = far_from(batch.coords_um, test, slide=batch.slide)
            train.append(batch.take(far))
            left.append(batch.take(test))
        curves.append(_curve(family, config, train, left, describe=f"without block {k}", seed=seed, run=run))
    return best_epoch(curves, getattr(family, "criterion", "pearson"))


def _fit_ensemble(
    config: EnsembleConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    validation: Sequence[Batch],
    seed: int,
    run: Run,
) -> tuple[Model, dict[str, Any], Curve | None]:
    """Fit members that differ by seed or, where a family has no randomness, by what they are fitted on."""
    family = config.member.model_class
    config = config.for_slides([b.slide for b in batches])
    model = Ensemble(config, n_features=batches[0].features.shape[1], n_genes=batches[0].y.shape[1])  # type: ignore[union-attr]
    members: list[Model] = []
    first: dict[str, Any] = {}
    for k in range(config.n_members):
        mine, donors = list(batches), list(groups)
        if not config.member.seeded and k > 0:
            mine, donors = _bootstrap(batches, groups, seed=seed + k)
        # Without slides that validate each member, the number of epochs is chosen once.
        epochs = None if validation else first.get("epochs")
        member, facts, _ = _fit_one(
            family,
            config.member,
            mine,
            groups=donors,
            seed=seed + k,
            run=run,
            validation=validation,
            epochs=epochs,
        )
        first = first or facts
        members.append(member.to("cpu").eval())
    model.set_members(members, batches, relative=config.output_scale(batches[0].scale) == "relative")
    return model, {**first, "n_ensemble": config.n_members}, _score_once(model, validation) if validation else None


def _bootstrap(batches: Sequence[Batch], groups: Sequence[str], *, seed: int) -> tuple[list[Batch], list[str]]:
    """Draw donors with replacement, and locations within each slide: few donors alone would repeat themselves."""
    rng = np.random.default_rng(seed)
    drawn = rng.choice(sorted(set(groups)), len(set(groups)))
    picked = [i for d in drawn for i, g in enumerate(groups) if g == d]
    rows = [np.sort(rng.integers(len(batches[i].targets), size=len(batches[i].targets))) for i in picked]
    return [batches[i].take(r) for i, r in zip(picked, rows, strict=True)], [groups[i] for i in picked]


def _fold_curves(
    family: type[Model], config: BaseConfig, batches: Sequence[Batch], *, groups: Sequence[str], seed: int, run: Run
) -> list[Curve]:
    """Return the scores of left-out slides, fold by fold; what was trained already is not trained again."""
    network = issubclass(family, Iterative)
    slides = {b.slide: b for b in batches}
    donors = dict(zip(slides, groups, strict=True))
    curves = []
    for fold, train, test in group_folds(donors, n_folds=INNER_FOLDS if network else None):
        mine, left = [slides[s] for s in train], [slides[s] for s in test if slides[s].y is not None]
        if not left:  # nothing but images, which no score can be had on
            continue
        if not network:
            model, _, _ = _fit_one(family, config, mine, groups=[donors[s] for s in train], seed=seed, run=run)
            curves.append(_score_once(model, left))
            continue
        mine = run.labelled(mine, [donors[s] for s in train])  # type: ignore[assignment]
        curves.append(_curve(family, config, mine, left, describe=f"without {fold}", seed=seed, run=run))
    return curves


def _curve(
    family: type[Model],
    config: Any,
    train: Sequence[Batch],
    left: Sequence[Batch],
    *,
    describe: str,
    seed: int,
    run: Run,
) -> Curve:
    """Return the scores after each epoch of what is left out of a network's training; each is trained only once."""
    epochs = config.max_epochs if config.epochs is None else config.epochs
    key = fingerprint(family.family, config, train, left, seed=seed, epochs=epochs)
    if key not in run.curves:
        net: Any = _new(family, config, train, seed=seed)
        found, _ = _loop.train(
            net,
            train,
            epochs=epochs,
            seed=seed,
            run=run,
            validation=left,
            patience=config.patience if config.epochs is None else None,
            checkpoint=run.file(key),
            describe=f"{family.family}: {describe}",
        )
        run.curves[key] = found  # type: ignore[assignment]
    return run.curves[key]


def held_out_scores(
    family: type[Model],
    config: BaseConfig,
    batches: Sequence[Batch],
    *,
    groups: Sequence[str],
    seed: int = 0,
    run: Run | None = None,
) -> HeldOut:
    """Fit with groups left out and score their slides, gene by gene; of an ensemble, its first member."""
    run = Run() if run is None else run
    if isinstance(config, EnsembleConfig):
        family, config = config.member.model_class, config.member
    curves = _fold_curves(family, config, batches, groups=groups, seed=seed, run=run)
    epochs = getattr(config, "epochs", None)
    return held_out(curves, getattr(family, "criterion", "pearson"), epochs=epochs)


def choose_config(
    options: Sequence[tuple[type[Model], BaseConfig]],
    batches: Mapping[int, Sequence[Batch]],
    *,
    groups: Sequence[str],
    seed: int = 0,
    run: Run | None = None,
) -> tuple[int, list[float]]:
    """Return which of several settings scores best on left-out groups of the *training* slides, and every score.

    `batches` holds, for each option, the training batches as that option needs them. The score is the mean Pearson
    correlation over genes and slides, genes without variance counted as zero.
    """
    if len(options) == 1:
        return 0, [float("nan")]
    if len(set(groups)) < 2:
        raise InputError("Choosing between settings needs at least two donors (or slides) among the training slides.")
    scores = []
    for i, (family, config) in enumerate(options):
        held = held_out_scores(family, config, batches[i], groups=groups, seed=seed, run=run)
        scores.append(float(np.nan_to_num(held.pearson).mean()))
    return int(np.argmax(scores)), scores

"""Choosing, training and scoring models in the folds of a cross-validation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred import data, metrics, training
from stpred._core import keys
from stpred._core.specs import GeneRule, TileSpec
from stpred._core.targets import LOG_SHARE
from stpred.comparison.scoring import Measured, context, scores, tidy
from stpred.models.base import BaseConfig, Model
from stpred.models.batch import Batch, Needs
from stpred.tl._evaluation.fold_models import FoldModels
from stpred.tl._evaluation.kept_scores import KeptScores, identities
from stpred.tl._evaluation.out_of_fold import OutOfFold, Prediction
from stpred.training.cohort import encoder_of, measured, n_measured, scored_scale, suited

if TYPE_CHECKING:
    from stpred.encoders.base import Encoder
    from stpred.tl._evaluation.fixed_models import FixedModels

POOLED = "pearson_pooled"
METRICS = 3
"""Version of what is scored: scores on disk of another one are not taken up."""

InputKey = tuple[str | None, TileSpec | None, Needs]
"""Encoder, tile and needs: models that agree in them share their batches."""


@dataclass(frozen=True)
class Study:
    """A cross-validation: slides, models, and options of training and scoring.

    Attributes
    ----------
    regions, donors
        Slides with counts, and the donor of each.
    grids
        For each name, the settings to choose from.
    rule, target, scales
        Genes of each fold, training target, and the scales that are scored on.
    encoder, tile
        As the user gave them.
    seed, run
        As of :func:`stpred.training.fit`.
    out_of_fold, fold_models
        Collect predictions, and models; None keeps the scores alone.
    criterion
        What settings are chosen by.
    fixed
        Models that are not trained but applied as they are; None: none.
    """

    regions: dict[str, data.Region]
    donors: dict[str, str]
    grids: Mapping[str, list[BaseConfig]]
    rule: GeneRule
    target: str | None
    scales: list[str]
    encoder: Any
    tile: Any
    seed: int
    run: training.Run
    out_of_fold: OutOfFold | None
    criterion: str = "pearson"
    fold_models: FoldModels | None = None
    fixed: FixedModels | None = None

    @cached_property
    def encoders(self) -> dict[InputKey, Encoder]:
        """What each (encoder, tile, needs) sees tiles through."""
        return _encoders(self.regions, self.grids, encoder=self.encoder, tile=self.tile, device=self.run.device)

    @cached_property
    def batches(self) -> dict[InputKey, dict[str, Batch]]:
        """Every slide without targets for each (encoder, tile, needs), embedded once per encoder."""
        return _embed(self.regions, self.encoders)

    @property
    def _keeps(self) -> bool:
        """Whether more than scores is wanted, which scores on disk have not with them."""
        return self.out_of_fold is not None or self.fold_models is not None

    def score_fold(self, fold: data.Fold) -> list[pd.DataFrame]:
        """Return the scores of all models on the slides of a fold, and what they are read against."""
        parts = [_part(self.regions[s], rows) for s, rows in fold.train.items()]
        chosen = data.choose_genes(parts, self.rule).index
        genes = [g for g in chosen if all(g in self.regions[s].var.index for s in fold.test)]  # type: ignore[union-attr]
        rows = [self._scores_of(name, fold, genes).assign(model=name, fold=fold.name) for name in self.grids]
        rows += self._scores_of_fixed(fold, genes)
        return rows + [
            _context(fold, s, self.regions, genes, scale, n_measured=self._n_measured(BaseConfig)).assign(
                fold=fold.name, slide=s, target=scale
            )
            for s in fold.test
            for scale in self.scales
        ]

    def _scores_of(self, name: str, fold: data.Fold, genes: list[str]) -> pd.DataFrame:
        """Return a model's scores in a fold: from disk, if they are there."""
        inputs = [
            getattr(self.encoder, "card", self.encoder),
            self.tile,
            next(iter(self.regions.values())).coordinate_system,
        ]
        decides = [
            METRICS, name, self.grids[name], fold, genes, self.target, self.scales, self.seed, self.rule.to_dict(),
            identities(self.regions), inputs, self.donors, self.criterion,
        ]  # fmt: skip
        kept = KeptScores(self.run.checkpoint, decides)
        found = None if self._keeps else kept.load()
        if found is None:
            found, predicted = self._score_model(name, fold, genes)
            kept.save(found)
            if self.out_of_fold is not None:
                self.out_of_fold.add(name, predicted)
        return found

    def _scores_of_fixed(self, fold: data.Fold, genes: list[str]) -> list[pd.DataFrame]:
        """Return the scores of models that stay as they are; they are cheap, and not kept on disk."""
        rows = []
        for name in () if self.fixed is None else self.fixed.predictors:
            found, predicted = self.fixed.score(name, fold, genes, keep=self.out_of_fold is not None)  # type: ignore[union-attr]
            rows.append(found.assign(model=name, fold=fold.name))
            if self.out_of_fold is not None:
                self.out_of_fold.add(name, predicted)
            if self.fold_models is not None:
                self.fold_models.found.setdefault(name, {})[fold.name] = self.fixed.predictors[name].model  # type: ignore[union-attr]
        return rows

    def _score_model(self, name: str, fold: data.Fold, genes: list[str]) -> tuple[pd.DataFrame, list[Prediction]]:
        """Choose, train and score one model; where predictions are collected, also return them."""
        options = self.grids[name]
        model, config, chosen, learned = self._fit(options, fold, genes)
        settings = ", ".join(f"{k}={v}" for k, v in _chosen(config, chosen, several=len(options) > 1).items())
        keep = self.out_of_fold is not None
        parts, predicted = [], []
        both: dict[str, list[tuple[Any, Any]]] = {scale: [] for scale in self.scales}
        for s, rows in fold.test.items():
            batch = _rows(self.batches[_input_key(config, self.encoder)][s], rows)
            raw, spread = model.predict(batch)
            for scale in self.scales:
                truth = measurement(_part(self.regions[s], rows), genes, scale, n_measured=self._n_measured(config))
                comparable = scored_scale(config, self.target) == scale
                comparable = comparable and config.output_scale(self.target) != "relative"
                found = scores(model.as_scored(raw), truth, comparable=comparable)
                parts.append(tidy(found, genes).assign(slide=s, target=scale))
                both[scale].append((model.as_scored(raw), truth.observed))
            if keep:
                predicted.append(
                    Prediction(
                        slide=s, rows=rows, genes=genes, mean=raw, std=spread, ood_distance=model.ood_distance(batch),
                        slide_limit=chosen.get("slide_limit"), scale=config.output_scale(self.target), per=config.per,
                        family=config.family, config=config.to_dict(), chosen=settings,
                        n_measured=self._n_measured(config) if config.output_scale(self.target) == LOG_SHARE else None,
                        encoder=_encoder_name(config, self.encoder), fold=fold.name, trained_on=list(fold.train),
                    )
                )  # fmt: skip
        if self.fold_models is not None:
            self.fold_models.add(
                name, model, fold, genes=genes, encoder=self.encoders[_input_key(config, self.encoder)],
                batches=learned, config=config, chosen=chosen, scores=parts,
            )  # fmt: skip
        parts += [pooled_rows(sides, genes, fold=fold.name, scale=scale) for scale, sides in both.items()]
        return pd.concat(parts).assign(chosen=settings, trained_on=config.training_target(self.target)), predicted

    def _fit(
        self, options: list[BaseConfig], fold: data.Fold, genes: list[str]
    ) -> tuple[Model, BaseConfig, dict[str, Any], list[Batch]]:
        """Choose between settings on the training slides, and fit the best on all of them, which are returned too."""
        inner = {}
        for i, config in enumerate(options):
            inner[i] = [
                _rows(
                    measured(
                        self.regions[s],
                        genes,
                        config,
                        target=self.target,
                        scored_on=self.scales[0],
                        n_measured=self._n_measured(config),
                        among=sum(len(self.regions[t].coords_um) for t in fold.train),
                    ).put(self.batches[_input_key(config, self.encoder)][s]),
                    rows,
                )
                for s, rows in fold.train.items()
            ]
        groups = [self.donors[s] for s in fold.train]
        pairs = [(c.model_class, c) for c in options]
        choice = training.choose_config(
            pairs, inner, groups=groups, criterion=self.criterion, seed=self.seed, run=self.run
        )
        model, chosen = training.fit(
            *pairs[choice.best], inner[choice.best], groups=groups, seed=self.seed,
            typical=self._keeps, run=self.run, folds=choice.folds,
        )  # fmt: skip
        return model, options[choice.best], chosen, inner[choice.best]

    def _n_measured(self, config: Any) -> int | None:
        """Return the number of genes of a log share: of all slides, so that it is the same in every fold."""
        return n_measured(config, self.regions.values())


def _part(region: data.Region, rows: NDArray[np.int64] | None) -> data.Region:
    return region if rows is None else region.take(rows)


def _rows(batch: Batch, rows: NDArray[np.int64] | None) -> Batch:
    return batch if rows is None else batch.take(rows)


def _input_key(config: BaseConfig, given: Any) -> InputKey:
    """Return what a family's batches depend on: its own encoder (None: the given one), its tile and its needs."""
    own = None if given is not None and config.encoder_is_free else config.default_encoder
    return own, config.default_tile, config.needs


def _encoders(
    regions: dict[str, data.Region], grids: Mapping[str, list[BaseConfig]], *, encoder: Any, tile: Any, device: Any
) -> dict[InputKey, Encoder]:
    """Return the encoder of every (encoder, tile, needs), one for all that share the former two."""
    wanted = {_input_key(o, encoder): o for options in grids.values() for o in options}
    found: dict[InputKey, Encoder] = {}
    for group in sorted({key[:2] for key in wanted}, key=str):
        own = {key: config for key, config in wanted.items() if key[:2] == group}
        config = next(iter(own.values()))
        # Families that bring an encoder of their own (colour, pixels) keep it whatever the others use.
        given = encoder if config.encoder_is_free else None
        used = suited(encoder_of(config, given, tile=tile, device=device), regions.values())
        found |= dict.fromkeys(own, used)
    return found


def _embed(regions: dict[str, data.Region], used: Mapping[InputKey, Encoder]) -> dict[InputKey, dict[str, Batch]]:
    """Return batches without targets for every (encoder, tile, needs); tiles are embedded once per encoder."""
    found: dict[InputKey, dict[str, Batch]] = {key: {} for key in used}
    for group in dict.fromkeys(key[:2] for key in used):
        own = {key: encoder for key, encoder in used.items() if key[:2] == group}
        encoder = next(iter(own.values()))
        for s, region in regions.items():
            for key in [k for k in own if k[2].cells or k[2].tokens]:
                found[key][s] = data.reader_for(region, encoder, key[2]).whole()
            tiles = [k for k in own if not (k[2].cells or k[2].tokens)]
            if not tiles:
                continue
            colour = any(key[2].slide_colour for key in tiles)
            places = any(key[2].places for key in tiles)
            first = data.reader_for(region, encoder, Needs(slide_colour=colour, places=places)).whole()
            for parts in {key[2].parts for key in tiles}:
                batch = first
                if parts is not None:
                    batch = data.with_parts(first, region, encoder, parts)
                for key in tiles:
                    if key[2].parts == parts:
                        found[key][s] = data.with_needs(batch, key[2])
    return found


def _chosen(config: BaseConfig, chosen: dict[str, Any], *, several: bool) -> dict[str, Any]:
    """Return settings that differ from the defaults, and what the fit chose."""
    default = type(config)()
    # The candidates of "auto" are paragraphs; how many of them are used is a number.
    own = {k: v for k, v in config.to_dict().items() if k != "candidates"}
    changed = {k: v for k, v in own.items() if v != default.to_dict()[k]}
    first = {"family": config.family} if several else {}
    return first | changed | {k: v for k, v in chosen.items() if isinstance(v, (int, float)) and k != "slide_limit"}


def _encoder_name(config: BaseConfig, given: Any) -> str:
    """Return the name of the encoder that a model sees tiles through."""
    if given is None or not config.encoder_is_free:
        return config.default_encoder
    return str(given if isinstance(given, str) else getattr(getattr(given, "card", None), "name", type(given).__name__))


def measurement(region: data.Region, names: list[str], target: str, *, n_measured: int | None) -> Measured:
    columns = region.var.index.get_indexer(names)  # type: ignore[union-attr]
    values = region.target(names, target, n_measured=n_measured)
    return Measured(region.counts, columns, values, target, region.coords_um)


def pooled_rows(sides: list[tuple[Any, Any]], names: list[str], *, fold: str, scale: str) -> pd.DataFrame:
    """Return the Pearson correlation over all locations of a fold's slides, from each one's predicted and measured."""
    pooled = metrics.pearson(*(np.concatenate(side) for side in zip(*sides, strict=True)))
    return tidy({POOLED: pooled}, names).assign(slide=f"pooled {fold}", target=scale)


def context_rows(truth: Measured, names: list[str]) -> list[pd.DataFrame]:
    """Return what scores on a slide are compared with, as rows of further models."""
    found = context(truth)
    parts = [tidy({"pearson": found[name]}, names).assign(model=name) for name in keys.CONTEXT[:2]]
    ceilings = ("rmax", "reliability") if truth.target == "counts" else ("reliability",)
    return [*parts, tidy({name: found[name] for name in ceilings}, names).assign(model=keys.CEILING)]


def _context(
    fold: data.Fold,
    slide: str,
    regions: dict[str, data.Region],
    names: list[str],
    target: str,
    *,
    n_measured: int | None,
) -> pd.DataFrame:
    """Return the rows of context of a held-out slide, with the errors of the mean over the training slides."""
    truth = measurement(_part(regions[slide], fold.test[slide]), names, target, n_measured=n_measured)
    total = sum(
        _part(regions[s], r).target(names, target, n_measured=n_measured).sum(axis=0, dtype=np.float64)
        for s, r in fold.train.items()
    )
    n = sum(len(regions[s].coords_um) if r is None else len(r) for s, r in fold.train.items())
    mean = np.broadcast_to(total / n, truth.observed.shape)
    errors = {name: getattr(metrics, name)(mean, truth.observed) for name in ("r2", "rmse", "mae")}
    parts = [*context_rows(truth, names), tidy(errors, names).assign(model=keys.TRAINING_MEAN)]
    return pd.concat(parts).assign(chosen="", trained_on=target)

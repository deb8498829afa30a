"""Models in a cross-validation that are not trained in it: published predictors and others that stay as they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data
from stpred._core.checks import InputError, listing
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import Library
from stpred._core.targets import LOG_SHARE, SCALES, TARGETS
from stpred.comparison.scoring import Measured, scores, tidy
from stpred.inference.predictor import Applied, Predictor
from stpred.inference.provenance import trained_on
from stpred.tl._evaluation.fold_scores import measurement, pooled_rows
from stpred.tl._evaluation.out_of_fold import Prediction

if TYPE_CHECKING:
    from stpred.models import Model


@dataclass
class FixedModels:
    """Trained models, applied to every slide once.

    Attributes
    ----------
    predictors
        By the name in the result.
    regions, donors, scales
        As of the study.
    """

    predictors: Mapping[str, Predictor]
    regions: Mapping[str, data.Region]
    donors: Mapping[str, str]
    scales: list[str]
    _applied: dict[tuple[str, str], tuple[Applied, data.Region]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        given: Mapping[str, Model],
        regions: Mapping[str, data.Region],
        donors: Mapping[str, str],
        scales: list[str],
        *,
        device: str | None,
    ) -> FixedModels:
        """Take trained models; those that were trained on any of the slides, or share no gene with them, are refused.

        A model with its own encoder in memory uses that, all others find theirs by name.
        """
        for name, model in given.items():
            if seen := [s for s, r in regions.items() if trained_on(model, r, donors.get(s, ""))]:
                raise InputError(
                    f"Model {name!r} was trained on {listing(seen)} (or on their donors), so they are not held out "
                    "from it; pass its family or settings to be trained in every fold."
                )
            for s, region in regions.items():
                if not region.measures(model.record.genes).any():
                    theirs = [] if region.var is None else [str(g) for g in region.var.index]
                    hint = mismatch(model.record.genes, theirs)
                    raise InputError(
                        f"Model {name!r} ({listing(model.record.genes[:3])}) and slide {s!r} ({listing(theirs[:3])}) "
                        f"share no gene{'; ' + hint if hint else ''}."
                    )
        return cls({n: Predictor.of(m, device=device) for n, m in given.items()}, regions, donors, scales)

    def score(
        self, name: str, fold: data.Fold, genes: list[str], *, keep: bool
    ) -> tuple[pd.DataFrame, list[Prediction]]:
        """Return a model's scores on a fold's slides, of those of the genes that it predicts; and its predictions."""
        predictor = self.predictors[name]
        model, record = predictor.model, predictor.model.record
        known = set(record.genes)
        names = [g for g in genes if g in known]
        if not names:
            raise InputError(
                f"Model {name!r} predicts none of the {len(genes)} genes of fold {fold.name!r}; give `genes` that it "
                f"predicts, such as {listing(record.genes[:3])}."
            )
        own = record.target if record.target in SCALES and model.config.per is None else TARGETS[0]
        columns = pd.Index(record.genes).get_indexer(names)
        parts, predicted = [], []
        both: dict[str, list[tuple[Any, Any]]] = {scale: [] for scale in self.scales}
        for s, rows in fold.test.items():
            found, whole = self._of(name, s)
            at = slice(None) if rows is None else rows
            raw = np.ascontiguousarray(found.mean[at][:, columns])
            values = np.ascontiguousarray(model.as_scored(found.mean[at])[:, columns])
            region = whole if rows is None else whole.take(rows)
            for scale in self.scales:
                truth: Measured = measurement(region, names, scale, n_measured=record.n_measured)
                comparable = own == scale and record.target != "relative"
                parts.append(tidy(scores(values, truth, comparable=comparable), names).assign(slide=s, target=scale))
                both[scale].append((values, truth.observed))
            if keep:
                predicted.append(
                    Prediction(
                        slide=s, rows=rows, genes=names, mean=raw,
                        std=None if found.std is None else found.std[at][:, columns],
                        ood_distance=found.distance[at], slide_limit=record.training.get("slide_limit"),
                        scale=record.target, per=model.config.per, family=model.family, config=model.config.to_dict(),
                        chosen="", n_measured=record.n_measured, encoder=predictor.encoder.card.name, fold=fold.name,
                        trained_on=[],
                    )
                )  # fmt: skip
        parts += [pooled_rows(sides, names, fold=fold.name, scale=scale) for scale, sides in both.items()]
        said = record.training.get("target", record.training.get("source", record.target))
        return pd.concat(parts).assign(chosen="", trained_on=said), predicted

    def _of(self, name: str, slide: str) -> tuple[Applied, data.Region]:
        """Return what a model says of a slide, and the slide on the model's library."""
        if (name, slide) not in self._applied:
            predictor, region = self.predictors[name], self.regions[slide]
            record = predictor.model.record
            if record.target in (TARGETS[0], LOG_SHARE):
                region, _ = data.on_library(region, Library.parse(record.library))
            self._applied[name, slide] = predictor.apply(region), region
        return self._applied[name, slide]

"""The models of a cross-validation's folds, each with a record of what it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred import data, training
from stpred._core import keys
from stpred.training.cohort import Cohort

if TYPE_CHECKING:
    from stpred._core.specs import GeneRule
    from stpred.encoders.base import Encoder
    from stpred.models.base import BaseConfig, Model
    from stpred.models.batch import Batch


@dataclass
class FoldModels:
    """Collects the model of every fold.

    Attributes
    ----------
    regions, donors, rule, target, seed
        As of the study.
    donors_given
        Whether donors were named, rather than slides taken for their own.
    shared
        Genes that library sizes of all slides are counted over, where they measured different ones.
    found
        Model name to fold name to model.
    """

    regions: Mapping[str, data.Region]
    donors: Mapping[str, str]
    rule: GeneRule
    target: str | None
    seed: int
    donors_given: bool
    shared: data.SharedLibrary | None
    found: dict[str, dict[str, Model]] = field(default_factory=dict)

    def add(
        self,
        name: str,
        model: Model,
        fold: data.Fold,
        *,
        genes: list[str],
        encoder: Encoder,
        batches: list[Batch],
        config: BaseConfig,
        chosen: dict[str, Any],
        scores: list[pd.DataFrame],
    ) -> None:
        """Take a fold's model, what it learned from, and its tidy scores on the held-out slides."""
        parts = [self.regions[s] if rows is None else self.regions[s].take(rows) for s, rows in fold.train.items()]
        cohort = Cohort(
            parts, dict(self.donors), (), self.rule, data.choose_genes(parts, self.rule).loc[genes],
            data.common_lattice(list(self.regions.values())), self.shared,
        )  # fmt: skip
        cohort.describe(
            model, name=keys.slug(name), encoder=encoder, batches=batches, config=config, target=self.target,
            scores=_held_out(scores, genes, {s: self._size(s, rows) for s, rows in fold.test.items()}),
        )  # fmt: skip
        model.record.training |= {
            "donors_given": self.donors_given,
            "seed": self.seed,
            "cross_validation": {"fold": fold.name, "held_out": list(fold.test)},
            **chosen,
        }
        self.found.setdefault(name, {})[fold.name] = model

    def _size(self, slide: str, rows: Any) -> int:
        return len(self.regions[slide].coords_um) if rows is None else len(rows)


def _held_out(scores: list[pd.DataFrame], genes: list[str], n: Mapping[str, int]) -> training.HeldOut:
    """Return the scores of held-out slides as training keeps them: of the first scale."""
    rows = pd.concat(scores)
    rows = rows[(rows["target"] == rows["target"].iloc[0]) & rows["slide"].isin(list(n))]

    def wide(metric: str) -> Any:
        part = rows[rows["metric"] == metric]
        found = part.pivot(index="slide", columns="gene", values="value")
        return found.reindex(index=list(n), columns=genes).to_numpy(dtype=np.float64)

    return training.HeldOut(wide("pearson"), wide("spearman"), np.array(list(n.values())))

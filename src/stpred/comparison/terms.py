"""On which genes and which scale a predicted and a measured side are compared, and the values of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import targets
from stpred._core.checks import InputError, listing, one_of, warn
from stpred._core.expression.cut import Cut
from stpred._core.expression.gene_names import mismatch
from stpred._core.expression.library import LIBRARY, Library, gene_sums, overlap, shared_columns
from stpred._core.tables import changed_values
from stpred.comparison.rasters import RasterSide
from stpred.comparison.tables import TableSide
from stpred.comparison.transcripts import TranscriptsSide

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

FEW = 0.5
"""Fraction of the predicted locations (or genes) below which a match is worth a warning."""


@dataclass(frozen=True)
class Pair:
    """Predicted beside measured values.

    Attributes
    ----------
    shapes_key, instances
        Region of the predicted table and (n,) ids of the locations that both tables have and that were measured with
        at least one count.
    genes
        (G,) shared symbols, in the model's order.
    first, second
        (n, G) predictions and (n, all genes) raw counts, cut block by block from the tables.
    columns
        Positions of `genes` among all measured ones.
    n_measured
        Number of genes of a log share: that of the model, or of the measurement where it states none.
    measured_genes
        (all genes) names of their columns.
    target
        The scale of `observed`.
    output_scale
        The scale of `predicted`; where it is another than `target`, only correlations mean something (`comparable`).
    per
        Of predicted counts: total counts of a location that they refer to (``DeepSpot2Cell``), or None.
    coords_um
        (n, 2) centres; None where locations are sets of others that overlap.
    matching
        Rule and numbers of matched locations, JSON-able; and under ``"library"`` how the genes that library
        sizes are counted over compare with those of the model's training tables.
    """

    shapes_key: str
    instances: pd.Index
    genes: pd.Index
    first: Cut
    second: Cut
    columns: NDArray[np.int64]
    target: str
    output_scale: str = ""
    per: int | None = None
    n_measured: int | None = None
    coords_um: NDArray[np.float64] | None = None
    measured_genes: pd.Index | None = None
    matching: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def predicted(self) -> NDArray[np.float32]:
        """(n, G) predictions."""
        return self.predictions(slice(None))

    @cached_property
    def counts(self) -> Any:
        """(n, all genes) raw counts, dense or sparse."""
        return self.second.whole()

    @cached_property
    def observed(self) -> NDArray[np.float32]:
        """(n, G) measured values on the scale `target`; library sizes are over all measured genes."""
        counts = self.second.select(self.columns).whole()
        return targets.transform(counts, self.totals, target=self.target, n_measured=self.n_measured)

    @cached_property
    def totals(self) -> NDArray[np.float64]:
        """(n,) library sizes over all measured genes."""
        return targets.totals(self.second)

    @property
    def same_library(self) -> bool | None:
        """Whether log1p CP10k of both sides is over the same genes; None where this is unknown or does not matter."""
        found = self.matching.get(LIBRARY, {}).get("same")
        return None if found is None else bool(found)

    def library(self, model: Mapping[str, Any]) -> dict[str, Any]:
        """Return the provenance of the library that `observed` is counted over.

        That is the library in the `model`'s provenance where it is the same.
        """
        if self.target != "log1p_cp10k" or self.measured_genes is None:
            return {}
        if self.same_library and LIBRARY in model:
            return {LIBRARY: model[LIBRARY]}
        return {LIBRARY: Library.of([(self.measured_genes, self.second)]).packed()}

    @property
    def comparable(self) -> bool:
        """Whether `guessed` and `observed` are on one scale, so that their difference means something."""
        if self.per is not None:
            return self.target == "log1p_cp10k"
        return self.output_scale == self.target

    @property
    def guessed(self) -> NDArray[np.float32]:
        """(n, G) predictions on the scale of `observed`; amounts per 10 000 counts are log1p CP10k but for the log."""
        return self._on_scale(self.predicted)

    def guess(self, genes: slice) -> NDArray[np.float32]:
        """Return `guessed` of some of the genes."""
        return self._on_scale(self.predictions(genes))

    def predictions(self, genes: slice) -> NDArray[np.float32]:
        """Return `predicted` of some of the genes."""
        return targets.dense(self.first.block(genes), dtype=np.float32)

    def _on_scale(self, predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.log1p(predicted) if self.per is not None and self.target == "log1p_cp10k" else predicted

    def pooled(self, members: Any) -> Pair:
        """Return values of sets of locations: counts summed and then normalised, predictions averaged.

        Predicted counts are summed, since they add up; any other scale is averaged.

        Parameters
        ----------
        members
            (m, n) sparse matrix of 0 and 1: which locations are in which set.
        """
        return replace(
            self,
            first=self.first.pooled(members, mean=self.output_scale != "counts"),
            second=self.second.pooled(members),
            coords_um=None,
            matching=dict(self.matching),
        )


@dataclass(frozen=True)
class Terms:
    """What is compared of two sides, and on which scale; nothing of their locations."""

    genes: pd.Index
    columns: NDArray[np.int64]
    measured: pd.Index
    target: str
    output_scale: str
    per: int | None
    provenance: dict[str, Any] = field(default_factory=dict)
    n_predicted: int = 0
    library: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        first: TableSide | RasterSide,
        second: TableSide | TranscriptsSide,
        *,
        target: str | None,
        warned: set[str] | None,
    ) -> Terms:
        """Settle genes and scale; a prediction that was changed since is warned of."""
        provenance = first.provenance()
        if isinstance(first, TableSide) and (
            changed := changed_values(first.table, provenance, what=f"table {first.key!r}")
        ):
            _warn_once(changed, warned)
        scale, per = str(provenance["output_scale"]), provenance.get("per")
        if target is None:  # a relative prediction has no scale of its own to measure on
            target = scale if scale in targets.SCALES and per is None else "log1p_cp10k"
        one_of(target, targets.SCALES, name="target")
        genes = _shared_genes(first, second)
        second.check_counts()
        if target == "log1p_cp10k" and len(second.genes) == 1:
            raise InputError(
                f"{second.key!r} measured a single gene, {second.genes[0]!r}: every location would have the same log1p "
                "CP10k of it, for there is no other gene to be normalised by; compare raw counts with target='counts'."
            )
        columns = second.genes.get_indexer(genes)
        return cls(genes, columns, second.genes, target, scale, per, provenance, len(first.genes))

    def on_library(
        self, counts: Cut, second: TableSide | TranscriptsSide, *, warned: set[str] | None
    ) -> tuple[Terms, Cut]:
        """Return counts of the genes that library sizes are counted over, and where the compared genes are in them."""
        if self.target == "counts" or (self.output_scale != self.target and self.per is None):
            return self, counts  # library sizes have no part in it, or the prediction has no size
        library = Library.parse(self.provenance.get(LIBRARY))
        what = f"{second.noun} {second.key!r}"
        if library is None:
            if len(self.genes) < FEW * self.n_predicted:
                _warn_once(
                    f"The {what} measured {len(self.genes)} of the {self.n_predicted} predicted genes, and the model "
                    "does not state which genes its training libraries were counted over: if these were others, log1p "
                    "CP10k is another scale on either side, and RMSE, MAE, R2 and intervals do not hold.",
                    warned,
                )
            return self, counts
        found = overlap(library, second.genes, gene_sums(counts))
        overlaps = {LIBRARY: found.to_dict() | {"same": found.same or found.wider, "counted_over_shared": found.wider}}
        if found.wider:
            columns = np.union1d(shared_columns(library, second.genes), self.columns)
            _warn_once(
                f"The {what} measured genes that the model's training tables did not, with "
                f"{1 - found.share_measured:.0%} of its counts; its library sizes are counted over the "
                f"{len(columns)} shared ones, so that log1p CP10k is one scale.",
                warned,
            )
            position = np.searchsorted(columns, self.columns)
            changed = replace(self, columns=position, measured=second.genes[columns], library=overlaps)
            return changed, counts.select(columns)
        if not found.same:
            _warn_once(
                f"The {what} and the model's training tables count library sizes over different genes: the "
                f"{found.n_shared} that both have carry {found.share_model:.0%} of the training counts and "
                f"{found.share_measured:.0%} of these, so log1p CP10k is not one scale and RMSE, MAE, R2 and "
                "intervals do not hold (correlations of a gene change little); compare with a table of the same "
                "genes, or train on slides of these.",
                warned,
            )
        return replace(self, library=overlaps), counts

    def pair(self, predicted: Cut, counts: Cut, **where: Any) -> Pair:
        """Return predicted values of `genes` beside the counts of all measured ones."""
        n_measured = (self.provenance.get("training") or {}).get("n_measured") or len(self.measured)
        return Pair(
            genes=self.genes,
            first=predicted,
            second=counts,
            n_measured=n_measured,
            columns=self.columns,
            measured_genes=self.measured,
            target=self.target,
            output_scale=self.output_scale,
            per=self.per,
            **where,
        )


def _warn_once(message: str, warned: set[str] | None) -> None:
    """Warn, unless the message is in `warned`, to which it is added."""
    if warned is None or message not in warned:
        warn(message)
    if warned is not None:
        warned.add(message)


def _shared_genes(first: TableSide | RasterSide, second: TableSide | TranscriptsSide) -> pd.Index:
    """Return the predicted genes that were measured, in the model's order."""
    if not second.genes.is_unique:
        repeated = second.genes[second.genes.duplicated()].unique()
        raise InputError(f"Gene names of {second.noun} {second.key!r} are not unique: {listing(repeated)}.")
    genes = first.genes[first.genes.isin(second.genes)]
    if len(genes) == 0:
        hint = mismatch(list(first.genes), list(second.genes))
        both = f"{first.noun.capitalize()} {first.key!r} and {second.noun} {second.key!r}"
        if first.noun == second.noun:
            both = f"Tables {first.key!r} and {second.key!r}"
        raise InputError(
            f"{both} share no gene: {listing(first.genes[:3])} against {listing(second.genes[:3])}"
            f"{'; ' + hint if hint else ''}."
        )
    return genes

"""Scores of every gene of one slide's prediction, and the baselines and ceilings to read them against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import genes, links, metrics
from stpred._core import keys
from stpred._core.expression.cut import Cut
from stpred._core.targets import totals, transform
from stpred.regions import Lattice

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from stpred.comparison.terms import Pair

Scores = dict[str, "NDArray[np.float64]"]

MIN_WINDOWS = 10
"""Complete neighbourhoods from which on the similarity of two maps is given."""

_RING = 1.35
_BLOCK = 1.65
"""Reach in pitches of a ring of six on a hexagonal lattice, and of the 3 x 3 locations of a square one."""


@dataclass(frozen=True)
class Part:
    """The measurement of some genes.

    Attributes
    ----------
    genes
        Which genes.
    counts
        (n, g) raw counts, dense or csc; None where they are not needed.
    observed
        (n, g) values on the scale of the comparison.
    mean_count
        (g,) means of the counts.
    """

    genes: slice
    counts: Any
    observed: NDArray[np.float32]
    mean_count: NDArray[Any]


@dataclass(frozen=True)
class Measured:
    """One slide's measurement of some genes.

    Attributes
    ----------
    counts, columns
        (n, all genes) raw counts and the positions of the genes in them.
    values
        (n, G) values on the scale `target`; None: they are made of the counts, block by block.
    n_measured
        Number of genes of a log share, for the latter.
    coords_um
        (n, 2) centres; None where locations are no places of their own (overlapping neighbourhoods).
    """

    counts: Any
    columns: NDArray[np.int64]
    values: NDArray[np.float32] | None
    target: str
    coords_um: NDArray[np.float64] | None = None
    n_measured: int | None = None

    @classmethod
    def of(cls, both: Pair) -> Measured:
        """Return the measured side of a pair."""
        return cls(both.second, both.columns, None, both.target, both.coords_um, both.n_measured)

    @cached_property
    def totals(self) -> NDArray[np.float64]:
        """(n,) library sizes over all measured genes."""
        return totals(self.counts)

    def parts(self, *, counts: bool = True) -> Iterator[Part]:
        """Yield blocks of the genes, so that little is in memory at a time; the counts only where they are needed."""
        chosen = Cut.of(self.counts).select(self.columns)
        n_genes = len(self.columns)
        step = chosen.width
        if self.values is not None and not counts:
            for first in range(0, n_genes, step):
                genes = slice(first, min(first + step, n_genes))
                yield Part(genes, None, self.values[:, genes], np.empty(0))
            return
        for several in chosen.slices():
            block = chosen.block(several)
            mean = np.asarray(block.mean(axis=0)).ravel()
            block = block.tocsc() if hasattr(block, "tocsc") else block
            for first in range(several.start, several.stop, step):
                genes = slice(first, min(first + step, several.stop))
                own = slice(genes.start - several.start, genes.stop - several.start)
                yield Part(genes, block[:, own], self._values(genes, block[:, own]), mean[own])

    @cached_property
    def observed(self) -> NDArray[np.float32]:
        """(n, G) values on the scale `target`."""
        return self._values(slice(None), Cut.of(self.counts).select(self.columns).whole())

    def _values(self, genes: slice, counts: Any) -> NDArray[np.float32]:
        if self.values is not None:
            return self.values[:, genes]
        return transform(counts, self.totals, target=self.target, n_measured=self.n_measured)

    @cached_property
    def windows(self) -> tuple[Any, NDArray[np.int64]] | None:
        """(n, n) 0/1 matrix of each location with its ring, and the rows whose ring is complete."""
        lattice = None if self.coords_um is None else Lattice.of(self.coords_um)
        if lattice is None or self.coords_um is None:
            return None
        reach, whole = (_RING, 7) if lattice.hexagonal else (_BLOCK, 9)
        found = links.radius(self.coords_um, self.coords_um, radius_um=reach * lattice.pitch_um, include_self=True)
        counts = found.counts()
        return found.to_csr(len(self.coords_um)), np.flatnonzero(counts == whole)

    @cached_property
    def log_totals(self) -> NDArray[np.float64]:
        """(n,) log of the counts of each location."""
        return np.log1p(self.totals)


def scores(predicted: NDArray[np.float32], measured: Measured, *, comparable: bool) -> Scores:
    """Return every score of each gene; those in units are missing unless both sides are on one scale (`comparable`)."""
    parts = measured.parts(counts=False)
    return _joined(_scores(predicted[:, part.genes], part, measured, comparable=comparable) for part in parts)


def context(measured: Measured) -> Scores:
    """Return what scores are read against: the trivial predictors' Pearson and the ceilings that noise leaves."""
    return _joined(_context(part, measured) for part in measured.parts()) | _reliability(measured)


def scores_in_context(both: Pair) -> Scores:
    """Return what `scores` and `context` return of a pair, and ``mean_count``, from one pass over both sides."""
    measured = Measured.of(both)
    found = _joined(
        _scores(both.guess(part.genes), part, measured, comparable=both.comparable)
        | _context(part, measured)
        | {"mean_count": part.mean_count}
        for part in measured.parts()
    )
    return found | _reliability(measured)


def _scores(predicted: NDArray[np.float32], part: Part, measured: Measured, *, comparable: bool) -> Scores:
    observed = part.observed
    found = {
        "pearson": metrics.pearson(predicted, observed),
        "spearman": metrics.spearman(predicted, observed),
        "auroc": metrics.auroc(predicted, observed),
        "pearson_given_library_size": metrics.partial_pearson(predicted, observed, measured.log_totals),
    }
    for name in ("r2", "rmse", "mae"):
        found[name] = getattr(metrics, name)(predicted, observed) if comparable else _none(observed)
    if measured.windows is not None:
        windows, whole = measured.windows
        found["pearson_smoothed"] = metrics.pearson(predicted, metrics.smooth(observed, windows))
        if len(whole) >= MIN_WINDOWS:
            found["ssim"] = metrics.ssim(unit_range(predicted), unit_range(observed), windows[whole], data_range=1.0)
    for name in ("pearson_smoothed", "ssim"):
        found.setdefault(name, _none(observed))
    return found


def _context(part: Part, measured: Measured) -> Scores:
    around = _none(part.observed)
    if measured.windows is not None:
        around = metrics.neighbour_baseline(part.observed, measured.windows[0])
    return {
        keys.LIBRARY_SIZE: metrics.library_size_baseline(
            part.counts, target=measured.target, library=measured.totals, n_measured=measured.counts.shape[1]
        ),
        keys.NEIGHBOUR_AVERAGE: around,
        "rmax": genes.rmax(part.counts),
    }


def _reliability(measured: Measured) -> Scores:
    found = metrics.reliability(measured.counts, target=measured.target, genes=measured.columns)
    return {"reliability": found}


def _joined(parts: Iterable[Scores]) -> Scores:
    listed = list(parts)
    return {name: np.concatenate([part[name] for part in listed]) for name in listed[0]} if listed else {}


def tidy(values: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> pd.DataFrame:
    """Return scores of genes as rows of ``gene``, ``metric`` and ``value``."""
    import pandas as pd

    return pd.concat([pd.DataFrame({"gene": list(names), "metric": m, "value": v}) for m, v in values.items()])


def unit_range(values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return each gene's values from 0 to 1, so that maps are compared by their pattern; a constant gene is 0."""
    x = np.asarray(values, dtype=np.float64)
    low, span = x.min(axis=0), np.ptp(x, axis=0)
    return (x - low) / np.where(span > 0, span, 1.0)


def _none(observed: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.full(observed.shape[1], np.nan)

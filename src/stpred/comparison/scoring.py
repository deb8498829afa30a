"""Scores of every gene of one slide's prediction, and the baselines and ceilings to read them against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import genes, links, metrics
from stpred._core import keys
from stpred._core.targets import totals
from stpred.regions import Lattice

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Scores = dict[str, "NDArray[np.float64]"]

MIN_WINDOWS = 10
"""Complete neighbourhoods from which on the similarity of two maps is given."""

_RING = 1.35
_BLOCK = 1.65
"""Reach in pitches of a ring of six on a hexagonal lattice, and of the 3 x 3 locations of a square one."""


@dataclass(frozen=True)
class Measured:
    """One slide's measurement of some genes.

    Attributes
    ----------
    counts, columns
        (n, all genes) raw counts and the positions of the genes in them.
    observed
        (n, G) values on the scale `target`.
    coords_um
        (n, 2) centres; None where locations are no places of their own (overlapping neighbourhoods).
    """

    counts: Any
    columns: NDArray[np.int64]
    observed: NDArray[np.float32]
    target: str
    coords_um: NDArray[np.float64] | None = None

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
        return np.log1p(totals(self.counts).astype(np.float64))


def scores(predicted: NDArray[np.float32], measured: Measured, *, comparable: bool) -> Scores:
    """Return every score of each gene; those in units are missing unless both sides are on one scale (`comparable`)."""
    observed = measured.observed
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


def context(measured: Measured) -> Scores:
    """Return what scores are read against: the trivial predictors' Pearson and the ceilings that noise leaves."""
    counts = measured.counts[:, measured.columns]
    found = {
        keys.LIBRARY_SIZE: metrics.library_size_baseline(
            measured.counts, target=measured.target, genes=measured.columns
        ),
        keys.NEIGHBOUR_AVERAGE: _none(measured.observed),
        "rmax": genes.rmax(counts),
        "reliability": metrics.reliability(measured.counts, target=measured.target, genes=measured.columns),
    }
    if measured.windows is not None:
        found[keys.NEIGHBOUR_AVERAGE] = metrics.neighbour_baseline(measured.observed, measured.windows[0])
    return found


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

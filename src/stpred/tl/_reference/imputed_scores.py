"""Genes, cells and locations of an imputation, and the frame of its genes with their scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import targets
from stpred._core.elements import table_instances, table_regions
from stpred.comparison.pairing import pair
from stpred.inference.intervals import HIGH, LOW
from stpred.tl._reference.imputation import CHANCE, correlations
from stpred.tl._reference.reading import LOG

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MIN_PEARSON = 0.1
"""Expected correlation with the truth that a trusted gene exceeds, as that of predicted genes."""

MIN_HIDDEN = 10
"""Hidden genes of a like score in the reference that an expectation rests on, at least."""


@dataclass(frozen=True)
class Problem:
    """Genes, cells and locations.

    Attributes
    ----------
    table
        Rows of the table.
    given
        (G,) positions in the table of shared genes that are imputed from.
    tested
        (H,) positions in the table of shared genes that are not given, since they are not trusted.
    new
        Names of the genes to be imputed.
    cells
        (n, G + H + T) log1p CP10k over the given genes.
    held
        (n,) half of the cells.
    locations
        (m, G) log1p CP10k over the given genes.
    values
        (m, all genes of the table) log1p CP10k over the table's own library.
    level
        What the given genes make up of ten thousand counts of the table's own library, as a share.
    """

    table: AnnData
    given: NDArray[np.int64]
    tested: NDArray[np.int64]
    new: list[str]
    cells: NDArray[np.float64]
    held: NDArray[np.bool_]
    locations: NDArray[np.float64]
    values: NDArray[np.float64]
    level: float
    provenance: dict[str, Any]
    measured: bool


@dataclass(frozen=True)
class Measured:
    """Rows of the table that were measured, the genes' names, and log1p CP10k."""

    rows: NDArray[np.int64]
    genes: list[str]
    values: NDArray[np.float64]

    def score(self, imputed: NDArray[np.float64], names: list[str]) -> NDArray[np.float64]:
        """Return the correlation of each gene with its measurement, NaN where it was not measured."""
        place = {g: i for i, g in enumerate(self.genes)}
        at = [i for i, n in enumerate(names) if n in place]
        out = np.full(len(names), np.nan)
        if at:
            out[at] = correlations(imputed[self.rows][:, at], self.values[:, [place[names[i]] for i in at]])
        return out


def read_measured(
    sdata: SpatialData, table_key: str, measured_key: str, table: AnnData, *, coordinate_system: str
) -> Measured:
    """Return measured values at the locations of the table."""
    both = pair(sdata, table_key, measured_key, target=LOG, coordinate_system=coordinate_system)
    assert both.measured_genes is not None
    _, ids = table_instances(table, table_regions(table)[0])
    values = targets.transform(both.counts, targets.totals(both.counts), target=LOG)
    return Measured(ids.get_indexer(both.instances), [str(g) for g in both.measured_genes], values.astype(np.float64))


def gene_frame(
    problem: Problem,
    final: Any,
    hidden: NDArray[np.float64],
    hidden_reference: NDArray[np.float64],
    measured: Measured | None,
    reference: AnnData,
) -> Any:
    """Return the frame of genes of the table and of the imputed ones, with scores."""
    import pandas as pd

    old = problem.table.var.drop(columns=[LOW, HIGH], errors="ignore")
    own = np.concatenate([problem.given, problem.tested])
    added = pd.DataFrame(index=pd.Index(problem.new, dtype=object))
    if "gene_id" in old:
        named = next((c for c in ("gene_id", "gene_ids") if c in reference.var), None)
        added["gene_id"] = "" if named is None else reference.var.loc[problem.new, named].astype(str).to_numpy()
    own_scores = correlations(hidden, problem.values[:, own])
    names = [str(n) for n in old.index[own]]
    truth = own_scores if problem.measured else np.full(len(own), np.nan)
    found = np.full(len(problem.new), np.nan)
    if measured is not None:
        truth, found = measured.score(hidden, names), measured.score(final.values, problem.new)
    evidence = truth
    if np.isnan(truth).all() and "cv_pearson" in old:
        evidence = own_scores * old["cv_pearson"].to_numpy(dtype=np.float64)[own]
    expected, least = expectation(final.pearson, hidden_reference, evidence)
    direct = np.isfinite(found)
    n = problem.table.n_obs if measured is None else len(measured.rows)
    enough = ~direct | (np.nan_to_num(found) > CHANCE / np.sqrt(max(n, 1)))
    least = np.where(direct, found, least)
    added["reference_pearson"] = final.pearson
    added["measured_pearson"] = found
    added["expected_pearson"] = np.where(direct, found, expected)
    added["trusted"] = (np.nan_to_num(least) > MIN_PEARSON) & (final.pearson > 0) & enough
    frame = pd.concat([old, added])
    frame["imputed"] = np.arange(len(frame)) >= len(old)
    scores = {"reference_pearson": hidden_reference, "hidden_pearson": own_scores, "measured_pearson": truth}
    for score, values in scores.items():
        column = frame[score].to_numpy(dtype=np.float64, copy=True) if score in frame else np.full(len(frame), np.nan)
        column[own] = values
        frame[score] = column
    before = old["trusted"].fillna(value=False) if "trusted" in old else pd.Series(problem.measured, index=old.index)
    frame["trusted"] = np.concatenate([before.to_numpy(dtype=bool), added["trusted"].to_numpy(dtype=bool)])
    return frame


def expectation(
    scores: NDArray[np.float64], hidden_scores: NDArray[np.float64], evidence: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the (T,) median and lower quartile of the evidence on the hidden genes whose scores are nearest.

    Parameters
    ----------
    scores, hidden_scores
        Correlations within the reference of imputed and of hidden genes.
    evidence
        Correlation of each hidden gene with the truth, NaN where it is not known.
    """
    known = np.isfinite(evidence)
    missing = np.full(len(scores), np.nan)
    if known.sum() < MIN_HIDDEN:
        return missing, missing
    n = max(MIN_HIDDEN, int(known.sum()) // 5)
    order = np.argsort(np.abs(scores[:, None] - hidden_scores[known]), axis=1, kind="stable")[:, :n]
    near = evidence[known][order]
    return np.median(near, axis=1), np.quantile(near, 0.25, axis=1)

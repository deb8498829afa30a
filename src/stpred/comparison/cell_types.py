"""What a table says of the cell types that were scored on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.elements import table_instances, table_regions
from stpred._core.tables import read_provenance

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

CELL_TYPE = "cell_type"
"""Usual column of ``obs``."""

UNASSIGNED = "unassigned"

FOREIGN_UNS = "stpred_cell_types"
"""`uns` key of the provenance in a table that stpred did not write: one under ``"stpred"`` would claim that it did."""


def write_provenance(table: AnnData, provenance: dict[str, Any]) -> None:
    """Write provenance as one string of JSON."""
    if keys.UNS in table.uns:
        table.uns[keys.UNS] = json.dumps(read_provenance(table) | {"cell_types": provenance}, sort_keys=True)
    else:
        table.uns[FOREIGN_UNS] = json.dumps(provenance, sort_keys=True)


def score_columns(table: AnnData, column: str) -> dict[str, str]:
    """Return for each type of a column the column of its score; empty where the column does not come from scores."""
    if keys.UNS in table.uns:
        provenance = read_provenance(table).get("cell_types", {})
    else:
        provenance = json.loads(table.uns.get(FOREIGN_UNS, "{}"))
    scores = provenance.get("scores", {}) if provenance.get("key_added") == column else {}
    return {name: score for name, score in scores.items() if score in table.obs}


def rows_of(table: AnnData, part: AnnData) -> NDArray[np.int64]:
    """Return the positions of the rows of `part`, which are those of one region."""
    return table_instances(table, *table_regions(part))[0]


def updated_column(table: AnnData, column: str, rows: NDArray[np.int64], values: Any) -> NDArray[Any]:
    """Return a column of obs with new values in some rows; others keep theirs, or miss it."""
    values = np.asarray(values)
    if len(rows) == table.n_obs:
        return values
    number = values.dtype.kind == "f"
    there = column in table.obs and (not number or table.obs[column].dtype.kind == "f")
    if there:
        found = np.array(table.obs[column].astype(np.float64 if number else object))
    else:
        found = np.full(table.n_obs, np.nan, dtype=np.float64 if number else object)
    found[rows] = values
    return found

"""What a table says of the cell types that were scored on it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stpred._core import keys
from stpred._core.tables import read_provenance

if TYPE_CHECKING:
    from anndata import AnnData

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

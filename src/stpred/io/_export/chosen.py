"""What is written of a table: the rows of one region, some genes, a block of values at a time."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, check_parent, distinct, key_in, listing, whole
from stpred._core.elements import need_sdata, region_in_frame, table_instances
from stpred._core.tables import check_values, read_provenance

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

BLOCK_VALUES = 4_000_000
"""Values that are in memory at once."""


@dataclass(frozen=True)
class Chosen:
    """Rows and genes of a table that are written.

    Attributes
    ----------
    table
        The whole table.
    what
        Its name, for messages.
    region
        Shapes element that the rows annotate.
    rows, columns
        (n,) and (g,) positions in the table.
    ids
        (n,) instance ids of the rows.
    layer
        Layer of the values; None: ``X``.
    """

    table: AnnData
    what: str
    region: str
    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    ids: pd.Index
    layer: str | None

    @property
    def genes(self) -> list[str]:
        """Names of the columns."""
        return [str(g) for g in self.table.var_names[self.columns]]

    @property
    def provenance(self) -> dict[str, Any]:
        """What stpred wrote of the table; nothing of another's."""
        return read_provenance(self.table, what=self.what) if keys.UNS in self.table.uns else {}

    def blocks(self, *, most: int | None = None) -> Iterator[tuple[slice, NDArray[Any]]]:
        """Yield rows (at most so many), counted among those that are written, and their (k, g) values."""
        X = self.table.X if self.layer is None else self.table.layers[self.layer]
        step = max(1, BLOCK_VALUES // max(len(self.columns), 1))
        step = step if most is None else min(step, most)
        for start in range(0, len(self.rows), step):
            part = slice(start, min(start + step, len(self.rows)))
            values = X[self.rows[part]][:, self.columns]
            yield part, values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def chosen(
    sdata: SpatialData,
    table_key: str,
    *,
    genes: Iterable[str] | None,
    layer: str | None,
    coordinate_system: str,
) -> Chosen:
    """Return the rows of a table's region in a frame, and some of its genes (None: all), in the order asked for."""
    need_sdata(sdata)
    key_in(table_key, sdata.tables, what="table", name="table_key")
    table, what = sdata.tables[table_key], f"table {table_key!r}"
    region = region_in_frame(sdata, table_key, coordinate_system=coordinate_system)
    rows, ids = table_instances(table, region)
    if len(rows) == 0:
        raise InputError(f"The {what} has no row of {region!r}.")
    if not table.var_names.is_unique:
        repeated = table.var_names[table.var_names.duplicated()].unique()
        raise InputError(f"The genes of {what} are not unique: {listing(repeated)}.")
    if layer is not None:
        key_in(layer, table.layers, what=f"layer of {what}", name="layer")
    elif table.X is None:
        raise InputError(f"The {what} has no values (X); name a layer with `layer`.")
    check_values(table, what=what, layer=layer)
    columns = np.arange(table.n_vars)
    if genes is not None:
        wanted = [str(g) for g in distinct(genes, name="genes")]
        columns = table.var_names.get_indexer(wanted)
        if unknown := [g for g, c in zip(wanted, columns, strict=True) if c < 0]:
            raise InputError(f"The {what} has no gene {listing(unknown)}; it has {listing(table.var_names)}.")
    return Chosen(table, what, region, rows, columns, ids, layer)


def shapes_of(sdata: SpatialData, found: Chosen) -> Any:
    """Return the shapes of the rows that are written, in their order."""
    if found.region not in sdata.shapes:
        raise InputError(
            f"The {found.what} annotates {found.region!r}, which is not among the shapes of the object: "
            f"{listing(sdata.shapes)}."
        )
    element = sdata.shapes[found.region]
    at = element.index.get_indexer(found.ids)
    if (lost := at < 0).any():
        raise InputError(
            f"{int(lost.sum())} rows of {found.what} have no shape in {found.region!r}: those of "
            f"{listing(found.ids[lost])}."
        )
    return element.iloc[at]


def free_file(path: str | Path, suffixes: tuple[str, ...], *, what: str, overwrite: bool) -> Path:
    """Return `path` if a file of one of these endings can be written there."""
    if not isinstance(path, (str, Path)):
        raise InputError(f"`path` must be the name of the {what} to write, got {type(path).__name__}.")
    path = Path(path)
    if not path.name.lower().endswith(suffixes):
        raise InputError(f"The {what} {str(path)!r} must end in {' or '.join(suffixes)}.")
    check_parent(path)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder, not a file to write.")
    if path.exists() and not overwrite:
        raise InputError(
            f"The {what} {str(path)!r} exists; name another or say that it may be overwritten (overwrite)."
        )
    return path


def library_of(found: Chosen, library_size: float | None) -> float:
    """Return the library size that a prediction's counts are given for: the named one, or that of its training."""
    if library_size is not None:
        return float(whole(library_size, name="library_size", unit="counts"))
    size = (found.provenance.get("library") or {}).get("median_size")
    if not size:
        raise InputError(
            f"The {found.what} does not say how large the libraries of its model's training were; name a size with "
            "`library_size`, such as 10000."
        )
    return float(size)

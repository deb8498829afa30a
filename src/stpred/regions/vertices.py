"""Tables of cells and of their vertices, as Xenium writes them: parquet or csv, ids of any kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError, listing
from stpred._core.files import readable

if TYPE_CHECKING:
    import pandas as pd

_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
VERTICES = ("cell_id", "vertex_x", "vertex_y")


class Vertices(NamedTuple):
    """Vertices of the outlines of cells; pieces (of a cell, told apart by ``label_id``) and cells as they come."""

    xy: NDArray[np.float64]
    """(n, 2) coordinates."""
    piece: NDArray[np.int64]
    """(n,) piece of each vertex, -1 where no cell is stated."""
    cell_of_piece: NDArray[np.int64]
    """(p,) cell of each piece."""
    ids: NDArray[Any]
    """(c,) cell ids as text."""
    labels: NDArray[np.int64] | None
    """(p,) ``label_id`` of each piece, where the table has such numbers."""
    whole_ids: bool
    """Whether the ids are whole numbers in the table."""


def read_table(path: Path, *, what: str, needed: Sequence[str], optional: Sequence[str] | None = None) -> pd.DataFrame:
    """Return a parquet or csv table with the columns `needed` and, of the others, all or those of `optional`."""
    import pandas as pd

    with readable(path, what=what):
        if path.suffix == ".parquet":
            from pyarrow import parquet

            there = list(parquet.read_schema(path).names)
        else:
            there = list(pd.read_csv(path, nrows=0).columns)
    if missing := [c for c in needed if c not in there]:
        raise InputError(f"{path.name!r} has no column {missing[0]!r}; it has {listing(there)}.")
    columns = None if optional is None else [c for c in there if c in needed or c in optional]
    with readable(path, what=what):
        if path.suffix == ".parquet":
            from pyarrow import parquet

            # A dictionary of ids spares one text for every vertex.
            read = parquet.read_table(path, columns=columns, read_dictionary=["cell_id"], use_pandas_metadata=True)
            frame = read.to_pandas()
        else:
            frame = pd.read_csv(path, usecols=columns, dtype={"cell_id": str}, low_memory=False)
        frame = frame.reset_index() if not set(needed) <= set(frame) else frame
        if not frame.columns.is_unique:
            raise InputError(f"{path.name!r} has columns of the same name: {listing(frame.columns)}.")
    return frame


def read_vertices(path: Path) -> Vertices:
    """Return the vertices of a table such as Xenium's ``cell_boundaries``."""
    frame = read_table(path, what="boundaries", needed=VERTICES, optional=("label_id",))
    ids, cell = cell_ids(frame["cell_id"])
    xy = np.column_stack([numbers(frame[c], name=c, path=path) for c in VERTICES[1:]])
    if len(ids) == 0:
        raise InputError(f"{path.name!r} states no cell.")
    import pandas as pd

    text = path.suffix != ".parquet" and all(_NUMBER.fullmatch(i) for i in ids)
    by_cell = Vertices(
        xy, cell, np.arange(len(ids)), ids, None, text or pd.api.types.is_integer_dtype(frame["cell_id"].dtype)
    )
    label = _whole(frame["label_id"]) if "label_id" in frame else None
    if label is None:
        return by_cell
    # One number per pair of cell and label; ids beyond the cells' are the labels'.
    known, which = np.unique(label, return_inverse=True)
    pair, first = pd.factorize(np.where(cell < 0, -1, cell * len(known) + which))
    codes = np.asarray(first, dtype=np.int64)
    piece = np.asarray(pair, dtype=np.int64)
    if (codes < 0).any():
        none = int(np.flatnonzero(codes < 0)[0])
        piece = np.where(piece == none, -1, piece - (piece > none))
        codes = np.delete(codes, none)
    if (np.bincount(piece[piece >= 0], minlength=len(codes)) < 3).mean() > 0.5:
        return by_cell  # numbers of rows, not of pieces
    return by_cell._replace(piece=piece, cell_of_piece=codes // len(known), labels=known[codes % len(known)])


def cell_ids(column: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the different ids of a column as text in order of appearance, and which each row is, -1 where none.

    Bytes are text, and numbers are written without a fraction, so that ids of one cell match between files.
    """
    import pandas as pd

    try:
        if isinstance(getattr(column, "dtype", None), pd.CategoricalDtype):
            codes, used = pd.factorize(np.asarray(column.cat.codes))
            found = column.cat.categories.to_numpy()[used[used >= 0]]
            codes = np.where(np.asarray(column.cat.codes) < 0, -1, codes - (used < 0).cumsum()[codes])
        else:
            codes, found = pd.factorize(np.asarray(column))
    except TypeError:  # lists and other values that have no hash
        codes, found = pd.factorize(np.array([_spell(v) for v in column], dtype=object))
    names = np.array([_spell(v) for v in found], dtype=object)
    again, unique = pd.factorize(names)
    again = np.asarray(again, dtype=np.int64)
    return np.asarray(unique, dtype=object), np.where(codes < 0, -1, again[codes] if len(again) else -1)


def _spell(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    text = str(value)
    return text[:-2] if text.endswith(".0") and text[:-2].isdigit() else text


def numbers(column: Any, *, name: str, path: Path) -> NDArray[np.float64]:
    """Return a column as float64, NaN where it is empty, or refuse one that holds no numbers."""
    import pandas as pd

    with readable(path, what="table"):
        try:
            values = pd.Series(pd.to_numeric(column))
            return np.asarray(values.to_numpy(dtype=np.float64, na_value=np.nan))
        except (ValueError, TypeError) as error:
            raise InputError(f"The column {name!r} of {path.name!r} does not hold numbers: {error}.") from error


def _whole(column: Any) -> NDArray[np.int64] | None:
    """Return a column of whole numbers, or None where it is not one."""
    import pandas as pd

    with np.errstate(invalid="ignore"):
        values = np.asarray(pd.to_numeric(column, errors="coerce"), dtype=np.float64)
        fine = np.isfinite(values) & (values == np.floor(values)) & (np.abs(values) < 2**53)
    return values.astype(np.int64) if fine.all() else None

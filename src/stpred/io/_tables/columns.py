"""Columns of a user's tables (positions, spots, obs): names, numbers and truth values, or one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stpred._core.checks import InputError, listing

if TYPE_CHECKING:
    import pandas as pd

MAX_PX = 1e7
"""Pixels along a slide; the largest scans have some 300 000."""
MAX_ARRAY = 1e6
"""Rows and columns of a printed array; Visium HD has 3 350."""

_TRUTH = {"true": 1, "false": 0, "yes": 1, "no": 0, "t": 1, "f": 0, "1": 1, "0": 0, "1.0": 1, "0.0": 0}
_MISSING = ("nan", "none", "", "<na>")


def numbers(frame: pd.DataFrame, columns: Sequence[str], *, what: str, most: float = MAX_PX) -> pd.DataFrame:
    """Return columns of finite numbers within -`most` to `most`, integers as integers.

    Parameters
    ----------
    frame
        The table, its index naming the rows.
    columns
        Columns that must be there.
    what
        The table, for messages, such as "positions 'tissue_positions.csv'".

    Raises
    ------
    InputError
        If a column occurs twice, or has no number, or none that can be, in some rows.
    """
    import pandas as pd

    found = {c: _number(one_column(frame, c, what=what), what=what) for c in columns}
    result = pd.DataFrame(found, index=frame.index)
    bad = result.isna().any(axis=1).to_numpy()
    if bad.any():
        raise InputError(
            f"The {what} have no number in one of {listing(columns)} in {int(bad.sum())} rows: "
            f"{listing(frame.index[bad])}."
        )
    bad = ~(np.abs(result.to_numpy(dtype=np.float64)) <= most).all(axis=1)
    if bad.any():
        raise InputError(
            f"The {what} hold values that are infinite or beyond {most:.0e} in one of {listing(columns)} in "
            f"{int(bad.sum())} rows: {listing(frame.index[bad])}."
        )
    return result


def one_column(frame: pd.DataFrame, name: str, *, what: str) -> pd.Series:
    """Return a column, or say that there are two of its name."""
    column = frame[name]
    if column.ndim != 1:
        raise InputError(f"The {what} hold the column {name!r} {column.shape[1]} times; keep one.")
    return column


def _number(column: pd.Series, *, what: str) -> pd.Series:
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(object)
    if column.dtype.kind in "biuf":
        return column
    if column.dtype.kind not in "OUST":
        raise InputError(f"The {what} hold no numbers in the column {column.name!r} but {column.dtype}.")
    try:
        return pd.to_numeric(column, errors="coerce")
    except (TypeError, ValueError) as error:  # of lists and other objects
        raise InputError(f"The {what} hold no numbers in the column {column.name!r}.") from error


def names(column: pd.Series, *, what: str) -> Sequence[str]:
    """Return names as text; bytes are decoded, and what is no name (a list, nothing) is refused.

    Raises
    ------
    InputError
        If an entry is neither text nor a whole number.
    """
    from pandas.api.types import infer_dtype

    if infer_dtype(column, skipna=False) == "string" and column.notna().all() and (column != "").all():
        return column.to_numpy(dtype=object)
    found = []
    for value in column:
        text = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        if not isinstance(text, (str, int, np.integer)) or not str(text).strip():
            raise InputError(f"The {what} hold no name but {str(value)[:40]!r} in the column {column.name!r}.")
        found.append(str(text))
    return found


def truths(column: pd.Series, *, what: str, missing: bool | None = None) -> np.ndarray:
    """Return a column of 0 and 1, of truth values or of the text of either as booleans.

    Entries without a value are what `missing` says; None refuses them.

    Raises
    ------
    InputError
        If another value is in it.
    """
    values = column.to_numpy()
    if values.dtype.kind in "biuf" and ((values == 0) | (values == 1)).all():
        return np.asarray(values == 1)
    found = np.array([_TRUTH.get(str(v).strip().lower(), -1) for v in values], dtype=np.int8)
    if missing is not None:
        found[[str(v).strip().lower() in _MISSING for v in values]] = missing
    if (odd := found < 0).any():
        raise InputError(
            f"The {what} hold {int(odd.sum())} values in the column {column.name!r} that are neither 0 nor 1: "
            f"{listing(dict.fromkeys(str(v) for v in values[odd]))}."
        )
    return found == 1

"""Scale factors and positions of a Space Ranger run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core.checks import InputError, MissingFileError, listing, warn
from stpred._core.files import read_json, readable
from stpred.calibration import MAX_MPP, MIN_MPP
from stpred.io._tables.columns import MAX_ARRAY, names, numbers, one_column, truths

if TYPE_CHECKING:
    import pandas as pd


POSITION_COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]


MIN_SPREAD = 0.05
"""Spread across relative to along, below which positions lie in one line."""


_LIMITS = {
    "tissue_hires_scalef": (1e-4, 10.0),
    "tissue_lowres_scalef": (1e-4, 10.0),
    "spot_diameter_fullres": (0.1, 1e5),
    "microns_per_pixel": (MIN_MPP, MAX_MPP),
}
"""What the scale factors in use can be: pixels per pixel, pixels, and um per pixel."""


def read_scalefactors(path: Path) -> dict[str, float]:
    """Return the scale factors of a run; those that stpred uses are numbers that can be."""
    if not path.is_file():
        raise MissingFileError(f"There are no scale factors {str(path)!r}.")
    result = {}
    for name, value in read_json(path, what="file of scale factors").items():
        if value is None:
            continue
        if name in _LIMITS:
            result[name] = _factor(name, value, path)
        elif isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**53):
            result[name] = float(value)
    return result


def _factor(name: str, value: Any, path: Path) -> float:
    low, high = _LIMITS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise InputError(
            f"The scale factors {str(path)!r} state {name} as {str(value)[:40]}, which is no number from {low:g} to "
            f"{high:g}; copy the file again from the run."
        )
    return float(value)


def read_positions(path: Path) -> pd.DataFrame:
    """Return the spot positions of any Space Ranger version, indexed by barcode, with its column names.

    Version 1 wrote ``tissue_positions_list.csv`` without a header, version 2 on ``tissue_positions.csv`` with one, and
    Visium HD a parquet file.
    """
    import pandas as pd

    headed, what = True, f"positions {path.name!r}"
    with readable(path, what="positions file"):
        if path.suffix == ".parquet":
            frame = pd.read_parquet(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                headed = "in_tissue" in file.readline()
            frame = pd.read_csv(path, header=0 if headed else None)
    if not headed and frame.shape[1] == len(POSITION_COLUMNS):
        frame.columns = pd.Index(POSITION_COLUMNS)
    if frame.index.name == "barcode" and "barcode" not in frame:
        frame = frame.reset_index()
    if missing := [c for c in POSITION_COLUMNS if c not in frame]:
        raise InputError(f"The {what} lack {missing}; found {listing(frame.columns)}.")
    frame.index = pd.Index(names(one_column(frame, "barcode", what=what), what=what), name="barcode")
    if frame.index.has_duplicates:
        repeated = frame.index[frame.index.duplicated()].unique()
        raise InputError(f"The {what} hold barcodes twice: {listing(repeated)}.")
    under = one_column(frame, "in_tissue", what=what)
    checked = truths(under, what=what)
    if under.dtype.kind not in "biuf":
        under = checked.astype(np.int64)
    array = numbers(frame, POSITION_COLUMNS[2:4], what=what, most=MAX_ARRAY)
    pixels = numbers(frame, POSITION_COLUMNS[4:], what=what)
    return pd.concat([array, pixels], axis=1).assign(in_tissue=under)[POSITION_COLUMNS[1:]]


def check_array(array: np.ndarray, xy: np.ndarray, *, what: str) -> None:
    """Refuse (n, 2) array coordinates in one line, or all the same, of positions that spread in two directions."""
    if len(array) < 4 or np.linalg.matrix_rank(array - array.mean(axis=0)) == 2:
        return
    wide = np.linalg.svd(xy - xy.mean(axis=0), compute_uv=False)
    if wide[1] > MIN_SPREAD * wide[0]:
        raise InputError(
            f"The {what} spread over the slide, but array_row or array_col is the same for all, or both run along one "
            "line; copy the positions file again from the run."
        )


def check_diameter(diameter_px: float, *, mpp: float, expected_um: float, what: str) -> None:
    """Refuse a diameter or edge that is ten times what it is printed at, or a tenth; say one of twice or half.

    Parameters
    ----------
    diameter_px
        As the scale factors state it, in full-resolution pixels.
    mpp
        Micrometres per full-resolution pixel.
    expected_um
        What it is on the slide.
    what
        What it is of, for messages, such as "spots".
    """
    found = diameter_px * mpp
    ratio = max(found / expected_um, expected_um / found)
    message = (
        f"The scale factors state a spot_diameter_fullres of {diameter_px:.4g} px, {found:.4g} um at {mpp:.4g} um per "
        f"pixel, where {what} span {expected_um:g} um"
    )
    if ratio > 10:
        raise InputError(f"{message}; copy the scale factors again from the run, or check mpp=.")
    if ratio > 2:
        warn(f"{message}; the stated size is kept.")

"""Legacy Spatial Transcriptomics: a table of counts, a table of spots and an image."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, positive, warn
from stpred._core.expression.counts import check_counts
from stpred._core.files import readable
from stpred.calibration import (
    Evidence,
    check_inside,
    grid_steps,
    lattice_pitch_px,
    nearest_pitch,
    scaling,
    settle_mpp,
)
from stpred.io._assemble import circles, counts_table, slide
from stpred.io._images.open import open_pixels
from stpred.io._images.pixels import to_image
from stpred.io._images.same_image import check_on_tissue
from stpred.io._tables.columns import MAX_ARRAY, numbers, one_column, truths

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

    from stpred.io._images.pixels import Pixels

logger = logging.getLogger("stpred")

LOST = 0.10
"""Share of selected spots without counts that is said in a warning; in published sections it is below 2 %."""
_UNNAMED = re.compile(r"^Unnamed: \d+$")
"""What pandas calls a column without a name."""
_SPOT = re.compile(r"^(\d+(?:\.\d+)?)[x_](\d+(?:\.\d+)?)$")


def legacy_st(
    counts: str | Path | pd.DataFrame,
    image: str | Path,
    spots: str | Path | pd.DataFrame,
    *,
    pitch_um: float = 200.0,
    spot_diameter_um: float = 100.0,
    scene: int | str | None = None,
    mpp: float | None = None,
) -> SpatialData:
    """Read a section of legacy Spatial Transcriptomics (the arrays before Visium).

    Parameters
    ----------
    counts
        Table of raw counts (tsv or csv, may be gzipped): spots named ``XxY`` by genes, or genes by spots.
    image
        The H&E image in which `spots` has pixel positions; there must be tissue at them.
    spots
        Table with the columns ``x``, ``y`` (array), ``pixel_x``, ``pixel_y`` and, if there, ``selected``; spots with
        ``selected`` = 0 lie beside the tissue and are left out, as are spots without counts in the table.
    pitch_um
        Distance between the centres of neighbouring spots: 200 um on the 1 000-spot arrays, about 150 um between
        diagonal neighbours on the staggered 2 000-spot arrays.
    spot_diameter_um
        Diameter of a spot.
    scene
        Number or name of the picture, of an image file that holds several; see :func:`stpred.io.wsi`.
    mpp
        Micrometres per pixel; None derives it from `pitch_um`.

    Returns
    -------
    Object with the image ``he``, the circles ``spots`` (index ``XxY``) and the table ``spots_counts`` (``obs``:
    ``array_x``, ``array_y``; ``obsm["spatial"]`` in micrometres), placed in ``"um"`` and ``"global"`` (pixels).

    Raises
    ------
    InputError
        If the tables do not match, spots lie outside the image, or the positions are no lattice.

    Examples
    --------
    >>> import stpred as st
    >>> folder = st.datasets.toy_legacy_st("C2", size_um=(600, 600), n_genes=20)
    >>> sdata = st.io.legacy_st(folder / "counts.tsv.gz", folder / "image.jpg", folder / "spots.tsv")
    >>> sdata.tables["spots_counts"].n_vars
    20
    """
    positive(pitch_um, name="pitch_um", unit="um")
    positive(spot_diameter_um, name="spot_diameter_um", unit="um")
    matrix = _counts(counts)
    positions = _spots(spots)
    common = matrix.index.intersection(positions.index, sort=False)
    if common.empty:
        raise InputError(
            f"Counts and spots share no spot: counts are of {listing(matrix.index, most=3)}, "
            f"spots of {listing(positions.index, most=3)}."
        )
    unmatched = len(matrix) - len(common), len(positions) - len(common)
    if any(unmatched):
        logger.info(
            "%d spots of the counts have no (selected) position and %d positions no counts; left out.", *unmatched
        )
    if unmatched[1] > max(LOST * len(positions), 3):
        warn(
            f"{unmatched[1]} of {len(positions)} spots of the spots table have no counts and are left out, such as "
            f"{listing(positions.index.difference(matrix.index, sort=False), most=3)}; are both of the same section?"
        )
    matrix, positions = matrix.loc[common], positions.loc[common]
    pixels = open_pixels(image, scene=scene)
    xy = positions[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    evidence = [*_from_pitch(positions, xy, pitch_um), *pixels.evidence]
    resolution = settle_mpp(evidence, user_mpp=mpp, what=f"the image {pixels.path.name!r}")
    radius = positive(spot_diameter_um, name="spot_diameter_um", unit="um") / 2 / resolution
    check_inside(xy, width=pixels.width, height=pixels.height, mpp=resolution, radius_px=radius)
    check_on_tissue(xy, pixels, mpp=resolution)
    return _assemble(matrix, positions, xy, pixels_image=pixels, mpp=resolution, diameter_um=spot_diameter_um)


def _from_pitch(positions: pd.DataFrame, xy: np.ndarray, pitch_um: float) -> list[Evidence]:
    array = positions[["x", "y"]].to_numpy(dtype=np.float64)
    pitch_px = lattice_pitch_px(array, xy, steps=grid_steps(array), max_stray=1.0) or nearest_pitch(xy)
    return [] if pitch_px is None else [Evidence(pitch_um / pitch_px, f"the spot pitch of {pitch_um:g} um")]


def _assemble(
    matrix: pd.DataFrame,
    positions: pd.DataFrame,
    xy: np.ndarray,
    *,
    pixels_image: Pixels,
    mpp: float,
    diameter_um: float,
) -> SpatialData:
    from anndata import AnnData
    from scipy import sparse

    values = matrix.to_numpy(dtype=np.float64, na_value=np.nan)
    check_counts(values, what=f"counts of {keys.SPOTS!r}")  # before they are rounded to 32 bits
    affines = {"global": np.eye(3), keys.UM: scaling(mpp)}
    obs = positions[["x", "y"]].rename(columns={"x": "array_x", "y": "array_y"})
    raw = AnnData(sparse.csr_matrix(values.astype(np.float32)), obs=obs)
    raw.var_names = matrix.columns.astype(str)
    table = counts_table(raw, shapes_key=keys.SPOTS, instances=positions.index, spatial_um=xy * mpp)
    return slide(
        images={keys.IMAGE: to_image(pixels_image, affines)},
        shapes={keys.SPOTS: circles(xy, radius=diameter_um / 2 / mpp, index=positions.index, affines=affines)},
        tables={keys.counts(keys.SPOTS): table},
    )


def _counts(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    """Return spots by genes; a table of genes by spots is turned."""
    frame = _table(source, index_col=0, what="counts")
    frame.index, frame.columns = frame.index.astype(str), frame.columns.astype(str)
    rows, columns = (np.mean([bool(_SPOT.match(n)) for n in names]) for names in (frame.index, frame.columns))
    if max(rows, columns) < 0.5:
        raise InputError(
            f"The counts name no spots: rows are {listing(frame.index, most=3)}, "
            f"columns {listing(frame.columns, most=3)}; spots are named by their array position, such as '10x21'."
        )
    frame = frame if rows >= columns else frame.T
    matches = [_SPOT.match(name) for name in frame.index]
    frame.index = [name if m is None else _spot_name(m[1], m[2]) for name, m in zip(frame.index, matches, strict=True)]
    if frame.index.has_duplicates:
        raise InputError(f"The counts hold spots twice: {listing(frame.index[frame.index.duplicated()].unique())}.")
    frame.columns = ["" if _UNNAMED.match(c) else c for c in frame.columns]
    _check_names(frame.columns)
    odd = [c for c, kind in zip(frame.columns, frame.dtypes, strict=True) if kind.kind not in "iuf"]
    if odd:
        raise InputError(f"The counts of {listing(odd)} are not numbers.")
    return frame


def _check_names(genes: pd.Index) -> None:
    """Refuse genes named by counts, as a missing line of names makes them; numbers that could be ids are said."""
    plain = [re.sub(r"[.]\d+$", "", n) for n in genes]  # what pandas appends to repeated names
    if len(plain) < 2 or not all(n.isdigit() for n in plain):
        return
    message = f"The genes of the counts are named by numbers, {listing(genes, most=4)}; is the line of names missing?"
    if "0" in plain or len(set(plain)) < len(plain):  # no id is 0, or two genes'
        raise InputError(message)
    warn(message)


def _spots(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    frame = _table(source, index_col=None, what="spots")
    needed = ["x", "y", "pixel_x", "pixel_y"]
    if missing := [c for c in needed if c not in frame]:
        raise InputError(f"The spots table lacks the columns {missing}; it has {listing(frame.columns)}.")
    if "selected" in frame:
        frame = frame[truths(one_column(frame, "selected", what="spots"), what="spots", missing=False)]
    if frame.empty:
        raise InputError("The spots table has no spot with selected = 1.")
    array = numbers(frame, needed[:2], what="spots", most=MAX_ARRAY)
    frame = pd.concat([array, numbers(frame, needed[2:], what="spots")], axis=1)
    frame.index = _names(frame)
    if frame.index.has_duplicates:
        raise InputError(f"The spots table holds spots twice: {listing(frame.index[frame.index.duplicated()])}.")
    return frame


def _names(frame: pd.DataFrame) -> list[str]:
    return [_spot_name(x, y) for x, y in zip(frame["x"], frame["y"], strict=True)]


def _spot_name(x: float | str, y: float | str) -> str:
    return f"{round(float(x))}x{round(float(y))}"


def _table(source: str | Path | pd.DataFrame, *, index_col: int | None, what: str) -> pd.DataFrame:
    import pandas as pd

    if isinstance(source, pd.DataFrame):
        return source.copy()
    path = Path(source)
    if not path.is_file():
        raise MissingFileError(f"There is no {what} file {str(path)!r}.")
    separator = "," if ".csv" in path.suffixes[-2:] else "\t"
    with readable(path, what=f"{what} file"):
        frame = pd.read_csv(path, sep=separator, index_col=index_col, engine="c")
        if index_col is None:
            return frame
        # pandas renames repeated columns ("TBCE.1"); the names are kept, and made unique as those of other readers are
        head = pd.read_csv(path, sep=separator, header=None, nrows=1, dtype=str, keep_default_na=False).iloc[0]
    if len(head) == frame.shape[1] + 1 and head.duplicated().any():
        frame.columns = head.iloc[1:]
    return frame

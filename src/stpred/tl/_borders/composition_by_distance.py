from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stpred._core import keys, targets
from stpred._core.checks import InputError, fraction_of, key_in, listing, positive, whole
from stpred._core.elements import table_in_frame
from stpred.comparison.slide_tables import named_slides

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

MAX_BINS = 1000


def composition_by_distance(
    slides: Mapping[str, SpatialData] | SpatialData,
    table_key: str,
    composition: str | Sequence[str],
    *,
    distance: str = "border_distance_um",
    width_um: float = 100.0,
    limits_um: tuple[float, float] | None = None,
    min_locations: int = 5,
    level: float = 0.95,
    coordinate_system: str = keys.UM,
) -> pd.DataFrame:
    """Tell how the composition of the tissue changes with the distance from a border.

    Parameters
    ----------
    slides
        Slides by name, or one slide.
    table_key
        Table of every slide, with the distances (:func:`stpred.tl.distance_to_border`).
    composition
        A categorical column of ``obs``, such as cell types, of which the shares are given; or several numeric columns
        or genes, such as proportions or scores of types, or metagenes, of which the means are.
    distance
        Column of ``obs`` with the signed distances; NaN leaves a location out.
    width_um
        Width of the bins; the border (0) is an edge of two of them.
    limits_um
        Lowest and highest distance; None: all.
    min_locations
        Bins of a slide with fewer are left out.
    level
        Of the intervals.
    coordinate_system
        The slides' micrometre frame; of a table that annotates regions of several slides, the rows of the one there.

    Returns
    -------
    DataFrame with a row per slide, bin and class (or column): ``slide``, ``distance_low``, ``distance_high``,
    ``distance_um`` (its middle), ``what``, ``n`` (locations in the bin), ``value`` (share of the class, which add up to
    1 over the classes; or mean), ``low``, ``high``: Wilson's interval of the share, or the normal one of the mean. Both
    take locations to be independent, and neighbours are not: between slides values vary more.

    Raises
    ------
    InputError
        If a table or column is missing, or no bin has enough locations.

    References
    ----------
    Bergenstråhle et al. (2022), Super-resolved spatial transcriptomics by deep data fusion, Nature Biotechnology
    40:476: cell types by distance from the tumour.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> table = slide.tables["cells_counts"]
    >>> table.obs["border_distance_um"] = table.obsm["spatial"][:, 0] - 250
    >>> found = st.tl.composition_by_distance(slide, "cells_counts", ["EPCAM", "COL1A2"], width_um=125)
    >>> found["distance_um"].unique().tolist()
    [-187.5, -62.5, 62.5, 187.5]
    """
    width, min_locations = positive(width_um, name="width_um", unit="um"), whole(min_locations, name="min_locations")
    level = fraction_of(level, name="level")
    tables = {}
    for name, sdata in named_slides(slides).items():
        key_in(table_key, sdata.tables, what=f"table of {name!r}", name="table_key")
        tables[name] = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
        key_in(distance, tables[name].obs.columns, what=f"column of obs in the table of {name!r}", name="distance")
    classes = None if not isinstance(composition, str) else _classes(tables, composition)
    parts = []
    for name, table in tables.items():
        at = table.obs[distance].to_numpy(dtype=np.float64)
        values, known = _values(table, composition, classes, slide=name)
        used = known & np.isfinite(at)
        if limits_um is not None:
            low, high = _limits(limits_um)
            used &= (at >= low) & (at < high)
        frame = by_bins(at[used], values[used], width=width, min_locations=min_locations, level=level,
                        shares=classes is not None)  # fmt: skip
        frame["what"] = np.asarray(classes or list(composition), dtype=object)[frame["what"].to_numpy(dtype=np.int64)]
        frame.insert(0, "slide", name)
        parts.append(frame)
    found = pd.concat(parts, ignore_index=True)
    if found.empty:
        raise InputError(
            f"No bin of {width:g} um has {min_locations} locations with a distance and a composition; take wider ones."
        )
    found.attrs[keys.UNS] = {
        "kind": "composition_by_distance", "table": table_key, "distance": distance, "width_um": width, "level": level,
        "value": "share" if classes is not None else "mean",
    }  # fmt: skip
    return found


def by_bins(
    distance: NDArray[np.float64],
    values: NDArray[np.float64],
    *,
    width: float,
    min_locations: int,
    level: float,
    shares: bool,
) -> pd.DataFrame:
    """Return the mean of (n, k) values in bins of (n,) distances, with its interval (Wilson's of shares)."""
    from scipy.special import ndtri

    columns = ["distance_low", "distance_high", "distance_um", "what", "n", "value", "low", "high"]
    if len(distance) == 0:
        return pd.DataFrame({c: pd.Series(dtype=np.float64) for c in columns})
    bins = np.floor(distance / width).astype(np.int64)
    if (number := int(bins.max() - bins.min()) + 1) > MAX_BINS:
        raise InputError(f"`width_um`={width:g} makes {number} bins of these distances; take wider ones.")
    z, rows = float(ndtri((1 + level) / 2)), []
    for b in np.unique(bins):
        inside = values[bins == b]
        n = len(inside)
        if n < min_locations:
            continue
        mean = inside.mean(axis=0)
        if shares:
            middle = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
            half = z * np.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
        else:
            middle, half = mean, z * (inside.std(axis=0, ddof=1) if n > 1 else np.full(len(mean), np.nan)) / np.sqrt(n)
        for k in range(values.shape[1]):
            edges = (b * width, (b + 1) * width, (b + 0.5) * width)
            rows.append((*edges, k, n, mean[k], middle[k] - half[k], middle[k] + half[k]))
    return pd.DataFrame(rows, columns=columns)


def _limits(limits_um: Any) -> tuple[float, float]:
    try:
        low, high = (float(v) for v in limits_um)
    except (TypeError, ValueError) as error:
        raise InputError(f"`limits_um` must be two numbers, got {limits_um!r}.") from error
    if not low < high:
        raise InputError(f"`limits_um` must be the lowest and the highest distance, got {limits_um!r}.")
    return low, high


def _classes(tables: Mapping[str, AnnData], column: str) -> list[str]:
    """Return the classes of a column over all slides; numbers are refused."""
    found: dict[str, None] = {}
    for name, table in tables.items():
        key_in(column, table.obs.columns, what=f"column of obs in the table of {name!r}", name="composition")
        if table.obs[column].dtype.kind == "f":
            raise InputError(f"obs[{column!r}] holds numbers; pass it in a list, [{column!r}], for its mean.")
        found |= dict.fromkeys(table.obs[column].dropna().astype(str))
    if not found:
        raise InputError(f"obs[{column!r}] has no value on any slide.")
    return sorted(found)


def _values(
    table: AnnData, composition: str | Sequence[str], classes: list[str] | None, *, slide: str
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return (n, k) indicators of classes, or values of columns, and (n,) which locations have them."""
    if classes is not None:
        column = table.obs[str(composition)]
        text = np.where(column.isna(), "", column.astype(str)).astype(object)
        return (text[:, None] == np.asarray(classes, dtype=object)).astype(np.float64), text != ""
    names = list(composition)
    if missing := [c for c in names if c not in table.obs and c not in table.var_names]:
        raise InputError(f"The table of {slide!r} has no obs column or gene {listing(missing)} (`composition`).")
    if not names:
        raise InputError("`composition` is empty; name a column of classes, or numeric columns or genes.")
    parts = [
        targets.dense(table[:, c].X, np.float64).ravel() if c in table.var_names else table.obs[c].to_numpy(np.float64)
        for c in names
    ]
    values = np.column_stack(parts)
    return values, np.isfinite(values).all(axis=1)

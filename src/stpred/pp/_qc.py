from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import data
from stpred._core import keys
from stpred._core.checks import InputError
from stpred._core.elements import find_table, table_instances
from stpred._core.places import Place
from stpred._core.recipes.quality import QC, REASONS

if TYPE_CHECKING:
    import pandas as pd
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

PASSES, REASON = "qc_pass", "qc_reason"


def qc(
    sdata: SpatialData,
    limits: QC | None = None,
    *,
    shapes_key: str | None = None,
    table_key: str | None = None,
    image_key: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> pd.DataFrame:
    """Judge the locations of a region by their counts and by what the image shows there.

    Parameters
    ----------
    sdata
        Object with a calibrated H&E image and a region.
    limits
        What has to hold; None: the defaults of :class:`stpred.QC`, which judge the image alone. ``train(..., qc=)``
        takes the same limits and leaves out what does not pass.
    shapes_key
        Region; None takes the measured one, or the only one.
    table_key
        Measured counts of the region; None finds them, or goes without.
    image_key, coordinate_system
        As in :func:`stpred.tl.train`.
    inplace
        With False the object is left alone.

    Returns
    -------
    DataFrame, one row per reason and one for ``"pass"``: ``n`` locations and their ``share``. Writes into ``obs`` of
    the measured table, or into the columns of the shapes where there is none: ``total_counts``,
    ``n_genes_by_counts`` (as scanpy calls them), ``qc_tissue``, ``qc_pen``, ``qc_fill``, ``qc_fold`` (shares of the
    location's tile), ``qc_sharpness``, ``qc_pass`` (bool) and ``qc_reason`` (text, "" where it passes; the first reason
    that holds). Locations off the image, or without any count, have ``qc_pass`` False and the reason ``"off_image"`` or
    ``"empty"``. With limits on genes also ``var["qc_pass"]``.

    Raises
    ------
    InputError
        If there is no calibrated image or no such region.

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(500, 500), n_genes=20)
    >>> st.pp.qc(slide, st.QC(min_counts=20), shapes_key="spots").loc["pass", "share"]
    np.float64(1.0)
    """
    import pandas as pd

    limits = QC() if limits is None else QC.parse(limits)
    place = Place(shapes_key, image_key, table_key, coordinate_system=coordinate_system)
    region = _region(sdata, place)
    found = data.judge(region, limits)
    columns: dict[str, Any] = {
        name if name in ("total_counts", "n_genes_by_counts") else f"qc_{name}": values
        for name, values in found.measures.items()
    }
    columns |= {PASSES: found.passes, REASON: found.reason}
    frame = pd.DataFrame(columns, index=region.instances)
    if region.counts is not None:
        key = find_table(sdata, region.shapes_key, table_key)
        table = sdata.tables[key]
        rows, ids = table_instances(table, region.shapes_key)
        empty = np.asarray(table.X[rows].sum(axis=1)).ravel() == 0
        whole = _whole(frame, ids, otherwise=np.where(empty, "empty", "off_image"))
        if inplace:
            for name in whole:
                _put(table.obs, name, rows, whole[name].to_numpy())
            if (good := data.good_genes([region], limits)) is not None:
                table.var[PASSES] = table.var_names.isin(list(good))
    else:
        element = sdata.shapes[region.shapes_key]
        whole = _whole(frame, element.index, otherwise=np.full(len(element), "off_image"))
        if inplace:
            for name in whole:
                element[name] = whole[name].to_numpy()
    n = {"pass": int(whole[PASSES].sum())}
    n |= {r: k for r in (*REASONS, "off_image", "empty") if (k := int((whole[REASON] == r).sum()))}
    return pd.DataFrame({"n": n, "share": {k: v / len(whole) for k, v in n.items()}}).rename_axis("verdict")


def _region(sdata: SpatialData, place: Place) -> data.Region:
    """Return the region with its counts; without, where it has none."""
    try:
        return data.read_region(sdata, place, measured=True)
    except InputError:
        if place.table_key is not None:
            raise
        return data.read_region(sdata, place)


def _whole(frame: pd.DataFrame, ids: pd.Index, *, otherwise: np.ndarray) -> pd.DataFrame:
    """Return the columns for all rows; those that were not judged do not pass, for the reason given."""
    whole = frame.reindex(ids)
    missing = ~whole.index.isin(frame.index)
    whole[PASSES] = whole[PASSES].eq(other=True)
    whole.loc[missing, REASON] = otherwise[missing]
    return whole


def _put(obs: pd.DataFrame, name: str, rows: np.ndarray, values: np.ndarray) -> None:
    """Write a column into some rows."""
    if len(rows) == len(obs):
        obs[name] = values
        return
    column = obs[name].to_numpy(dtype=object, copy=True) if name in obs else np.full(len(obs), None, dtype=object)
    column[rows] = values
    obs[name] = column

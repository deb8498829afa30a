"""Rows of one table of several slides as points of one space, and the distances between them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, key_in, listing, one_of
from stpred._core.elements import table_in_frame, table_instances, table_regions
from stpred.comparison.slide_tables import named_slides, positions_um
from stpred.tl._generative.region_classes import column_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

METRICS = ("euclidean", "cosine")


@dataclass(frozen=True)
class Space:
    """Locations of slides as points.

    Attributes
    ----------
    values
        (n, width) float32 coordinates; of ``"cosine"`` with rows of length 1.
    places
        (n,) frame: ``slide``, ``image``, ``region``, ``instance``, ``x_um``, ``y_um``.
    tables
        Each slide's table, or the rows of it that are of the slide; together they are the rows of `values`.
    metric
        What distances are.
    """

    values: NDArray[np.float32]
    places: pd.DataFrame
    tables: dict[str, AnnData]
    slides: dict[str, SpatialData]
    metric: str

    @classmethod
    def of(
        cls,
        slides: Mapping[str, SpatialData] | SpatialData,
        table_key: str,
        *,
        metric: str = "euclidean",
        coordinate_system: str = keys.UM,
    ) -> Space:
        """Read the named table of every slide; tables of different models or widths are refused."""
        import pandas as pd

        one_of(metric, METRICS, name="metric")
        by_name = named_slides(slides)
        found, frames, values, models = {}, [], [], {}
        for name, sdata in by_name.items():
            key_in(table_key, sdata.tables, what=f"table of {name!r}", name="table_key")
            table = table_in_frame(sdata, table_key, coordinate_system=coordinate_system)
            what = f"table {table_key!r} of {name!r}"
            x = None if table.X is None else targets.dense(table.X, np.float32)
            if x is None or len(x) == 0 or not np.isfinite(x).all():
                raise InputError(f"The values of {what} are missing or hold NaN or infinite ones.")
            provenance = _provenance(table)
            models[name] = provenance.get("model_id") or (provenance.get("encoder") or {}).get("name")
            found[name] = table
            values.append(x)
            frames.append(_places(sdata, table, name, provenance.get("image_key"), coordinate_system=coordinate_system))
        _same_axes(found, table_key)
        if len(set(models.values())) > 1:
            raise InputError(
                f"Tables {table_key!r} of the slides are of different models, whose axes have nothing to do with each "
                f"other: {models}; write them with one model."
            )
        joined = np.concatenate(values)
        if metric == "cosine":
            length = np.linalg.norm(joined, axis=1, keepdims=True)
            if (length == 0).any():
                raise InputError(
                    f"{int((length == 0).sum())} locations have the value 0 on all axes, which has no direction; pass "
                    "metric='euclidean'."
                )
            joined = joined / length
        return cls(joined, pd.concat(frames, ignore_index=True), found, by_name, metric)

    def distances(self, point: NDArray[Any], rows: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the distances of some rows (None: all) from a point, which for ``"cosine"`` is 1 - cosine."""
        values = self.values if rows is None else self.values[rows]
        if self.metric == "cosine":
            length = float(np.linalg.norm(point)) or 1.0
            return 1 - values.astype(np.float64) @ (np.asarray(point, dtype=np.float64) / length)
        return np.sqrt(np.square(values.astype(np.float64) - point).sum(axis=1))

    def column(self, name: str, *, parameter: str) -> NDArray[Any]:
        """Return the (n,) text of a column of the tables' ``obs``, or of the shapes or another table of theirs.

        ``""`` where it is missing.
        """
        parts = []
        for slide, table in self.tables.items():
            if name in table.obs:
                column = table.obs[name]
            else:
                region = table_regions(table)[0]
                ids = table_instances(table, region)[1]
                column = column_of(self.slides[slide], region, name, name=parameter).reindex(ids)
            parts.append(np.where(column.isna(), "", column.astype(str)).astype(object))
        return np.concatenate(parts)


def write_columns(space: Space, table_key: str, columns: Mapping[str, NDArray[Any]]) -> None:
    """Write columns of all rows into the slides' tables; other rows of a table of several slides keep theirs."""
    import pandas as pd

    start = 0
    for slide, part in space.tables.items():
        table = space.slides[slide].tables[table_key]
        own = np.arange(start, start + part.n_obs)
        start += part.n_obs
        rows = np.arange(table.n_obs) if part is table else table_instances(table, *table_regions(part))[0]
        for name, values in columns.items():
            if values.dtype.kind == "f":
                there = name in table.obs and table.obs[name].dtype.kind == "f" and len(rows) < table.n_obs
                column = table.obs[name].to_numpy(copy=True) if there else np.full(table.n_obs, np.nan, np.float32)
                column[rows] = values[own]
                table.obs[name] = column
                continue
            old = table.obs[name].astype(object) if name in table.obs and len(rows) < table.n_obs else None
            text = np.full(table.n_obs, None, dtype=object) if old is None else old.to_numpy(copy=True)
            text[rows] = values[own]
            known = list(dict.fromkeys([*_ordered(values), *text[pd.notna(text)]]))
            table.obs[name] = pd.Categorical(text, categories=known)


def _ordered(values: NDArray[Any]) -> list[str]:
    """Return the distinct values, whole numbers in their order."""
    found = sorted(set(values.tolist()))
    return sorted(found, key=int) if all(v.isdigit() for v in found) else found


def _places(
    sdata: SpatialData, table: AnnData, slide: str, image_key: str | None, *, coordinate_system: str
) -> pd.DataFrame:
    import pandas as pd

    regions = table_regions(table)
    if len(regions) != 1:
        raise InputError(f"The table of {slide!r} must annotate one region, got {listing(regions)}.")
    ids = table_instances(table, regions[0])[1]
    if keys.SPATIAL in table.obsm:
        xy = np.asarray(table.obsm[keys.SPATIAL], dtype=np.float64)
    else:
        xy = positions_um(sdata, table, coordinate_system=coordinate_system)
    return pd.DataFrame(
        {"slide": slide, "image": image_key, "region": regions[0], "instance": ids, "x_um": xy[:, 0], "y_um": xy[:, 1]}
    )


def _same_axes(found: Mapping[str, AnnData], table_key: str) -> None:
    """Refuse tables that do not have the same variables."""
    first, *others = found
    for other in others:
        if not found[other].var_names.equals(found[first].var_names):
            raise InputError(
                f"Tables {table_key!r} of {first!r} and {other!r} have different variables "
                f"({found[first].n_vars} and {found[other].n_vars}), so distances between them mean nothing."
            )


def _provenance(table: AnnData) -> dict[str, Any]:
    """Return what a table says of itself, where it says anything."""
    try:
        found = json.loads(table.uns[keys.UNS])
    except (KeyError, TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

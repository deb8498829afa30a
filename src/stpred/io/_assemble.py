"""What all readers share: from counts, positions and an image file to a calibrated SpatialData."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, MissingFileError, listing, warn
from stpred._core.expression.counts import check_counts, counts_report, looks_like_ensembl, unique_symbols
from stpred._core.tables import build_table
from stpred.calibration import to_transformation

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame

logger = logging.getLogger("stpred")

_COLUMN = re.compile(r"[\w.-]+")
_RESERVED = ["_index"]
"""A column of this name cannot be written by anndata."""
_OWN_OBS = {"region", "spot_id", "location_id", "instance_id", *_RESERVED}


def folder(path: str | Path, *, what: str) -> Path:
    """Return an existing folder, or say that it is missing."""
    path = Path(path)
    if not path.is_dir():
        raise MissingFileError(f"There is no {what} folder {str(path)!r}.")
    return path


def clean_name(name: str) -> str:
    """Return a name that SpatialData takes for elements and coordinate systems; never stpred's own ``um``."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip("_.-") or "slide"
    return f"{name}_slide" if name == keys.UM else name


def counts_table(
    counts: AnnData, *, shapes_key: str, instances: pd.Index, spatial_um: np.ndarray, symbols: str | None = None
) -> AnnData:
    """Return the measured table of a region: sparse raw counts, symbols as names, ``gene_id`` where it is known.

    Parameters
    ----------
    counts
        Raw counts as they were read; rows in the order of `instances`.
    shapes_key
        The region.
    instances
        (n,) index values of the shapes.
    spatial_um
        (n, 2) centroids in micrometres.
    symbols
        Column of `counts.var` with gene symbols, where the names are something else.
    """
    from scipy import sparse

    what = f"counts of {shapes_key!r}"
    if counts.n_vars == 0:
        raise InputError(f"The {what} hold no gene.")
    check_counts(counts.X, what=what)  # before SciPy touches a matrix that may be broken
    X = counts.X if sparse.issparse(counts.X) else sparse.csr_matrix(np.asarray(counts.X))
    X = X.tocsr()
    var = counts.var.drop(columns=_RESERVED, errors="ignore")
    var = var[_writable(var, what=f"genes of the {what}")].copy()
    if "gene_ids" in var:
        var = var.rename(columns={"gene_ids": "gene_id"})
    names = np.asarray(counts.var_names.astype(str), dtype=object)
    if symbols is not None:
        if "gene_id" not in var and looks_like_ensembl(names):
            var["gene_id"] = names
        names = _filled(counts.var[symbols], names)
    elif looks_like_ensembl(names):
        var["gene_id"] = names
        logger.info("%s: genes are named by Ensembl ids; no symbols are known.", what)
    if "gene_id" in var:
        names = _filled(names, var["gene_id"])
    if nameless := sum(_is_blank(n) for n in names):
        raise InputError(f"The {what} hold {nameless} genes without a name; name them, or leave them out.")
    if len(names) > 1 and list(names) == [str(i) for i in range(len(names))]:
        warn(f"The genes of the {what} have no names but their numbers, 0 to {len(names) - 1}; set var_names first.")
    var.index = unique_symbols(list(names), what=what)
    obs = {
        c: counts.obs[c].to_numpy() for c in _writable(counts.obs.drop(columns=_OWN_OBS, errors="ignore"), what=what)
    }
    table = build_table(X, shapes_key=shapes_key, instances=instances, var=var, spatial_um=spatial_um, obs=obs)
    report = counts_report(table)
    if n := len(report["empty_instances"]):
        logger.info("%s: %d of %d instances have no counts; they are kept.", what, n, table.n_obs)
    return table


def _writable(frame: pd.DataFrame, *, what: str) -> list[str]:
    """Return the columns that a table can keep: SpatialData refuses odd names, lists, and names that differ by case."""
    kept: dict[str, str] = {}
    left = []
    for at, name in enumerate(frame.columns):
        usable = isinstance(name, str) and _COLUMN.fullmatch(name) and not name.startswith("__")
        if usable and name.lower() not in kept and not _holds_lists(frame.iloc[:, at]):
            kept[name.lower()] = name
        else:
            left.append(name)
    if left:
        logger.info("%s: columns that a table cannot hold are left out: %s.", what, listing(left))
    return list(kept.values())


def _holds_lists(column: pd.Series) -> bool:
    return column.dtype == object and column.map(lambda v: isinstance(v, (list, tuple, dict, set, np.ndarray))).any()


def _is_blank(name: Any) -> bool:
    """Tell whether a name is none: nothing, or what pandas makes of nothing."""
    return not str(name).strip() or str(name) in ("nan", "<NA>", "None")


def _filled(names: Any, other: Any) -> np.ndarray:
    """Return names as text, where there is none the other one."""
    return np.asarray([str(b if _is_blank(a) else a) for a, b in zip(names, other, strict=True)], dtype=object)


def circles(xy: np.ndarray, *, radius: float, index: pd.Index, affines: Mapping[str, np.ndarray]) -> GeoDataFrame:
    """Return circles at (n, 2) positions, placed by (3, 3) matrices."""
    from spatialdata.models import ShapesModel

    return ShapesModel.parse(
        np.ascontiguousarray(xy, dtype=np.float64),
        geometry=0,
        radius=radius,
        index=index,
        transformations={name: to_transformation(a) for name, a in affines.items()},
    )


def first_existing(base: Path, patterns: Sequence[str]) -> Path | None:
    """Return the first file or folder in `base` that matches one of the glob patterns, in their order."""
    for pattern in patterns:
        found = sorted(p for p in base.glob(pattern) if not p.name.startswith("._"))
        if len(found) > 1:
            raise InputError(f"Several files in {str(base)!r} match {pattern!r}: {[p.name for p in found]}; keep one.")
        if found:
            return found[0]
    return None


def slide(*, images: Mapping[str, Any], shapes: Mapping[str, Any], tables: Mapping[str, Any], **elements: Any) -> Any:
    """Return the SpatialData object."""
    from spatialdata import SpatialData

    return SpatialData(images=dict(images), shapes=dict(shapes), tables=dict(tables), **elements)

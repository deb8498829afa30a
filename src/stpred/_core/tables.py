"""Tables that annotate a region, with provenance: scanpy, squidpy and spatialdata-plot use them as they are."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, element_name, listing, warn
from stpred._core.disk.fingerprint import difference, fingerprint
from stpred._core.elements import lost_provenance, table_regions

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

REGION_KEY = "region"
INSTANCE_KEY = "instance_id"

FINGERPRINT = "fingerprint"
"""Key of a table's provenance for a sample of its values."""


def build_table(
    X: Any,
    *,
    shapes_key: str,
    instances: pd.Index,
    var: pd.DataFrame,
    spatial_um: np.ndarray,
    obs: Mapping[str, Any] | None = None,
    layers: Mapping[str, np.ndarray] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> AnnData:
    """Build the AnnData that annotates `shapes_key`, validated by spatialdata's TableModel.

    Parameters
    ----------
    X
        (n, n_genes) values, dense or sparse.
    instances
        (n,) index values of the shapes.
    var
        (n_genes, ...) frame indexed by gene symbol.
    spatial_um
        (n, 2) centroids in micrometres.
    obs, layers
        Further columns and layers.
    provenance
        JSON-able; stored as one string in ``uns["stpred"]``, see :func:`write_provenance`.
    """
    import pandas as pd
    from anndata import AnnData
    from spatialdata.models import TableModel

    if len(instances) == 0:
        raise InputError(f"A table of {shapes_key!r} would have no row.")
    if not instances.is_unique:
        repeated = instances[instances.duplicated()].unique()
        raise InputError(
            f"The ids of {shapes_key!r} are not unique: {listing(repeated)}; give its shapes a unique index."
        )
    frame = pd.DataFrame(
        {REGION_KEY: pd.Categorical([shapes_key] * len(instances), categories=[shapes_key]), INSTANCE_KEY: instances},
        index=pd.Index([str(i) for i in instances]),
    )
    for name, values in (obs or {}).items():
        frame[name] = np.asarray(values)
    table = AnnData(X, obs=frame, var=var, layers=dict(layers or {}))
    table.obsm[keys.SPATIAL] = np.ascontiguousarray(spatial_um, dtype=np.float64)
    if provenance is not None:
        write_provenance(table, provenance, instances=instances)
    return TableModel.parse(table, region=shapes_key, region_key=REGION_KEY, instance_key=INSTANCE_KEY)


def check_name(sdata: SpatialData, key: str, *, kind: str) -> None:
    """Refuse a name that SpatialData cannot hold in `kind`, since it is taken there but for case, or elsewhere."""
    element_name(key)
    for other in ("images", "labels", "points", "shapes", "tables"):
        for taken in getattr(sdata, other):
            if taken.lower() != key.lower() or (taken == key and other == kind):
                continue
            relation = "is the name of" if taken == key else "differs only by case from"
            raise InputError(
                f"`key_added`={key!r} {relation} the element {taken!r} in `sdata.{other}`; choose another name."
            )


def check_writable(sdata: SpatialData, key: str) -> None:
    """Refuse a table name that SpatialData cannot hold, and one of a table that stpred did not write."""
    check_name(sdata, key, kind="tables")
    if key in sdata.tables and keys.UNS not in sdata.tables[key].uns:
        raise InputError(
            f"`key_added`={key!r} is a table that stpred did not write, so it is not overwritten; choose another name."
        )


def put_table(sdata: SpatialData, key: str, table: AnnData) -> None:
    """Put a table into the object in memory; an existing one is replaced with a warning."""
    check_writable(sdata, key)
    if key in sdata.tables:
        warn(f"Table {key!r} existed and is overwritten in memory.")
        del sdata.tables[key]
    sdata.tables[key] = table


def read_provenance(table: AnnData, *, what: str = "table") -> dict[str, Any]:
    """Return the provenance that stpred stored with a table."""
    if keys.UNS not in table.uns:
        if lost := lost_provenance(table):
            raise InputError(f"The {what} cannot be read: {lost}.")
        if len(regions := table_regions(table)) > 1:
            raise InputError(
                f"The {what} has no uns[{keys.UNS!r}]: it annotates several regions ({listing(regions)}), and "
                f"concatenating drops the provenance; copy uns[{keys.UNS!r}] back from the table of one slide, or "
                "concatenate with uns_merge='first'."
            )
        raise InputError(f"The {what} was not written by stpred: it has no uns[{keys.UNS!r}].")
    try:
        provenance = json.loads(table.uns[keys.UNS])
    except (TypeError, ValueError):
        provenance = None
    if not isinstance(provenance, dict):
        raise InputError(f"The {what} was changed since stpred wrote it: uns[{keys.UNS!r}] is no JSON object.")
    return provenance


def write_provenance(table: AnnData, provenance: Mapping[str, Any], *, instances: Any = None) -> None:
    """Store the provenance of a table as JSON, with a fingerprint of ``X`` where its values have a scale.

    Parameters
    ----------
    table
        The table, with its final values.
    provenance
        JSON-able; a fingerprint among them is replaced.
    instances
        (n,) ids of the rows; None takes the table's own, or its names of observations.
    """
    provenance = dict(provenance)
    if "output_scale" in provenance:
        ids = _ids(table) if instances is None else np.asarray(instances)
        provenance[FINGERPRINT] = fingerprint(table.X, ids, list(table.var_names)) | {"regions": _regions(table)}
    table.uns[keys.UNS] = json.dumps(provenance, sort_keys=True, default=plain)


def read_prediction(table: AnnData, *, what: str = "table") -> dict[str, Any]:
    """Return a table's provenance; warn if its values were changed since."""
    provenance = read_provenance(table, what=what)
    if (changed := changed_values(table, provenance, what=what)) is not None:
        warn(changed)
    return provenance


def one_donor(provenance: Mapping[str, Any]) -> bool:
    """Whether the model of a prediction (or of each of its folds) was trained on a single donor, so far as is known."""
    if folds := provenance.get("cross_validated"):
        return all(f.get("n_donors", len(f.get("trained_on") or ())) == 1 for f in folds)
    return (provenance.get("training") or {}).get("n_donors") == 1


def scored_over(provenance: Mapping[str, Any], shapes_key: str) -> str | None:
    """Return in words over which locations genes were scored in training, where these are not those of `shapes_key`."""
    region = provenance.get("training_region")
    return None if region is None or region == shapes_key else keys.in_words(str(region))


def check_values(table: AnnData, *, what: str, layer: str | None = None) -> None:
    """Warn if the values of a table that stpred wrote were changed since; of a layer or another's table nothing."""
    if layer is None and keys.UNS in table.uns:
        read_prediction(table, what=what)


def changed_values(table: AnnData, provenance: Mapping[str, Any], *, what: str) -> str | None:
    """Say in a sentence that the values are not those that stpred wrote; None where they are or it is not known."""
    kept = provenance.get(FINGERPRINT)
    if kept is None or table.X is None:
        return None
    ids, X = _ids(table), table.X
    if regions := _regions(table):  # of tables that were joined, the rows that the provenance is of
        rows = np.isin(_column(table, "region_key", REGION_KEY), kept.get("regions", regions))
        ids, X = (ids, X) if rows.all() else (ids[rows], X[np.flatnonzero(rows)])
    found = difference(kept, X, ids, list(table.var_names)) if len(ids) else None
    if found is None:
        return None
    scale = provenance.get("output_scale")
    return (
        f"The {what} was changed since stpred wrote it ({found.n_changed} of {found.n_compared} sampled values differ, "
        f"such as {found.now:.4g} for {found.was:.4g}), so its values are no longer on the scale {scale!r} and what "
        "is computed from them, errors above all, is of another one; predict again, and normalise, log or scale a copy "
        "or a layer (subsetting rows or genes is fine)."
    )


def _ids(table: AnnData) -> Any:
    """Return the (n,) instance ids of a table's rows, or their names where it annotates nothing."""
    found = _column(table, "instance_key", INSTANCE_KEY)
    return np.asarray(table.obs_names) if found is None else found


def _regions(table: AnnData) -> list[str]:
    """Return the regions that a table's rows annotate."""
    found = _column(table, "region_key", REGION_KEY)
    return [] if found is None else sorted({str(r) for r in found})


def _column(table: AnnData, name: str, default: str) -> Any:
    """Return a column of obs that SpatialData reads, if it is there."""
    key = table.uns.get("spatialdata_attrs", {}).get(name, default)
    return np.asarray(table.obs[key]) if key in table.obs else None


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that decide a result."""
    found = {}
    for name in ("stpred", "spatialdata", "anndata", "numpy", "torch", "scikit-image", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def plain(value: Any) -> Any:
    """Turn NumPy scalars and arrays, tuples and specs into JSON values."""
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    return str(value)

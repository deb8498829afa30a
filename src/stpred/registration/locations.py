"""Shapes and points, with their counts where these are needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stpred._core import keys
from stpred._core.checks import InputError, key_in
from stpred._core.elements import affine_to, apply_affine, centroids, find_table, table_instances
from stpred._core.expression.counts import check_counts
from stpred._image.registration import Side, from_locations, from_spots
from stpred.registration.placed import Placed

if TYPE_CHECKING:
    from spatialdata import SpatialData

MIN_LOCATIONS = 30
MAX_POINTS = 5_000_000
MAX_FACTORED = 20_000
"""Spots up to which axes of their expression are compared beside their total counts."""

N_AXES = 3
_MAX_IRREGULAR = 0.1
_KEPT_PX = 1_200


def read_locations(
    sdata: SpatialData, key: str, *, table_key: str | None, layer: str | None, coordinate_system: str = keys.UM
) -> Placed:
    """Return the density of shapes or points, or of spots and bins on a lattice what was counted in them.

    Raises
    ------
    InputError
        If there are too few, or they lie on a lattice and have no counts.
    """
    what = f"{'Shapes' if key in sdata.shapes else 'Points'} {key!r}"
    if key in sdata.shapes:
        xy, instances = centroids(sdata, key, coordinate_system=coordinate_system)
    else:
        xy, instances = _points(sdata.points[key], coordinate_system), None
    xy = xy[np.isfinite(xy).all(axis=1)] if instances is None else xy
    if not np.isfinite(xy).all():
        raise InputError(f"{int((~np.isfinite(xy).all(axis=1)).sum())} of the shapes {key!r} have no finite centre.")
    if len(xy) < MIN_LOCATIONS:
        raise InputError(f"{what} are {len(xy)}, and at least {MIN_LOCATIONS} are needed to register an image to them.")
    pitch = _pitch(xy)
    if pitch is None:
        if table_key is not None:
            raise InputError(
                f"`table_key` is of spots or bins on a lattice; {key!r} are compared by their density, so leave it out."
            )
        extent = float(np.ptp(xy, axis=0).max())
        return Placed(from_locations(xy, px_um=max(2.0, extent / _KEPT_PX)), np.eye(3), what)
    if instances is None:
        raise InputError(f"{what} lie on a lattice, so their density says nothing; name shapes with counts instead.")
    return Placed(_spots(sdata, key, xy, instances, pitch, table_key=table_key, layer=layer), np.eye(3), what)


def _points(element: Any, coordinate_system: str) -> NDArray[np.float64]:
    """Return (n, 2) points in micrometres; of very many every so many-th."""
    n = len(element)
    xy = element[["x", "y"]].compute().to_numpy(dtype=np.float64)[:: max(1, n // MAX_POINTS)]
    affine = affine_to(element, coordinate_system)
    return apply_affine(np.eye(3) if affine is None else affine, xy)


def _pitch(xy: NDArray[np.float64]) -> float | None:
    """Return the distance of locations that lie on a lattice; None where they do not."""
    from scipy.spatial import cKDTree

    some = xy if len(xy) <= MAX_FACTORED else xy[np.random.default_rng(0).choice(len(xy), MAX_FACTORED, replace=False)]
    nearest = cKDTree(xy).query(some, k=2)[0][:, 1]
    pitch = float(np.median(nearest))
    irregular = float(np.median(np.abs(nearest - pitch))) / max(pitch, 1e-9)
    return pitch if pitch > 0 and irregular < _MAX_IRREGULAR else None


def _spots(
    sdata: SpatialData,
    key: str,
    xy: NDArray[np.float64],
    instances: Any,
    pitch: float,
    *,
    table_key: str | None,
    layer: str | None,
) -> Side:
    """Return the total counts of spots and the first axes of their expression."""
    from scipy.sparse import csr_matrix

    try:
        table_key = find_table(sdata, key, table_key)
    except InputError as error:
        raise InputError(
            f"{str(error).rstrip('.')}; shapes {key!r} lie on a lattice {pitch:.3g} um apart, so an image can only be "
            "registered to their counts."
        ) from error
    table = sdata.tables[table_key]
    name = "`layer`"
    values = table.X if layer is None else table.layers[key_in(layer, table.layers, what="layer", name="layer")]
    rows, ids = table_instances(table, key)
    position = instances.get_indexer(ids)
    rows, position = rows[position >= 0], position[position >= 0]
    if len(rows) < MIN_LOCATIONS:
        raise InputError(
            f"Table {table_key!r} has {len(rows)} rows of {key!r}, and at least {MIN_LOCATIONS} are needed."
        )
    counts = csr_matrix(values[rows])
    check_counts(counts, what=f"counts of table {table_key!r}" if layer is None else f"{name} {layer!r}")
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    kept = totals > 0.02 * np.median(totals)
    if kept.sum() < MIN_LOCATIONS:
        raise InputError(f"Of the {len(rows)} locations of {key!r}, {int(kept.sum())} have counts.")
    counts, totals, at = counts[kept], totals[kept], xy[position[kept]]
    columns = [np.log(totals)]
    many = len(totals) > MAX_FACTORED
    if not many:
        columns += list(_axes(counts, totals).T)
    # Of bins the counts grow with the nuclei in them; of spots any relation to the picture is taken.
    return from_spots(at, np.column_stack(columns), pitch_um=pitch, n_nuclear=int(many))


def _axes(counts: Any, totals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (n, N_AXES) principal axes of the log shares of the most variable genes."""
    from scipy.sparse import diags_array

    shares = (diags_array(1e4 / totals) @ counts).tocsc()
    shares.data = np.log1p(shares.data)
    mean = np.asarray(shares.mean(axis=0)).ravel()
    variance = np.asarray(shares.multiply(shares).mean(axis=0)).ravel() - mean**2
    top = np.sort(np.argsort(-variance, kind="stable")[:500])
    dense = shares[:, top].toarray() - mean[top]
    u, size, _ = np.linalg.svd(dense, full_matrices=False)
    n = min(N_AXES, int((size > 1e-6 * max(size[0], 1e-12)).sum()))
    return np.asarray(u[:, :n] * size[:n])

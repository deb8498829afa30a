from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import regions
from stpred._core import keys, tables
from stpred._core.checks import InputError, key_in, listing, positive, warn, whole
from stpred._core.elements import (
    centroids,
    describe_regions,
    find_table,
    need_sdata,
    region_in_frame,
    table_instances,
    table_regions,
)
from stpred._core.expression.counts import check_counts
from stpred._core.geometry import box_of, geometries_um, placed, square_bins
from stpred.comparison.transcripts import MIN_QV, NUDGE_UM, gene_column, read_transcripts
from stpred.pp._sums import sums

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from geopandas import GeoDataFrame
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

AGGREGATE_UNS = "stpred_aggregate"
"""`uns` key of what was summed; not ``"stpred"``, which marks what is no measurement."""
FRACTIONAL = "fractional"


def aggregate(
    sdata: SpatialData,
    source_key: str | None = None,
    shapes_key: str | None = None,
    *,
    size_um: int | None = None,
    gene_key: str | None = None,
    min_qv: float | None = MIN_QV,
    drop_controls: bool = True,
    fractions: bool = False,
    seed: int = 0,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Sum transcripts or the counts of cells into spots, bins or any other region: a measured table to train on.

    The sums are those of :func:`spatialdata.aggregate`. It makes every combination of region and gene explicit, so it
    is called for blocks of neighbouring regions, and the result is sparse. The transcripts are held in memory.

    Parameters
    ----------
    sdata
        Object with the transcripts or cells, and the region unless `size_um` is given.
    source_key
        Points of transcripts, a table of raw counts whose cells have shapes, or these shapes. None takes the only
        points with a column of genes, else ``cells_counts``.
    shapes_key
        Region to sum into.
    size_um
        Instead of `shapes_key`: sum into square bins of this edge, ``bins_008um`` and the like. Where the object has
        such bins they are used as they are; otherwise those that hold anything are made, on a lattice anchored at the
        frame's origin.
    gene_key
        Column of the points that names the gene; None takes the one that the points declare, else ``feature_name`` or
        ``gene``.
    min_qv
        Transcripts whose column ``qv`` is below this are left out, as the vendor does for cells; None keeps all.
        Without such a column all are kept.
    drop_controls
        Leave out control probes and codewords, by their names and by the column ``is_gene`` where there is one.
    fractions
        Of cells: count each with the fraction of its area that lies in the region, instead of wholly where its centroid
        is. The sums are kept in ``layers["fractional"]``; ``X`` has them rounded at random, up or down so that they are
        right on average, since raw counts are whole numbers.
    seed
        Of that rounding.
    key_added
        Name of the table; None makes ``{shapes}_counts``. One that this function wrote is overwritten in memory with a
        warning, any other measured table never.
    coordinate_system
        The slide's micrometre frame, in which everything is compared.
    inplace
        With False the table is returned and the object is left alone; bins that do not exist cannot be made then.

    Returns
    -------
    None, or with ``inplace=False`` the AnnData. A table of raw counts (sparse int32 ``X``, ``obsm["spatial"]`` float64
    centroids in micrometres) that annotates the region: a row for each of its shapes, also those in which nothing lies
    (all zero, as the vendors' own tables; :func:`stpred.tl.train` leaves them out), with ``obs["n_transcripts"]`` or
    ``obs["n_cells"]``. What lies in several shapes counts in each; a point on a border counts right of or below it, in
    one of two bins.
    ``uns["stpred_aggregate"]`` says what was left out and how many shapes are empty.

    Raises
    ------
    InputError
        If source or region are not placed in micrometres, the cells have no shapes, the counts are not raw, or nothing
        lies in the region (the message has both boxes).

    Examples
    --------
    >>> import stpred as st
    >>> slide = st.datasets.toy(size_um=(400, 400), n_genes=20)
    >>> st.pp.aggregate(slide, "cells_counts", size_um=55)
    >>> bool(slide.tables["bins_055um_counts"].X.sum() == slide.tables["cells_counts"].X.sum())
    True
    """
    need_sdata(sdata)
    if (shapes_key is None) == (size_um is None):
        raise InputError(
            f"Give either `shapes_key` (available: {listing(sdata.shapes)}) or `size_um`, the edge of square bins, got "
            f"shapes_key={shapes_key!r} and size_um={size_um!r}."
        )
    edge: int | None = None
    if size_um is not None:
        edge = whole(size_um, name="size_um", unit="um")
        shapes_key = keys.in_frame(keys.bins(edge), coordinate_system)
    else:
        key_in(str(shapes_key), sdata.shapes, what="shapes element", name="shapes_key")
    assert shapes_key is not None
    new_bins = shapes_key not in sdata.shapes
    if new_bins and not inplace:
        raise InputError(f"The object has no {shapes_key!r}, and with inplace=False none can be made.")
    kind, source_key = _source(sdata, source_key)
    if kind == "cells" and _region(sdata, source_key, coordinate_system=coordinate_system) == shapes_key:
        raise InputError(f"Table {source_key!r} is of {shapes_key!r} already; name another region to sum it into.")
    key = keys.counts(shapes_key) if key_added is None else key_added
    if inplace:
        _check_writable(sdata, key)
        if new_bins:
            regions.check_shapes(sdata, shapes_key)
    if kind == "transcripts":
        if fractions:
            raise InputError("`fractions` are shares of a cell's area, and transcripts have none; sum cells instead.")
        limit = None if min_qv is None else positive(min_qv, name="min_qv")
        source = _transcripts(
            sdata, source_key, gene_key=gene_key, min_qv=limit, drop_controls=drop_controls,
            coordinate_system=coordinate_system,
        )  # fmt: skip
    else:
        source = _cells(sdata, source_key, outlines=fractions, coordinate_system=coordinate_system)
    if new_bins and edge is not None:
        found = _in_new_bins(source, kind, source_key, edge)
    else:
        shapes, _ = geometries_um(sdata, shapes_key, coordinate_system=coordinate_system)
        X, number, inside = _totals(source, kind, source_key, shapes)
        spatial, index = centroids(sdata, shapes_key, coordinate_system=coordinate_system)
        found = _Sums(X, number, inside, spatial, index)
    table = _table(found, source, kind, shapes_key, fractions=fractions, seed=seed)
    empty = np.asarray(found.X.sum(axis=1)).ravel() == 0
    provenance = {
        "source": source_key, "kind": kind, "shapes": shapes_key, "size_um": edge, **source.summary,
        "n_summed": int(found.inside.sum()), "n_outside": int((~found.inside).sum()),
        "fractions": fractions, "n_locations": len(found.index), "n_empty": int(empty.sum()),
    }  # fmt: skip
    table.uns[AGGREGATE_UNS] = json.dumps(provenance, sort_keys=True)
    logger.info("Table %r: %s.", key, ", ".join(f"{k} {v}" for k, v in provenance.items()))
    if not inplace:
        return table
    if found.bins is not None:
        regions.put_shapes(sdata, shapes_key, found.bins[["geometry"]], coordinate_system=coordinate_system)
    if key in sdata.tables:
        warn(f"Table {key!r} existed and is overwritten in memory.")
        del sdata.tables[key]
    sdata.tables[key] = table
    return None


@dataclass(frozen=True)
class _Source:
    """What is summed: (n, 2) points or (n,) polygons in micrometres, and the gene of each or its (n, genes) counts."""

    places: NDArray[Any]
    values: pd.Categorical | csr_matrix
    var: pd.DataFrame
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Sums:
    """(n, genes) sums over regions, how many transcripts or cells each has, and which of the source lie in any.

    ``spatial_um`` and ``index`` are the regions' centroids and ids; ``bins`` the squares if they were made here.
    """

    X: csr_matrix
    number: NDArray[Any]
    inside: NDArray[np.bool_]
    spatial_um: NDArray[np.float64]
    index: Any
    bins: GeoDataFrame | None = None


def _totals(
    source: _Source, kind: str, source_key: str, shapes: NDArray[Any]
) -> tuple[csr_matrix, NDArray[Any], NDArray[np.bool_]]:
    """Return sums and numbers of transcripts or cells per shape, and which of the source lie in any."""
    from scipy.sparse import csr_matrix

    X, inside = sums(shapes, source.places, source.values)
    if kind == "transcripts":
        number = np.asarray(X.sum(axis=1)).ravel()
    else:
        ones = csr_matrix(np.ones((len(inside), 1)))
        number = sums(shapes, source.places, ones, agg_func="count")[0].toarray().ravel()
    if not number.any():
        raise _nothing(source_key, source.places, shapes)
    return X, number, inside


def _in_new_bins(source: _Source, kind: str, source_key: str, edge_um: int) -> _Sums:
    """Sum into squares of a lattice; a cell's box reaches bins that the cell does not, which are left out."""
    import shapely

    bins = _bins(source.places, edge_um)
    X, number, inside = _totals(source, kind, source_key, bins.geometry.to_numpy())
    X, bins, number = X[number > 0], bins[number > 0], number[number > 0]
    return _Sums(X, number, inside, shapely.get_coordinates(bins.centroid), bins.index, bins)


def _table(found: _Sums, source: _Source, kind: str, shapes_key: str, *, fractions: bool, seed: int) -> AnnData:
    """Build the table of raw counts; fractional sums are rounded at random and kept in a layer."""
    obs = {f"n_{kind}": found.number.astype(np.int64)}
    if found.bins is not None:
        obs |= {"array_row": found.bins["row"].to_numpy(), "array_col": found.bins["column"].to_numpy()}
    X, layers = found.X, None
    if fractions:
        layers = {FRACTIONAL: X.astype(np.float32)}
        X = X.copy()
        X.data = np.floor(X.data + np.random.default_rng(seed).random(X.data.size))
        X.eliminate_zeros()
    return tables.build_table(
        X.astype(np.int32), shapes_key=shapes_key, instances=found.index, var=source.var,
        spatial_um=found.spatial_um, obs=obs, layers=layers,
    )  # fmt: skip


def _bins(places: NDArray[Any], edge_um: int) -> GeoDataFrame:
    """Return squares of a lattice anchored at the frame's origin: those with points, or that polygons' boxes reach."""
    import geopandas as gpd
    import shapely

    if places.ndim == 2:
        squares, _ = square_bins(places, edge_um)
    else:
        ends = np.floor(shapely.bounds(places) / edge_um).astype(np.int64).tolist()
        reached = {(r, c) for c0, r0, c1, r1 in ends for r in range(r0, r1 + 1) for c in range(c0, c1 + 1)}
        squares = np.array(sorted(reached))[:, ::-1]
    corners = np.hstack([squares, squares + 1]) * float(edge_um)
    return gpd.GeoDataFrame(
        {"column": squares[:, 0], "row": squares[:, 1]},
        geometry=shapely.box(*corners.T),
        index=[f"x{c}y{r}" for c, r in squares.tolist()],
    )


def _check_writable(sdata: SpatialData, key: str) -> None:
    """Refuse a name that is taken, but by a table that this function wrote."""
    if key in sdata.tables and AGGREGATE_UNS in sdata.tables[key].uns:
        tables.check_name(sdata, key, kind="tables")
    else:
        tables.check_writable(sdata, key)


def _source(sdata: SpatialData, source_key: str | None) -> tuple[str, str]:
    """Return whether transcripts or cells are summed, and the key of the points or of the table."""
    if source_key is None:
        points = [k for k, p in sdata.points.items() if gene_column(p) is not None]
        if len(points) == 1:
            return "transcripts", points[0]
        usual = keys.counts(keys.CELLS)
        if not points and usual in sdata.tables:
            return "cells", usual
        raise InputError(
            f"It is not clear what to sum: points with genes are {listing(points)}, tables are "
            f"{listing(sdata.tables)}; name one as `source_key`."
        )
    if source_key in sdata.points:
        return "transcripts", source_key
    if source_key in sdata.tables:
        return "cells", source_key
    if source_key in sdata.shapes:
        return "cells", find_table(sdata, source_key)
    raise InputError(
        f"No points, table or shapes named {source_key!r} (`source_key`); points: {listing(sdata.points)}, tables: "
        f"{listing(sdata.tables)}, shapes: {listing(sdata.shapes)}."
    )


def _transcripts(sdata: SpatialData, source_key: str, **options: Any) -> _Source:
    import pandas as pd

    found = read_transcripts(sdata, source_key, **options)
    var = pd.DataFrame(index=pd.Index(found.genes, dtype=object))
    return _Source(found.xy_um, pd.Categorical.from_codes(found.codes, found.genes), var, found.summary)


def _region(sdata: SpatialData, source_key: str, *, coordinate_system: str) -> str:
    """Return the region of cells that a table annotates in the frame."""
    annotated = table_regions(sdata.tables[source_key])
    if not annotated:
        raise InputError(
            f"Table {source_key!r} annotates {describe_regions(annotated)}; one region of cells is needed to sum from."
        )
    return region_in_frame(sdata, source_key, coordinate_system=coordinate_system)


def _cells(sdata: SpatialData, source_key: str, *, outlines: bool, coordinate_system: str) -> _Source:
    import shapely
    from scipy.sparse import csr_matrix

    table = sdata.tables[source_key]
    region = _region(sdata, source_key, coordinate_system=coordinate_system)
    check_counts(table.X, what=f"counts of table {source_key!r}")
    if not table.var_names.is_unique:
        raise InputError(f"Gene names of table {source_key!r} are not unique; run var_names_make_unique() first.")
    placed(sdata, region, coordinate_system=coordinate_system)
    shapes, index = geometries_um(sdata, region, coordinate_system=coordinate_system)
    rows, ids = table_instances(table, region)
    positions = index.get_indexer(ids)
    positions[shapely.is_empty(shapes)[positions]] = -1
    if not (positions >= 0).any():
        raise InputError(
            f"No row of table {source_key!r} has a shape in {region!r}: ids {listing(ids[:3])} against "
            f"{listing(index[:3])}."
        )
    rows, shapes = rows[positions >= 0], shapes[positions[positions >= 0]]
    columns = [c for c in ("gene_id", "gene_ids", "feature_types") if c in table.var]
    return _Source(
        places=shapes if outlines else shapely.get_coordinates(shapely.centroid(shapes)) + NUDGE_UM,
        values=csr_matrix(table.X[rows]),
        var=table.var[columns].copy(),
        summary={"n_cells": len(shapes), "n_without_shape": int((positions < 0).sum())},
    )


def _nothing(source_key: str, places: NDArray[Any], shapes: NDArray[Any]) -> InputError:
    """Return the error that says where source and region are."""
    import shapely

    corners = places if places.ndim == 2 else shapely.total_bounds(places).reshape(2, 2)
    return InputError(
        f"Nothing of {source_key!r} lies in the region: the boxes are {box_of(corners)} and "
        f"{box_of(shapely.total_bounds(shapes).reshape(2, 2))} um (x0, y0, x1, y1); are both placed by the right "
        "transformation?"
    )

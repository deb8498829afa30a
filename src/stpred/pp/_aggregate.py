from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from stpred import regions
from stpred._core import keys, tables
from stpred._core.checks import InputError, key_in, listing, positive, whole
from stpred._core.counts import check_counts
from stpred._core.elements import (
    affine_to,
    apply_affine,
    centroids,
    find_table,
    need_sdata,
    regions_told,
    table_instances,
    table_regions,
)
from stpred._core.matching import (
    box_of,
    geometries_um,
    placed,
    points_inside,
    shared_areas,
    shared_with_squares,
    square_bins,
    squares_um,
)

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from spatialdata import SpatialData

logger = logging.getLogger("stpred")

FACTS_UNS = "stpred_aggregate"
"""`uns` key of what was summed; not ``"stpred"``, which marks what is no measurement."""
FRACTIONAL = "fractional"

_GENE_COLUMNS = ("feature_name", "gene", "target", "feature")
# Probes and codewords of the vendors that stand for no gene.
_CONTROL = re.compile(
    r"^(NegControl|Negative|NegPrb|BLANK|antisense|UnassignedCodeword|DeprecatedCodeword|Intergenic|GenomicControl"
    r"|SystemControl|FalseCode)",
    flags=re.I,
)


def aggregate(
    sdata: SpatialData,
    source_key: str | None = None,
    shapes_key: str | None = None,
    *,
    size_um: int | None = None,
    gene_key: str | None = None,
    min_qv: float | None = 20.0,
    drop_controls: bool = True,
    fractions: bool = False,
    seed: int = 0,
    key_added: str | None = None,
    coordinate_system: str = keys.UM,
    inplace: bool = True,
) -> AnnData | None:
    """Sum transcripts or the counts of cells into spots, bins or any other region: a measured table to train on.

    The same sums as :func:`spatialdata.aggregate`, which makes every combination of region and gene explicit; this one
    stays sparse and reads transcripts partition by partition.

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
        Of cells: count each with the share of its area that lies in the region, instead of wholly where its centroid
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
    ``obs["n_cells"]``. What lies in several shapes, or on a border that they share, counts in each.
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
    made = shapes_key not in sdata.shapes
    if made and not inplace:
        raise InputError(f"The object has no {shapes_key!r}, and with inplace=False none can be made.")
    kind, source_key = _source(sdata, source_key)
    if kind == "cells" and table_regions(sdata.tables[source_key]) == [shapes_key]:
        raise InputError(f"Table {source_key!r} is of {shapes_key!r} already; name another region to sum it into.")
    key = keys.counts(shapes_key) if key_added is None else key_added
    if inplace:
        _check_writable(sdata, key)
        if made:
            regions.check_shapes(sdata, shapes_key)
    where = {"coordinate_system": coordinate_system}
    if made:
        into: _Into = _Squares(edge or 0)
    else:
        placed(sdata, shapes_key, **where)
        into = _Shapes(*geometries_um(sdata, shapes_key, **where))
    facts: dict[str, Any] = {"source": source_key, "kind": kind, "shapes": shapes_key, "size_um": edge}
    if kind == "transcripts":
        if fractions:
            raise InputError("`fractions` are shares of a cell's area, and transcripts have none; sum cells instead.")
        limit = None if min_qv is None else positive(min_qv, name="min_qv")
        found = _sum_transcripts(
            sdata, source_key, into, gene_key=gene_key, min_qv=limit, drop_controls=drop_controls, **where
        )
    else:
        found = _sum_cells(sdata, source_key, into, fractions=fractions, **where)
    facts |= found.facts
    X, obs, frame = found.X, found.obs, None
    if isinstance(into, _Squares):
        order, frame = into.frame()
        squares = frame[["column", "row"]].to_numpy()
        X, obs = X[order], {name: values[order] for name, values in obs.items()}
        obs |= {"array_row": squares[:, 1], "array_col": squares[:, 0]}
        spatial, index = (squares + 0.5) * into.edge_um, frame.index
    else:
        spatial, index = centroids(sdata, shapes_key, **where)
    empty = np.asarray(X.sum(axis=1)).ravel() == 0
    facts |= {"fractions": fractions, "n_locations": len(index), "n_empty": int(empty.sum())}
    layers = None
    if fractions:
        layers = {FRACTIONAL: X.astype(np.float32)}
        X = X.copy()
        X.data = np.floor(X.data + np.random.default_rng(seed).random(X.data.size))
        X.eliminate_zeros()
    table = tables.build_table(
        X.astype(np.int32),
        shapes_key=shapes_key,
        instances=index,
        var=found.var,
        spatial_um=spatial,
        obs=obs,
        layers=layers,
    )
    table.uns[FACTS_UNS] = json.dumps(facts, sort_keys=True)
    logger.info("Table %r: %s.", key, ", ".join(f"{k} {v}" for k, v in facts.items()))
    if not inplace:
        return table
    if frame is not None:
        regions.put_shapes(sdata, shapes_key, frame[["geometry"]], coordinate_system=coordinate_system)
    if key in sdata.tables:
        warnings.warn(f"Table {key!r} existed and is overwritten in memory.", UserWarning, stacklevel=2)
        del sdata.tables[key]
    sdata.tables[key] = table
    return None


class _Into:
    """A region into which points or polygons fall."""

    def of_points(self, xy_um: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return pairs of a location and a point in it, as rows of both."""
        raise NotImplementedError

    def of_polygons(self, shapes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return pairs of a location and a polygon that share an area, as rows of both, and the area."""
        raise NotImplementedError

    def __len__(self) -> int:
        raise NotImplementedError


class _Shapes(_Into):
    """Polygons that are there."""

    def __init__(self, shapes: NDArray[Any], index: pd.Index) -> None:
        self.shapes, self.index = shapes, index

    def of_points(self, xy_um: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return points_inside(self.shapes, xy_um)

    def of_polygons(self, shapes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        cell, location, area = shared_areas(shapes, self.shapes)
        return location, cell, area

    def __len__(self) -> int:
        return len(self.shapes)


class _Squares(_Into):
    """Square bins that are made as they are needed."""

    def __init__(self, edge_um: int) -> None:
        self.edge_um = edge_um
        self.numbers: dict[tuple[int, int], int] = {}

    def of_points(self, xy_um: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        squares, member = square_bins(xy_um, self.edge_um)
        return self._known(squares)[member], np.arange(len(member))

    def of_polygons(self, shapes: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        squares, cell, member, area = shared_with_squares(shapes, self.edge_um)
        return self._known(squares)[member], cell, area

    def _known(self, squares: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the number of each square, a new one for those not met before."""
        numbers = self.numbers
        found = (numbers.setdefault((c, r), len(numbers)) for c, r in squares.tolist())
        return np.fromiter(found, dtype=np.int64, count=len(squares))

    def frame(self) -> tuple[NDArray[np.int64], Any]:
        """Return the numbers of the squares by row and column, and their polygons in this order."""
        import geopandas as gpd

        squares = np.array(list(self.numbers), dtype=np.int64).reshape(-1, 2)
        order = np.lexsort(squares.T)
        squares = squares[order]
        return order, gpd.GeoDataFrame(
            {"column": squares[:, 0], "row": squares[:, 1]},
            geometry=squares_um(squares, self.edge_um),
            index=[f"x{c}y{r}" for c, r in squares.tolist()],
        )

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass
class _Sums:
    X: csr_matrix
    var: pd.DataFrame
    obs: dict[str, NDArray[np.int64]]
    facts: dict[str, Any] = field(default_factory=dict)


def _check_writable(sdata: SpatialData, key: str) -> None:
    """Refuse a name that is taken, but by a table that this function wrote."""
    if key in sdata.tables and FACTS_UNS in sdata.tables[key].uns:
        tables.check_name(sdata, key, kind="tables")
    else:
        tables.check_writable(sdata, key)


def _source(sdata: SpatialData, source_key: str | None) -> tuple[str, str]:
    """Return whether transcripts or cells are summed, and the key of the points or of the table."""
    if source_key is None:
        points = [k for k, p in sdata.points.items() if _gene_column(p) is not None]
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


def _gene_column(points: Any) -> str | None:
    """Return the column of points that names the gene."""
    declared = points.attrs.get("spatialdata_attrs", {}).get("feature_key")
    return next((c for c in (declared, *_GENE_COLUMNS) if c is not None and c in points.columns), None)


@dataclass
class _Reading:
    """Transcripts as they are read: genes are numbered as they are met, and what is left out is counted."""

    genes: dict[str, int] = field(default_factory=dict)
    n: int = 0
    n_low: int = 0
    n_control: int = 0
    controls: set[str] = field(default_factory=set)
    low: NDArray[np.float64] = field(default_factory=lambda: np.full(2, np.inf))
    high: NDArray[np.float64] = field(default_factory=lambda: np.full(2, -np.inf))

    def parts(
        self, points: Any, affine: NDArray[np.float64], gene: str, *, min_qv: float | None, drop_controls: bool
    ) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Yield (m, 2) micrometres and (m,) gene numbers of the transcripts of each partition that are kept."""
        extra = [c for c in ("qv", "is_gene") if c in points.columns]
        wanted = points[list(dict.fromkeys(["x", "y", gene, *extra]))]
        for i in range(wanted.npartitions):
            part = wanted.partitions[i].compute()
            names, codes = _named(part[gene])
            controls = np.array([bool(_CONTROL.match(n)) for n in names], dtype=bool)
            control = controls[codes] if drop_controls and len(codes) else np.zeros(len(codes), dtype=bool)
            if drop_controls and "is_gene" in extra:
                control |= ~part["is_gene"].to_numpy(dtype=bool)
            low = part["qv"].to_numpy() < min_qv if min_qv is not None and "qv" in extra else np.zeros_like(control)
            self.n += len(part)
            self.n_control += int(control.sum())
            self.n_low += int((low & ~control).sum())
            self.controls.update(np.asarray(names, dtype=object)[np.unique(codes[control])])
            kept = ~(control | low)
            number = np.array([self.genes.setdefault(n, len(self.genes)) for n in names], dtype=np.int64)
            xy = apply_affine(affine, part.loc[:, ["x", "y"]].to_numpy(dtype=np.float64)[kept])
            if len(xy):
                self.low, self.high = np.minimum(self.low, xy.min(axis=0)), np.maximum(self.high, xy.max(axis=0))
                yield xy, number[codes[kept]]


def _named(column: Any) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names in a column (of text, bytes or categories) and the number of each row's."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(dtype=np.int64), list(column.cat.categories)
    else:
        codes, names = pd.factorize(column)
        codes = codes.astype(np.int64)
    if (codes < 0).any():
        raise InputError(f"{int((codes < 0).sum())} transcripts have no gene in the column {column.name!r}.")
    return [n.decode() if isinstance(n, bytes) else str(n) for n in names], codes


def _sum_transcripts(
    sdata: SpatialData,
    source_key: str,
    into: _Into,
    *,
    gene_key: str | None,
    min_qv: float | None,
    drop_controls: bool,
    coordinate_system: str,
) -> _Sums:
    import pandas as pd
    from scipy.sparse import coo_matrix

    points = sdata.points[source_key]
    affine = affine_to(points, coordinate_system)
    if affine is None:
        raise InputError(
            f"Points {source_key!r} are not placed in the coordinate system {coordinate_system!r}; place them with "
            "spatialdata.transformations.set_transformation, or run stpred.pp.calibrate(sdata)."
        )
    gene = gene_key if gene_key is not None else _gene_column(points)
    if gene is None or gene not in points.columns:
        raise InputError(
            f"Points {source_key!r} have no column of genes{'' if gene is None else ' ' + repr(gene)}; they have "
            f"{listing(points.columns)}; name it as `gene_key`."
        )
    reading = _Reading()
    parts, n_inside, n_kept = [], 0, 0
    for xy, codes in reading.parts(points, affine, gene, min_qv=min_qv, drop_controls=drop_controls):
        location, row = into.of_points(xy)
        n_kept, n_inside = n_kept + len(xy), n_inside + len(np.unique(row))
        # One entry per location and gene, so that memory follows the result and not the number of transcripts.
        pair, number = np.unique(location << 32 | codes[row], return_counts=True)
        parts.append((pair, number))
    if n_kept == 0:
        raise InputError(
            f"None of the {reading.n} transcripts of {source_key!r} is left: {reading.n_control} are controls and "
            f"{reading.n_low} have a quality below {min_qv}."
        )
    if n_inside == 0:
        raise _nothing(source_key, np.stack([reading.low, reading.high]), into)
    pair = np.concatenate([p for p, _ in parts])
    shape = (len(into), len(reading.genes))
    X = coo_matrix((np.concatenate([n for _, n in parts]), (pair >> 32, pair & 0xFFFFFFFF)), shape).tocsr()
    names = np.asarray(list(reading.genes), dtype=object)
    order = np.argsort(names, kind="stable")
    if drop_controls:  # a gene that lost all its transcripts keeps its column, a control does not
        order = order[[n not in reading.controls and not _CONTROL.match(n) for n in names[order]]]
    return _Sums(
        X=X[:, order],
        var=pd.DataFrame(index=pd.Index(names[order])),
        obs={"n_transcripts": np.asarray(X.sum(axis=1), dtype=np.int64).ravel()},
        facts={
            "n_transcripts": reading.n,
            "n_summed": n_inside,
            "n_outside": n_kept - n_inside,
            "n_low_quality": reading.n_low,
            "min_qv": min_qv if "qv" in points.columns else None,
            "n_controls": reading.n_control,
            "controls": sorted(reading.controls),
        },
    )


def _sum_cells(sdata: SpatialData, source_key: str, into: _Into, *, fractions: bool, coordinate_system: str) -> _Sums:
    import shapely
    from scipy.sparse import csr_matrix

    table = sdata.tables[source_key]
    annotated = table_regions(table)
    if len(annotated) != 1:
        raise InputError(
            f"Table {source_key!r} annotates {regions_told(annotated)}; one region of cells is needed to sum from."
        )
    check_counts(table.X, what=f"counts of table {source_key!r}")
    if not table.var_names.is_unique:
        raise InputError(f"Gene names of table {source_key!r} are not unique; run var_names_make_unique() first.")
    placed(sdata, annotated[0], coordinate_system=coordinate_system)
    shapes, index = geometries_um(sdata, annotated[0], coordinate_system=coordinate_system)
    rows, ids = table_instances(table, annotated[0])
    positions = index.get_indexer(ids)
    if not (positions >= 0).any():
        raise InputError(
            f"No row of table {source_key!r} has a shape in {annotated[0]!r}: ids {listing(ids[:3])} against "
            f"{listing(index[:3])}."
        )
    rows, shapes = rows[positions >= 0], shapes[positions[positions >= 0]]
    if fractions:
        location, cell, area = into.of_polygons(shapes)
        weight = area / shapely.area(shapes)[cell]
    else:
        location, cell = into.of_points(shapely.get_coordinates(shapely.centroid(shapes)))
        weight = np.ones(len(cell), dtype=np.int64)
    if len(location) == 0:
        raise _nothing(source_key, shapely.total_bounds(shapes).reshape(2, 2), into)
    members = csr_matrix((weight, (location, cell)), shape=(len(into), len(shapes)))
    columns = [c for c in ("gene_id", "gene_ids", "feature_types") if c in table.var]
    return _Sums(
        X=csr_matrix(members @ csr_matrix(table.X[rows])),
        var=table.var[columns].copy(),
        obs={"n_cells": np.bincount(location, minlength=len(into))},
        facts={
            "n_cells": len(shapes),
            "n_summed": len(np.unique(cell)),
            "n_outside": len(shapes) - len(np.unique(cell)),
            "n_without_shape": int((positions < 0).sum()),
        },
    )


def _nothing(source_key: str, corners: NDArray[np.float64], into: _Into) -> InputError:
    """Return the error that says where source and region are."""
    import shapely

    bounds = shapely.total_bounds(into.shapes) if isinstance(into, _Shapes) else np.full(4, np.nan)
    return InputError(
        f"Nothing of {source_key!r} lies in the region: the boxes are {box_of(corners)} and "
        f"{[round(float(v), 1) for v in bounds]} um (x0, y0, x1, y1); are both placed by the right transformation?"
    )

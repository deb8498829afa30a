"""What can be compared: tables on shapes, points of transcripts and predicted rasters, pooled into the same squares.

Every source is brought to positions in micrometres and values at them. A table and transcripts have these as arrays; a
raster has a position for each of its columns and rows, and its values are read chunk by chunk.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stpred._core import keys, targets
from stpred._core.checks import InputError, listing
from stpred._core.counts import check_counts
from stpred._core.elements import affine_to, apply_affine, regions_told, scale0, table_instances, table_regions
from stpred._core.geometry import box_of, placed, square_bins
from stpred._core.tables import read_provenance
from stpred.comparison.transcripts import Transcripts, read_transcripts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray
    from spatialdata import SpatialData

PREDICTION = "prediction"

_DRIFT = 0.01
"""Share of a pixel by which the columns of a raster may lean over its whole height, from rounding."""
_SAMPLE = 5000
"""Locations whose nearest others are looked up to learn their spacing."""


@dataclass(frozen=True)
class Squares:
    """Values pooled into squares.

    Attributes
    ----------
    at
        (b, 2) int64 column and row of squares of a lattice anchored at the frame's origin, by row and then column.
    values
        (b, G) float32 predictions.
    facts
        What else is to be said of them, JSON-able.
    """

    at: NDArray[np.int64]
    values: NDArray[np.float32]
    facts: dict[str, Any]


@dataclass(frozen=True)
class TableSide:
    """A table of predictions or counts, and the region of it that is compared (empty until that is chosen)."""

    sdata: SpatialData
    key: str
    region: str
    coordinate_system: str = keys.UM
    noun: ClassVar[str] = "table"

    @property
    def table(self) -> AnnData:
        """The AnnData itself."""
        return self.sdata.tables[self.key]

    @property
    def genes(self) -> pd.Index:
        """Its genes."""
        return self.table.var_names

    @property
    def told(self) -> str:
        """What it is, for messages."""
        return f"{self.key!r} annotates {regions_told(table_regions(self.table))}"

    def provenance(self) -> dict[str, Any]:
        """Return the provenance of a table of predictions."""
        return _a_prediction(read_provenance(self.table, what=f"table {self.key!r}"), what=f"Table {self.key!r}")

    def check_counts(self) -> None:
        """Refuse values that are no counts."""
        check_counts(self.table.X, what=f"counts of table {self.key!r}")

    @cached_property
    def instances(self) -> tuple[NDArray[np.int64], pd.Index]:
        """The rows of the table that annotate the region, and their ids."""
        return table_instances(self.table, self.region)

    @cached_property
    def shapes(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of the table whose shapes are there, and the positions of these shapes."""
        rows, ids = self.instances
        index = self.sdata.shapes[self.region].index
        if not index.is_unique:
            raise InputError(
                f"The index of shapes {self.region!r} is not unique: {listing(index[index.duplicated()])}."
            )
        positions = index.get_indexer(ids)
        if not (positions >= 0).any():
            raise InputError(
                f"No instance of table {self.key!r} is in shapes {self.region!r}: the table has {listing(ids[:3])}, "
                f"the shapes {listing(index[:3])}."
            )
        return rows[positions >= 0], positions[positions >= 0]

    @cached_property
    def located(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The rows of the table whose shapes are there, and the (n, 2) centroids of these in micrometres."""
        affine = placed(self.sdata, self.region, coordinate_system=self.coordinate_system)
        rows, positions = self.shapes
        points = self.sdata.shapes[self.region].geometry.centroid
        return rows, apply_affine(affine, np.column_stack([points.x.to_numpy(), points.y.to_numpy()])[positions])

    @property
    def box_um(self) -> list[float]:
        """x0, y0, x1, y1 of the locations, for messages."""
        return box_of(self.located[1])

    @property
    def spacing_um(self) -> float:
        """Median distance of a location to the nearest other; infinite for a single one."""
        from scipy.spatial import cKDTree

        xy = self.located[1]
        return float(np.median(cKDTree(xy).query(xy[:: len(xy) // _SAMPLE + 1], k=2)[0][:, 1]))

    def guess(self, rows: NDArray[np.int64], genes: pd.Index) -> NDArray[np.float32]:
        """Return what is predicted for these rows of the table."""
        return targets.dense(self.table.X[rows][:, self.genes.get_indexer(genes)], dtype=np.float32)

    def pooled(self, sizes_um: Sequence[float], genes: pd.Index, *, additive: bool) -> Iterator[Squares]:
        """Yield the mean (or sum) of the predictions in squares of each size."""
        rows, xy = self.located
        values = self.guess(rows, genes)
        for size in sizes_um:
            at, member = square_bins(xy, size)
            yield Squares(at, pool(values, members(member, len(at)), additive=additive), {})

    def counted(self) -> tuple[NDArray[np.float64], Any]:
        """Return the (n, 2) positions in micrometres and the (n, all genes) sparse counts."""
        from scipy.sparse import csr_matrix

        rows, xy = self.located
        return xy, csr_matrix(self.table.X[rows])


@dataclass(frozen=True)
class TranscriptsSide:
    """Points of transcripts; a location is a transcript."""

    key: str
    found: Transcripts
    noun: ClassVar[str] = "points"

    @property
    def genes(self) -> pd.Index:
        """Its genes."""
        import pandas as pd

        return pd.Index(self.found.genes, dtype=object)

    @property
    def region(self) -> str:
        """Name of the element."""
        return self.key

    @property
    def told(self) -> str:
        """What it is, for messages."""
        return f"{self.key!r} hold {len(self.found.codes)} transcripts"

    def check_counts(self) -> None:
        """A transcript counts once."""

    def counted(self) -> tuple[NDArray[np.float64], Any]:
        """Return the (n, 2) positions in micrometres and the (n, all genes) sparse counts, a one in each row."""
        from scipy.sparse import csr_matrix

        n = len(self.found.codes)
        ones = (np.ones(n, np.int32), self.found.codes, np.arange(n + 1))
        return self.found.xy_um, csr_matrix(ones, shape=(n, len(self.found.genes)))


@dataclass(frozen=True)
class RasterSide:
    """A predicted raster, genes as channels and NaN where nothing was predicted; a location is a pixel's centre."""

    sdata: SpatialData
    key: str
    coordinate_system: str = keys.UM
    noun: ClassVar[str] = "image"

    @cached_property
    def pixels(self) -> Any:
        """The (c, y, x) array of the finest scale."""
        return scale0(self.sdata.images[self.key])

    @cached_property
    def genes(self) -> pd.Index:
        """Its genes."""
        import pandas as pd

        return pd.Index([str(c) for c in self.pixels.coords["c"].to_numpy()], dtype=object)

    @property
    def region(self) -> str:
        """Name of the element."""
        return self.key

    @property
    def told(self) -> str:
        """What it is, for messages."""
        height, width = (self.pixels.sizes[d] for d in "yx")
        return f"{self.key!r} has {height} x {width} pixels"

    def provenance(self) -> dict[str, Any]:
        """Return the facts that are stored with a raster, and refuse an image that is none."""
        stored = self.sdata.attrs.get(keys.UNS)
        text = stored.get(self.key) if isinstance(stored, Mapping) else None
        if text is None:
            raise InputError(
                f"Image {self.key!r} was not predicted by stpred: sdata.attrs[{keys.UNS!r}] has no facts of it."
            )
        try:
            facts = json.loads(text)
        except (TypeError, ValueError):
            facts = None
        if not isinstance(facts, dict):
            raise InputError(
                f"The facts of image {self.key!r} were changed since stpred wrote them: "
                f"sdata.attrs[{keys.UNS!r}][{self.key!r}] is no JSON string of facts."
            )
        _a_prediction(facts, what=f"Image {self.key!r}")
        self._check_pixels()
        return facts

    def _check_pixels(self) -> None:
        if set(self.pixels.dims) != set("cyx"):
            raise InputError(f"Image {self.key!r} has the dimensions {listing(self.pixels.dims)}, not c, y and x.")
        if not np.issubdtype(self.pixels.dtype, np.floating):
            raise InputError(
                f"The pixels of image {self.key!r} are {self.pixels.dtype}; a predicted raster is float32, NaN where "
                "nothing was predicted."
            )
        if not self.genes.is_unique:
            repeated = self.genes[self.genes.duplicated()].unique()
            raise InputError(f"Gene names of image {self.key!r}, its channels, are not unique: {listing(repeated)}.")

    @cached_property
    def affine(self) -> NDArray[np.float64]:
        """The (3, 3) affine of the pixels to micrometres."""
        affine = affine_to(self.sdata.images[self.key], self.coordinate_system)
        if affine is None:
            raise InputError(
                f"Image {self.key!r} is not placed in the coordinate system {self.coordinate_system!r}; place it with "
                "spatialdata.transformations.set_transformation."
            )
        return affine

    @cached_property
    def centres_um(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The (W,) x and (H,) y of the pixels' centres."""
        affine = self.affine
        width, height = (self.pixels.sizes[d] for d in "xy")
        steps, lean = np.abs(np.diag(affine)[:2]), np.abs([affine[0, 1] * height, affine[1, 0] * width])
        if not steps.all() or (lean > _DRIFT * steps).any():
            raise InputError(
                f"Image {self.key!r} is turned or sheared against {self.coordinate_system!r} "
                f"({affine[:2, :2].tolist()}); its pixels can be put into squares only where its axes are those of the "
                "frame."
            )
        x, y = ((np.arange(n) + 0.5) * affine[k, k] + affine[k, 2] for k, n in enumerate((width, height)))
        return x, y

    @property
    def box_um(self) -> list[float]:
        """x0, y0, x1, y1 of the pixels, for messages."""
        return box_of(np.column_stack([[v.min(), v.max()] for v in self.centres_um]))

    @property
    def spacing_um(self) -> float:
        """Distance of its pixels in micrometres."""
        return float(np.abs(np.diag(self.affine)[:2]).max())

    def pooled(self, sizes_um: Sequence[float], genes: pd.Index, *, additive: bool) -> Iterator[Squares]:
        """Yield the mean (or sum) of the pixels that are not NaN in squares of each size; the raster is read once."""
        grids = [_Grid(*self.centres_um, size_um=size) for size in sizes_um]
        values = [np.empty((grid.n, len(genes)), dtype=np.float32) for grid in grids]
        number = [np.zeros(grid.n, dtype=np.int32) for grid in grids]
        blank = []
        for g, sums in self._sums(self.genes.get_indexer(genes), grids):
            for k, (total, n) in enumerate(sums):
                found = n > 0
                number[k] += found
                if not additive:
                    np.divide(total, n, out=total, where=found)
                values[k][:, g] = np.where(found, total, np.nan)
            if not found.any():
                blank.append(genes[g])
        if blank:
            raise InputError(f"Image {self.key!r} holds no predicted pixel of the genes {listing(blank)}; all are NaN.")
        for grid, n in zip(grids, number, strict=True):
            whole = np.flatnonzero(n == len(genes))
            facts = {"n_incomplete": int(((n > 0) & (n < len(genes))).sum())}
            yield Squares(grid.at(whole), values.pop(0)[whole], facts)

    def _sums(
        self, channels: NDArray[np.int64], grids: Sequence[_Grid]
    ) -> Iterator[tuple[int, list[tuple[NDArray[np.float64], NDArray[np.int32]]]]]:
        """Yield for each channel its position in `channels`, and in each grid the sum and the number of its pixels."""
        import dask.array as da
        from dask.optimization import cull
        from dask.threaded import get

        data = da.asarray(self.pixels.transpose("c", "y", "x").data)
        graph = dict(data.__dask_graph__())  # made once: that of each block anew takes longer than to read it
        ends = [np.cumsum([0, *sizes]) for sizes in data.chunks]
        for deep, (first, last) in enumerate(zip(ends[0][:-1], ends[0][1:], strict=True)):
            chosen = np.flatnonzero((channels >= first) & (channels < last))
            if len(chosen) == 0:
                continue
            sums = [[(np.zeros(grid.n), np.zeros(grid.n, np.int32)) for grid in grids] for _ in chosen]
            for r, top in enumerate(ends[1][:-1].tolist()):
                for c, left in enumerate(ends[2][:-1].tolist()):
                    wanted = (data.name, deep, r, c)
                    block = np.asarray(get(cull(graph, [wanted])[0], wanted))
                    for found, channel in zip(sums, channels[chosen] - first, strict=True):
                        _add(block[channel], grids, found, corner=(top, left))
            yield from zip(chosen.tolist(), sums, strict=True)


class _Grid:
    """The squares of one size that the columns and rows of a raster fall into."""

    def __init__(self, x_um: NDArray[np.float64], y_um: NDArray[np.float64], *, size_um: float) -> None:
        squares = [np.floor(v / size_um).astype(np.int64) for v in (x_um, y_um)]
        self.low = np.array([v.min() for v in squares])
        self.columns, self.rows = (v - low for v, low in zip(squares, self.low, strict=True))
        self.wide = int(self.columns.max()) + 1
        self.n = self.wide * (int(self.rows.max()) + 1)

    def at(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.column_stack([numbers % self.wide, numbers // self.wide]) + self.low


def _add(
    plane: NDArray[Any],
    grids: Iterable[_Grid],
    sums: Iterable[tuple[NDArray[np.float64], NDArray[np.int32]]],
    *,
    corner: tuple[int, int],
) -> None:
    """Add a block of one gene's pixels to the sums and numbers of each grid's squares."""
    known = ~np.isnan(plane)
    if not known.any():
        return
    filled = np.where(known, plane, 0).astype(np.float64)
    for grid, (total, number) in zip(grids, sums, strict=True):
        # The columns of a square lie side by side, so that whole runs of them are added without a number per pixel.
        rows, columns = (
            axis[start : start + n]
            for axis, start, n in zip((grid.rows, grid.columns), corner, plane.shape, strict=True)
        )
        starts = [np.flatnonzero(np.diff(axis, prepend=-1)) for axis in (rows, columns)]
        square = (rows[starts[0]][:, None] * grid.wide + columns[starts[1]]).ravel()
        total[square] += _runs(filled, starts, dtype=np.float64).ravel()
        if known.all():
            long = [np.diff(start, append=n).astype(np.int32) for start, n in zip(starts, plane.shape, strict=True)]
            number[square] += np.outer(*long).ravel()
        else:
            number[square] += _runs(known, starts, dtype=np.int32).ravel()


def _runs(plane: NDArray[Any], starts: Sequence[NDArray[np.int64]], *, dtype: Any) -> NDArray[Any]:
    """Return the sums of runs of rows and columns, which begin at `starts`."""
    return np.add.reduceat(np.add.reduceat(plane, starts[1], axis=1, dtype=dtype), starts[0], axis=0)


def predicted_side(sdata: SpatialData, key: str, *, coordinate_system: str) -> TableSide | RasterSide:
    """Return the predicted table or raster of this name."""
    if key in sdata.images:
        return RasterSide(sdata, key, coordinate_system)
    return _table(sdata, key, coordinate_system, name="predicted_key", other="images")


def measured_side(sdata: SpatialData, key: str, *, coordinate_system: str) -> TableSide | TranscriptsSide:
    """Return the table of raw counts, or the transcripts that count, of this name."""
    if key in sdata.points:
        return TranscriptsSide(key, read_transcripts(sdata, key, coordinate_system=coordinate_system))
    return _table(sdata, key, coordinate_system, name="measured_key", other="points")


def _table(sdata: SpatialData, key: str, coordinate_system: str, *, name: str, other: str) -> TableSide:
    if key not in sdata.tables:
        raise InputError(
            f"No table named {key!r} and no {other} (`{name}`); available: tables {listing(sdata.tables)}, "
            f"{other} {listing(getattr(sdata, other))}."
        )
    regions = table_regions(sdata.tables[key])
    return TableSide(sdata, key, regions[0] if len(regions) == 1 else "", coordinate_system)


def _a_prediction(facts: dict[str, Any], *, what: str) -> dict[str, Any]:
    """Return the facts of a prediction; refuse those of anything else."""
    if facts.get("kind") != PREDICTION:
        raise InputError(f"{what} holds {facts.get('kind')}, not predictions.")
    if "output_scale" not in facts:
        raise InputError(f"{what} does not say on which scale its predictions are: its facts lack 'output_scale'.")
    return facts


def members(member: NDArray[np.int64], n: int) -> Any:
    """Return the (n, locations) sparse matrix of 0 and 1 that says which locations are in which square."""
    from scipy.sparse import csr_matrix

    return csr_matrix((np.ones(len(member), np.int64), (member, np.arange(len(member)))), (n, len(member)))


def pool(values: NDArray[Any], members: Any, *, additive: bool) -> NDArray[np.float32]:
    """Average (or with `additive` sum) (n, G) values over sets of rows, an (m, n) sparse matrix of 0 and 1."""
    found = np.asarray(members.astype(np.float64) @ values.astype(np.float64))
    if not additive:
        found /= np.asarray(members.sum(axis=1), dtype=np.float64).reshape(-1, 1)
    return found.astype(np.float32)

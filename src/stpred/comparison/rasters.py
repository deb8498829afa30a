"""A predicted raster as one side of a comparison, read chunk by chunk and pooled into squares."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stpred._core import keys
from stpred._core.checks import InputError, listing
from stpred._core.elements import affine_to, scale0
from stpred._core.expression.cut import Cut
from stpred._core.geometry import box_of
from stpred.comparison.pooling import Squares, check_prediction

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray
    from spatialdata import SpatialData

_MAX_LEAN = 0.01
"""Fraction of a pixel by which the columns of a raster may lean over its whole height, from rounding."""


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
    def description(self) -> str:
        """Description in messages."""
        height, width = (self.pixels.sizes[d] for d in "yx")
        return f"{self.key!r} has {height} x {width} pixels"

    def provenance(self) -> dict[str, Any]:
        """Return the provenance that is stored with a raster, and refuse an image that is none."""
        stored = self.sdata.attrs.get(keys.UNS)
        text = stored.get(self.key) if isinstance(stored, Mapping) else None
        if text is None:
            raise InputError(
                f"Image {self.key!r} was not predicted by stpred: sdata.attrs[{keys.UNS!r}] has no provenance of it."
            )
        try:
            provenance = json.loads(text)
        except (TypeError, ValueError):
            provenance = None
        if not isinstance(provenance, dict):
            raise InputError(
                f"The provenance of image {self.key!r} was changed since stpred wrote them: "
                f"sdata.attrs[{keys.UNS!r}][{self.key!r}] is not the JSON string of a dictionary."
            )
        check_prediction(provenance, what=f"Image {self.key!r}")
        self._check_pixels()
        return provenance

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
        if not steps.all() or (lean > _MAX_LEAN * steps).any():
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
            summary = {"n_incomplete": int(((n > 0) & (n < len(genes))).sum())}
            yield Squares(grid.at(whole), Cut(values.pop(0)).take(whole), summary)

    def _sums(
        self, channels: NDArray[np.int64], grids: Sequence[_Grid]
    ) -> Iterator[tuple[int, list[tuple[NDArray[np.float64], NDArray[np.int32]]]]]:
        """Yield for each channel its position in `channels`, and in each grid the sum and the number of its pixels."""
        import dask.array as da
        from dask.optimization import cull
        from dask.threaded import get

        data = da.asarray(self.pixels.transpose("c", "y", "x").data)
        graph = dict(data.__dask_graph__())  # once: building it for each block takes longer than reading the block
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
    finite = ~np.isnan(plane)
    if not finite.any():
        return
    filled = np.where(finite, plane, 0).astype(np.float64)
    for grid, (total, number) in zip(grids, sums, strict=True):
        # The columns of a square lie side by side, so that whole runs of them are added without a number per pixel.
        rows, columns = (
            axis[start : start + n]
            for axis, start, n in zip((grid.rows, grid.columns), corner, plane.shape, strict=True)
        )
        starts = [np.flatnonzero(np.diff(axis, prepend=-1)) for axis in (rows, columns)]
        square = (rows[starts[0]][:, None] * grid.wide + columns[starts[1]]).ravel()
        total[square] += _runs(filled, starts, dtype=np.float64).ravel()
        if finite.all():
            long = [np.diff(start, append=n).astype(np.int32) for start, n in zip(starts, plane.shape, strict=True)]
            number[square] += np.outer(*long).ravel()
        else:
            number[square] += _runs(finite, starts, dtype=np.int32).ravel()


def _runs(plane: NDArray[Any], starts: Sequence[NDArray[np.int64]], *, dtype: Any) -> NDArray[Any]:
    """Return the sums of runs of rows and columns, which begin at `starts`."""
    return np.add.reduceat(np.add.reduceat(plane, starts[1], axis=1, dtype=dtype), starts[0], axis=0)

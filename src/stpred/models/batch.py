"""The interface between data and models: what a model needs (`Needs`) and gets (`Batch`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from stpred._core.checks import InputError
from stpred._core.compute.moments import Moments
from stpred.links import Links
from stpred.models.parts.pixel_grid import PixelGrid


@dataclass(frozen=True)
class Needs:
    """Inputs of a model, which the data layer provides.

    Attributes
    ----------
    context_um
        Radius around a target from which neighbours' features are taken; None: the tile alone.
    radii_um
        Several such radii, ascending up to `context_um`, where near neighbours are told apart from far ones; or empty.
    slide_statistics
        Whether features are standardised by the slide they come from, which needs the slide's points at the training
        pitch.
    n_neighbors
        Number of nearest others that a target is linked to, instead of a radius.
    whole_slide
        Whether predictions depend on all points of the slide at the training pitch.
    places
        Whether they depend on where the points are.
    parts
        Sub-tiles along each edge of a target's tile (3: nine sub-tiles), or None.
    slide_colour
        Whether pixels are normalised by the colour of the slide's tissue.
    cells
        Whether locations consist of the cells in them. Neighbours (`context_um`, `n_neighbors`) are then those of
        each cell, among the slide's cells.
    tile_um
        With `cells`: encoders (of several) whose tiles are at least so wide are read once for each location, around its
        centre, instead of around each of its cells; None: around each cell.
    patch_um
        With `cells`: edge of the tile around the location that a cell lies in, and around locations within
        `patch_context_um` of it; or None.
    patch_context_um
        Radius between such locations.
    tokens
        Whether locations consist of the patch tokens in their footprints.
    token_um
        Edge of a token; None: the encoder's own, or about 8 um.
    isolated
        Whether a token is described by the encoder's tile around it, and not as one of the tokens of a larger tile.
    hierarchy
        Whether a token comes with the features of the tile that it lies in, and its mean colour.
    footprint_um
        Edge of a square around each training location that is its footprint; None: its shape.
    pixel_grid
        Whether locations are sums over the slide's pixels in their shapes.

    Examples
    --------
    >>> import stpred as st
    >>> st.models.MISO.Config(n_neighbors=6).needs.n_neighbors
    6
    """

    context_um: float | None = None
    radii_um: tuple[float, ...] = ()
    slide_statistics: bool = False
    n_neighbors: int | None = None
    whole_slide: bool = False
    places: bool = False
    parts: int | None = None
    slide_colour: bool = False
    cells: bool = False
    tile_um: float | None = None
    patch_um: float | None = None
    patch_context_um: float | None = None
    tokens: bool = False
    token_um: float | None = None
    isolated: bool = False
    hierarchy: bool = False
    footprint_um: float | None = None
    pixel_grid: bool = False

    @property
    def linked(self) -> bool:
        """Whether targets are linked to their neighbours."""
        return self.context_um is not None or self.n_neighbors is not None

    @property
    def sources(self) -> bool:
        """Whether points at the training pitch are needed beside the targets."""
        return self.linked or self.slide_statistics or self.whole_slide


@dataclass(frozen=True)
class Patches:
    """Tiles of the locations that cells lie in.

    Attributes
    ----------
    features
        (p, n_features) float32, each location at the training pitch once.
    links
        Ragged index from targets to rows of `features`: the location that the target lies in first, then those around.
    sources
        (s,) rows of `features` that slide statistics are computed from.
    """

    features: NDArray[Any]
    links: Links
    sources: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> Patches:
        """Return the patches of some targets, in this order."""
        return replace(self, links=self.links.take(rows))


@dataclass(frozen=True)
class Batch:
    """Targets of one slide, in training, validation and prediction alike.

    Attributes
    ----------
    slide
        Name of the slide.
    features
        (m, n_features) float32 (uint8 for pixels), every embedded point once.
    targets
        (n,) rows of `features` that are predicted.
    sources
        (p,) rows of `features` at the training pitch: context and slide statistics come from these alone.
    coords_um
        (n, 2) centres of the targets.
    places_um
        (m, 2) centres of the embedded points; or None.
    links
        Ragged index from targets to rows of `features`: their neighbours, the target itself not among them; or None.
    near
        (n, r) how many of a target's neighbours, which come nearest first, lie within each of `radii_um`; or None.
    radii_um
        Radii that `near` is counted in, ascending.
    parts
        Ragged index from targets to rows of `features`: sub-tiles of the target's tile, or tokens in its footprint,
        with their shares of it as weights; or None.
    source_parts
        Sub-tiles of the `sources`, of models that see those of a whole slide; or None.
    area_um2
        (n,) areas of the targets' footprints, of models of tokens; or None.
    cells
        Ragged index from targets to rows of `features`: the cells in each location; of a cell, itself. None for models
        that do not see cells. With cells, the row of `targets` is the cell nearest to the location's centre.
    cell_links
        Ragged index from rows of `features` to rows of `features`: the cells around each cell; or None.
    patches
        Tiles of the locations that cells lie in; or None.
    y
        (n, n_genes) float32 training target, dense or (of families that take it so) csr, or None.
    truth
        (n, n_genes) float32 values that predictions are scored against; None: `y`.
    totals, n_measured
        (n,) library sizes and the number of genes that they are over, or None.
    scale
        What `y` is: ``"log1p_cp10k"``, ``"counts"`` or ``"log_share"``.
    colour
        (2, 3) mean and standard deviation of red, green and blue over the slide's tissue, 0..1, or None.
    context
        Where context is from: ``"region"`` (the targets' own), ``"grid"``, or the name of the slide's training region
        (with ``"+grid"`` where that does not reach all targets).
    pixel_grid
        The slide's pixels and which of them lie in each target; or None.
    measured
        (n_genes,) whether each gene was measured on this slide; None: all.
    n_tile
        Number of last features that are of the tile around a location, the same for all of its cells; those before are
        of each cell's crop. None: there are none of a tile around.
    blocks
        Widths of the members' features side by side, of several encoders at once; they add up to n_features. None: one
        block.
    moments
        Mean and standard deviation of the features of all of the slide's sources, where `features` are those of a part
        of the slide; None: they are those of `sources`.

    Examples
    --------
    >>> import numpy as np
    >>> import stpred as st
    >>> rows = np.arange(4)
    >>> coords_um = np.column_stack([rows * 100.0, np.zeros(4)])
    >>> batch = st.models.Batch("s1", np.ones((4, 3), dtype=np.float32), rows, rows, coords_um)
    >>> len(batch.targets)
    4
    """

    slide: str
    features: NDArray[Any]
    targets: NDArray[np.int64]
    sources: NDArray[np.int64]
    coords_um: NDArray[np.float64]
    places_um: NDArray[np.float64] | None = None
    links: Links | None = None
    near: NDArray[np.int64] | None = None
    radii_um: tuple[float, ...] = ()
    parts: Links | None = None
    source_parts: Links | None = None
    area_um2: NDArray[np.float64] | None = None
    cells: Links | None = None
    cell_links: Links | None = None
    patches: Patches | None = None
    y: NDArray[np.float32] | None = None
    truth: NDArray[np.float32] | None = None
    totals: NDArray[np.float64] | None = None
    n_measured: int | None = None
    scale: str | None = None
    colour: NDArray[np.float32] | None = None
    context: str | None = None
    pixel_grid: PixelGrid | None = None
    measured: NDArray[np.bool] | None = None
    n_tile: int | None = None
    blocks: tuple[int, ...] | None = None
    moments: Moments | None = None

    @property
    def own(self) -> NDArray[Any]:
        """(n, n_features) features of the targets themselves."""
        return self.features[self.targets]

    @property
    def width(self) -> int:
        """Number of features of a location, and of a pixel beside it."""
        return int(self.features.shape[1]) + (0 if self.pixel_grid is None else self.pixel_grid.n_features)

    @property
    def scored(self) -> NDArray[np.float32]:
        """(n, n_genes) values that predictions are scored against."""
        values = self.y if self.truth is None else self.truth
        if values is None:
            raise InputError(f"Slide {self.slide!r} came without measured expression.")
        return values

    @classmethod
    def of(
        cls,
        features: NDArray[Any],
        *,
        neighbors: Any = None,
        parts: NDArray[Any] | None = None,
        cells: Any = None,
        coords_um: NDArray[np.float64] | None = None,
        slide: str = "slide",
        y: NDArray[np.float32] | None = None,
        truth: NDArray[np.float32] | None = None,
        totals: NDArray[np.float64] | None = None,
        scale: str | None = None,
        n_measured: int | None = None,
        colour: NDArray[np.float32] | None = None,
        blocks: tuple[int, ...] | None = None,
    ) -> Self:
        """Make a batch from arrays, every location a target.

        Parameters
        ----------
        features
            (n, n_features) features of the locations' tiles; with `cells`, (m, n_features) features of the cells.
        neighbors
            For each location the rows of its neighbours, as (n, k) whole numbers with -1 for none, or as a list of
            lists; a location itself is dropped from its list, since models always see it.
        parts
            (n, p, n_features) features of the sub-tiles.
        cells
            Which cells each of the n locations holds, at least one each: a list of lists of rows, or
            :class:`~stpred.links.Links`.
        coords_um
            (n, 2) centres in micrometres.
        slide
            Name of the slide.
        y, truth, totals, scale, n_measured
            What was measured; see the attributes.
        colour
            (2, 3) mean and standard deviation of the slide's tissue, for models of pixels.
        blocks
            Widths of the features of several encoders side by side; None: one block.
        """
        features = np.asarray(features)
        if blocks is not None and sum(blocks) != features.shape[1]:
            raise InputError(f"`blocks`={blocks} must add up to the {features.shape[1]} columns of `features`.")
        cell_links = None if cells is None else _links(cells)
        if cell_links is not None and (cell_links.counts() == 0).any():
            raise InputError(f"{int((cell_links.counts() == 0).sum())} locations hold no cell; leave them out.")
        n = len(features) if cell_links is None else cell_links.n_targets
        rows = np.arange(n) if cell_links is None else cell_links.indices[cell_links.indptr[:-1]]
        sources = np.arange(len(features))
        part_links = None
        if parts is not None:
            n_parts = parts.shape[1]
            part_links = Links(np.arange(n + 1) * n_parts, n + np.arange(n * n_parts))
            features = np.concatenate([features, np.asarray(parts).reshape(n * n_parts, -1)])
        places_um = None
        if coords_um is not None and cell_links is None:
            coords_um = np.asarray(coords_um, dtype=np.float64)
            places_um = np.concatenate([coords_um, np.repeat(coords_um, len(features) // max(n, 1) - 1, axis=0)])
        return cls(
            slide,
            features,
            rows,
            sources,
            np.zeros((n, 2)) if coords_um is None else np.asarray(coords_um, dtype=np.float64),
            links=None if neighbors is None else _links(neighbors, others=True),
            places_um=places_um,
            parts=part_links,
            source_parts=part_links,
            cells=cell_links,
            y=y,
            truth=truth,
            totals=totals,
            scale=scale,
            n_measured=n_measured,
            colour=colour,
            blocks=blocks,
        )

    def take(self, rows: NDArray[np.int64]) -> Batch:
        """Return the batch of some of the targets, in this order; the embedded points stay as they are."""
        links = ("links", "parts", "cells", "patches", "pixel_grid")
        changed: dict[str, Any] = {}
        for name in ("targets", "coords_um", "area_um2", "y", "truth", "totals", "near", *links):
            if (value := getattr(self, name)) is not None:
                changed[name] = value.take(rows) if name in links else value[rows]
        return replace(self, **changed)


def _links(lists: Any, *, others: bool = False) -> Links:
    """Return ragged links from lists or a matrix of rows, -1 for none; with `others` without a target's own row."""
    if isinstance(lists, Links) and not others:
        return lists
    if isinstance(lists, Links):
        counts, rows = lists.counts(), lists.indices
    else:
        counts = np.fromiter((len(row) for row in lists), dtype=np.int64, count=len(lists))
        rows = np.concatenate([np.empty(0, dtype=np.int64), *(np.asarray(row, dtype=np.int64) for row in lists)])
    owner = np.repeat(np.arange(len(counts)), counts)
    kept = (rows >= 0) & ((rows != owner) | (not others))
    counts = np.bincount(owner[kept], minlength=len(counts))
    return Links(np.concatenate([[0], np.cumsum(counts)]), rows[kept])

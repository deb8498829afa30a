"""From cells to single molecules and square bins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred.datasets._simulated.tissue import Tissue

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

RASTER_UM = 0.5
"""Pixel on which cells are drawn to share them among bins and to place molecules."""
TISSUE_REACH_UM = 20.0
"""A bin lies in tissue if a cell is as near as this to its corner, so that bins of all sizes agree."""
MOLECULES = 13


@dataclass(frozen=True)
class Bins:
    """Square bins that tile a slide, row by row; their positions as those of :class:`Spots`, without ``n_cells``."""

    positions: pd.DataFrame
    counts: csr_matrix  # (n_bins, n_genes)
    shares: csr_matrix  # (n_bins, n_cells) parts of each cell's area; times the cells' expectation, the bins' own


def make_bins(tissue: Tissue, labels: NDArray[np.int32], molecules: pd.DataFrame, *, size_um: int) -> Bins:
    """Bin molecules and cells into squares of `size_um`; the grid covers whole 16 um squares, so that sizes nest."""
    from scipy.sparse import coo_matrix
    from scipy.spatial import cKDTree

    columns, rows = (int(s // 16) * 16 // size_um for s in tissue.size_um)
    row, column = (a.ravel() for a in np.mgrid[:rows, :columns])
    xy = (np.column_stack([column, row]) + 0.5) * size_um
    nearest, _ = cKDTree(tissue.xy_um).query(xy, distance_upper_bound=TISSUE_REACH_UM + size_um * np.sqrt(0.5))
    positions = pd.DataFrame(
        {"in_tissue": np.isfinite(nearest).astype(np.uint8), "array_row": row, "array_col": column}
        | {"x_um": xy[:, 0], "y_um": xy[:, 1]},
        index=pd.Index(bin_names(rows, columns, size_um=size_um), name="barcode"),
    )
    i, j = ((molecules[k].to_numpy() // size_um).astype(int) for k in ("y_um", "x_um"))
    kept = (i < rows) & (j < columns)
    where, gene = (i * columns + j)[kept], molecules["gene"].to_numpy()[kept]
    ones = np.ones(len(where), dtype=np.int32)
    counts = coo_matrix((ones, (where, gene)), shape=(rows * columns, len(tissue.genes))).tocsr()
    shares = bin_shares(labels, n_cells=len(tissue.cells), shape=(rows, columns), per_bin=round(size_um / RASTER_UM))
    return Bins(positions, counts, shares)


def cell_labels(tissue: Tissue, *, step_um: float = RASTER_UM, nuclei: bool = False) -> NDArray[np.int32]:
    """Draw cells (or nuclei) as a label image of pixels of `step_um`; cell i gets i + 1, background is 0."""
    import shapely
    from PIL import Image, ImageDraw

    shape = (int(np.ceil(tissue.size_um[1] / step_um)), int(np.ceil(tissue.size_um[0] / step_um)))
    image = Image.new("I", (shape[1], shape[0]))
    draw = ImageDraw.Draw(image)
    for i, polygon in enumerate(tissue.nuclei if nuclei else tissue.outlines):
        corners = shapely.get_coordinates(polygon.exterior) / step_um - 0.5
        draw.polygon(list(map(tuple, corners)), fill=i + 1)
    return np.asarray(image, dtype=np.int32)


def bin_names(rows: int, columns: int, *, size_um: int) -> NDArray[np.str_]:
    """Return the vendor's barcodes of a grid of bins, row by row."""
    first = np.array([f"s_{size_um:03d}um_{i:05d}_" for i in range(rows)])
    return np.char.add(first[:, None], np.array([f"{j:05d}-1" for j in range(columns)])).ravel()


def bin_shares(labels: NDArray[np.int32], *, n_cells: int, shape: tuple[int, int], per_bin: int) -> csr_matrix:
    """Return the (n_bins, n_cells) share of each cell's area in each bin of `per_bin` by `per_bin` label pixels."""
    from scipy.sparse import coo_matrix

    i, j = np.nonzero(labels)
    cell = labels[i, j] - 1
    share = 1.0 / np.bincount(cell, minlength=n_cells)[cell]
    i, j = i // per_bin, j // per_bin
    kept = (i < shape[0]) & (j < shape[1])
    where = (i * shape[1] + j)[kept]
    return coo_matrix((share[kept], (where, cell[kept])), shape=(shape[0] * shape[1], n_cells)).tocsr()


def place_molecules(tissue: Tissue, labels: NDArray[np.int32]) -> pd.DataFrame:
    """Place every counted molecule at a random point of its cell's label pixels, in random order.

    The frame holds ``x_um``, ``y_um`` (float32), ``cell`` and ``gene`` (row and column of the counts).
    """
    rng = tissue.rng(MOLECULES)
    flat = labels.ravel()
    inside = np.flatnonzero(flat)
    inside = inside[np.argsort(flat[inside], kind="stable")]
    size = np.bincount(flat[inside] - 1, minlength=len(tissue.cells))
    start = np.cumsum(size) - size
    cell, gene = np.nonzero(tissue.counts * (size > 0)[:, None])
    times = tissue.counts[cell, gene]
    cell, gene = np.repeat(cell, times), np.repeat(gene, times)
    order = rng.permutation(len(cell))
    cell, gene = cell[order], gene[order]
    pixel = inside[start[cell] + (rng.random(len(cell)) * size[cell]).astype(int)]
    i, j = np.divmod(pixel, labels.shape[1])
    x, y = ((k + rng.random(len(cell))) * RASTER_UM for k in (j, i))
    return pd.DataFrame({"x_um": x.astype(np.float32), "y_um": y.astype(np.float32), "cell": cell, "gene": gene})

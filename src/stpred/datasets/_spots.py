"""From cells to round spots: who lies where, what is expected there, and what is counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred.datasets._simulated.expression import draw_counts
from stpred.datasets._simulated.tissue import Tissue

SPOT_LIBRARY_SD = 0.3
BARCODES, LIBRARY, SPOT_NOISE = range(10, 13)


@dataclass(frozen=True)
class Spots:
    """Spots of a slide with counts and truth; every position of the array is there, in tissue or not.

    The frame of positions, indexed by barcode, holds ``in_tissue`` (0 or 1), ``array_row``, ``array_col``, ``x_um``,
    ``y_um`` and ``n_cells``.
    """

    positions: pd.DataFrame
    expected: NDArray[np.float32]  # (n_positions, n_genes), without noise
    counts: NDArray[np.int32]  # (n_positions, n_genes)
    diameter_um: float


def visium_spots(tissue: Tissue) -> Spots:
    """Return Visium spots: a hexagonal array of pitch 100 um and diameter 55 um that fits into the image."""
    width, height = tissue.size_um
    rows, columns = int((height - 60) / 86.6025), int((width - 60) / 50.0)
    row, column = (a.ravel() for a in np.mgrid[:rows, :columns])
    kept = (row + column) % 2 == 0
    row, column = row[kept], column[kept]
    xy = _centred(tissue, row, column, shape=(rows, columns), step_um=(86.6025, 50.0))
    return round_spots(tissue, xy_um=xy, array=(row, column), diameter_um=55.0)


def legacy_spots(tissue: Tissue) -> Spots:
    """Return the spots of the first ST arrays: a square array of pitch 200 um and diameter 100 um, numbered from 1."""
    width, height = tissue.size_um
    columns, rows = int((width - 110) / 200.0) + 1, int((height - 110) / 200.0) + 1
    row, column = (a.ravel() for a in np.mgrid[:rows, :columns])
    xy = _centred(tissue, row, column, shape=(rows, columns), step_um=(200.0, 200.0))
    return round_spots(tissue, xy_um=xy, array=(row + 1, column + 1), diameter_um=100.0)


def _centred(
    tissue: Tissue, row: NDArray, column: NDArray, *, shape: tuple[int, int], step_um: tuple[float, float]
) -> NDArray[np.float64]:
    """Return the (n, 2) places in micrometres of an array of `shape` in the middle of the slide."""
    x = (column - (shape[1] - 1) / 2) * step_um[1] + tissue.size_um[0] / 2
    y = (row - (shape[0] - 1) / 2) * step_um[0] + tissue.size_um[1] / 2
    return np.column_stack([x, y])


def round_spots(
    tissue: Tissue, *, xy_um: NDArray, array: tuple[NDArray, NDArray], diameter_um: float, per_spot: bool = True
) -> Spots:
    """Sum the cells whose centre lies in each circle, times a library factor for each spot if `per_spot`."""
    from scipy.sparse import csr_matrix
    from scipy.spatial import cKDTree

    members = cKDTree(tissue.xy_um).query_ball_point(xy_um, diameter_um / 2)
    n_cells = np.array([len(m) for m in members])
    indices = np.concatenate([np.asarray(m, dtype=int) for m in members])
    link = csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.concatenate([[0], np.cumsum(n_cells)])),
        shape=(len(xy_um), len(tissue.cells)),
    )
    factor = np.exp(tissue.rng(LIBRARY).normal(0, SPOT_LIBRARY_SD * per_spot, len(xy_um)))
    expected = (link @ tissue.expected * factor[:, None]).astype(np.float32)
    positions = pd.DataFrame(
        {
            "in_tissue": (n_cells > 0).astype(int),
            "array_row": array[0],
            "array_col": array[1],
            "x_um": xy_um[:, 0],
            "y_um": xy_um[:, 1],
            "n_cells": n_cells,
        },
        index=pd.Index(barcodes(len(xy_um), rng=tissue.rng(BARCODES)), name="barcode"),
    )
    counts = draw_counts(expected, rng=tissue.rng(SPOT_NOISE), dispersion=0.02)
    return Spots(positions, expected, counts, diameter_um)


def barcodes(n: int, *, rng: np.random.Generator) -> list[str]:
    """Return n distinct barcodes of 16 bases with the suffix ``-1``, in no order."""
    codes = rng.choice(4**12, size=n, replace=False)
    digits = codes[:, None] // 4 ** np.arange(12) % 4
    tail = (digits[:, :4] + digits[:, 4:8] + digits[:, 8:12]) % 4
    return ["".join(row) + "-1" for row in np.array(list("ACGT"))[np.hstack([digits, tail])]]

"""Expression of the synthetic cells: a biology that all slides share, and the state of each cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stpred.datasets._simulated.celltypes import CELL_TYPES, TYPE_NAMES

BIOLOGY_SEED = 5_550_123
NEIGHBOURHOOD_UM = 50.0
KNOWN_GENES: dict[str, tuple[str, ...]] = {
    "tumour": ("EPCAM", "KRT8", "ERBB2", "MKI67", "KRT18", "TOP2A", "CDH1", "CCND1"),
    "fibroblast": ("COL1A2", "COL1A1", "DCN", "LUM", "ACTA2", "POSTN", "FAP", "VIM"),
    "lymphocyte": ("PTPRC", "CD3E", "MS4A1", "TRAC", "CCL19", "CD8A", "CD19", "LTB"),
    "epithelial": ("MUC1", "PIGR", "AGR2", "TFF3", "KRT7", "CLDN4", "ELF3", "LTF"),
    "plasma": ("JCHAIN", "MZB1", "IGHG1", "XBP1", "SDC1", "IGKC", "DERL3", "TNFRSF17"),
    "": ("ACTB", "GAPDH", "B2M", "RPLP0", "TMSB4X", "EEF1A1", "RPL13", "FTL"),
}
"""Real symbols among the made-up ones, by the type that they mark; the empty name holds genes that mark none."""


@dataclass(frozen=True)
class Biology:
    """What determines expression, the same for every slide and donor; gene g is the same for any number of genes.

    The frame of genes holds ``gene_id``, ``marks`` (a cell type or ``""``) and ``driver``, what varies it within the
    type that it marks, ``"none"``, ``"area"``, ``"chromatin"`` or ``"near <type>"``.
    """

    genes: pd.DataFrame  # indexed by symbol
    profile: NDArray[np.float64]  # (types, genes) log expression
    own: NDArray[np.float64]  # (2, types, genes) slopes on nuclear size and chromatin, standardised within the type
    near: NDArray[np.float64]  # (types around, types, genes) slopes on the share of each type within 50 um
    spread: NDArray[np.float64]  # (genes,) standard deviation of the unexplained log expression within a type


def biology(n_genes: int) -> Biology:
    """Draw the shared biology; gene by gene, so that fewer genes are a prefix of more."""
    n_types = len(TYPE_NAMES)
    marked = [*TYPE_NAMES, *TYPE_NAMES, *TYPE_NAMES, ""]
    used = dict.fromkeys(KNOWN_GENES, 0)
    rows = []
    profile, own = np.zeros((n_types, n_genes)), np.zeros((2, n_types, n_genes))
    near, spread = np.zeros((n_types, n_types, n_genes)), np.zeros(n_genes)
    for g in range(n_genes):
        rng = np.random.default_rng([BIOLOGY_SEED, g])
        marks = marked[g % len(marked)]
        profile[:, g] = rng.normal(0, 0.7) + rng.normal(0, 0.22, n_types)
        spread[g] = rng.uniform(0.1, 0.35)
        kind, driver = TYPE_NAMES.index(marks) if marks else int(rng.integers(n_types)), "none"
        if marks:
            profile[kind, g] += rng.uniform(1.3, 2.6)
        draw = rng.random()
        if draw < 0.30:
            which = int(draw < 0.12)
            driver = ("area", "chromatin")[which]
            own[which, kind, g] = rng.choice([-1, 1]) * rng.uniform(0.35, 0.7)
        elif draw < 0.55:
            other = int(rng.integers(n_types))
            driver = f"near {TYPE_NAMES[other]}"
            near[other, kind, g] = rng.choice([-1, 1]) * rng.uniform(1.0, 2.0)
        rows.append((_symbol(marks, used, g), f"ENSG9{g:010d}", marks, driver))
    genes = pd.DataFrame(rows, columns=["symbol", "gene_id", "marks", "driver"]).set_index("symbol")
    return Biology(genes, profile, own, near, spread)


def _symbol(marks: str, used: dict[str, int], g: int) -> str:
    """Return the next known symbol for that mark, every second time, or a made-up one."""
    known = KNOWN_GENES[marks]
    if used[marks] < len(known) and (g // 16) % 2 == 0:
        used[marks] += 1
        return known[used[marks] - 1]
    return f"TOY{'ABCDEFGHKL'[g % 10]}{g // 10 + 1}"


def express(cells: pd.DataFrame, shared: Biology, *, depth: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Return the (n_cells, n_genes) noiseless expectation of counts; `depth` is the mean number of counts per cell."""
    kind = cells["type"].cat.codes.to_numpy()
    share = neighbour_share(cells[["x_um", "y_um"]].to_numpy(), kind)
    size = _standard_area(cells["area_um2"].to_numpy(), kind)
    chromatin = (cells["chromatin"].to_numpy() - 0.5) / 0.25
    log = shared.profile[kind]
    for slopes, value in zip(shared.own, (size, chromatin), strict=True):
        log += slopes[kind] * value[:, None]
    for other, slopes in enumerate(shared.near):
        log += slopes[kind] * (share[:, other] - 0.2)[:, None]
    log += shared.spread * rng.standard_normal(log.shape)
    rate = np.exp(log - log.max(axis=1, keepdims=True))
    content = np.array([t.rna for t in CELL_TYPES])[kind] * np.exp(rng.normal(0, 0.2, len(kind)) + 0.12 * size)
    rate *= (depth * content / rate.sum(axis=1))[:, None]
    return rate.astype(np.float32)


def neighbour_share(xy_um: NDArray, kind: NDArray) -> NDArray[np.float64]:
    """Return the (n, types) share of each type among a cell and its neighbours within 50 um."""
    from scipy.sparse import coo_matrix
    from scipy.spatial import cKDTree

    pairs = cKDTree(xy_um).query_pairs(NEIGHBOURHOOD_UM, output_type="ndarray")
    one_hot = np.eye(len(TYPE_NAMES))[kind]
    near = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(kind), len(kind))).tocsr()
    total = one_hot + near @ one_hot + near.T @ one_hot
    return total / total.sum(axis=1, keepdims=True)


def _standard_area(area_um2: NDArray, kind: NDArray) -> NDArray[np.float64]:
    """Standardise log nuclear area within the type, by what the type is expected to have."""
    mean, cv = (np.array([getattr(t, k) for t in CELL_TYPES])[kind] for k in ("area_um2", "area_cv"))
    return np.log(area_um2 / mean) / cv


def draw_counts(expected: NDArray, *, rng: np.random.Generator, dispersion: float = 0.08) -> NDArray[np.int32]:
    """Draw negative-binomial counts: variance = mean + dispersion * mean**2."""
    rate = expected * rng.gamma(1 / dispersion, dispersion, expected.shape) if dispersion else expected
    return rng.poisson(rate).astype(np.int32)

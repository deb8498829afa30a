"""A synthetic single-cell reference: types with markers, and programmes that vary together within a type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stpred._core.checks import InputError, whole

if TYPE_CHECKING:
    from anndata import AnnData

TYPE = "cell_type"
PROGRAMMES = 6
LIBRARY = 5000.0
DISPERSION = 0.15


def toy_reference(
    *, n_types: int = 8, n_genes: int = 1000, n_cells: int = 400, n_markers: int = 20, seed: int = 0
) -> AnnData:
    """Make a synthetic single-cell RNA-seq reference.

    Parameters
    ----------
    n_types
        Number of cell types.
    n_genes
        Number of genes, at least ``n_types * n_markers``.
    n_cells
        Cells of each type.
    n_markers
        Genes that each type has more of.
    seed
        Of everything.

    Returns
    -------
    AnnData
        ``X``: raw counts (n_types * n_cells, n_genes), sparse float32, negative binomial with varying library sizes;
        ``obs["cell_type"]``; ``var["marks"]`` (the type, or ``""``). Within a type, genes vary together along six
        programmes of its own, markers less than others: what tells types apart is steady, what varies most is not
        what tells them apart.

    Raises
    ------
    InputError
        If a number is not positive, or there are too few genes for the markers.

    Examples
    --------
    >>> import stpred as st
    >>> st.datasets.toy_reference(n_types=8, n_genes=200, n_cells=50).shape
    (400, 200)
    """
    from anndata import AnnData
    from scipy.sparse import csr_matrix

    n_types, n_genes = whole(n_types, name="n_types"), whole(n_genes, name="n_genes")
    n_cells, n_markers = whole(n_cells, name="n_cells"), whole(n_markers, name="n_markers")
    if n_types * n_markers > n_genes:
        raise InputError(
            f"{n_types} types with {n_markers} markers each need {n_types * n_markers} genes, not {n_genes}."
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(n_genes)
    marks = np.full(n_genes, -1)
    marks[order[: n_types * n_markers]] = np.repeat(np.arange(n_types), n_markers)
    base = rng.normal(0.0, 1.2, n_genes)
    # Markers are steady within a type; other genes carry its programmes.
    reach = np.where(marks >= 0, 0.15, rng.gamma(2.0, 0.22, n_genes))
    parts = []
    for kind in range(n_types):
        loadings = rng.normal(0, 1, (PROGRAMMES, n_genes)) * reach / np.sqrt(PROGRAMMES)
        state = rng.normal(0, 1, (n_cells, PROGRAMMES))
        log = base + rng.normal(0, 0.08, n_genes) + (marks == kind) * rng.uniform(1.5, 3.0, n_genes) + state @ loadings
        share = np.exp(log + rng.normal(0, 0.1, log.shape))
        mean = share / share.sum(axis=1, keepdims=True) * (LIBRARY * rng.lognormal(0, 0.3, (n_cells, 1)))
        parts.append(rng.poisson(mean * rng.gamma(1 / DISPERSION, DISPERSION, mean.shape)))
    names = [f"type{i}" for i in range(n_types)]
    obs = pd.DataFrame(
        {TYPE: pd.Categorical(np.repeat(names, n_cells))}, index=[f"cell{i}" for i in range(n_types * n_cells)]
    )
    var = pd.DataFrame(
        {"marks": ["" if m < 0 else names[m] for m in marks]}, index=[f"GENE{g}" for g in range(n_genes)]
    )
    return AnnData(csr_matrix(np.concatenate(parts).astype(np.float32)), obs=obs, var=var)
